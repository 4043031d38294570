//! All routes, and the fronts that are told of each change.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteDelta, RouteSnapshot, TenantRoute, WatchRoutesResponse};
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// Changes that a front may be behind. At the bound it is cut off; it calls again and gets a new snapshot.
const BEHIND_MAX: usize = 1_024;

/// The routes of all tenants.
pub struct RouteTable {
    metrics: Metrics,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None` until all tenants are known: a front takes a tenant that a snapshot lacks for gone.
    routes: Option<BTreeMap<String, TenantRoute>>,
    version: u64,
    watchers: Vec<mpsc::Sender<WatchRoutesResponse>>,
}

impl RouteTable {
    /// Empty, and telling nobody anything before [`RouteTable::begin`].
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, inner: Mutex::default() }
    }

    /// All tenants there are.
    pub fn begin(&self, routes: impl IntoIterator<Item = TenantRoute>) {
        let routes = routes.into_iter().map(|route| (route.name.clone(), route)).collect();
        self.inner().routes = Some(routes);
    }

    /// The route of the tenant called `name`; `None` when it is gone. Watchers hear of it only if it is different.
    pub fn put(&self, name: &str, route: Option<TenantRoute>) {
        let mut inner = self.inner();
        let Some(routes) = &mut inner.routes else { return };
        let before = match &route {
            Some(route) => routes.insert(name.to_owned(), route.clone()),
            None => routes.remove(name),
        };
        if before == route {
            return;
        }
        let removed = before.map(|before| before.tenant_id);
        let is_replaced = |id: &String| route.as_ref().is_none_or(|route| route.tenant_id != *id);
        let delta = RouteDelta {
            removed_tenant_ids: removed.into_iter().filter(is_replaced).collect(),
            upserts: route.into_iter().collect(),
        };
        inner.version += 1;
        let response = WatchRoutesResponse { version: inner.version, change: Some(Change::Delta(delta)) };
        inner.watchers.retain(|watcher| match watcher.try_send(response.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.metrics.route_laggards.inc();
                tracing::warn!(behind_max = BEHIND_MAX, "a front did not keep up with the routes and is cut off");
                false
            }
        });
        self.count(&inner);
    }

    /// The routes as they are, then each change, without a gap between the two. `None` before [`RouteTable::begin`].
    pub fn watch(&self) -> Option<(WatchRoutesResponse, mpsc::Receiver<WatchRoutesResponse>)> {
        let mut inner = self.inner();
        let tenants = inner.routes.as_ref()?.values().cloned().collect();
        let snapshot =
            WatchRoutesResponse { version: inner.version, change: Some(Change::Snapshot(RouteSnapshot { tenants })) };
        let (watcher, changes) = mpsc::channel(BEHIND_MAX);
        inner.watchers.retain(|watcher| !watcher.is_closed());
        inner.watchers.push(watcher);
        self.count(&inner);
        Some((snapshot, changes))
    }

    fn count(&self, inner: &Inner) {
        self.metrics.route_watchers.set(i64::try_from(inner.watchers.len()).unwrap_or(i64::MAX));
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> RouteTable {
        RouteTable::new(Metrics::register(&prometheus::Registry::new()).unwrap())
    }

    fn route(name: &str, tenant_id: &str, tier: &str) -> TenantRoute {
        TenantRoute { name: name.into(), tenant_id: tenant_id.into(), tier: tier.into(), ..TenantRoute::default() }
    }

    fn delta(response: WatchRoutesResponse) -> RouteDelta {
        match response.change {
            Some(Change::Delta(delta)) => delta,
            other => panic!("no delta: {other:?}"),
        }
    }

    #[test]
    fn nobody_is_told_anything_before_all_is_known() {
        let table = table();
        table.put("heron", Some(route("heron", "1", "free")));
        assert!(table.watch().is_none());
    }

    #[test]
    fn a_snapshot_then_what_is_different() {
        let table = table();
        table.begin([route("heron", "1", "free")]);
        let (snapshot, mut changes) = table.watch().unwrap();
        assert_eq!(
            snapshot.change,
            Some(Change::Snapshot(RouteSnapshot { tenants: vec![route("heron", "1", "free")] }))
        );
        table.put("heron", Some(route("heron", "1", "free")));
        table.put("heron", Some(route("heron", "1", "standard")));
        table.put("heron", None);
        table.put("heron", None);
        let upsert = changes.try_recv().unwrap();
        assert_eq!(upsert.version, snapshot.version + 1);
        assert_eq!(delta(upsert).upserts, [route("heron", "1", "standard")]);
        assert_eq!(delta(changes.try_recv().unwrap()).removed_tenant_ids, ["1"]);
        assert!(changes.try_recv().is_err());
    }

    #[test]
    fn a_new_tenant_of_an_old_name_is_another() {
        let table = table();
        table.begin([route("heron", "1", "free")]);
        let (_, mut changes) = table.watch().unwrap();
        table.put("heron", Some(route("heron", "2", "free")));
        let delta = delta(changes.try_recv().unwrap());
        assert_eq!(delta.removed_tenant_ids, ["1"]);
        assert_eq!(delta.upserts, [route("heron", "2", "free")]);
    }

    #[test]
    fn a_front_that_does_not_keep_up_is_cut_off_and_the_others_are_not() {
        let table = table();
        table.begin([]);
        let (_, mut slow) = table.watch().unwrap();
        let (_, mut quick) = table.watch().unwrap();
        for number in 0..=BEHIND_MAX {
            table.put("heron", Some(route("heron", "1", &number.to_string())));
            quick.try_recv().unwrap();
        }
        let mut received = 0;
        while slow.try_recv().is_ok() {
            received += 1;
        }
        assert_eq!(received, BEHIND_MAX);
        assert!(slow.is_closed());
        assert!(!quick.is_closed());
        assert_eq!(table.metrics.route_watchers.get(), 1);
        assert_eq!(table.metrics.route_laggards.get(), 1);
    }
}
