//! Picks a worker for a turn: least connections among the tenant's ready workers that have room.
//!
//! Each front counts what it placed itself; a worker refuses what is too much for it when fronts together overshoot. There is
//! no registration: the tenant's route is read at each placement, so a worker that leaves while we choose is at
//! worst a call that fails.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::WorkerRoute;
use tokio::time::Instant;

use crate::error::Error;
use crate::sync::{Mutex, MutexGuard};
use crate::tenants::{Tenant, Tenants};

/// How long a worker that failed is passed over, while another can take its place and it has done nothing well.
const PENALTY: Duration = Duration::from_secs(5);

/// Said where no ready worker has room. It names no number: what people are told must not change from one try to the next.
pub(crate) const ALL_FULL: &str = "all ready workers are full";

/// Places sessions on workers. Clones share the counts.
#[derive(Debug, Clone)]
pub struct Router {
    tenants: Tenants,
    counts: Arc<Mutex<Counts>>,
}

/// What this front knows of workers beyond their routes. Holds as many as are routed or in use, no more.
#[derive(Debug, Default)]
struct Counts {
    workers: HashMap<TenantId, HashMap<String, Worker>>,
    /// Counts placements, to tell which worker was chosen longest ago.
    turn: u64,
}

#[derive(Debug, Default)]
struct Worker {
    placed: u32,
    chosen_at: u64,
    /// A new pod under an old name starts with a clean record.
    failed: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    address: String,
    at: Instant,
}

impl Worker {
    fn is_out(&self, address: &str, now: Instant) -> bool {
        self.failed.as_ref().is_some_and(|failure| failure.address == address && now < failure.at + PENALTY)
    }
}

/// A session's place on a worker. One that was chosen counts until it is dropped.
#[derive(Debug)]
pub struct Placement {
    tenant: TenantId,
    worker: String,
    address: String,
    namespace: String,
    placed_at: Instant,
    /// Where it counts; `None` when it doesn't.
    router: Option<Router>,
}

impl Placement {
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The pod.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// `host:port` of its `RuntimeService`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        let Some(router) = &self.router else { return };
        let mut counts = router.lock();
        let Some(workers) = counts.workers.get_mut(&self.tenant) else { return };
        if let Some(worker) = workers.get_mut(&self.worker) {
            worker.placed = worker.placed.saturating_sub(1);
        }
    }
}

impl Router {
    pub fn new(tenants: Tenants) -> Self {
        Self { tenants, counts: Arc::default() }
    }

    /// The worker that holds the fewest sessions of ours; among equals the one chosen longest ago, then by name. The
    /// preferred one wins if it can take the session at all.
    ///
    /// Workers that failed lately are passed over while there is another; the last one is tried all the same, since a
    /// call that fails costs the caller no more than a refusal. Fails with [`Error::NoWorker`] or [`Error::WorkersFull`].
    pub fn place(&self, tenant: TenantId, session: SessionId, preferred: Option<&str>) -> Result<Placement, Error> {
        self.place_beside(tenant, session, preferred, &[])
    }

    /// The same among the workers that are none of these.
    pub fn place_beside(
        &self,
        tenant: TenantId,
        session: SessionId,
        preferred: Option<&str>,
        passed_over: &[String],
    ) -> Result<Placement, Error> {
        let Some(route) = self.tenants.get(tenant) else {
            // Places that are in use still have to be given back, also once the tenant is there again.
            self.lock().workers.retain(|other, workers| {
                if *other == tenant {
                    workers.retain(|_, worker| worker.placed > 0);
                }
                *other != tenant || !workers.is_empty()
            });
            return Err(Error::no_worker("the tenant is gone"));
        };
        let mut counts = self.lock();
        counts.prune(&route, &self.tenants);
        let chosen = counts.choose(&route, preferred, passed_over).ok_or_else(|| why_none(&route))?;
        counts.turn += 1;
        let turn = counts.turn;
        tracing::debug!(%tenant, %session, worker = chosen.name, "placed");
        let worker = counts.workers.entry(tenant).or_default().entry(chosen.name.clone()).or_default();
        worker.placed += 1;
        worker.chosen_at = turn;
        Ok(Placement {
            tenant,
            worker: chosen.name.clone(),
            address: chosen.address.clone(),
            namespace: route.namespace.clone(),
            placed_at: Instant::now(),
            router: Some(self.clone()),
        })
    }

