//! What happens when a worker or a front is lost in mid turn, or hands it back: nothing is lost, nothing is done twice.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod answers;
mod calls;
mod drain;
mod fronts;
mod stored;
#[path = "../support/mod.rs"]
mod support;
mod unheard;

use croft_proto::v1::{AgentSpec, JournalledToolCall, ReplayClass, SessionCheckpoint, StepStart, ToolSpec};
use serde_json::{Value, json};
use support::*;

fn dig(depth: u32) -> Value {
    json!({"tool_call": {"name": "spade", "arguments": {"depth": depth}}})
}

fn with_replay(agent: &AgentSpec, replay: ReplayClass) -> AgentSpec {
    AgentSpec { tools: vec![ToolSpec { replay: replay.into(), ..builtin("spade") }], ..agent.clone() }
}

/// Runs a step on a new worker, and tells what it heard.
async fn elsewhere(spade: &Spade, agent: &AgentSpec, start: StepStart) -> Heard {
    let (worker, _) = worker_with_spade(spade).await;
    init(&worker.client, &start.session_id, agent).await.unwrap();
    Front::open(&worker.client, start).await.finish().await
}

/// The start by which another worker goes on from a checkpoint.
fn resumed(session_id: &str, checkpoint: SessionCheckpoint, journal: Vec<JournalledToolCall>) -> StepStart {
    StepStart { checkpoint: Some(checkpoint), journal, epoch: 2, ..start(session_id, Vec::new()) }
}
