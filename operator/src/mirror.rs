//! A warm copy of one kind, kept by a watch, that says what changed.

mod copies;
#[cfg(test)]
mod fixtures;
mod readable;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Resource;
use kube::api::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::de::DeserializeOwned;

use croft_serve::Tasks;

use crate::ownership;

pub(crate) use copies::{Copies, Fate, StatusChange};
use readable::Readable;
pub(crate) use readable::{Reader, Unreadable, is_in_part, mark_in_part};

/// A watch that is silent for longer is made anew, as some other part of the network may have dropped it unheard. The next
/// one goes on where it was.
pub(crate) const SILENCE_MAX_SECONDS: u32 = 20;
/// How long a watch may be silent that the API server should have ended by then: kube waits for so much longer.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(SILENCE_MAX_SECONDS as u64 + 5);
/// Objects in one answer to a list. All kinds are listed at the same time when the operator starts, and what is in memory then
/// stays with the process: with kube's 500 it was more than all copies.
const PAGE: u32 = 50;
/// The same of objects that may have a megabyte each, of which little is kept.
pub(crate) const PAGE_OF_LONG: u32 = 20;
/// Between two tries to watch.
const AGAIN_MIN: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(8);
/// The longest pause there is between them, with all of its chance.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(2 * AGAIN_MAX.as_secs());

/// The pauses between tries to watch: short at first, as most breaks are.
pub(crate) fn again() -> watcher::ExponentialBackoff {
    let pauses = backon::ExponentialBuilder::default().with_min_delay(AGAIN_MIN).with_max_delay(AGAIN_MAX);
    pauses.with_jitter().without_max_times().into()
}

/// What became of one object.
pub(crate) enum Change<K> {
    /// It is new or different; `old` is what it was, if it was known.
    Is { old: Option<Arc<K>>, new: Arc<K> },
    /// It is gone; this is what it was, with the version that its deletion gave, or without one if nobody saw it go.
    Gone(Arc<K>),
}

impl<K> Change<K> {
    /// The object as it is, or as it last was.
    pub(crate) fn object(&self) -> &K {
        match self {
            Self::Is { new, .. } => new,
            Self::Gone(old) => old,
        }
    }
}

/// Copies what `config` finds, in a task of its own until shutdown.
///
/// `on_change` is called after the copy has changed. After a break of the watch it is called for every object there is,
/// and for those that went meanwhile, so nothing is missed, though something may be told twice.
pub(crate) fn start<K>(
    tasks: &Tasks,
    task_name: &'static str,
    api: Api<Readable<K>>,
    config: watcher::Config,
    objects: Reader<K>,
    on_change: impl Fn(Change<K>) + Send + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    start_slim(tasks, task_name, api, config, objects, |_| (), on_change)
}

/// [`start`], with objects of which `slim` has taken away what shall not be kept.
pub(crate) fn start_slim<K>(
    tasks: &Tasks,
    task_name: &'static str,
    api: Api<Readable<K>>,
    config: watcher::Config,
    mut objects: Reader<K>,
    slim: impl Fn(&mut K) + Send + 'static,
    on_change: impl Fn(Change<K>) + Send + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, mut writer) = reflector::store();
    let reader: Store<K> = store.clone();
    follow(tasks, task_name, api, config, move |event| {
        let Some(mut event) = objects.read(event, &reader) else { return };
        if let watcher::Event::Apply(object) | watcher::Event::InitApply(object) = &mut event {
            slim(object);
        }
        take(&reader, &mut writer, &event, &on_change);
    });
    store
}

/// Hands on what the watch tells of the objects that `config` finds, in a task of its own until shutdown.
fn follow<K>(
    tasks: &Tasks,
    task_name: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut take: impl FnMut(watcher::Event<K>) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let page = config.page_size.map_or(PAGE, |page| page.min(PAGE));
    let events = watcher(api, config.timeout(SILENCE_MAX_SECONDS).page_size(page)).backoff(again());
    let stopping = tasks.stopping();
    let follow = async move {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let mut event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), error = &error as &dyn std::error::Error, "watch broken");
                    continue;
                }
            };
            if let watcher::Event::Apply(object) | watcher::Event::InitApply(object) = &mut event {
                ownership::keep_note(&mut object.meta_mut().managed_fields);
            }
            take(event);
        }
    };
    tasks.spawn_endless(task_name, async move { stopping.run_until_cancelled(follow).await });
}

