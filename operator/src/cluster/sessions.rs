//! Declared sessions by UID and by namespace: kube's stores would have to be searched.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{PoisonError, RwLock};

use croft_crds::AgentSession;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;

use crate::session::{WorkersHelp, workers_help};

/// Fed by the watch; every look-up takes the same time however many sessions there are.
#[derive(Default)]
pub struct SessionIndex {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    by_uid: HashMap<String, ObjectRef<AgentSession>>,
    by_namespace: HashMap<String, Names>,
}

/// The sessions of one namespace.
#[derive(Default)]
struct Names {
    all: HashSet<String>,
    /// Those that wait for their session to be opened, and when they were declared: few or none, where there may be very many in all.
    waiting: HashMap<String, Timestamp>,
    /// Those of them that any worker may help, and that have not been taken to be tried; the oldest first.
    for_workers: BTreeSet<(Timestamp, String)>,
    /// The same of those whom workers may help that have what the others lacked. They must not keep the turns of those above.
    for_other_workers: BTreeSet<(Timestamp, String)>,
}

impl Names {
    fn forget_waiting(&mut self, name: &str) {
        if let Some(declared) = self.waiting.remove(name) {
            let one = (declared, name.to_owned());
            self.for_workers.remove(&one);
            self.for_other_workers.remove(&one);
        }
    }

    fn offer(&mut self, session: &AgentSession, declared: Timestamp) {
        let one = (declared, session.name_any());
        match workers_help(session.status.as_ref()) {
            WorkersHelp::Any => self.for_workers.insert(one),
            WorkersHelp::Other => self.for_other_workers.insert(one),
            WorkersHelp::None => false,
        };
    }
}

impl SessionIndex {
    /// Takes in what the object is now.
    pub fn put(&self, session: &AgentSession) {
        let (Some(uid), Some(namespace)) = (session.uid(), session.namespace()) else { return };
        let status = session.status.as_ref();
        let waits = status.is_none_or(|status| {
            status.session_id.is_none() && !status.phase.is_some_and(croft_crds::session::SessionPhase::is_final)
        });
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.by_uid.insert(uid, ObjectRef::from_obj(session));
        let names = inner.by_namespace.entry(namespace).or_default();
        let name = session.name_any();
        names.forget_waiting(&name);
        names.all.insert(name.clone());
        if waits {
            let declared = session.creation_timestamp().map(|time| time.0).unwrap_or_default();
            names.offer(session, declared);
            names.waiting.insert(name, declared);
        }
    }

    /// Forgets the object.
    pub fn remove(&self, session: &AgentSession) {
        let (Some(uid), Some(namespace)) = (session.uid(), session.namespace()) else { return };
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.by_uid.remove(&uid);
        let Some(names) = inner.by_namespace.get_mut(&namespace) else { return };
        names.all.remove(&session.name_any());
        names.forget_waiting(&session.name_any());
        if names.all.is_empty() {
            inner.by_namespace.remove(&namespace);
        }
    }

    /// Forgets an object whose name another one has taken.
    pub fn remove_uid(&self, session: &AgentSession) {
        let Some(uid) = &session.metadata.uid else { return };
        self.inner.write().unwrap_or_else(PoisonError::into_inner).by_uid.remove(uid);
    }

