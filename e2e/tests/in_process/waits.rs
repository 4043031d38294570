//! How long messages wait behind a running turn, as the front's page tells.

use std::time::Duration;

use croft_e2e::client::message;
use croft_proto::v1::{BusyPolicy, SendMessageRequest, StopReason};
use tokio::time::sleep;

use crate::approvals::{asked, cautious, say_yes};
use crate::world::{World, read_all, stop_reason};

const QUICK: &str = r#"{"script": [{"text": "done"}]}"#;
const WAITS: Duration = Duration::from_millis(600);

/// A number of the page.
fn told(world: &World, name: &str) -> f64 {
    let page = world.metrics.text().unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in {page}")).parse().unwrap()
}

#[tokio::test]
async fn only_messages_that_waited_behind_a_turn_are_measured_from_when_they_were_stored() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, first) = asked(&mut client, &session_id).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let waits = SendMessageRequest { busy_policy: BusyPolicy::Enqueue.into(), ..message(&session_id, QUICK) };
        waiting.push(client.lifecycle.send_message(waits).await.unwrap().into_inner());
    }
    sleep(WAITS).await;
    assert_eq!(
        told(&world, "croft_message_wait_seconds_count").to_bits(),
        0_f64.to_bits(),
        "their turns have not begun"
    );
    say_yes(&mut client, &session_id, &approval_id).await;
    for turn in [first].into_iter().chain(waiting) {
        assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::EndTurn));
    }
    // This one finds nobody before it.
    let turn = client.lifecycle.send_message(message(&session_id, QUICK)).await.unwrap().into_inner();
    assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::EndTurn));
    assert_eq!(told(&world, "croft_message_wait_seconds_count").to_bits(), 2_f64.to_bits());
    let soon = told(&world, r#"croft_message_wait_seconds_bucket{le="0.5"}"#);
    assert!(soon < 0.5, "none was quicker than that: {soon}");
}
