//! The windows against an exact model: whatever comes when, what was let through in any stretch of time is within the limit, and
//! nothing was refused that had room.

use std::time::Duration;

use croft_front::counters::{Ask, Counters, Verdict, Window};
use croft_proto::id::TenantId;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use crate::{ask, at, in_memory, in_redis, settle, window};

const SPAN_MS: i64 = 40;

#[derive(Debug, Clone)]
struct Step {
    pause_ms: u64,
    amount: i64,
    /// What becomes of one of those that were let through: its place from behind, and what it used.
    settles: Option<(usize, i64)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let settles = prop::option::weighted(0.3, (0..3_usize, 0..12_i64));
    let step = (prop_oneof![3 => Just(0), 2 => 1..6_u64, 1 => 20..50_u64], 1..9_i64, settles);
    let step = step.prop_map(|(pause_ms, amount, settles)| Step { pause_ms, amount, settles });
    prop::collection::vec(step, 1..40)
}

async fn holds(counters: &dyn Counters, limit: i64, steps: &[Step]) -> Result<(), TestCaseError> {
    let tenant = TenantId::generate();
    let mut through: Vec<(i64, i64, Ask)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        tokio::time::sleep(Duration::from_millis(step.pause_ms)).await;
        let tokens = Window { amount: step.amount, settles: true, ..window("tokens", limit, SPAN_MS.unsigned_abs()) };
        let ask = Ask { tokens: step.amount, ..ask(tenant, vec![tokens], vec![]) };
        let answer = counters.admit(&ask).await.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let now = at(&answer);
        let within = |moment: i64| moment > now - SPAN_MS;
        let sum: i64 = through.iter().filter(|(moment, ..)| within(*moment)).map(|(_, amount, _)| amount).sum();
        let fits = sum + step.amount.min(limit) <= limit;
        match answer.verdict {
            Verdict::Granted(_) => {
                prop_assert!(fits, "step {}: {} beside {} at {}", number, step.amount, sum, limit);
                through.push((now, step.amount, ask));
            }
            Verdict::Full { retry_after, .. } => {
                prop_assert!(!fits, "step {}: {} beside {} at {}", number, step.amount, sum, limit);
                // The oldest leave one after the other, until there is room.
                let mut excess = sum + step.amount.min(limit) - limit;
                let mut there = through.iter().filter(|(moment, ..)| within(*moment));
                let mut room_at = now;
                while excess > 0 {
                    let (moment, amount, _) = there.next().expect("an empty window has room");
                    (excess, room_at) = (excess - amount, moment + SPAN_MS);
                }
                prop_assert_eq!(retry_after.as_millis(), u128::from((room_at - now).max(1).unsigned_abs()));
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
        if let Some((from_behind, used)) = step.settles
            && let Some(place) = through.len().checked_sub(from_behind + 1)
        {
            let (_, amount, ask) = &mut through[place];
            // A second settlement finds nothing.
            if ask.id != "settled" {
                settle(counters, ask, Some(used), vec![]).await;
                *amount = used;
                "settled".clone_into(&mut ask.id);
            }
        }
    }
    Ok(())
}

fn check(make: impl Fn() -> std::sync::Arc<dyn Counters>, cases: u32) {
    let runtime = Runtime::new().unwrap();
    // Within the runtime, which the counters' connection lives in.
    let counters = runtime.block_on(async { make() });
    let config = Config { cases, max_shrink_iters: 50, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config)
        .run(&(5..30_i64, steps()), |(limit, steps)| runtime.block_on(holds(&*counters, limit, &steps)));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn windows_in_memory_are_exact() {
    check(in_memory, 60);
}

#[test]
fn windows_in_redis_are_exact() {
    check(in_redis, 60);
}