fn take<K>(
    reader: &Store<K>,
    writer: &mut reflector::store::Writer<K>,
    event: &watcher::Event<K>,
    on_change: &impl Fn(Change<K>),
) where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    match event {
        watcher::Event::Apply(object) => {
            let old = reader.get(&ObjectRef::from_obj(object));
            writer.apply_watcher_event(event);
            on_change(Change::Is { old, new: Arc::new(object.clone()) });
        }
        watcher::Event::Delete(object) => {
            writer.apply_watcher_event(event);
            on_change(Change::Gone(Arc::new(object.clone())));
        }
        watcher::Event::InitDone => {
            let before = reader.state();
            writer.apply_watcher_event(event);
            let mut before: HashMap<ObjectRef<K>, Arc<K>> =
                before.into_iter().map(|object| (ObjectRef::from_obj(&*object), object)).collect();
            for new in reader.state() {
                on_change(Change::Is { old: before.remove(&ObjectRef::from_obj(&*new)), new });
            }
            for gone in before.into_values() {
                // It went at a later version than that of the copy.
                let mut gone = Arc::unwrap_or_clone(gone);
                gone.meta_mut().resource_version = None;
                on_change(Change::Gone(Arc::new(gone)));
            }
        }
        watcher::Event::Init | watcher::Event::InitApply(_) => writer.apply_watcher_event(event),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use croft_crds::AgentTenant;
    use croft_crds::tenant::AgentTenantSpec;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt as _;
    use kube::api::ObjectList;
    use prometheus::IntGauge;
    use serde_json::json;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::fixtures::named;
    use super::*;

    /// As a list of the API server has them; none can be read whose tier this release does not know.
    fn tenants(tiers: &[(&str, &str)]) -> Vec<Readable<AgentTenant>> {
        let object = |&(name, tier): &(&str, &str)| {
            json!({
                "apiVersion": "croft.dev/v1alpha1", "kind": "AgentTenant",
                "metadata": { "name": name, "uid": format!("uid-of-{name}"), "resourceVersion": "1" },
                "spec": { "tier": tier },
            })
        };
        let items: Vec<_> = tiers.iter().map(object).collect();
        let list =
            json!({ "apiVersion": "croft.dev/v1alpha1", "kind": "AgentTenantList", "metadata": {}, "items": items });
        serde_json::from_value::<ObjectList<Readable<AgentTenant>>>(list).unwrap().items
    }

    #[test]
    fn an_object_that_cant_be_read_stops_no_other_and_is_not_taken_for_gone() {
        let (store, mut writer) = reflector::store();
        let gauge = IntGauge::new("unreadable", "How many.").unwrap();
        let salvage = |unreadable: &Unreadable, _: Option<&AgentTenant>| {
            let mut tenant = AgentTenant::new("", AgentTenantSpec::default());
            tenant.metadata = unreadable.metadata.clone();
            (unreadable.metadata.name.as_deref() != Some("lost")).then_some(tenant)
        };
        let mut reader = Reader::new(salvage, gauge.clone());
        let told = RefCell::new(Vec::new());
        let on_change = |change: Change<AgentTenant>| {
            let is_gone = matches!(change, Change::Gone(_));
            told.borrow_mut().push((change.object().name_any(), is_gone, is_in_part(change.object())));
        };
        let mut feed = |events: Vec<watcher::Event<Readable<AgentTenant>>>| {
            for event in events {
                if let Some(event) = reader.read(event, &store) {
                    take(&store, &mut writer, &event, &on_change);
                }
            }
            let mut told = told.take();
            told.sort();
            (told, gauge.get())
        };
        let listed = |tiers: &[(&str, &str)]| {
            let objects = tenants(tiers).into_iter().map(InitApply);
            [Init].into_iter().chain(objects).chain([InitDone]).collect::<Vec<_>>()
        };
        let is = |name: &str, in_part: bool| (name.to_owned(), false, in_part);
        let gone = |name: &str, in_part: bool| (name.to_owned(), true, in_part);
        let (heron, lost) = ("heron", "lost");
        assert_eq!(feed(vec![]), (vec![], 0));
        let all = feed(listed(&[("egret", "free"), (heron, "later"), (lost, "later")]));
        assert_eq!(all, (vec![is("egret", false), is(heron, false)], 2), "a watch of all the others goes on");
        let mut change = |name: &str, tier: &str| feed(vec![Apply(tenants(&[(name, tier)]).remove(0))]);
        assert_eq!(change(heron, "free"), (vec![is(heron, false)], 1));
        assert_eq!(change(lost, "free"), (vec![is(lost, false)], 0));
        assert_eq!(change(lost, "later"), (vec![is(lost, true)], 1), "what it was stays, and is marked");
        assert_eq!(feed(listed(&[(lost, "later")])).1, 1);
        let deleted = tenants(&[(lost, "later")]).remove(0);
        assert_eq!(feed(vec![Delete(deleted)]), (vec![gone(lost, true)], 0));
    }

    #[test]
    fn what_went_while_the_watch_was_broken_is_told() {
        let (reader, mut writer) = reflector::store();
        let told = RefCell::new(Vec::new());
        let version = |text: &str| Some(text.to_owned());
        let on_change = |change: Change<ConfigMap>| {
            let name = change.object().name_any();
            let (old, new) = match change {
                Change::Is { old, new } => (old.and_then(|old| old.resource_version()), new.resource_version()),
                Change::Gone(old) => (old.resource_version().or_else(|| version("unseen")), None),
            };
            told.borrow_mut().push((name, old, new));
        };
        let mut feed = |events: Vec<watcher::Event<ConfigMap>>| {
            for event in events {
                take(&reader, &mut writer, &event, &on_change);
            }
            let mut told = told.take();
            told.sort();
            told
        };
        assert_eq!(
            feed(vec![Init, InitApply(named("a", "1")), InitApply(named("b", "1")), InitDone]),
            [("a".into(), None, version("1")), ("b".into(), None, version("1"))]
        );
        assert_eq!(feed(vec![Apply(named("a", "2"))]), [("a".into(), version("1"), version("2"))]);
        assert_eq!(
            feed(vec![Init, InitApply(named("b", "1")), InitDone]),
            [("a".into(), version("unseen"), None), ("b".into(), version("1"), version("1"))]
        );
        assert_eq!(feed(vec![Delete(named("b", "3"))]), [("b".into(), version("3"), None)]);
    }
}
