//! The tenants that this front knows of: what the operator's `RouteService` told last.

pub mod removal;
pub mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::watch_routes_response::Change as Told;
use croft_proto::v1::{
    ProviderMode, ProviderRoute, TenantAdmission, TenantLimits, TenantRoute, WatchRoutesResponse, WorkerRoute,
};
use tokio::sync;

use crate::error::Error;

/// The rows that mirror tenants in the database, for foreign keys and for `api-key create`.
#[async_trait]
pub trait TenantMirror: Send + Sync {
    /// Records that a tenant exists under this name. Safe to repeat.
    async fn upsert(&self, tenant: TenantId, name: &str) -> Result<(), Error>;
}

/// A tenant, as the operator describes it to fronts.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    pub namespace: String,
    pub admission: TenantAdmission,
    pub limits: TenantLimits,
    /// In the order of their names.
    pub workers: Vec<WorkerRoute>,
    /// Why there are no more workers, in words for callers; empty when all is well.
    pub workers_problem: String,
    /// The fixed word for it, empty where time alone may mend it.
    pub workers_problem_reason: String,
    pub tier: String,
    /// Whose account answers, by the provider's name.
    pub providers: BTreeMap<String, ProviderMode>,
}

impl Tenant {
    /// `None` when the route names no tenant: its id is no UUID, or its name is empty.
    fn from_route(route: TenantRoute) -> Option<Self> {
        let id = route.tenant_id.parse().ok()?;
        // What only a newer operator knows lets nobody in, and nothing run.
        let admission = TenantAdmission::try_from(route.admission).unwrap_or(TenantAdmission::Suspended);
        let known = |provider: &ProviderRoute| provider.mode() != ProviderMode::Unspecified;
        let providers = route.providers.into_iter().filter(known);
        let mut workers = route.workers;
        workers.sort_by(|left, right| left.name.cmp(&right.name));
        (!route.name.is_empty()).then_some(Self {
            id,
            name: route.name,
            namespace: route.namespace,
            admission,
            limits: route.limits.unwrap_or_default(),
            workers,
            workers_problem: route.workers_problem,
            workers_problem_reason: route.workers_problem_reason,
            tier: route.tier,
            providers: providers.map(|provider| (provider.name.clone(), provider.mode())).collect(),
        })
    }
}

/// What [`Tenants::apply`] did.
#[derive(Debug, Default, PartialEq)]
pub struct Change {
    /// New or changed ones.
    pub upserted: Vec<Arc<Tenant>>,
    pub removed: Vec<TenantId>,
}

/// All tenants, by id and by name. Clones share them; a reader never waits for the network.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    table: Arc<RwLock<Table>>,
    /// Told after each change.
    changes: Arc<sync::watch::Sender<()>>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<TenantId, Arc<Tenant>>,
    by_name: HashMap<String, TenantId>,
    synced: bool,
}

impl Tenants {
    /// Knows of no tenant yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tenant as it stands now.
    pub fn get(&self, id: TenantId) -> Option<Arc<Tenant>> {
        self.read().by_id.get(&id).cloned()
    }

    /// The tenant that has this name now; one that was made anew under an old name has another id.
    pub fn by_name(&self, name: &str) -> Option<Arc<Tenant>> {
        let table = self.read();
        table.by_name.get(name).and_then(|id| table.by_id.get(id)).cloned()
    }

    /// All tenants, in no order.
    pub fn list(&self) -> Vec<Arc<Tenant>> {
        self.read().by_id.values().cloned().collect()
    }

    /// Why nothing of the tenant's may run, if so: it has been stopped in an emergency, or is suspended.
    pub fn halted(&self, id: TenantId) -> Option<Error> {
        match self.read().by_id.get(&id)?.admission {
            TenantAdmission::Stopped => Some(Error::TenantStopped),
            TenantAdmission::Suspended => Some(Error::TenantSuspended),
            _ => None,
        }
    }

    /// The tenant has been stopped in an emergency.
    pub fn is_stopped(&self, id: TenantId) -> bool {
        self.read().by_id.get(&id).is_some_and(|tenant| tenant.admission == TenantAdmission::Stopped)
    }