    /// Where this very worker is, whether or not it is ready and has room; for calls that start nothing there. It doesn't count.
    ///
    /// Fails with [`Error::NoWorker`] when it has no route.
    pub fn locate(&self, tenant: TenantId, worker: &str) -> Result<Placement, Error> {
        let gone = || Error::no_worker("the worker is gone");
        let route = self.tenants.get(tenant).ok_or_else(gone)?;
        let found = route.workers.iter().find(|route| route.name == worker).ok_or_else(gone)?;
        Ok(Placement {
            tenant,
            worker: found.name.clone(),
            address: found.address.clone(),
            namespace: route.namespace.clone(),
            placed_at: Instant::now(),
            router: None,
        })
    }

    /// Whether the worker did well with what was placed there. One that failed is passed over for 5 s, or until it has done
    /// something well that was placed there since: what a draining worker still finishes says nothing of what it would take.
    /// A worker without a route is no matter.
    pub fn update_health(&self, placement: &Placement, healthy: bool) {
        let Some(route) = self.tenants.get(placement.tenant) else { return };
        if !route.workers.iter().any(|worker| worker.name == placement.worker) {
            return;
        }
        let mut counts = self.lock();
        let worker = counts.workers.entry(placement.tenant).or_default().entry(placement.worker.clone()).or_default();
        if healthy {
            worker.failed.take_if(|failure| failure.at < placement.placed_at);
        } else {
            worker.failed = Some(Failure { address: placement.address.clone(), at: Instant::now() });
        }
    }

    /// How many sessions this front has on the worker now.
    #[cfg(test)]
    fn placed(&self, tenant: TenantId, worker: &str) -> u32 {
        self.lock().worker(tenant, worker).map_or(0, |worker| worker.placed)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // No code that holds the lock can leave the counts half changed.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn worker(&self, tenant: TenantId, name: &str) -> Option<&Worker> {
        self.workers.get(&tenant).and_then(|workers| workers.get(name))
    }

    fn choose<'route>(
        &self,
        route: &'route Tenant,
        preferred: Option<&str>,
        passed_over: &[String],
    ) -> Option<&'route WorkerRoute> {
        let now = Instant::now();
        let placed = |worker: &WorkerRoute| self.worker(route.id, &worker.name).map_or(0, |worker| worker.placed);
        let out = |worker: &WorkerRoute| {
            self.worker(route.id, &worker.name).is_some_and(|state| state.is_out(&worker.address, now))
        };
        let able: Vec<_> = route
            .workers
            .iter()
            .filter(|worker| worker.ready && (worker.sessions_max == 0 || placed(worker) < worker.sessions_max))
            .filter(|worker| !passed_over.contains(&worker.name))
            .collect();
        if let Some(preferred) = able.iter().find(|worker| Some(worker.name.as_str()) == preferred && !out(worker)) {
            return Some(preferred);
        }
        able.into_iter().min_by_key(|worker| {
            let chosen_at = self.worker(route.id, &worker.name).map_or(0, |state| state.chosen_at);
            (out(worker), placed(worker), chosen_at, worker.name.as_str())
        })
    }

    /// Forgets workers of this tenant that are neither routed nor in use and, when a tenant is new here, tenants that
    /// are gone.
    fn prune(&mut self, route: &Tenant, tenants: &Tenants) {
        if let Some(workers) = self.workers.get_mut(&route.id) {
            workers.retain(|name, worker| worker.placed > 0 || route.workers.iter().any(|routed| routed.name == *name));
        } else {
            self.workers.retain(|tenant, workers| {
                tenants.get(*tenant).is_some() || workers.values().any(|worker| worker.placed > 0)
            });
        }
    }
}

/// No worker has room. With the operator's word, if it has one, of why there are no more of them.
pub(crate) fn all_full(route: &Tenant) -> Error {
    let (told, problem) = (&route.workers_problem, route.workers_problem_reason.clone());
    let why = if told.is_empty() { ALL_FULL.to_owned() } else { format!("{ALL_FULL}, and no more come: {told}") };
    Error::WorkersFull { why, problem }
}

