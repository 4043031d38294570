//! Where a turn ends by its agent's limits.

use croft_proto::conversation;
use croft_proto::v1::{AgentLimits, AgentSpec, Role, StopReason, ToolSpec};
use serde_json::json;
use tokio::time::Instant;

use crate::support::*;
use crate::{attempts, clock_call, limits};

#[tokio::test(start_paused = true)]
async fn the_loop_ends_at_its_limit() {
    let agent = limits(AgentLimits { model_calls_max: 2, ..AgentLimits::default() });
    let steps = json!([clock_call(), {"text": "again"}, clock_call(), {"text": "never said"}]);
    let heard = turn(&worker().await, &agent, script(&steps)).await;
    assert_eq!(heard.stop_reason(), StopReason::LoopLimit);
    assert_eq!(attempts(&heard).len(), 2);
    let state = heard.checkpoint();
    assert_eq!(state.model_calls, 2);
    assert_eq!(state.messages.last().unwrap().role(), Role::Tool, "the last calls have their results");
}

#[tokio::test(start_paused = true)]
async fn tool_calls_end_at_their_limit_and_leave_no_call_open() {
    let agent = limits(AgentLimits { tool_calls_max: 2, ..AgentLimits::default() });
    let steps = json!([clock_call(), {"text": "more"}, clock_call(), clock_call(), {"text": "never said"}]);
    let heard = turn(&worker().await, &agent, script(&steps)).await;
    assert_eq!(heard.stop_reason(), StopReason::ToolLimit);
    let story = heard.story();
    assert_eq!(story.iter().filter(|name| **name == "call").count(), 1, "a batch beyond the limit is not begun");
    assert_eq!(story.iter().filter(|name| **name == "result").count(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_turn_ends_at_its_time_limit_wherever_it_is() {
    let agent = limits(AgentLimits { turn_timeout_ms: 500, ..AgentLimits::default() });
    let worker = worker().await;
    let talking = json!([{"text": "on and on and on and on and on and on", "token_delay_ms": 100}]);
    let sleeping = json!([{"tool_call": {"name": "clock", "arguments": {"sleep_ms": 60_000}}}]);
    for (steps, results) in [(talking, 0), (sleeping, 1)] {
        let began = Instant::now();
        let heard = turn(&worker, &agent, script(&steps)).await;
        assert_eq!(heard.stop_reason(), StopReason::TimeLimit);
        assert_eq!(began.elapsed().as_millis() / 100, 5);
        assert_eq!(heard.story().iter().filter(|name| **name == "result").count(), results);
    }
}

/// A tenant's schema may be one that arguments take long to be held to.
#[tokio::test]
async fn the_turn_ends_at_its_time_limit_also_while_arguments_are_looked_at() {
    let many: Vec<_> = (0..9_000).map(|least| json!({"minLength": least % 2})).collect();
    let input_schema_json = json!({"properties": {"bells": {"items": {"allOf": many}}}}).to_string();
    let limits = limits(AgentLimits { turn_timeout_ms: 400, ..AgentLimits::default() });
    let agent = AgentSpec { tools: vec![ToolSpec { input_schema_json, ..builtin("clock") }], ..limits };
    let call = json!({"tool_call": {"name": "clock", "arguments": {"bells": vec!["a"; 12_000]}}});
    let heard = turn(&worker().await, &agent, script(&json!([call, call]))).await;
    assert_eq!(heard.stop_reason(), StopReason::TimeLimit);
    assert!(!heard.story().contains(&"call"), "{:?}", heard.story());
    assert!(conversation::open_calls(&heard.checkpoint().messages).is_empty());
}
