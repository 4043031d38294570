//! What the fronts have told of declared sessions, by tenant and UID of the AgentSession.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_crds::{AgentSession, labels};
use croft_proto::v1::Session;
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::known::Known;

/// An AgentSession by its namespace and UID. The UID alone says too little: what a session of one tenant says that it was made for
/// must never be taken for an object of another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Declared {
    pub(super) namespace: String,
    pub(super) uid: String,
}

impl Declared {
    pub(super) fn is(object: &AgentSession) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), uid: object.uid().unwrap_or_default() }
    }

    /// What a session was made for, if for anything.
    pub(super) fn of(session: &Session) -> Option<Self> {
        let uid = session.labels.get(labels::AGENT_SESSION_UID)?.clone();
        Some(Self { namespace: labels::tenant_namespace(&session.tenant), uid })
    }
}

/// The newest word on each declared session. Only the replica that writes listens, so only it has any.
#[derive(Default)]
pub struct Told {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_object: HashMap<Declared, Known>,
    /// When we last wrote the status.
    written: HashMap<Declared, Instant>,
    is_whole: bool,
}

impl Told {
    /// The newest word on the session of this object.
    pub(super) fn of(&self, object: &Declared) -> Option<Known> {
        self.inner().by_object.get(object).cloned()
    }

    /// Whether a session that nothing is told of is a session that the fronts don't have.
    pub(super) fn is_whole(&self) -> bool {
        self.inner().is_whole
    }

    /// Says whether this is news.
    pub(super) fn tell(&self, object: &Declared, known: &Known) -> bool {
        self.inner().by_object.insert(object.clone(), known.clone()).is_none_or(|before| before != *known)
    }

    /// A picture is complete that named just these.
    pub(super) fn complete(&self, named: &HashSet<Declared>) {
        let mut inner = self.inner();
        inner.by_object.retain(|object, _| named.contains(object));
        inner.is_whole = true;
    }

    /// Nothing follows for this object.
    pub(super) fn forget(&self, object: &Declared) {
        let mut inner = self.inner();
        inner.by_object.remove(object);
        inner.written.remove(object);
    }

    /// The status has just been written.
    pub(super) fn wrote(&self, object: &Declared) {
        self.inner().written.insert(object.clone(), Instant::now());
    }

    /// How long ago the status was written, if we wrote it.
    pub(super) fn written_ago(&self, object: &Declared) -> Option<Duration> {
        self.inner().written.get(object).map(Instant::elapsed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_again_is_no_news_and_a_picture_replaces_what_was() {
        let told = Told::default();
        let known = |last_seq| Known::of(&Session { last_seq, ..Session::default() });
        let of =
            |tenant: &str, uid: &str| Declared { namespace: labels::tenant_namespace(tenant), uid: uid.to_owned() };
        let [heron, egret] = [of("heron", "1"), of("egret", "2")];
        assert!(told.tell(&heron, &known(1)));
        assert!(!told.tell(&heron, &known(1)));
        assert!(told.tell(&heron, &known(2)));
        assert!(told.tell(&egret, &known(1)));
        assert!(!told.is_whole());
        told.complete(&HashSet::from([egret.clone()]));
        assert!(told.is_whole());
        assert_eq!(told.of(&heron), None);
        assert_eq!(told.of(&egret), Some(known(1)));
        assert_eq!(told.of(&of("heron", "2")), None, "of a UID alone nothing is known");
    }
}
