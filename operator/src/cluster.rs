//! The cluster as the watches last told it: warm copies on every replica, with an index of our own where kube's stores
//! would have to be searched.

mod salvage;
mod sessions;
mod slim;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentTenant, labels};
use croft_serve::Tasks;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, Pod, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::Api;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt as _};
use prometheus::IntGauge;
use tokio::sync::OnceCell;

use crate::freshness::{Freshness, Purpose};
use crate::marks::Marks;
use crate::metrics::Metrics;
use crate::mirror::{self, Change, Copies, Fate, Reader, StatusChange};
use crate::recent::Recent;
use crate::rollouts::Rollouts;
use crate::session::Bereaved;
use crate::tenant::{PLATFORM_KEYS, PULL_CREDENTIALS, Tiers, sessions_per_worker};
use crate::worker::{Worker, tenant_of};
use crate::writes::Object;

pub use sessions::SessionIndex;

/// What children of tenants are found by.
pub(crate) const CHILDREN: &str = "app.kubernetes.io/managed-by=croft,croft.dev/tenant";
const WORKERS: &str = "app.kubernetes.io/component=worker,croft.dev/tenant";

/// What has changed, for whoever acts on it.
#[derive(Clone)]
pub struct Changes {
    /// Tenants to reconcile, by name.
    pub tenants: Marks<String>,
    /// Tenants of which something has changed that an emergency stop takes away, by name, whether they are stopped or not.
    pub stops: Marks<String>,
    /// Tenants whose routes may be different, by name.
    pub routes: Marks<String>,
    /// Declared sessions to reconcile.
    pub sessions: Marks<ObjectRef<AgentSession>>,
    /// AgentSessions that have been deleted.
    pub bereaved: Marks<Bereaved>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            tenants: Marks::shut(),
            stops: Marks::shut(),
            routes: Marks::new(),
            sessions: Marks::shut(),
            bereaved: Marks::shut(),
        }
    }
}

impl Changes {
    /// Keeps what only the replica that writes acts on.
    pub(crate) fn open(&self) {
        let Self { tenants, stops, routes: _, sessions, bereaved } = self;
        tenants.open();
        stops.open();
        sessions.open();
        bereaved.open();
    }
}

/// Warm copies. They are whole once [`Cluster::synced`] has returned.
pub struct Cluster {
    pub tenants: Store<AgentTenant>,
    /// Without what nobody reads of them here, the agent before all.
    pub sessions: Store<AgentSession>,
    namespaces: Copies<Namespace>,
    quotas: Copies<ResourceQuota>,
    limit_ranges: Copies<LimitRange>,
    fences: Copies<NetworkPolicy>,
    service_accounts: Copies<ServiceAccount>,
    roles: Copies<Role>,
    role_bindings: Copies<RoleBinding>,
    config_maps: Copies<ConfigMap>,
    secrets: Copies<Secret>,
    deployments: Copies<Deployment>,
    services: Copies<Service>,
    budgets: Copies<PodDisruptionBudget>,
    pods: Copies<Pod>,
    workers: Arc<WorkerIndex>,
    /// Declared sessions, by what they are looked for.
    pub session_index: Arc<SessionIndex>,
    /// What we last applied, by [`child_key`].
    pub applied: Arc<Recent<Applied>>,
    /// Whose workers are being exchanged for the platform's sake, and whose wait.
    pub(crate) rollouts: Arc<Rollouts>,
    pub changes: Changes,
    /// Set once all copies are whole. A store wakes only one of several that wait for it, so they wait here.
    whole: OnceCell<()>,
}

/// What we have applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The hash of it, or a word that is no hash.
    pub(crate) hash: String,
    /// The UID of the namespace that it went into, as it was told by then.
    pub(crate) namespace_uid: Option<String>,
}

/// A kind of which children are made and copied.
pub trait Kept: Object {
    fn copies(cluster: &Cluster) -> &Copies<Self>;
}

