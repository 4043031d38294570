//! From any checkpoint, also an earlier release's.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use croft_proto::v1::{AgentSpec, SessionCheckpoint, StopReason};
use serde_json::json;

use crate::support::*;
use crate::{dig, elsewhere, resumed};

#[tokio::test(start_paused = true)]
async fn from_every_checkpoint_another_worker_comes_to_the_same_end() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let session_id = session();
    let steps = json!([{"text": "first"}, dig(1), dig(2), {"text": "then"}, dig(3), {"text": "done"}]);
    init(&worker.client, &session_id, &agent).await.unwrap();
    let whole = Front::open(&worker.client, start(&session_id, script(&steps))).await.finish().await;
    assert_eq!(whole.checkpoints.len(), 5);
    for checkpoint in whole.checkpoints.clone() {
        let superstep = checkpoint.superstep;
        let heard = elsewhere(&Spade::default(), &agent, resumed(&session_id, checkpoint, Vec::new())).await;
        let (ours, theirs) = (heard.checkpoint(), whole.checkpoint());
        assert_eq!(ours.messages, theirs.messages, "from superstep {superstep}");
        assert_eq!(
            (ours.superstep, ours.model_calls, ours.tool_calls),
            (theirs.superstep, theirs.model_calls, theirs.tool_calls),
            "from superstep {superstep}"
        );
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    }
}

/// See the README.md there.
fn stored<M: prost::Message + Default>(file: &str) -> M {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/tests/stored").join(file);
    let bytes = STANDARD.decode(std::fs::read_to_string(path).unwrap().trim()).unwrap();
    let message = M::decode(bytes.as_slice()).unwrap();
    // What isn't read isn't written either.
    assert_eq!(message.encode_to_vec(), bytes, "{file} is read in part");
    message
}

#[tokio::test(start_paused = true)]
async fn a_turn_of_an_earlier_release_goes_on_from_its_checkpoint() {
    let agent: AgentSpec = stored("digger.base64");
    let checkpoint: SessionCheckpoint = stored("checkpoint.base64");
    assert_eq!((checkpoint.superstep, checkpoint.model_calls, checkpoint.tool_calls), (3, 2, 2));
    let spade = Spade::default();
    let heard = elsewhere(&spade, &agent, resumed(&session(), checkpoint.clone(), Vec::new())).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let depths: Vec<_> = spade.digs.lock().unwrap().iter().map(|dig| dig.arguments["depth"].clone()).collect();
    assert_eq!(depths, [3], "what it had done is not done again, and what follows is");
    let end = heard.checkpoint();
    assert_eq!(end.messages[..checkpoint.messages.len()], checkpoint.messages);
    assert_eq!((end.superstep, end.model_calls, end.tool_calls), (5, 3, 3));
    assert_eq!(end.messages.last().unwrap().content, text("done"));
}
