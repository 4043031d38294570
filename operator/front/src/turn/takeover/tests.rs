use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteSnapshot, WatchRoutesResponse};
use croft_serve::Tasks;
use tokio::time::{Instant, sleep};

use super::*;
use crate::app::{Parts, assemble};
use crate::core::Options;
use crate::counters;
use crate::events::relay::memory::MemoryRelay;
use crate::lease::LeaseStore;
use crate::store::Stores;
use crate::tenants::Tenants;

/// What each look finds, in turn, and then nothing; of sessions that are not there, so that what is taken is given back at once.
#[derive(Default)]
struct Leases {
    finds: Mutex<VecDeque<Result<Vec<Abandoned>, Error>>>,
    looked_at: Mutex<Vec<Instant>>,
    /// Others drive these.
    held: HashSet<SessionId>,
    /// Of these nobody can tell.
    unknown: HashSet<SessionId>,
    released: Mutex<Vec<SessionId>>,
}

#[async_trait]
impl LeaseStore for Leases {
    async fn acquire(&self, _: TenantId, session: SessionId, holder: &str, _: Duration) -> Result<Option<u64>, Error> {
        assert_eq!(holder, "front-0");
        if self.unknown.contains(&session) {
            return Err(away());
        }
        Ok((!self.held.contains(&session)).then_some(7))
    }

    async fn renew_all(&self, _: TenantId, _: &[(SessionId, u64)], _: Duration) -> Result<Vec<SessionId>, Error> {
        Ok(Vec::new())
    }

    async fn release(&self, _: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        assert_eq!(epoch, 7);
        locked(&self.released).push(session);
        Ok(())
    }

    async fn abandon(&self, _: TenantId, _: SessionId, _: u64) -> Result<(), Error> {
        Ok(())
    }

    async fn abandoned(&self, limit: u32) -> Result<Vec<Abandoned>, Error> {
        locked(&self.looked_at).push(Instant::now());
        let found = locked(&self.finds).pop_front().unwrap_or(Ok(Vec::new()))?;
        assert!(found.len() <= limit as usize);
        Ok(found)
    }
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn away() -> Error {
    Error::unavailable("postgres", anyhow::anyhow!("connection refused"))
}

fn turns(count: u32) -> Vec<Abandoned> {
    (0..count).map(|_| Abandoned { tenant: TenantId::generate(), session: SessionId::generate() }).collect()
}

fn sessions(turns: &[Abandoned]) -> HashSet<SessionId> {
    turns.iter().map(|turn| turn.session).collect()
}

/// A front over these leases, which looks as it does in a program, until this is dropped.
struct Front {
    leases: Arc<Leases>,
    tenants: Tenants,
    tasks: Tasks,
    began: Instant,
}

impl Front {
    async fn new(leases: Leases) -> Self {
        let (leases, tenants, tasks) = (Arc::new(leases), Tenants::new(), Tasks::new());
        let parts = Parts {
            replica: "front-0".into(),
            stores: Stores { leases: leases.clone(), ..Stores::memory() },
            relay: Arc::new(MemoryRelay::default()),
            counters: Arc::new(counters::memory::Memory::default()),
            tenants: tenants.clone(),
            tls: None,
            options: Options::default(),
        };
        let began = Instant::now();
        assemble(parts, &tasks, &prometheus::Registry::new()).await.unwrap();
        Self { leases, tenants, tasks, began }
    }

    async fn knowing_the_tenants(leases: Leases) -> Self {
        let front = Self::new(leases).await;
        front.hear_of_tenants();
        front
    }

    fn hear_of_tenants(&self) {
        let change = Some(Change::Snapshot(RouteSnapshot::default()));
        self.tenants.apply(WatchRoutesResponse { version: 1, change });
    }

    /// Seconds from the start to each look until then.
    async fn looks_within(&self, seconds: u64) -> Vec<u64> {
        sleep(self.began + Duration::from_secs(seconds) + EVERY / 2 - Instant::now()).await;
        locked(&self.leases.looked_at).iter().map(|at| (*at - self.began).as_secs()).collect()
    }

    fn released(&self) -> HashSet<SessionId> {
        locked(&self.leases.released).iter().copied().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_know_the_tenants_looks_for_nothing() {
    let left = turns(1);
    let front = Front::new(Leases { finds: Mutex::new([Ok(left.clone())].into()), ..Leases::default() }).await;
    assert_eq!(front.looks_within(3).await, Vec::<u64>::new());
    front.hear_of_tenants();
    assert_eq!(front.looks_within(5).await, [4, 5]);
    assert_eq!(front.released(), sessions(&left));
}

/// Nobody would start it anew, and no turn would be taken over here any more.
#[tokio::test(start_paused = true)]
async fn a_look_that_panics_ends_the_program() {
    // The leases panic where they find more than was asked for.
    let finds = Mutex::new([Ok(turns(BATCH + 1))].into());
    let front = Front::knowing_the_tenants(Leases { finds, ..Leases::default() }).await;
    tokio::time::timeout(5 * EVERY, front.tasks.failed()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn as_many_as_a_look_finds_are_followed_by_another_at_once() {
    let left = turns(2 * BATCH + 1);
    let finds = left.chunks(BATCH as usize).map(|batch| Ok(batch.to_vec())).collect();
    let front = Front::knowing_the_tenants(Leases { finds: Mutex::new(finds), ..Leases::default() }).await;
    assert_eq!(front.looks_within(2).await, [1, 1, 1, 2]);
    assert_eq!(front.released(), sessions(&left));
}

/// Another look at once would find the same, and keep the store busy for as long as others are at it.
#[tokio::test(start_paused = true)]
async fn turns_that_others_have_are_not_looked_for_at_once() {
    let left = turns(BATCH);
    let finds = Mutex::new([Ok(left.clone()), Ok(left.clone())].into());
    let held = sessions(&left);
    let front = Front::knowing_the_tenants(Leases { finds, held, ..Leases::default() }).await;
    assert_eq!(front.looks_within(3).await, [1, 2, 3]);
    assert_eq!(front.released(), HashSet::new());
}

#[tokio::test(start_paused = true)]
async fn one_that_can_not_be_had_keeps_no_other_from_being_taken() {
    let left = turns(3);
    let (finds, unknown) = (Mutex::new([Ok(left.clone())].into()), sessions(&left[..1]));
    let front = Front::knowing_the_tenants(Leases { finds, unknown, ..Leases::default() }).await;
    assert_eq!(front.looks_within(1).await, [1]);
    assert_eq!(front.released(), sessions(&left[1..]));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_is_made_again() {
    let left = turns(1);
    let finds = Mutex::new([Err(away()), Err(away()), Ok(left.clone())].into());
    let front = Front::knowing_the_tenants(Leases { finds, ..Leases::default() }).await;
    assert_eq!(front.looks_within(3).await, [1, 2, 3]);
    assert_eq!(front.released(), sessions(&left));
}

#[tokio::test(start_paused = true)]
async fn nobody_looks_once_the_front_is_to_stop() {
    let front = Front::knowing_the_tenants(Leases::default()).await;
    assert_eq!(front.looks_within(1).await, [1]);
    front.tasks.stopping().cancel();
    assert_eq!(front.looks_within(4).await, [1]);
}
