//! Warm copies of objects that are many and seldom looked at: kept as JSON, of which one is made when someone asks.
//!
//! A typed Deployment is some twenty kilobytes of mostly absent fields, its JSON is three. A tenant has a dozen children,
//! so this is most of what the operator has in memory.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock};

use croft_serve::Tasks;
use kube::ResourceExt as _;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::writes::Object;

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is new or different.
    Is,
    /// Nothing is different, as when a watch that is made anew tells everything again; or, of kinds whose copies are started so,
    /// nothing but the status.
    Status,
    /// It is gone; this is what it was, with the version that its deletion gave, or without one if nobody saw it go.
    Gone,
}

/// How a change of nothing but an object's status is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusChange {
    /// As any other.
    AsAny,
    /// As [`Fate::Status`], which takes a look at all of the object.
    Apart,
}

/// The copies of one kind. Clones share them.
pub struct Copies<K> {
    shared: Arc<Shared>,
    status_change: StatusChange,
    kind: PhantomData<fn() -> K>,
}

#[derive(Default)]
struct Shared {
    /// By [`key`].
    objects: RwLock<HashMap<String, Packed>>,
    whole: CancellationToken,
}

struct Packed {
    version: Option<Box<str>>,
    /// In seconds since 1970.
    created: Option<i64>,
    json: Box<[u8]>,
}

impl<K> Clone for Copies<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), status_change: self.status_change, kind: PhantomData }
    }
}

impl<K: Object> Copies<K> {
    /// Copies what `config` finds, in a task of its own until shutdown.
    ///
    /// `on_change` is called after the copy has changed. After a break of the watch it is called for every object there
    /// is, and for those that went meanwhile, so nothing is missed, though something may be told twice.
    pub(crate) fn start(
        tasks: &Tasks,
        task_name: &'static str,
        api: Api<K>,
        config: watcher::Config,
        status_change: StatusChange,
        on_change: impl Fn(&K, Fate) + Send + 'static,
    ) -> Self {
        let copies = Self::empty(status_change);
        let (taker, mut listed) = (copies.clone(), HashSet::new());
        super::follow(tasks, task_name, api, config, move |event| taker.take(&event, &mut listed, &on_change));
        copies
    }

    fn empty(status_change: StatusChange) -> Self {
        Self { shared: Arc::default(), status_change, kind: PhantomData }
    }

    /// Waits until all there are have been copied.
    pub(crate) async fn whole(&self) {
        self.shared.whole.cancelled().await;
    }

    /// One object, as the watch last told it.
    pub(crate) fn get(&self, namespace: Option<&str>, name: &str) -> Option<K> {
        let objects = self.shared.objects.read().unwrap_or_else(PoisonError::into_inner);
        Some(unpack(&objects.get(&key(namespace, name))?.json))
    }

    /// The version of one object, which costs next to nothing.
    pub(crate) fn version(&self, namespace: Option<&str>, name: &str) -> Option<String> {
        let objects = self.shared.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&key(namespace, name))?.version.as_deref().map(str::to_owned)
    }

    /// When one object was made, in seconds since 1970, which costs next to nothing too.
    pub(crate) fn created(&self, namespace: Option<&str>, name: &str) -> Option<i64> {
        let objects = self.shared.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&key(namespace, name))?.created
    }

    fn take(&self, event: &Event<K>, listed: &mut HashSet<String>, on_change: &impl Fn(&K, Fate)) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.insert(key_of(object));
                self.put(object, on_change);
            }
            Event::Apply(object) => self.put(object, on_change),
            Event::Delete(object) => {
                self.remove(&key_of(object));
                on_change(object, Fate::Gone);
            }
            Event::InitDone => {
                for mut object in self.unlisted(listed) {
                    self.remove(&key_of(&object));
                    // It went at a later version than that of the copy.
                    object.meta_mut().resource_version = None;
                    on_change(&object, Fate::Gone);
                }
                *listed = HashSet::new();
                self.shared.whole.cancel();
            }
        }
    }

    fn put(&self, object: &K, on_change: &impl Fn(&K, Fate)) {
        let json = serde_json::to_vec(object).expect("an object of Kubernetes is plain data").into_boxed_slice();
        let now = (self.status_change == StatusChange::Apart).then(|| but_status(&json));
        let version = object.resource_version().map(String::into_boxed_str);
        let packed = Packed { version, created: object.creation_timestamp().map(|time| time.0.as_second()), json };
        let before = self.shared.objects.write().unwrap_or_else(PoisonError::into_inner).insert(key_of(object), packed);
        let is_status = before.is_some_and(|before| {
            before.version.as_deref() == object.meta().resource_version.as_deref()
                || now.is_some_and(|now| but_status(&before.json) == now)
        });
        on_change(object, if is_status { Fate::Status } else { Fate::Is });
    }

    fn remove(&self, key: &str) {
        self.shared.objects.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn unlisted(&self, listed: &HashSet<String>) -> Vec<K> {
        let objects = self.shared.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.iter().filter(|(key, _)| !listed.contains(*key)).map(|(_, packed)| unpack(&packed.json)).collect()
    }
}