/// With the operator's word if it has one.
fn why_none(route: &Tenant) -> Error {
    if route.workers.iter().any(|worker| worker.ready) {
        return all_full(route);
    }
    let (told, problem) = (&route.workers_problem, route.workers_problem_reason.clone());
    let why = match route.workers.len() {
        _ if !told.is_empty() => told.clone(),
        0 => "the tenant has no worker yet".to_owned(),
        count => format!("none of {count} workers is ready"),
    };
    Error::NoWorker { why, problem }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::watch_routes_response::Change;
    use croft_proto::v1::{RouteSnapshot, TenantRoute, WatchRoutesResponse};

    use super::*;

    fn worker(name: &str) -> WorkerRoute {
        WorkerRoute {
            name: name.into(),
            address: format!("10.9.8.7:{}", 7000 + name.len()),
            ready: true,
            sessions_max: 0,
        }
    }

    fn tell(tenants: &Tenants, tenant: TenantId, workers: Vec<WorkerRoute>, workers_problem: &str) {
        let route = TenantRoute {
            tenant_id: tenant.to_string(),
            name: "heron".into(),
            namespace: "tenant-heron".into(),
            workers,
            workers_problem: workers_problem.into(),
            workers_problem_reason: if workers_problem.is_empty() { "" } else { "Short" }.into(),
            ..Default::default()
        };
        let change = Some(Change::Snapshot(RouteSnapshot { tenants: vec![route] }));
        tenants.apply(WatchRoutesResponse { version: 1, change });
    }

    fn router(workers: Vec<WorkerRoute>) -> (Router, Tenants, TenantId) {
        let (tenants, tenant) = (Tenants::new(), TenantId::generate());
        tell(&tenants, tenant, workers, "");
        (Router::new(tenants.clone()), tenants, tenant)
    }

    fn place(router: &Router, tenant: TenantId) -> Placement {
        router.place(tenant, SessionId::generate(), None).unwrap()
    }

    fn why(router: &Router, tenant: TenantId) -> String {
        match router.place(tenant, SessionId::generate(), None) {
            Err(Error::NoWorker { why, .. } | Error::WorkersFull { why, .. }) => why,
            other => panic!("placed: {other:?}"),
        }
    }

    #[tokio::test]
    async fn the_worker_with_the_fewest_sessions_is_next_and_equals_take_turns() {
        let (router, _, tenant) = router(vec![worker("sedge"), worker("reed"), worker("rush")]);
        let first = place(&router, tenant);
        let second = place(&router, tenant);
        let third = place(&router, tenant);
        assert_eq!([first.worker(), second.worker(), third.worker()], ["reed", "rush", "sedge"]);
        drop(second);
        assert_eq!(place(&router, tenant).worker(), "rush");
        drop((first, third));
        // All are empty again: the one chosen longest ago.
        assert_eq!(place(&router, tenant).worker(), "reed");
    }

    #[tokio::test]
    async fn a_full_worker_takes_no_more_until_a_place_is_given_back() {
        let bounded = |name| WorkerRoute { sessions_max: 1, ..worker(name) };
        let (router, tenants, tenant) = router(vec![bounded("reed")]);
        let only = place(&router, tenant);
        assert_eq!(why(&router, tenant), "all ready workers are full");
        let short = "quota exceeded: requests.cpu";
        tell(&tenants, tenant, vec![bounded("reed")], short);
        assert_eq!(why(&router, tenant), format!("all ready workers are full, and no more come: {short}"));
        let refused = router.place(tenant, SessionId::generate(), None);
        assert!(matches!(&refused, Err(Error::WorkersFull { problem, .. }) if problem == "Short"), "{refused:?}");
        drop(only);
        assert_eq!(place(&router, tenant).worker(), "reed");
    }

    #[tokio::test]
    async fn the_preferred_worker_wins_over_emptier_ones_while_it_can() {
        let (router, _, tenant) = router(vec![worker("reed"), WorkerRoute { sessions_max: 2, ..worker("rush") }]);
        let prefer_rush = || router.place(tenant, SessionId::generate(), Some("rush")).unwrap();
        let kept = [prefer_rush(), prefer_rush()];
        assert!(kept.iter().all(|placement| placement.worker() == "rush"));
        assert_eq!(prefer_rush().worker(), "reed", "rush is full");
    }

    #[tokio::test]
    async fn without_a_ready_worker_the_reason_is_told() {
        let (router, tenants, tenant) = router(vec![]);
        assert_eq!(why(&router, tenant), "the tenant has no worker yet");
        tell(&tenants, tenant, vec![WorkerRoute { ready: false, ..worker("reed") }], "");
        assert_eq!(why(&router, tenant), "none of 1 workers is ready");
        tell(&tenants, tenant, vec![], "quota exceeded: requests.cpu");
        assert_eq!(why(&router, tenant), "quota exceeded: requests.cpu");
        assert_eq!(why(&router, TenantId::generate()), "the tenant is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_failed_is_passed_over_for_a_while_but_is_still_the_last_resort() {
        let (router, tenants, tenant) = router(vec![worker("reed"), worker("rush")]);
        let (reed, rush) = (router.locate(tenant, "reed").unwrap(), router.locate(tenant, "rush").unwrap());
        router.update_health(&reed, false);
        let kept = [place(&router, tenant), place(&router, tenant)];
        assert!(kept.iter().all(|placement| placement.worker() == "rush"));
        let preferred = router.place(tenant, SessionId::generate(), Some("reed")).unwrap();
        assert_eq!(preferred.worker(), "rush");

        router.update_health(&rush, false);
        assert_eq!(place(&router, tenant).worker(), "reed", "both failed; reed is the emptier one");

        tokio::time::advance(PENALTY).await;
        router.update_health(&rush, false);
        assert_eq!(place(&router, tenant).worker(), "reed", "its time is over");

        // A pod that comes back under the same name has not failed, whatever is said of the one before.
        let reborn = WorkerRoute { address: "10.9.8.77:7070".into(), ..worker("reed") };
        tell(&tenants, tenant, vec![reborn, worker("rush")], "");
        router.update_health(&reed, false);
        assert_eq!(place(&router, tenant).address(), "10.9.8.77:7070");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_worker_did_well_since_it_failed_takes_it_back_in() {
        let (router, _, tenant) = router(vec![worker("reed"), worker("rush")]);
        let before = place(&router, tenant);
        assert_eq!(before.worker(), "reed");
        tokio::time::advance(Duration::from_millis(1)).await;
        router.update_health(&before, false);
        router.update_health(&before, true);
        let prefer_reed = || router.place(tenant, SessionId::generate(), Some("reed")).unwrap();
        assert_eq!(prefer_reed().worker(), "rush", "a turn from before, which a draining worker finishes");

        tokio::time::advance(Duration::from_millis(1)).await;
        router.update_health(&router.locate(tenant, "reed").unwrap(), true);
        assert_eq!(prefer_reed().worker(), "reed");
    }

    #[tokio::test]
    async fn health_of_an_unknown_worker_is_no_matter() {
        let (router, tenants, tenant) = router(vec![worker("reed"), worker("bulrush")]);
        let unknown = router.locate(tenant, "bulrush").unwrap();
        tell(&tenants, tenant, vec![worker("reed")], "");
        for healthy in [false, true] {
            router.update_health(&unknown, healthy);
        }
        assert_eq!(place(&router, tenant).worker(), "reed");
        assert!(router.lock().workers[&tenant].keys().all(|name| name == "reed"));
    }

    #[tokio::test]
    async fn workers_and_tenants_that_are_gone_are_forgotten_once_unused() {
        let (router, tenants, tenant) = router(vec![worker("reed")]);
        let kept = place(&router, tenant);
        tell(&tenants, tenant, vec![worker("rush")], "");
        assert_eq!(place(&router, tenant).worker(), "rush");
        assert_eq!(router.placed(tenant, "reed"), 1, "in use");
        drop(kept);
        place(&router, tenant);
        assert!(!router.lock().workers[&tenant].contains_key("reed"));
        // One whose last word was that it does not answer is no longer in use than another.
        router.update_health(&place(&router, tenant), false);

        let other = TenantId::generate();
        tell(&tenants, other, vec![worker("reed")], "");
        place(&router, other);
        assert!(!router.lock().workers.contains_key(&tenant));
    }

    #[tokio::test]
    async fn a_worker_is_located_whatever_its_state_and_that_counts_for_nothing() {
        let (router, _, tenant) = router(vec![WorkerRoute { ready: false, ..worker("reed") }]);
        let located = router.locate(tenant, "reed").unwrap();
        assert_eq!((located.worker(), located.namespace()), ("reed", "tenant-heron"));
        drop(located);
        assert_eq!(router.placed(tenant, "reed"), 0);
        assert!(matches!(router.locate(tenant, "rush"), Err(Error::NoWorker { .. })));
    }

    /// As the test below, in orders that a scheduler chooses: a worker is deregistered between the look at its route and its
    /// placement, its health turns, its tenant is gone and comes back.
    #[test]
    fn whatever_the_order_a_place_is_counted_once_and_given_back_once() {
        crate::sync::model::check(2_000, || {
            let bounded = |name: &str| WorkerRoute { sessions_max: 2, ..worker(name) };
            let (router, tenants, tenant) = router(vec![bounded("reed"), bounded("rush")]);
            let placing = |preferred: Option<&'static str>| {
                let router = router.clone();
                shuttle::thread::spawn(move || {
                    for _ in 0..2 {
                        if let Ok(placement) = router.place(tenant, SessionId::generate(), preferred) {
                            let placed = router.placed(tenant, placement.worker());
                            assert!((1..=2).contains(&placed), "{placed} on {}", placement.worker());
                            router.update_health(&placement, false);
                        }
                    }
                })
            };
            let threads = [placing(Some("reed")), placing(None)];
            let (turning, leaving) = (router.clone(), tenants.clone());
            let reed = router.locate(tenant, "reed").unwrap();
            let health = shuttle::thread::spawn(move || {
                for healthy in [false, true, false] {
                    turning.update_health(&reed, healthy);
                }
            });
            let telling = shuttle::thread::spawn(move || {
                for workers in [vec![bounded("rush")], vec![], vec![bounded("reed"), bounded("rush")]] {
                    tell(&leaving, tenant, workers, "");
                    shuttle::thread::yield_now();
                }
            });
            for thread in threads.into_iter().chain([health, telling]) {
                thread.join().unwrap();
            }
            assert_eq!((router.placed(tenant, "reed"), router.placed(tenant, "rush")), (0, 0));
            // Where nobody has placed anything since the tenant had no worker there is nothing kept of it.
            let kept = router.lock();
            let mut names = kept.workers.get(&tenant).into_iter().flat_map(|workers| workers.keys());
            assert!(names.all(|name| name == "reed" || name == "rush"));
        });
    }

    #[tokio::test]
    async fn a_place_from_before_its_tenant_was_gone_takes_no_other_place_away() {
        let (router, tenants, tenant) = router(vec![worker("reed")]);
        let before = place(&router, tenant);
        tenants.apply(WatchRoutesResponse {
            version: 2,
            change: Some(Change::Snapshot(RouteSnapshot { tenants: Vec::new() })),
        });
        assert_eq!(why(&router, tenant), "the tenant is gone");
        tell(&tenants, tenant, vec![worker("reed")], "");
        let after = place(&router, tenant);
        drop(before);
        assert_eq!(router.placed(tenant, "reed"), 1);
        drop(after);
        assert_eq!(router.placed(tenant, "reed"), 0);
    }

    /// Workers come and go while many threads place: no panic, no worker above its bound, and all counts end at zero.
    #[test]
    fn counts_hold_while_workers_come_and_go() {
        let (router, tenants, tenant) = router(vec![]);
        let bounded = |name: &str| WorkerRoute { sessions_max: 3, ..worker(name) };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2_000 {
                        let preferred = (round % 3 == 0).then_some("reed");
                        if let Ok(placement) = router.place(tenant, SessionId::generate(), preferred) {
                            assert!(router.placed(tenant, placement.worker()) <= 3);
                            router.update_health(&placement, round % 7 != 0);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for round in 0..2_000 {
                    let workers = match round % 3 {
                        0 => vec![bounded("reed"), bounded("rush")],
                        1 => vec![bounded("rush")],
                        _ => vec![],
                    };
                    tell(&tenants, tenant, workers, "");
                }
            });
        });
        tell(&tenants, tenant, vec![bounded("reed"), bounded("rush")], "");
        assert_eq!((router.placed(tenant, "reed"), router.placed(tenant, "rush")), (0, 0));
    }
}