macro_rules! kept {
    ($($kind:ty => $field:ident),* $(,)?) => {
        $(impl Kept for $kind {
            fn copies(cluster: &Cluster) -> &Copies<Self> {
                &cluster.$field
            }
        })*
    };
}

kept! {
    Namespace => namespaces,
    ResourceQuota => quotas,
    LimitRange => limit_ranges,
    NetworkPolicy => fences,
    ServiceAccount => service_accounts,
    Role => roles,
    RoleBinding => role_bindings,
    ConfigMap => config_maps,
    Secret => secrets,
    Deployment => deployments,
    Service => services,
    PodDisruptionBudget => budgets,
}

impl Cluster {
    /// Starts the watches; they run until shutdown.
    pub fn start(client: &Client, freshness: &Freshness, metrics: &Metrics, tiers: &Arc<Tiers>, tasks: &Tasks) -> Self {
        let changes = Changes::default();
        let applied = Arc::new(Recent::default());
        let workers = Arc::new(WorkerIndex::default());
        let session_index = Arc::new(SessionIndex::default());
        let rollouts = Arc::new(Rollouts::new(changes.tenants.clone(), metrics.clone()));
        let watch = Watch {
            client,
            freshness,
            metrics,
            tasks,
            changes: &changes,
            applied: &applied,
            session_index: &session_index,
            rollouts: &rollouts,
        };
        let tenants = watch.tenants();
        Self {
            pods: watch.workers(&workers, &tenants, tiers),
            tenants,
            sessions: watch.sessions(),
            namespaces: watch.children("watch-namespaces"),
            quotas: watch.children("watch-quotas"),
            limit_ranges: watch.children("watch-limit-ranges"),
            fences: watch.children("watch-fences"),
            service_accounts: watch.children("watch-service-accounts"),
            roles: watch.children("watch-roles"),
            role_bindings: watch.children("watch-role-bindings"),
            config_maps: watch.children("watch-config-maps"),
            // What the platform lends is not copied here; see [`crate::secrets`].
            secrets: watch.children_but("watch-secrets", &[PLATFORM_KEYS, PULL_CREDENTIALS]),
            deployments: watch.children("watch-deployments"),
            services: watch.children("watch-services"),
            budgets: watch.children("watch-disruption-budgets"),
            workers,
            session_index,
            applied,
            rollouts,
            changes,
            whole: OnceCell::new(),
        }
    }

    /// Waits until every copy is whole.
    pub async fn synced(&self) {
        self.whole.get_or_init(|| self.stores_are_ready()).await;
    }

    async fn stores_are_ready(&self) {
        // Each fails only when its watch has ended, which is at shutdown.
        let _ = tokio::join!(
            self.tenants.wait_until_ready(),
            self.sessions.wait_until_ready(),
            self.namespaces.whole(),
            self.quotas.whole(),
            self.limit_ranges.whole(),
            self.fences.whole(),
            self.service_accounts.whole(),
            self.roles.whole(),
            self.role_bindings.whole(),
            self.config_maps.whole(),
            self.secrets.whole(),
            self.deployments.whole(),
            self.services.whole(),
            self.budgets.whole(),
            self.pods.whole(),
        );
    }

    /// One object of a kind that is copied.
    pub fn get<K: Kept>(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        K::copies(self).get(namespace, name).map(Arc::new)
    }

    /// The version of one object of a kind that is copied.
    pub fn version<K: Kept>(&self, namespace: Option<&str>, name: &str) -> Option<String> {
        K::copies(self).version(namespace, name)
    }

    /// Notes what a write has left of an object.
    pub(crate) fn remember<K: Object>(&self, object: &K, version: Option<&str>, hash: String) {
        let namespace_uid = object.namespace().and_then(|namespace| self.namespace_uid(&namespace));
        self.applied.remember(child_key(object), version, Applied { hash, namespace_uid });
    }

    /// The UID of the namespace of that name.
    pub(crate) fn namespace_uid(&self, name: &str) -> Option<String> {
        self.get::<Namespace>(None, name)?.uid()
    }

