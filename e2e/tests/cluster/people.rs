//! What people say to a turn that runs in a worker pod: stop, yes, no.

use anyhow::Context;
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, InterruptSessionRequest, Permission, ResolveApprovalRequest, SendMessageResponse,
    SessionEvent, StopReason, ToolResult, ToolSpec,
};
use tonic::{Code, Streaming};

use crate::support::{PATIENCE, Pod, assert_contiguous, eventually, front_pods, whole_turn};

/// An agent that has to ask before it looks at the clock.
fn cautious() -> AgentSpec {
    let clock = ToolSpec {
        name: "clock".into(),
        source: Some(Source::Builtin(BuiltinTool { name: "clock".into() })),
        permission: Permission::Ask.into(),
        ..ToolSpec::default()
    };
    AgentSpec { tools: vec![clock], ..scripted_agent("cautious") }
}

/// Reads until something of this kind has come; all that was read, and what was found in the last of it.
async fn until<T>(
    events: &mut Streaming<SendMessageResponse>,
    find: impl Fn(&Kind) -> Option<T>,
) -> anyhow::Result<(Vec<SessionEvent>, T)> {
    let mut seen = Vec::new();
    let reading = async {
        loop {
            let event =
                events.message().await?.context("the turn is over")?.event.context("a response without an event")?;
            let found = event.kind.as_ref().and_then(&find);
            seen.push(event);
            if let Some(found) = found {
                return anyhow::Ok(found);
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, reading).await.context("it does not come")??;
    Ok((seen, found))
}

async fn two_fronts(system: &System) -> Vec<Pod> {
    eventually("two fronts are ready", async || {
        let fronts = front_pods(system).await;
        anyhow::ensure!(fronts.len() > 1, "{fronts:?}");
        Ok(fronts)
    })
    .await
}

fn stop_reason(events: &[SessionEvent]) -> Option<StopReason> {
    match events.last()?.kind.as_ref()? {
        Kind::SessionIdle(idle) => Some(idle.stop_reason()),
        _ => None,
    }
}

fn result(events: &[SessionEvent]) -> Option<&ToolResult> {
    events.iter().find_map(|event| match &event.kind {
        Some(Kind::ToolResult(result)) => Some(result),
        _ => None,
    })
}

/// The turn would go on for ten minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_interrupted_at_another_front() {
    let system = System::from_env_file().unwrap();
    let fronts = two_fronts(&system).await;
    let client = |pod: &Pod| Client::new(&format!("{}:50051", pod.ip), &system.api_key).unwrap();
    let (mut speaks, mut stops) = (client(&fronts[0]), client(&fronts[1]));
    let session_id = speaks.create(scripted_agent("interrupted")).await.unwrap().session_id;
    let endless = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;
    let mut events = speaks.lifecycle.send_message(message(&session_id, endless)).await.unwrap().into_inner();
    let spoken = |kind: &Kind| matches!(kind, Kind::TextDelta(_)).then_some(());
    let (mut seen, ()) = until(&mut events, spoken).await.unwrap();

    let interrupt = InterruptSessionRequest { session_id: session_id.clone() };
    assert!(stops.lifecycle.interrupt_session(interrupt.clone()).await.unwrap().into_inner().interrupted);
    seen.extend(whole_turn(events).await.unwrap());
    assert_eq!(stop_reason(&seen), Some(StopReason::Interrupted));
    assert_contiguous(&seen);
    let again = stops.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner();
    assert!(!again.interrupted, "nothing runs any more");

    let sent = stops.lifecycle.send_message(message(&session_id, "and on")).await.unwrap().into_inner();
    assert_eq!(stop_reason(&whole_turn(sent).await.unwrap()), Some(StopReason::EndTurn), "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_call_waits_for_what_people_say_at_another_front() {
    let system = System::from_env_file().unwrap();
    let fronts = two_fronts(&system).await;
    let client = |pod: &Pod| Client::new(&format!("{}:50051", pod.ip), &system.api_key).unwrap();
    let (mut asks, mut decides) = (client(&fronts[0]), client(&fronts[1]));
    let session_id = asks.create(cautious()).await.unwrap().session_id;
    let script = r#"{"script": [{"tool_call": {"name": "clock"}}, {"text": "done"}]}"#;
    for (approved, word) in [(true, ""), (false, "not on a holiday")] {
        let mut events = asks.lifecycle.send_message(message(&session_id, script)).await.unwrap().into_inner();
        let question = |kind: &Kind| match kind {
            Kind::ApprovalRequired(required) => Some(required.approval_id.clone()),
            _ => None,
        };
        let (mut seen, approval_id) = until(&mut events, question).await.unwrap();
        let answered = ResolveApprovalRequest {
            session_id: session_id.clone(),
            approval_id,
            approved,
            message: word.to_owned(),
            ..Default::default()
        };
        decides.lifecycle.resolve_approval(answered.clone()).await.unwrap();
        seen.extend(whole_turn(events).await.unwrap());
        assert_eq!(stop_reason(&seen), Some(StopReason::EndTurn));
        assert_contiguous(&seen);
        let named = seen.iter().find_map(|event| match &event.kind {
            Some(Kind::ApprovalResolved(decision)) => Some(decision.resolver.as_str()),
            _ => None,
        });
        assert!(named.is_some_and(|resolver| resolver.starts_with("api-key/ck_")), "{named:?}");
        let result = result(&seen).expect("the call has a result");
        assert_eq!(result.is_error, !approved, "{result:?}");
        assert!(format!("{:?}", result.content).contains(word), "the model learns why: {result:?}");
        let twice = decides.lifecycle.resolve_approval(answered).await.unwrap_err();
        assert_eq!(twice.code(), Code::FailedPrecondition, "{twice:?}");
    }
}
