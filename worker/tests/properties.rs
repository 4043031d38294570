//! What holds of every turn, whatever the model and the tools do.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::collections::HashMap;

use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentLimits, AgentSpec, Message, Permission, Role, SessionCheckpoint, StopReason};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;

/// What a model may do.
fn step() -> impl Strategy<Value = Value> {
    let call = |name: &'static str, arguments: Value| json!({"tool_call": {"name": name, "arguments": arguments}});
    prop_oneof![
        3 => Just(json!({"text": "I am digging."})),
        1 => Just(json!({"thinking": "How deep?"})),
        3 => (0_u8..5).prop_map(move |depth| call("spade", json!({ "depth": depth }))),
        1 => Just(call("spade", json!({"depth": "deep"}))),
        1 => Just(call("spade", json!("{\"depth\": "))),
        1 => Just(call("calculator", json!({"expression": "1/0"}))),
        1 => Just(call("clock", json!({"sleep_ms": 40}))),
        1 => Just(call("rake", json!({}))),
        1 => Just(call("forbidden", json!({}))),
        1 => Just(json!({"error": {"class": "overload"}})),
        1 => prop::sample::select(vec!["max_tokens", "refusal", "pause"]).prop_map(|stop| json!({ "stop": stop })),
    ]
}

fn digger(limits: AgentLimits) -> AgentSpec {
    let mut forbidden = builtin("clock");
    forbidden.name = "forbidden".into();
    forbidden.permission = Permission::Deny.into();
    let tools = vec![builtin("spade"), builtin("clock"), builtin("calculator"), forbidden];
    AgentSpec { tools, limits: Some(limits), ..agent() }
}

/// Each call has one result, right behind its message and in its order, but for calls that are still open at the end.
fn calls_have_results(messages: &[Message], may_be_open: bool) {
    let mut place = 0;
    while place < messages.len() {
        let calls: Vec<_> = ids(&messages[place], |block| match block {
            Block::ToolUse(call) => Some(call.tool_call_id.clone()),
            _ => None,
        });
        place += 1;
        let mut results = Vec::new();
        while place < messages.len() && messages[place].role() == Role::Tool {
            results.extend(ids(&messages[place], |block| match block {
                Block::ToolOutput(output) => Some(output.tool_call_id.clone()),
                _ => None,
            }));
            place += 1;
        }
        if place < messages.len() || !may_be_open {
            assert_eq!(calls, results, "{messages:#?}");
        }
    }
}

fn ids(message: &Message, id: impl Fn(&Block) -> Option<String>) -> Vec<String> {
    message.content.iter().filter_map(|block| block.block.as_ref().and_then(&id)).collect()
}

fn holds(heard: &Heard, limits: &AgentLimits) {
    let story = heard.story();
    assert_eq!((story.first(), story.last()), (Some(&"started"), Some(&"completed")));
    let stop_reason = heard.stop_reason();
    assert_ne!(stop_reason, StopReason::Unspecified);
    let mut open: HashMap<&str, usize> = HashMap::new();
    for kind in &heard.durables {
        match kind {
            Kind::ToolCall(call) => *open.entry(&call.tool_call_id).or_default() += 1,
            Kind::ToolResult(result) => {
                // One that is refused for the bound's sake was never begun.
                let begun = open.get_mut(result.tool_call_id.as_str()).map(|begun| *begun -= 1);
                assert!(begun.is_some() || result.is_error, "a result without a call: {result:?}");
            }
            _ => {}
        }
    }
    assert!(open.values().all(|begun| *begun == 0), "a call without a result: {open:?}");
    let checkpoint = heard.checkpoint();
    assert!(checkpoint.model_calls <= limits.model_calls_max && checkpoint.tool_calls <= limits.tool_calls_max);
    let steps: Vec<_> = heard.checkpoints.iter().map(|checkpoint| checkpoint.superstep).collect();
    assert!(steps.is_sorted_by(|one, other| one < other), "{steps:?}");
    for checkpoint in &heard.checkpoints {
        calls_have_results(&checkpoint.messages, true);
    }
    calls_have_results(&checkpoint.messages, false);
}

/// A conversation without what is made anew each time: the time that a clock tells.
fn timeless(checkpoint: &SessionCheckpoint) -> Vec<Message> {
    let mut messages = checkpoint.messages.clone();
    for block in messages.iter_mut().flat_map(|message| &mut message.content) {
        if let Some(Block::ToolOutput(output)) = &mut block.block
            && texts(&output.content).ends_with('Z')
        {
            output.content.clear();
        }
    }
    messages
}

async fn plays(steps: Vec<Value>, limits: AgentLimits) {
    let spade = Spade::default();
    let worker = worker_with_spade(&spade).await.0;
    let agent = digger(limits);
    let input = script(&json!(steps));
    let heard = turn(&worker, &agent, input.clone()).await;
    holds(&heard, &limits);
    // Whoever goes on from any of its checkpoints comes to the same end.
    for checkpoint in &heard.checkpoints {
        let session_id = session();
        init(&worker.client, &session_id, &agent).await.unwrap();
        let mut again = start(&session_id, input.clone());
        again.checkpoint = Some(checkpoint.clone());
        let resumed = Front::open(&worker.client, again).await.finish().await;
        assert_eq!(timeless(&resumed.checkpoint()), timeless(&heard.checkpoint()));
        assert_eq!(resumed.stop_reason(), heard.stop_reason());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_turn_ends_in_order_and_any_of_its_checkpoints_leads_to_the_same_end(
        steps in prop::collection::vec(step(), 0..10),
        model_calls_max in 1_u32..6,
        tool_calls_max in 1_u32..8,
    ) {
        let limits = AgentLimits { model_calls_max, tool_calls_max, ..AgentLimits::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(plays(steps, limits));
    }
}
