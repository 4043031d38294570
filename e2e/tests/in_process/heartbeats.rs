//! Leases of turns that run: renewed together for as long as the turns take, and given up when nobody can renew them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::Error;
use croft_front::core::Options;
use croft_front::counters::memory::Memory;
use croft_front::counters::{Answer, Ask, Counters, Settlement, Standing};
use croft_front::session::Session;
use croft_front::store::Stores;
use croft_front::turn::store::TurnStore;
use croft_proto::v1::{SessionState, StopReason, TenantLimits};
use futures::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::approvals::{asked, impatient, say_yes};
use crate::doubles::{Call, Gate, Hook, Made, Outage, hooked};
use crate::sub_agents::{ask, children, editor, results, script};
use crate::world::{Ground, PATIENCE, World, read_all, stop_reason};

const TTL: Duration = Duration::from_millis(900);
/// Less than who keeps leases has to spare in any of these: a front that stands still for longer may lose them, and rightly.
const STALL: Duration = Duration::from_millis(100);
/// Longer than a lease is good for.
const LONG: &str = r#"{"script": [{"delay_ms": 2000}, {"text": "done"}]}"#;

/// Renewals, counted, which may fail or hang.
#[derive(Default)]
struct Watched {
    calls: AtomicUsize,
    renewed: AtomicUsize,
    outage: Outage,
    /// A renewal takes so long.
    slowness: Duration,
    /// So many renewals to come are never answered.
    hanging: AtomicUsize,
    /// When the last of them was asked for, and when the first behind it was answered.
    hung_at: Mutex<Option<Instant>>,
    answered_at: Mutex<Option<Instant>>,
}

#[async_trait]
impl Hook for Watched {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if let Call::RenewAll(leases) = call {
            self.outage.meet()?;
            if self.hanging.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                *self.hung_at.lock().unwrap() = Some(Instant::now());
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(self.slowness).await;
            self.answered_at.lock().unwrap().get_or_insert_with(Instant::now);
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.renewed.fetch_add(leases.len(), Ordering::SeqCst);
        }
        made.await
    }
}

fn watched() -> (Stores, Arc<Watched>) {
    slow(Duration::ZERO)
}

fn slow(slowness: Duration) -> (Stores, Arc<Watched>) {
    let (mut stores, leases) = (Stores::memory(), Arc::new(Watched { slowness, ..Watched::default() }));
    stores.leases = hooked(stores.leases, Arc::clone(&leases));
    (stores, leases)
}

async fn watched_world() -> (World, Arc<Watched>) {
    let (stores, leases) = watched();
    let options = Options { lease_ttl: TTL, ..Options::default() };
    (World::on(Ground { stores, options, ..Ground::default() }).await, leases)
}

