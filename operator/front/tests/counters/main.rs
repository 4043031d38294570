//! The counters of limits and budgets: what they promise, in memory and in Redis, and without their Redis.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod bounds;
mod limiter;
mod model;
mod outage;
#[path = "../redis/port.rs"]
mod port;
#[path = "../redis/server.rs"]
mod server;
mod stored;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use croft_front::counters::memory::Memory;
use croft_front::counters::redis::RedisCounters;
use croft_front::counters::{Answer, Ask, Bound, Counters, Ledger, Settlement, Standing, Verdict, Window};
use croft_proto::id::TenantId;
use uuid::Uuid;

/// The machine may be busy: what is slow here is not away.
const PATIENCE: Duration = Duration::from_secs(90);

fn url() -> String {
    std::env::var("CROFT_TEST_REDIS_URL")
        .expect("CROFT_TEST_REDIS_URL is not set: `make test-services` starts a Redis and tells its URL")
}

fn client(url: &str) -> ::redis::Client {
    croft_front::redis_client::open(url, None).unwrap()
}

fn in_memory() -> Arc<dyn Counters> {
    Arc::new(Memory::default())
}

fn in_redis() -> Arc<dyn Counters> {
    Arc::new(RedisCounters::connect(&client(&url()), PATIENCE).unwrap())
}

/// One test for each promise and each kind of counters.
macro_rules! promises {
    ($($noun:ident: $($promise:ident),+;)+) => {
        mod memory {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                crate::$noun::$promise(&*crate::in_memory()).await;
            })+)+
        }
        mod redis {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                crate::$noun::$promise(&*crate::in_redis()).await;
            })+)+
        }
    };
}

promises! {
    windows: lets_through_what_the_limit_says_and_no_more, keeps_tenants_apart, keeps_windows_apart,
        has_room_again_as_moments_leave, tells_when_there_is_room_again, lets_a_giant_through_an_empty_window_alone,
        takes_nothing_where_one_window_is_full, tells_of_the_window_that_takes_longest, holds_to_a_new_limit_at_once,
        corrects_an_estimate, stands_by_an_estimate_of_which_nothing_is_known, takes_a_repeated_ask_once,
        is_exact_whoever_races, takes_nothing_when_a_bound_has_no_room;
    bounds: asks_for_the_ledger_first, reserves_until_there_is_no_room, gives_a_settled_reservation_back,
        believes_the_newer_word_of_the_ledger, goes_back_to_an_older_word_that_is_insisted_on, forsakes_who_is_silent_and_asks_the_ledger_again, holds_what_is_spoken_for,
        takes_a_lost_reservation_again, extends_a_reservation_to_what_holds_since,
        asks_the_ledger_again_of_what_a_settlement_did_not_tell, settles_twice_as_once, stays_below_a_limit_that_was_lowered,
        goes_on_when_the_limit_is_raised, counts_money_and_tokens_apart, reserves_all_or_nothing,
        keeps_tenants_budgets_apart, gives_a_reservation_of_nothing_back, counts_beyond_what_floats_hold;
}

fn window(name: &str, limit: i64, span_ms: u64) -> Window {
    Window { name: name.into(), limit, span: Duration::from_millis(span_ms), amount: 1, settles: false }
}

/// With no word of the ledger.
fn bound(key: &str, nano_usd: impl Into<Option<i64>>, tokens: impl Into<Option<i64>>) -> Bound {
    let keep = Duration::from_mins(10);
    Bound { key: key.into(), nano_usd: nano_usd.into(), tokens: tokens.into(), keep, ledger: None, insists: false }
}

/// With the ledger's word.
fn known(bound: Bound, version: i64, nano_usd: i64, tokens: i64) -> Bound {
    Bound { ledger: Some(Ledger { version, nano_usd, tokens }), ..bound }
}

fn ask(tenant: TenantId, windows: Vec<Window>, bounds: Vec<Bound>) -> Ask {
    let (id, ttl) = (Uuid::new_v4().to_string(), Duration::from_mins(10));
    Ask { tenant, id, ttl, nano_usd: 10, tokens: 100, windows, bounds }
}

/// With that word, be it older than what is known.
fn insisting(bound: Bound) -> Bound {
    Bound { insists: true, ..bound }
}

async fn admit(counters: &dyn Counters, ask: &Ask) -> Verdict {
    counters.admit(ask).await.unwrap().verdict
}

async fn settle(counters: &dyn Counters, ask: &Ask, tokens: Option<i64>, bounds: Vec<Bound>) -> Vec<Standing> {
    let settlement = Settlement { tenant: ask.tenant, id: ask.id.clone(), tokens, bounds };
    counters.settle(&settlement).await.unwrap()
}

/// What a promise about a stretch of time came to. It is begun anew, at most twenty times, while it says `None`: by the clock that counts,
/// the machine had stalled for longer than that stretch.
async fn in_time<T>(promise: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..20 {
        if let Some(told) = promise().await {
            return told;
        }
    }
    panic!("the machine stalls each time")
}

fn is_granted(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Granted(_))
}

fn at(answer: &Answer) -> i64 {
    answer.at_ms
}