    /// Whether the copy may be of an object that went with an older namespace of that name, of which its watch has not told yet. By their
    /// times, which two API servers may have given whose clocks differ.
    pub(crate) fn is_from_before<K: Kept>(&self, namespace: Option<&str>, name: &str) -> bool {
        let Some(namespace) = namespace else { return false };
        let made = self.namespaces.created(None, namespace);
        K::copies(self).created(Some(namespace), name).is_some_and(|created| made.is_some_and(|made| created < made))
    }

    /// One tenant.
    pub fn tenant(&self, name: &str) -> Option<Arc<AgentTenant>> {
        self.tenants.get(&ObjectRef::new(name))
    }

    /// The tenant whose namespace has this name, whoever has made the namespace.
    pub fn tenant_called_by(&self, namespace: &str) -> Option<Arc<AgentTenant>> {
        self.tenant(namespace.strip_prefix("tenant-")?)
    }

    /// The declared session with this UID.
    pub fn session_by_uid(&self, uid: &str) -> Option<Arc<AgentSession>> {
        let found = self.sessions.get(&self.session_index.by_uid(uid)?)?;
        (found.metadata.uid.as_deref() == Some(uid)).then_some(found)
    }

    /// The tenant whose namespace this is, if it really is the tenant's.
    pub fn tenant_in(&self, namespace: &str) -> Option<Arc<AgentTenant>> {
        let tenant = self.tenant_called_by(namespace)?;
        let found = self.get::<Namespace>(None, namespace)?;
        is_owned(&*found, &tenant).then_some(tenant)
    }

    /// The worker pods of a tenant, by name.
    pub fn workers(&self, tenant: &str) -> Vec<Worker> {
        self.workers.of(tenant)
    }
}

/// Whether `object` was made for this very tenant, rather than for an older one of its name or by someone else.
pub fn is_owned(object: &impl Resource, tenant: &AgentTenant) -> bool {
    let uid = tenant.metadata.uid.as_deref();
    uid.is_some() && object.meta().owner_references.iter().flatten().any(|owner| Some(owner.uid.as_str()) == uid)
}

/// Under what [`Cluster::applied`] remembers a child.
pub fn child_key<K: Object>(object: &K) -> String {
    key_of::<K>(&object.namespace().unwrap_or_default(), &object.name_any())
}

/// [`child_key`] of the child of that name.
pub(crate) fn key_of<K: Object>(namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", K::kind(&()))
}

/// What all watches share.
struct Watch<'a> {
    client: &'a Client,
    freshness: &'a Freshness,
    metrics: &'a Metrics,
    tasks: &'a Tasks,
    changes: &'a Changes,
    applied: &'a Arc<Recent<Applied>>,
    session_index: &'a Arc<SessionIndex>,
    rollouts: &'a Arc<Rollouts>,
}

