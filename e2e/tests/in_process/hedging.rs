//! A model that is slow to begin is asked twice, over the whole path: both are paid for, and no budget is stretched for it.

use croft_e2e::client::{message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentLimits, AgentSpec, ListUsageEventsRequest, SessionEvent, UsageEvent};

use crate::world::{World, read_all};

/// A turn of an agent whose model takes its time; what it told, and what it cost.
async fn turn(budget_tokens: i64) -> (Vec<SessionEvent>, Vec<UsageEvent>) {
    let world = World::start().await;
    let mut client = world.client();
    let limits = Some(AgentLimits { budget_tokens, ..AgentLimits::default() });
    let agent = AgentSpec { hedge_after_ms: 50, limits, ..scripted_agent("hasty") };
    let session = client.create(agent).await.unwrap();
    let script = r#"{"script": [{"delay_ms": 5000}, {"text": "at last"}]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    let usage = ListUsageEventsRequest { session_id: session.session_id, ..ListUsageEventsRequest::default() };
    let usage = client.usage.list_usage_events(usage).await.unwrap().into_inner().usage_events;
    (events, usage)
}

fn answers(events: &[SessionEvent]) -> usize {
    events.iter().filter(|event| matches!(event.kind, Some(Kind::AgentMessage(_)))).count()
}

#[tokio::test]
async fn the_one_that_is_given_up_has_a_row_of_usage_of_its_own() {
    let (events, mut usage) = turn(0).await;
    assert_eq!(answers(&events), 1);
    usage.sort_by(|one, other| one.finish_reason.cmp(&other.finish_reason));
    let rows: Vec<_> = usage.iter().map(|row| (row.finish_reason.as_str(), row.usage_estimated)).collect();
    assert_eq!(rows, [("end_turn", false), ("hedged", true)]);
    assert!(usage.iter().all(|row| row.cost_nano_usd.is_some_and(|cost| cost > 0)), "{usage:?}");
}

/// The first reserves what is left of the budget.
#[tokio::test]
async fn a_second_try_for_which_there_is_no_room_ends_nothing() {
    let (events, usage) = turn(2_000).await;
    assert_eq!((answers(&events), usage.len()), (1, 1), "{events:?}");
    assert_eq!(usage[0].finish_reason, "end_turn");
    assert!(!events.iter().any(|event| matches!(event.kind, Some(Kind::BudgetReached(_)))), "{events:?}");
}
