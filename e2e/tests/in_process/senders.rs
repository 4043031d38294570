//! What each person of a tenant used, who share its sessions.

use std::collections::BTreeMap;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_proto::v1::{
    ExportUsageRequest, ListUsageEventsRequest, SessionEvent, StopReason, SummarizeUsageRequest, UsageDimension,
};
use serde_json::json;

use crate::colleague::Colleague;
use crate::resolvers::speaker;
use crate::sub_agents::{ask, editor, script};
use crate::world::{World, read_all, stop_reason};

/// Says this in the session, and has the turn's events.
async fn said(client: &mut Client, session_id: &str, text: &str) -> Vec<SessionEvent> {
    let turn = read_all(client.lifecycle.send_message(message(session_id, text)).await.unwrap().into_inner()).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn), "{turn:?}");
    turn
}

/// Attempts, by sender.
async fn attempts(client: &mut Client) -> BTreeMap<String, i64> {
    let by_sender = SummarizeUsageRequest { group_by: vec![UsageDimension::Sender.into()], ..Default::default() };
    let summaries = client.usage.summarize_usage(by_sender).await.unwrap().into_inner().summaries;
    summaries.into_iter().map(|sum| (sum.keys[0].clone(), sum.totals.unwrap().attempts)).collect()
}

#[tokio::test]
async fn what_two_people_used_in_one_session_is_told_apart() {
    let world = World::start().await;
    let (mut client, mut colleague) = (world.client(), Colleague::of(&world).await);
    let session_id = client.create(scripted_agent("shared")).await.unwrap().session_id;
    let first = said(&mut client, &session_id, "hello").await;
    for _ in 0..2 {
        said(&mut colleague.client, &session_id, "hello").await;
    }
    let expected = BTreeMap::from([(speaker(&first).to_owned(), 1), (colleague.actor.clone(), 2)]);
    assert_eq!(expected.len(), 2);
    assert_eq!(attempts(&mut client).await, expected);

    let listed = client.usage.list_usage_events(ListUsageEventsRequest::default()).await.unwrap().into_inner();
    let senders: Vec<_> = listed.usage_events.iter().map(|event| &*event.sender).collect();
    assert_eq!(senders, [&*colleague.actor, &*colleague.actor, speaker(&first)], "newest first");

    let mut pieces = client.usage.export_usage(ExportUsageRequest::default()).await.unwrap().into_inner();
    let mut csv = String::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        csv.push_str(&piece.csv);
    }
    let last_column: Vec<_> = csv.lines().map(|line| line.rsplit(',').next().unwrap()).collect();
    assert_eq!(last_column, ["sender", &*colleague.actor, &*colleague.actor, speaker(&first)]);
}

#[tokio::test]
async fn what_a_sub_agent_used_is_used_by_whom_its_caller_ran_for() {
    let world = World::start().await;
    let mut colleague = Colleague::of(&world).await;
    // Whose session it is does not matter.
    let session_id = world.client().create(editor()).await.unwrap().session_id;
    let steps = json!([ask("reader", &json!([{"text": "read"}])), {"text": "good"}]);
    said(&mut colleague.client, &session_id, &script(&steps)).await;
    let used = attempts(&mut colleague.client).await;
    assert_eq!(used, BTreeMap::from([(colleague.actor, 3)]), "two of its own, and one of the sub-agent's");
}