#[tokio::test]
async fn turns_that_run_are_kept_by_one_call_for_all() {
    steady(STALL, async || {
        let (world, leases) = watched_world().await;
        let turns = (0..20).map(|_| {
            let mut client = world.client();
            async move {
                let session = client.create(scripted_agent("slow")).await.unwrap();
                let sent = client.lifecycle.send_message(message(&session.session_id, LONG)).await.unwrap();
                stop_reason(&read_all(sent.into_inner()).await)
            }
        });
        assert_eq!(join_all(turns).await, [Some(StopReason::EndTurn); 20]);
        let (calls, renewed) = (leases.calls.load(Ordering::SeqCst), leases.renewed.load(Ordering::SeqCst));
        assert!(renewed >= 20 * 3, "each is renewed, or others would have taken them over: {renewed}");
        assert!(calls * 10 <= renewed, "{calls} calls for {renewed} renewals");
        assert_eq!(world.core.metrics.lease_losses.get(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_turn_that_nobody_can_renew_is_given_up_in_time_and_goes_on_later() {
    steady(STALL, async || {
        let (world, leases) = watched_world().await;
        let mut client = world.client();
        let session = client.create(scripted_agent("slow")).await.unwrap();
        leases.outage.begin();
        let sent = client.lifecycle.send_message(message(&session.session_id, LONG)).await.unwrap();
        // Before the turn would have been over.
        let given_up = async {
            while world.core.metrics.lease_losses.get() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, given_up).await.expect("the lease runs out");
        leases.outage.end();
        let events = read_all(sent.into_inner()).await;
        assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
    })
    .await;
}

/// Tries came twice in the life of a lease where the first hung, and the second was too late.
#[tokio::test]
async fn a_renewal_that_hangs_is_tried_again_before_the_next_is_due() {
    steady(STALL, async || {
        const TTL: Duration = Duration::from_millis(2400);
        let (stores, leases) = watched();
        let options = Options { lease_ttl: TTL, ..Options::default() };
        let world = World::on(Ground { stores, options, ..Ground::default() }).await;
        let mut client = world.client();
        let session = client.create(scripted_agent("slow")).await.unwrap();
        leases.hanging.store(1, Ordering::SeqCst);
        let sent = client.lifecycle.send_message(message(&session.session_id, LONG)).await.unwrap();
        let events = read_all(sent.into_inner()).await;
        assert_eq!((stop_reason(&events), world.core.metrics.lease_losses.get()), (Some(StopReason::EndTurn), 0));
        let [hung_at, answered_at] =
            [&leases.hung_at, &leases.answered_at].map(|at| at.lock().unwrap().expect("asked"));
        assert!(answered_at - hung_at < TTL / 3, "{:?}", answered_at - hung_at);
    })
    .await;
}

/// Each try was given up before it was answered, and the next one had all of it before it again.
#[tokio::test]
async fn a_store_that_takes_a_quarter_of_a_lease_to_renew_it_keeps_it() {
    steady(STALL, async || {
        const TTL: Duration = Duration::from_millis(2400);
        let (stores, leases) = slow(TTL / 4);
        let options = Options { lease_ttl: TTL, ..Options::default() };
        let world = World::on(Ground { stores, options, ..Ground::default() }).await;
        let mut client = world.client();
        let session = client.create(scripted_agent("slow")).await.unwrap();
        // Longer than the lease that it begins with, and the first renewal of it.
        let script = r#"{"script": [{"delay_ms": 4000}, {"text": "done"}]}"#;
        let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
        let events = read_all(sent.into_inner()).await;
        assert_eq!((stop_reason(&events), world.core.metrics.lease_losses.get()), (Some(StopReason::EndTurn), 0));
        assert!(leases.renewed.load(Ordering::SeqCst) >= 2, "it is renewed again and again");
    })
    .await;
}

/// The driver was never told, as its place was taken by the next one's, and ended the sub-agent that the next one waited for.
#[tokio::test]
async fn a_driver_whose_turn_its_own_front_takes_over_leaves_it_alone() {
    steady(STALL, async || {
        let (world, leases) = watched_world().await;
        let mut client = world.client();
        let session_id = client.create(editor()).await.unwrap().session_id;
        leases.hanging.store(usize::MAX, Ordering::SeqCst);
        let slow = json!([{"delay_ms": 6000, "text": "it is 42"}]);
        let steps = script(&json!([ask("reader", &slow), {"text": "as I thought"}]));
        let sent = client.lifecycle.send_message(message(&session_id, &steps)).await.unwrap();
        // The caller's turn and the one that it called for.
        let taken_over = async {
            while world.core.metrics.takeovers.get() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, taken_over).await.expect("their leases run out");
        leases.hanging.store(0, Ordering::SeqCst);
        let alone = async {
            while world.core.metrics.turns_running.get() > 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), alone).await.expect("each turn has one driver");
        let events = read_all(sent.into_inner()).await;
        assert_eq!(results(&events), [("it is 42".to_owned(), false)], "{events:?}");
        let child = children(&mut client, &session_id).await.remove(0);
        let ended = |child: &Session| child.state == SessionState::Terminated;
        assert_eq!(world.wait_for(&child.session_id, ended).await.terminate_reason, "ANSWERED");
    })
    .await;
}

/// Is slow to take back what is reserved.
#[derive(Default)]
struct SlowToSettle(Memory, AtomicUsize);

#[async_trait]
impl Counters for SlowToSettle {
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
        self.0.admit(ask).await
    }

    async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
        self.0.hold(ask).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
        tokio::time::sleep(TTL).await;
        let settled = self.0.settle(settlement).await;
        self.1.fetch_add(1, Ordering::SeqCst);
        settled
    }
}

/// Tells late that a turn has ended.
struct LateWord;

#[async_trait]
impl Hook for LateWord {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        let made = made.await;
        if matches!(call, Call::End(_)) {
            tokio::time::sleep(TTL).await;
        }
        made
    }
}

/// With the turn's last word its lease is nobody's, and the next renewal said so: what belongs to the end was cut off. What was reserved
/// stayed so, and a yes that came just before had no effect.
#[tokio::test]
async fn a_turn_that_has_given_its_lease_up_is_not_cut_off() {
    steady(STALL, async || {
        let (mut stores, ends) = (Stores::memory(), Gate::default());
        let late = hooked(stores.turns, LateWord) as Arc<dyn TurnStore>;
        stores.turns = hooked(late, ends.before(|call| matches!(call, Call::End(_))));
        let counters = Arc::new(SlowToSettle::default());
        let options = Options { lease_ttl: TTL, ..Options::default() };
        let limits = TenantLimits { monthly_budget_tokens: 1_000_000, ..TenantLimits::default() };
        let counting = Arc::clone(&counters) as Arc<dyn Counters>;
        let world = World::on(Ground { stores, options, limits, counters: counting, ..Ground::default() }).await;
        let mut client = world.client();
        let session_id = client.create(impatient()).await.unwrap().session_id;
        let (approval_id, events) = asked(&mut client, &session_id).await;
        ends.reached().await;
        say_yes(&mut client, &session_id, &approval_id).await;
        ends.open();
        assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::RequiresAction));
        let done =
            |session: &Session| session.state == SessionState::Idle && session.last_stop_reason == StopReason::EndTurn;
        let usage = world.wait_for(&session_id, done).await.usage;
        let settled = async {
            while i64::try_from(counters.1.load(Ordering::SeqCst)).unwrap() < usage.attempts {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("what was reserved is given back");
        assert_eq!(world.core.metrics.lease_losses.get(), 0);
    })
    .await;
}