    /// The object with this UID.
    pub fn by_uid(&self, uid: &str) -> Option<ObjectRef<AgentSession>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).by_uid.get(uid).cloned()
    }

    /// All that are declared in a namespace.
    pub fn within(&self, namespace: &str) -> Vec<ObjectRef<AgentSession>> {
        self.named(namespace, |names| names.all.iter().collect())
    }

    /// Those in a namespace that wait for their session to be opened.
    pub fn waiting(&self, namespace: &str) -> Vec<ObjectRef<AgentSession>> {
        self.named(namespace, |names| names.waiting.keys().collect())
    }

    /// Takes so many of [`waiting`](Self::waiting) to be tried, the oldest first, that a worker may help, and as many that it may help if it
    /// has what the others lacked. None is taken again until it is [put back](Self::put_back), or its status changes.
    pub fn take_for_workers(&self, namespace: &str, count: u32) -> Vec<ObjectRef<AgentSession>> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(names) = inner.by_namespace.get_mut(namespace) else { return Vec::new() };
        let taken: Vec<_> = (0..count).map_while(|_| names.for_workers.pop_first()).collect();
        let others: Vec<_> = (0..count).map_while(|_| names.for_other_workers.pop_first()).collect();
        taken.into_iter().chain(others).map(|(_, name)| ObjectRef::new(&name).within(namespace)).collect()
    }

    /// It was tried, and waits as before.
    pub fn put_back(&self, session: &AgentSession) {
        let (name, namespace) = (session.name_any(), session.namespace().unwrap_or_default());
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(names) = inner.by_namespace.get_mut(&namespace) else { return };
        if let Some(declared) = names.waiting.get(&name).copied() {
            names.offer(session, declared);
        }
    }

    fn named(&self, namespace: &str, which: impl Fn(&Names) -> Vec<&String>) -> Vec<ObjectRef<AgentSession>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let names = inner.by_namespace.get(namespace).map(which).into_iter().flatten();
        names.map(|name| ObjectRef::new(name).within(namespace)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn session(name: &str, uid: &str, status: &serde_json::Value) -> AgentSession {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "tenant-heron", "uid": uid },
            "spec": { "agent": { "model": "scripted-1" } },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn sessions_are_found_by_uid_and_by_whether_they_wait() {
        let index = SessionIndex::default();
        index.put(&session("new", "1", &json!(null)));
        index.put(&session("open", "2", &json!({ "phase": "Ready", "sessionID": "0190" })));
        index.put(&session("failed", "3", &json!({ "phase": "Failed" })));
        assert_eq!(index.by_uid("2").unwrap().name, "open");
        assert_eq!(index.waiting("tenant-heron").len(), 1);
        assert_eq!(index.within("tenant-heron").len(), 3);
        assert!(index.within("tenant-egret").is_empty());
        index.put(&session("new", "1", &json!({ "phase": "Ready", "sessionID": "0191" })));
        assert!(index.waiting("tenant-heron").is_empty());
    }

    #[test]
    fn another_worker_helps_none_that_a_limit_keeps_waiting() {
        let index = SessionIndex::default();
        let waits = |reason: &str| {
            let time = "2026-01-01T00:00:00Z";
            let ready = json!({
                "type": "Ready", "status": "False", "reason": reason, "message": "", "lastTransitionTime": time,
            });
            json!({ "phase": "Pending", "conditions": [ready] })
        };
        let helped = || {
            let taken = index.take_for_workers("tenant-heron", 9);
            for one in &taken {
                index.put_back(&session(&one.name, "", &json!(null)));
            }
            taken.into_iter().map(|taken| taken.name)
        };
        index.put(&session("new", "1", &json!(null)));
        index.put(&session("early", "2", &waits("FrontUnavailable")));
        index.put(&session("full", "3", &waits("LimitReached")));
        assert_eq!(helped().collect::<HashSet<_>>(), HashSet::from(["new".to_owned(), "early".to_owned()]));
        assert_eq!(index.waiting("tenant-heron").len(), 3);
        index.put(&session("full", "3", &waits("WorkersLack")));
        assert_eq!(helped().count(), 3);
        index.put(&session("full", "3", &waits("ModelNotFound")));
        assert_eq!(helped().count(), 2, "no worker registers models");
        index.put(&session("full", "3", &waits("LimitReached")));
        index.remove(&session("full", "3", &json!(null)));
        index.put(&session("full", "4", &json!(null)));
        assert_eq!(helped().count(), 3, "one of an old name has nothing of it");
    }

    /// Once, each time that a worker became ready all were tried at once.
    #[test]
    fn no_more_are_tried_for_a_worker_than_it_takes_and_the_oldest_first() {
        let index = SessionIndex::default();
        let mut sessions = Vec::new();
        for (name, declared) in [("third", 3), ("first", 1), ("second", 2)] {
            let mut one = session(name, name, &json!(null));
            one.metadata.creation_timestamp =
                serde_json::from_value(json!(format!("2026-01-01T00:00:0{declared}Z"))).unwrap();
            index.put(&one);
            sessions.push(one);
        }
        let taken = |count| {
            let taken = index.take_for_workers("tenant-heron", count);
            taken.into_iter().map(|taken| taken.name).collect::<Vec<_>>()
        };
        assert_eq!(taken(2), ["first", "second"]);
        assert_eq!(taken(2), ["third"], "the others are being tried");
        index.put_back(&sessions[1]);
        assert_eq!(taken(2), ["first"]);
        index.put(&session("second", "second", &json!({ "phase": "Ready", "sessionID": "0190" })));
        index.put_back(&sessions[2]);
        assert_eq!(taken(2), [""; 0], "it has been opened");
    }

    #[test]
    fn who_lacks_something_keeps_nobodys_turn() {
        let index = SessionIndex::default();
        let time = "2026-01-01T00:00:00Z";
        let lack = json!({
            "type": "Ready", "status": "False", "reason": "WorkersLack", "message": "", "lastTransitionTime": time,
        });
        let lacks = json!({ "phase": "Pending", "conditions": [lack] });
        index.put(&session("a-lacking", "1", &lacks));
        index.put(&session("b-lacking", "2", &lacks));
        index.put(&session("c-waiting", "3", &json!(null)));
        let taken = index.take_for_workers("tenant-heron", 1);
        let names: Vec<_> = taken.iter().map(|taken| taken.name.as_str()).collect();
        assert_eq!(names, ["c-waiting", "a-lacking"]);
    }

    #[test]
    fn nothing_is_left_of_what_is_gone() {
        let index = SessionIndex::default();
        let one = session("new", "1", &json!(null));
        index.put(&one);
        index.remove(&one);
        let inner = index.inner.read().unwrap();
        assert!(inner.by_uid.is_empty() && inner.by_namespace.is_empty());
    }
}
