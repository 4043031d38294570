//! What every `LeaseStore` promises.

use std::time::Duration;

use croft_front::Error;
use croft_front::events::log::Authority;
use croft_front::lease::Abandoned;
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use futures::future::join_all;
use tokio::time::{sleep, timeout};

use super::fixtures::{append, appended, said, session, tenant, terminated, two_tenants};

const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(50);
/// Longer than anything takes, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Tries until the lease is free.
async fn wait_for(stores: &Stores, tenant: TenantId, session: SessionId, holder: &str) -> u64 {
    let trying = async {
        loop {
            if let Some(epoch) = stores.leases.acquire(tenant, session, holder, LONG).await.unwrap() {
                return epoch;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, trying).await.expect("the lease runs out")
}

/// Waits until this many leases are abandoned.
async fn abandoned(stores: &Stores, count: usize) -> Vec<Abandoned> {
    let looking = async {
        loop {
            let found = stores.leases.abandoned(10).await.unwrap();
            if found.len() >= count {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looking).await.expect("the leases run out")
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let session = session(stores, ours).await;
    let stolen = stores.leases.acquire(theirs, session, "thief", LONG).await;
    assert!(matches!(stolen, Err(Error::SessionNotFound { .. })), "{stolen:?}");
    let epoch = stores.leases.acquire(ours, session, "front-0", LONG).await.unwrap().unwrap();
    assert!(matches!(stores.leases.renew(theirs, session, epoch, LONG).await, Err(Error::LeaseLost { .. })));
    stores.leases.release(theirs, session, epoch).await.unwrap();
    stores.leases.renew(ours, session, epoch, LONG).await.unwrap();
}

pub(crate) async fn has_one_holder(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    assert_eq!(stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap(), Some(1));
    assert_eq!(stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap(), None);
    // The same front drives one turn of a session at a time, too.
    assert_eq!(stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap(), None);
}

pub(crate) async fn grows_its_epoch(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    for epoch in 1..=3 {
        // Leaving one moves it on as well.
        assert_eq!(stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap(), Some(2 * epoch - 1));
        stores.leases.abandon(tenant, session, 2 * epoch - 1).await.unwrap();
    }
    // Late words of the first holder change nothing.
    let epoch = stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap().unwrap();
    stores.leases.release(tenant, session, 1).await.unwrap();
    assert!(matches!(stores.leases.renew(tenant, session, 1, LONG).await, Err(Error::LeaseLost { epoch: 1 })));
    stores.leases.renew(tenant, session, epoch, LONG).await.unwrap();
}

pub(crate) async fn passes_on_when_it_runs_out(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let first = stores.leases.acquire(tenant, session, "front-0", SHORT).await.unwrap().unwrap();
    let second = wait_for(stores, tenant, session, "front-1").await;
    assert!(second > first);
    let late = stores.leases.renew(tenant, session, first, LONG).await;
    assert!(matches!(late, Err(Error::LeaseLost { epoch }) if epoch == first));
}

pub(crate) async fn renews_many_at_once_and_tells_of_those_that_are_lost(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let mut leases = Vec::new();
    for _ in 0..5 {
        let session = session(stores, ours).await;
        let epoch = stores.leases.acquire(ours, session, "front-0", SHORT).await.unwrap().unwrap();
        leases.push((session, epoch));
    }
    stores.leases.release(ours, leases[1].0, leases[1].1).await.unwrap();
    leases[3].1 += 1;
    let foreign = session(stores, theirs).await;
    let epoch = stores.leases.acquire(theirs, foreign, "front-0", SHORT).await.unwrap().unwrap();
    leases.push((foreign, epoch));
    leases.push((SessionId::generate(), 1));
    let lost = stores.leases.renew_all(ours, &leases, LONG).await.unwrap();
    assert_eq!(lost, [1, 3, 5, 6].map(|place: usize| leases[place].0));
    tokio::time::sleep(SHORT * 2).await;
    // What was renewed is held, and what was released is not taken but by who begins a turn.
    for (place, taken) in [(0, false), (1, false), (2, false), (3, true), (4, false)] {
        let acquired = stores.leases.acquire(ours, leases[place].0, "front-1", LONG).await.unwrap();
        assert_eq!(acquired.is_some(), taken, "{place}");
    }
    assert_eq!(stores.leases.renew_all(ours, &[], LONG).await.unwrap(), []);
}

pub(crate) async fn renews_while_it_is_held(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = stores.leases.acquire(tenant, session, "front-0", SHORT).await.unwrap().unwrap();
    stores.leases.renew(tenant, session, epoch, LONG).await.unwrap();
    sleep(SHORT * 2).await;
    assert_eq!(stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap(), None);
    stores.leases.release(tenant, session, epoch).await.unwrap();
    assert!(matches!(stores.leases.renew(tenant, session, epoch, LONG).await, Err(Error::LeaseLost { .. })));
}

pub(crate) async fn survives_a_late_heartbeat(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = stores.leases.acquire(tenant, session, "front-0", Duration::from_millis(1)).await.unwrap().unwrap();
    assert_eq!(abandoned(stores, 1).await, [Abandoned { tenant, session }]);
    // Nobody was quicker, so the turn is still ours.
    stores.leases.renew(tenant, session, epoch, LONG).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
}

pub(crate) async fn finds_abandoned_ones_longest_first(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let (first, second) = (session(stores, theirs).await, session(stores, ours).await);
    let (released, held) = (session(stores, ours).await, session(stores, ours).await);
    stores.leases.acquire(theirs, first, "front-0", Duration::from_millis(1)).await.unwrap().unwrap();
    stores.leases.acquire(ours, second, "front-0", SHORT).await.unwrap().unwrap();
    let epoch = stores.leases.acquire(ours, released, "front-0", Duration::from_millis(1)).await.unwrap().unwrap();
    stores.leases.release(ours, released, epoch).await.unwrap();
    stores.leases.acquire(ours, held, "front-0", LONG).await.unwrap().unwrap();

    let expected = [Abandoned { tenant: theirs, session: first }, Abandoned { tenant: ours, session: second }];
    assert_eq!(abandoned(stores, 2).await, expected);
    assert_eq!(stores.leases.abandoned(1).await.unwrap(), expected[..1]);
    wait_for(stores, theirs, first, "front-1").await;
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), expected[1..]);
}

/// Somebody else has found it abandoned as well, and has done by now what there was to do. Whoever takes it then keeps the next message out.
pub(crate) async fn is_not_taken_over_once_it_was_given_up(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    stores.leases.acquire(tenant, session, "front-0", SHORT).await.unwrap().unwrap();
    assert_eq!(abandoned(stores, 1).await, [Abandoned { tenant, session }]);
    let epoch = wait_for(stores, tenant, session, "front-1").await;
    stores.leases.release(tenant, session, epoch).await.unwrap();
    assert_eq!(stores.leases.acquire(tenant, session, "front-2", LONG).await.unwrap(), None);
}

pub(crate) async fn has_one_winner_of_many(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let holders: Vec<_> = (0..10).map(|front| format!("front-{front}")).collect();
    let races = holders.iter().map(|holder| stores.leases.acquire(tenant, session, holder, LONG));
    let won: Vec<_> = join_all(races).await.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(won, [1]);
}

pub(crate) async fn refuses_sessions_that_cannot_run(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let unknown = stores.leases.acquire(tenant, SessionId::generate(), "front-0", LONG).await;
    assert!(matches!(unknown, Err(Error::SessionNotFound { .. })), "{unknown:?}");
    let session = session(stores, tenant).await;
    appended(stores, append(tenant, session, vec![terminated("done")])).await;
    let ended = stores.leases.acquire(tenant, session, "front-0", LONG).await;
    assert!(matches!(ended, Err(Error::SessionTerminated { .. })), "{ended:?}");
}

/// The front that held it looked for messages, found none, and was lost before it could look again.
pub(crate) async fn is_abandoned_when_given_up_while_a_message_waits(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap().unwrap();
    appended(stores, append(tenant, session, vec![said("am I heard?")])).await;
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
    stores.leases.release(tenant, session, epoch).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), [Abandoned { tenant, session }]);
    is_nobodys(stores, Abandoned { tenant, session }, epoch).await;

    let next = stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap().expect("it can be taken");
    assert!(next > epoch);
    let mut taken = append(tenant, session, vec![said("heard")]);
    (taken.authority, taken.input_seq) = (Authority::Lease { epoch: next }, Some(4));
    appended(stores, taken).await;
    stores.leases.release(tenant, session, next).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
}