fn unpack<K: DeserializeOwned>(packed: &[u8]) -> K {
    serde_json::from_slice(packed).expect("it was packed from such an object")
}

/// What is left when others' reports are taken away, and the version, which moves with them.
fn but_status(packed: &[u8]) -> Value {
    let mut object: Value = unpack(packed);
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
        }
    }
    object
}

fn key_of(object: &impl kube::Resource) -> String {
    key(object.meta().namespace.as_deref(), &object.name_any())
}

fn key(namespace: Option<&str>, name: &str) -> String {
    format!("{}/{name}", namespace.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use Event::{Apply, Delete, Init, InitApply, InitDone};
    use k8s_openapi::api::core::v1::{ConfigMap, ResourceQuota};
    use serde_json::json;

    use super::*;
    use crate::mirror::fixtures::named;
    use crate::recent::Recent;

    #[test]
    fn what_went_while_the_watch_was_broken_is_told() {
        let (copies, told) = (Copies::empty(StatusChange::Apart), RefCell::new(Vec::new()));
        let mut listed = HashSet::new();
        let on_change = |object: &ConfigMap, fate| {
            told.borrow_mut().push((object.name_any(), object.resource_version().unwrap_or_default(), fate));
        };
        let mut feed = |events: Vec<Event<ConfigMap>>| {
            for event in &events {
                copies.take(event, &mut listed, &on_change);
            }
            told.take()
        };
        let is = |name: &str, version: &str| (name.to_owned(), version.to_owned(), Fate::Is);
        let same = |name: &str, version: &str| (name.to_owned(), version.to_owned(), Fate::Status);
        let gone = |name: &str, version: &str| (name.to_owned(), version.to_owned(), Fate::Gone);
        assert_eq!(
            feed(vec![Init, InitApply(named("a", "1")), InitApply(named("b", "1")), InitDone]),
            [is("a", "1"), is("b", "1")]
        );
        assert_eq!(feed(vec![Apply(named("a", "2"))]), [same("a", "2")]);
        assert_eq!(feed(vec![Init, InitApply(named("b", "1")), InitDone]), [same("b", "1"), gone("a", "")]);
        assert_eq!(feed(vec![Delete(named("b", "3"))]), [gone("b", "3")]);
        assert_eq!(copies.get(Some("tenant-heron"), "b"), None);
    }

    #[test]
    fn no_note_of_ours_outlives_what_went_while_the_watch_was_broken() {
        let (copies, recent) = (Copies::empty(StatusChange::AsAny), Recent::default());
        let mut listed = HashSet::new();
        let on_change = |object: &ConfigMap, fate| {
            if fate == Fate::Gone {
                recent.forget(&object.name_any(), object.metadata.resource_version.as_deref());
            }
        };
        copies.take(&Apply(named("a", "1")), &mut listed, &on_change);
        recent.remember("a".to_owned(), Some("2"), "written, and not told of any more");
        for event in [Init, InitDone] {
            copies.take(&event, &mut listed, &on_change);
        }
        assert_eq!(recent.newer_than("a", None), None);
    }

    #[test]
    fn a_change_of_nothing_but_the_status_is_told_as_such() {
        let told = RefCell::new(Vec::new());
        let copies = Copies::empty(StatusChange::Apart);
        let take = |version: &str, used: &str, hard: &str| {
            let quota: ResourceQuota = serde_json::from_value(json!({
                "metadata": { "name": "tenant", "namespace": "tenant-heron", "resourceVersion": version },
                "spec": { "hard": { "pods": hard } },
                "status": { "used": { "pods": used } },
            }))
            .unwrap();
            copies.take(&Apply(quota), &mut HashSet::new(), &|_, fate| told.borrow_mut().push(fate));
        };
        for (version, used, hard) in [("1", "0", "5"), ("2", "1", "5"), ("3", "1", "6"), ("4", "1", "6")] {
            take(version, used, hard);
        }
        assert_eq!(told.take(), [Fate::Is, Fate::Status, Fate::Is, Fate::Status]);
        assert_eq!(copies.get(Some("tenant-heron"), "tenant").unwrap().resource_version().as_deref(), Some("4"));
    }

    #[tokio::test]
    async fn an_object_comes_back_as_it_was_told_once_all_are_there() {
        let copies = Copies::empty(StatusChange::Apart);
        let mut listed = HashSet::new();
        copies.take(&InitApply(named("a", "1")), &mut listed, &|_, _| {});
        assert!(!copies.shared.whole.is_cancelled());
        copies.take(&InitDone, &mut listed, &|_, _| {});
        copies.whole().await;
        assert_eq!(copies.get(Some("tenant-heron"), "a"), Some(named("a", "1")));
        assert_eq!(copies.get(None, "a"), None);
    }
}
