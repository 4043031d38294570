//! Other arguments in place of a yes: the call is made with those, whether its turn waits for the answer or is over.

use croft_e2e::client::{Client, message};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, BuiltinTool, ResolveApprovalRequest, SessionEvent, StopReason};
use tonic::{Code, Status};

use crate::approvals::{cautious, failures, impatient, went_on};
use crate::world::{World, read_all, stop_reason};

/// With a calculator in place of the clock.
fn reckoner(mut agent: AgentSpec) -> AgentSpec {
    agent.tools[0].name = "calculator".into();
    agent.tools[0].source = Some(Source::Builtin(BuiltinTool { name: "calculator".into() }));
    agent
}

const SUM: &str =
    r#"{"script": [{"tool_call": {"name": "calculator", "arguments": {"expression": "1+1"}}}, {"text": "done"}]}"#;
const OTHER: &str = r#"{"expression":"40+2"}"#;

fn given(session_id: &str, approval_id: &str, arguments_json: &str) -> ResolveApprovalRequest {
    ResolveApprovalRequest {
        session_id: session_id.into(),
        approval_id: approval_id.into(),
        arguments_json: arguments_json.into(),
        ..ResolveApprovalRequest::default()
    }
}

async fn says(client: &mut Client, answer: &ResolveApprovalRequest) -> Result<(), Status> {
    client.lifecycle.resolve_approval(answer.clone()).await.map(drop)
}

/// That the person's word is in the log, the call has it, and its result is the new one.
fn assert_made(log: &[SessionEvent]) {
    let arguments: Vec<_> = log
        .iter()
        .filter_map(|event| match &event.kind {
            // To whoever knows nothing of other arguments it is a no.
            Some(Kind::ApprovalResolved(resolved)) if !resolved.approved => {
                Some(("resolved", resolved.arguments_json.as_str()))
            }
            Some(Kind::ToolCall(call)) => Some(("call", call.arguments_json.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(arguments, [("resolved", OTHER), ("call", OTHER)]);
    assert_eq!(failures(log), [false]);
    let result = log.iter().find_map(|event| match &event.kind {
        Some(Kind::ToolResult(result)) => Some(format!("{result:?}")),
        _ => None,
    });
    let result = result.unwrap();
    assert!(result.contains("\"42\"") && result.contains("A person changed the arguments"), "{result}");
}

#[tokio::test]
async fn a_turn_that_waits_makes_its_call_with_what_a_person_gives() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(reckoner(cautious())).await.unwrap().session_id;
    let mut events = client.lifecycle.send_message(message(&session_id, SUM)).await.unwrap().into_inner();
    let approval_id = loop {
        if let Some(Kind::ApprovalRequired(asked)) = events.message().await.unwrap().unwrap().event.unwrap().kind {
            assert_eq!((asked.arguments_json.contains("1+1"), asked.repeat), (true, false));
            break asked.approval_id;
        }
    };
    let both = ResolveApprovalRequest { approved: true, ..given(&session_id, &approval_id, OTHER) };
    let long = format!("{{\"expression\":\"{}1\"}}", "1+".repeat(40_000));
    for answer in [
        both,
        given(&session_id, &approval_id, "[]"),
        given(&session_id, &approval_id, "{"),
        given(&session_id, &approval_id, &long),
    ] {
        let refused = says(&mut client, &answer).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    says(&mut client, &given(&session_id, &approval_id, OTHER)).await.unwrap();
    let turn = read_all(events).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn), "{turn:?}");
    assert_made(&turn);
}

#[tokio::test]
async fn the_turn_that_an_answer_begins_does_too() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(reckoner(impatient())).await.unwrap().session_id;
    let events = client.lifecycle.send_message(message(&session_id, SUM)).await.unwrap().into_inner();
    let turn = read_all(events).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::RequiresAction), "{turn:?}");
    let approval_id = turn.iter().find_map(|event| match &event.kind {
        Some(Kind::ApprovalRequired(asked)) => Some(asked.approval_id.clone()),
        _ => None,
    });
    says(&mut client, &given(&session_id, &approval_id.unwrap(), OTHER)).await.unwrap();
    assert_made(&went_on(&world, &session_id).await);
}