impl Watch<'_> {
    /// For one watch alone.
    fn client(&self, task_name: &'static str, purpose: Purpose) -> Client {
        self.freshness.listen(self.client, task_name, purpose)
    }

    fn unreadable<K: Object>(&self) -> IntGauge {
        self.metrics.unreadable.with_label_values(&[&*K::kind(&())])
    }

    fn tenants(&self) -> Store<AgentTenant> {
        let (changes, sessions) = (self.changes.clone(), Arc::clone(self.session_index));
        let (applied, rollouts) = (Arc::clone(self.applied), Arc::clone(self.rollouts));
        let (api, all) = (Api::all(self.client("watch-tenants", Purpose::Routes)), watcher::Config::default());
        let objects = Reader::new(salvage::salvage, self.unreadable::<AgentTenant>());
        mirror::start(self.tasks, "watch-tenants", api, all, objects, move |change: Change<AgentTenant>| {
            let name = change.object().name_any();
            changes.routes.mark(name.clone());
            if let Change::Gone(gone) = &change {
                applied.forget(&child_key(&**gone), gone.metadata.resource_version.as_deref());
                rollouts.settle(&name);
            }
            if let Change::Is { old, new } = change
                && !old.as_ref().is_some_and(|old| is_status_write(&**old, &*new))
                // The pass that has set the finalizer is still at it.
                && !applied.is_echo(&child_key(&*new), new.metadata.resource_version.as_deref())
            {
                // Sessions that the tenant did not let in may be let in now, and records may have another time to stay.
                if old.is_some_and(|old| old.metadata.generation != new.metadata.generation) {
                    sessions
                        .within(&new.namespace_name())
                        .into_iter()
                        .for_each(|session| changes.sessions.mark(session));
                }
                changes.stops.mark(name.clone());
                changes.tenants.mark(name);
            }
        })
    }

    fn sessions(&self) -> Store<AgentSession> {
        let (changes, index) = (self.changes.clone(), Arc::clone(self.session_index));
        let api = Api::all(self.client("watch-sessions", Purpose::Passes));
        let all = watcher::Config::default().page_size(mirror::PAGE_OF_LONG);
        let on_change = move |change: Change<AgentSession>| match change {
            Change::Is { old, new } => {
                index.put(&new);
                // One of the same name that was deleted and made anew while the watch was broken.
                if let Some(gone) = old.as_ref().filter(|old| old.metadata.uid != new.metadata.uid) {
                    index.remove_uid(gone);
                    changes.bereaved.mark(bereaved(gone));
                }
                if !old.is_some_and(|old| is_status_write(&*old, &*new)) {
                    changes.sessions.mark(ObjectRef::from_obj(&*new));
                }
            }
            Change::Gone(gone) => {
                index.remove(&gone);
                changes.bereaved.mark(bereaved(&gone));
            }
        };
        // Of a session that can't be read nothing can be done.
        let objects = Reader::new(|_, _| None, self.unreadable::<AgentSession>());
        mirror::start_slim(self.tasks, "watch-sessions", api, all, objects, slim::slim, on_change)
    }

    fn children<K: Object>(&self, task_name: &'static str) -> Copies<K> {
        self.children_where(task_name, watcher::Config::default().labels(CHILDREN))
    }

    fn children_but<K: Object>(&self, task_name: &'static str, names: &[&str]) -> Copies<K> {
        let but: Vec<_> = names.iter().map(|name| format!("metadata.name!={name}")).collect();
        self.children_where(task_name, watcher::Config::default().labels(CHILDREN).fields(&but.join(",")))
    }

    fn children_where<K: Object>(&self, task_name: &'static str, config: watcher::Config) -> Copies<K> {
        let (changes, applied) = (self.changes.clone(), Arc::clone(self.applied));
        // A route is made of these, the tenant and its workers.
        let is_routed = matches!(&*K::kind(&()), "ConfigMap" | "Deployment" | "Namespace");
        let is_stopped_first = matches!(&*K::kind(&()), "NetworkPolicy" | "Deployment");
        let api = Api::all(self.client(task_name, if is_routed { Purpose::Routes } else { Purpose::Passes }));
        // What others report of these, and often, says nothing to a pass.
        let status_change = match &*K::kind(&()) {
            "PodDisruptionBudget" | "ResourceQuota" => StatusChange::Apart,
            _ => StatusChange::AsAny,
        };
        Copies::start(self.tasks, task_name, api, config, status_change, move |object: &K, fate| {
            let key = child_key(object);
            // The pass that wrote it knows; another one would find nothing to do.
            let is_echo = fate != Fate::Gone && applied.is_echo(&key, object.meta().resource_version.as_deref());
            if fate == Fate::Gone {
                applied.forget(&key, object.meta().resource_version.as_deref());
            }
            let Some(tenant) = object.labels().get(labels::TENANT) else { return };
            if is_routed {
                changes.routes.mark(tenant.clone());
            }
            // Also what we wrote ourselves: a pass that began before the emergency may have opened the fence again.
            if is_stopped_first {
                changes.stops.mark(tenant.clone());
            }
            if !is_echo && fate != Fate::Status {
                changes.tenants.mark(tenant.clone());
            }
        })
    }

    fn workers(&self, index: &Arc<WorkerIndex>, tenants: &Store<AgentTenant>, tiers: &Arc<Tiers>) -> Copies<Pod> {
        let (changes, index, sessions) = (self.changes.clone(), Arc::clone(index), Arc::clone(self.session_index));
        let (tenants, tiers) = (tenants.clone(), Arc::clone(tiers));
        let api = Api::all(self.client("watch-workers", Purpose::Routes));
        let config = watcher::Config::default().labels(WORKERS);
        Copies::start(self.tasks, "watch-workers", api, config, StatusChange::AsAny, move |pod: &Pod, fate| {
            let Some(tenant) = tenant_of(pod) else { return };
            let worker = match fate {
                Fate::Is | Fate::Status => Worker::read(pod),
                Fate::Gone => None,
            };
            let is_ready = worker.as_ref().is_some_and(|worker| worker.ready);
            if index.put(tenant, &pod.name_any(), worker) {
                // Sessions that wait for a worker need not wait any longer: as many as it takes. Those that are opened pass the rest on.
                if is_ready && let Some(found) = tenants.get(&ObjectRef::new(tenant)) {
                    let room = sessions_per_worker(&found, &tiers);
                    for session in sessions.take_for_workers(&labels::tenant_namespace(tenant), room) {
                        changes.sessions.mark(session);
                    }
                }
                changes.stops.mark(tenant.to_owned());
                changes.tenants.mark(tenant.to_owned());
                changes.routes.mark(tenant.to_owned());
            }
        })
    }
}