    /// Waits until the tenant is stopped: for ever, as a rule.
    pub async fn stopped(&self, id: TenantId) {
        // Before the look, so that no change is missed. We hold the sender, so that the wait can't fail.
        let mut changes = self.changes.subscribe();
        while !self.is_stopped(id) {
            let _ = changes.changed().await;
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.read().by_id.len()
    }

    /// No tenant is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A snapshot has come: a tenant that is not here does not exist. Before, nobody knows.
    pub fn synced(&self) -> bool {
        self.read().synced
    }

    /// Takes over what the operator said. A route that makes no sense is left out and logged.
    pub fn apply(&self, response: WatchRoutesResponse) -> Change {
        let change = self.take(response);
        self.changes.send_replace(());
        change
    }

    fn take(&self, response: WatchRoutesResponse) -> Change {
        match response.change {
            Some(Told::Snapshot(snapshot)) => {
                let tenants = parse(snapshot.tenants);
                let mut table = self.write();
                table.synced = true;
                let told: HashSet<_> = tenants.iter().map(|tenant| tenant.id).collect();
                let removed = table.by_id.keys().copied().filter(|id| !told.contains(id)).collect();
                table.change(tenants, removed)
            }
            Some(Told::Delta(delta)) => {
                let tenants = parse(delta.upserts);
                let removed = delta.removed_tenant_ids.iter().filter_map(|id| id.parse().ok()).collect();
                self.write().change(tenants, removed)
            }
            // A newer operator may say things that this front doesn't know of.
            None => Change::default(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn change(&mut self, upserts: Vec<Tenant>, removed: Vec<TenantId>) -> Change {
        let mut change = Change::default();
        // First, so that a name which moves to a new id in the same message ends up with the new one.
        for id in removed {
            if let Some(tenant) = self.by_id.remove(&id) {
                self.forget_name(&tenant);
                change.removed.push(id);
            }
        }
        for tenant in upserts {
            let tenant = Arc::new(tenant);
            if let Some(before) = self.by_id.insert(tenant.id, Arc::clone(&tenant)) {
                if before == tenant {
                    continue;
                }
                self.forget_name(&before);
            }
            self.by_name.insert(tenant.name.clone(), tenant.id);
            change.upserted.push(tenant);
        }
        change
    }

    fn forget_name(&mut self, tenant: &Tenant) {
        if self.by_name.get(&tenant.name) == Some(&tenant.id) {
            self.by_name.remove(&tenant.name);
        }
    }
}

fn parse(routes: Vec<TenantRoute>) -> Vec<Tenant> {
    let count = routes.len();
    let tenants: Vec<_> = routes.into_iter().filter_map(Tenant::from_route).collect();
    if tenants.len() < count {
        tracing::warn!(left_out = count - tenants.len(), "routes without a tenant id or name");
    }
    tenants
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{RouteDelta, RouteSnapshot};
    use uuid::Uuid;

    use super::*;

    fn route(id: TenantId, name: &str) -> TenantRoute {
        TenantRoute {
            tenant_id: id.to_string(),
            name: name.to_owned(),
            namespace: format!("tenant-{name}"),
            ..Default::default()
        }
    }

    fn snapshot(tenants: Vec<TenantRoute>) -> WatchRoutesResponse {
        WatchRoutesResponse { version: 1, change: Some(Told::Snapshot(RouteSnapshot { tenants })) }
    }

    fn delta(upserts: Vec<TenantRoute>, removed: &[TenantId]) -> WatchRoutesResponse {
        let removed_tenant_ids = removed.iter().map(ToString::to_string).collect();
        WatchRoutesResponse { version: 2, change: Some(Told::Delta(RouteDelta { upserts, removed_tenant_ids })) }
    }

    #[test]
    fn a_snapshot_is_all_there_is() {
        let [heron, plover] = [TenantId::generate(), TenantId::generate()];
        let tenants = Tenants::new();
        assert!(!tenants.synced());
        tenants.apply(snapshot(vec![route(heron, "heron"), route(plover, "plover")]));
        assert!(tenants.synced());

        let change = tenants.apply(snapshot(vec![route(plover, "plover")]));
        assert_eq!(change, Change { upserted: vec![], removed: vec![heron] });
        assert_eq!(tenants.get(heron), None);
        assert_eq!(tenants.by_name("heron"), None);
        assert_eq!(tenants.by_name("plover").unwrap().id, plover);
    }

    #[test]
    fn a_delta_changes_what_it_names_and_syncs_nothing() {
        let heron = TenantId::generate();
        let tenants = Tenants::new();
        let change = tenants.apply(delta(vec![route(heron, "heron")], &[]));
        assert_eq!(change.upserted.len(), 1);
        assert!(!tenants.synced());

        let change = tenants.apply(delta(vec![], &[heron, TenantId::generate()]));
        assert_eq!(change.removed, vec![heron]);
        assert!(tenants.list().is_empty());
    }

    #[test]
    fn a_tenant_made_anew_under_its_old_name_keeps_the_name_whatever_the_order() {
        let [old, new] = [TenantId::generate(), TenantId::generate()];
        let tenants = Tenants::new();
        tenants.apply(snapshot(vec![route(old, "heron")]));
        tenants.apply(delta(vec![route(new, "heron")], &[old]));
        assert_eq!(tenants.by_name("heron").unwrap().id, new);

        tenants.apply(snapshot(vec![route(old, "heron")]));
        tenants.apply(delta(vec![route(new, "heron")], &[]));
        tenants.apply(delta(vec![], &[old]));
        assert_eq!(tenants.by_name("heron").unwrap().id, new);
    }

    /// It was taken for open.
    #[test]
    fn a_word_of_a_newer_operator_halts_a_tenant_and_no_word_lets_it_be() {
        let heron = TenantId::generate();
        let tenants = Tenants::new();
        tenants.apply(snapshot(vec![TenantRoute { admission: 99, ..route(heron, "heron") }]));
        assert!(matches!(tenants.halted(heron), Some(Error::TenantSuspended)));
        tenants.apply(snapshot(vec![TenantRoute { admission: 0, ..route(heron, "heron") }]));
        assert!(tenants.halted(heron).is_none());
    }

    #[test]
    fn a_route_without_sense_is_left_out_and_the_rest_applied() {
        let heron = TenantId::generate();
        let tenants = Tenants::new();
        let nameless = route(TenantId(Uuid::nil()), "");
        let idless = TenantRoute { tenant_id: "not-a-uid".into(), name: "plover".into(), ..Default::default() };
        tenants.apply(snapshot(vec![nameless, idless, route(heron, "heron")]));
        assert_eq!(tenants.list().len(), 1);
        assert!(tenants.get(heron).is_some());
    }
}
