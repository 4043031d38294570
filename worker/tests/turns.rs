//! What a turn does, told by what the front hears of it.

mod support;

use croft_proto::v1::StopReason;
use support::*;

#[tokio::test(start_paused = true)]
async fn a_message_is_answered_in_one_model_call() {
    let heard = turn(&worker().await, &agent(), text("hello, garden")).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
}