fn bereaved(gone: &AgentSession) -> Bereaved {
    Bereaved {
        namespace: gone.namespace().unwrap_or_default(),
        uid: gone.uid().unwrap_or_default(),
        session_id: gone.status.as_ref().and_then(|status| status.session_id.clone()),
        is_over: gone.status.as_ref().and_then(|status| status.phase).is_some_and(SessionPhase::is_final),
    }
}

/// Whether nothing but the status, which is our own, differs.
fn is_status_write(old: &impl Resource, new: &impl Resource) -> bool {
    let [old, new] = [old.meta(), new.meta()];
    old.uid == new.uid
        && old.generation == new.generation
        && old.deletion_timestamp == new.deletion_timestamp
        && old.finalizers == new.finalizers
        && old.labels == new.labels
}

/// Worker pods by tenant.
#[derive(Default)]
struct WorkerIndex {
    by_tenant: RwLock<HashMap<String, BTreeMap<String, Worker>>>,
}

impl WorkerIndex {
    /// Says whether anything is different now.
    fn put(&self, tenant: &str, pod: &str, worker: Option<Worker>) -> bool {
        let mut by_tenant = self.by_tenant.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = worker {
            let before = by_tenant.entry(tenant.to_owned()).or_default().insert(pod.to_owned(), worker.clone());
            return before != Some(worker);
        }
        let Some(pods) = by_tenant.get_mut(tenant) else { return false };
        let removed = pods.remove(pod).is_some();
        if pods.is_empty() {
            by_tenant.remove(tenant);
        }
        removed
    }

    fn of(&self, tenant: &str) -> Vec<Worker> {
        let by_tenant = self.by_tenant.read().unwrap_or_else(PoisonError::into_inner);
        by_tenant.get(tenant).map(|pods| pods.values().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_says_whether_anything_is_different() {
        let index = WorkerIndex::default();
        let worker =
            |ready| Worker { name: "w-1".into(), address: None, ready, problem: None, ends_within_seconds: None };
        assert!(index.put("heron", "w-1", Some(worker(false))));
        assert!(!index.put("heron", "w-1", Some(worker(false))));
        assert!(index.put("heron", "w-1", Some(worker(true))));
        assert_eq!(index.of("heron"), [worker(true)]);
        assert_eq!(index.of("egret"), []);
        assert!(index.put("heron", "w-1", None));
        assert!(!index.put("heron", "w-1", None));
        assert!(index.by_tenant.read().unwrap().is_empty());
    }
}