/// Its sender saw the lease taken, and was lost before it could see it free.
pub(crate) async fn is_abandoned_by_a_message_that_finds_nobody(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap().unwrap();
    stores.leases.release(tenant, session, epoch).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
    appended(stores, append(tenant, session, vec![said("am I heard?")])).await;
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), [Abandoned { tenant, session }]);
    is_nobodys(stores, Abandoned { tenant, session }, epoch).await;
    let next = stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap().expect("it can be taken");
    assert!(next > epoch);
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
}

/// In mid turn, with nothing that waits.
pub(crate) async fn is_abandoned_by_a_holder_that_goes(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let lease = Abandoned { tenant, session };
    let lost = stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap().unwrap();
    stores.leases.abandon(tenant, session, lost).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), [lease]);
    is_nobodys(stores, lease, lost).await;
    let next = stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap().expect("it can be taken");
    assert!(next > lost);
    // One that is another's by now stays the other's, and one that was given up stays free.
    stores.leases.abandon(tenant, session, lost).await.unwrap();
    stores.leases.renew(tenant, session, next, LONG).await.unwrap();
    stores.leases.release(tenant, session, next).await.unwrap();
    stores.leases.abandon(tenant, session, next).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
}

/// Nobody holds it, not even whoever guesses what it is under now.
async fn is_nobodys(stores: &Stores, lease: Abandoned, epoch: u64) {
    let Abandoned { tenant, session } = lease;
    for guess in [epoch, epoch + 1] {
        let mut stray = append(tenant, session, vec![said("by nobody")]);
        stray.authority = Authority::Lease { epoch: guess };
        assert!(matches!(stores.events.append(stray).await, Err(Error::LeaseLost { .. })));
        assert!(matches!(stores.leases.renew(tenant, session, guess, LONG).await, Err(Error::LeaseLost { .. })));
        stores.leases.release(tenant, session, guess).await.unwrap();
        assert_eq!(stores.leases.abandoned(10).await.unwrap(), [lease]);
    }
}
