//! Guardrails from the call that creates a session to what its clients see, and to what is stored.

use croft_e2e::client::{message, scripted_agent};
use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, GuardrailSpec, GuardrailStage, PatternCheck, PersonalDataCheck, SessionEvent, StopReason,
    StreamEventsRequest,
};
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{World, read_all, stop_reason};

fn guardrail(name: &str, check: Check) -> GuardrailSpec {
    let mut guardrail = GuardrailSpec { name: name.into(), check: Some(check), ..GuardrailSpec::default() };
    guardrail.stages = vec![GuardrailStage::Output.into()];
    guardrail
}

fn denied(pattern: &str) -> Check {
    Check::Pattern(PatternCheck { denied: vec![pattern.into()] })
}

/// Whatever came of the turns in these events: the user's own message and the agent's spec are the user's.
fn told(events: &[SessionEvent]) -> String {
    let of_agent = |event: &&SessionEvent| !matches!(event.kind, Some(Kind::UserMessage(_) | Kind::SessionCreated(_)));
    serde_json::to_string(&events.iter().filter(of_agent).collect::<Vec<_>>()).unwrap()
}

#[tokio::test]
async fn what_a_guardrail_refuses_is_neither_streamed_nor_stored_and_the_session_goes_on() {
    let world = World::start().await;
    let mut client = world.client();
    let people = Check::PersonalData(PersonalDataCheck { kinds: Vec::new(), redact: true });
    let guardrails = vec![guardrail("people", people), guardrail("words", denied("open sesame"))];
    let session = client.create(AgentSpec { guardrails, ..scripted_agent("guarded") }).await.unwrap();
    let script =
        r#"{"script": [{"text": "Ask jo@doe.example, he will say open sesame and let you in.", "token_delay_ms": 1}]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
    let streamed = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&streamed), Some(StopReason::Guardrail), "{streamed:?}");

    let next = client.lifecycle.send_message(message(&session.session_id, "good morning")).await.unwrap();
    let next = read_all(next.into_inner()).await;
    assert_eq!(stop_reason(&next), Some(StopReason::EndTurn), "{next:?}");

    let watch = StreamEventsRequest { session_id: session.session_id.clone(), ..StreamEventsRequest::default() };
    let mut events = client.lifecycle.stream_events(watch).await.unwrap().into_inner();
    let mut stored = Vec::new();
    while stored.len() < usize::try_from(next.last().unwrap().seq).unwrap() {
        stored.push(events.message().await.unwrap().unwrap().event.unwrap());
    }
    for events in [&streamed, &stored] {
        let told = told(events);
        assert!(told.contains("Ask [email], he will say "), "{told}");
        assert!(!told.contains("sesame") && !told.contains("jo@doe"), "{told}");
        let violations = events.iter().filter(|event| matches!(event.kind, Some(Kind::GuardrailViolation(_))));
        assert_eq!(violations.count(), 2);
    }
}

#[tokio::test]
async fn a_guardrail_that_can_not_be_made_is_refused_by_the_call() {
    let world = World::start().await;
    let mut client = world.client();
    let agent = AgentSpec { guardrails: vec![GuardrailSpec::default()], ..scripted_agent("guarded") };
    let refused = client.create(agent).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let violations = refused.get_error_details().bad_request().unwrap().field_violations.clone();
    assert_eq!(violations[0].field, "agent.guardrails[0].name");
    let agent = AgentSpec { guardrails: vec![guardrail("words", denied("("))], ..scripted_agent("guarded") };
    let refused = client.create(agent).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert_eq!(refused.get_error_details().error_info().unwrap().metadata["worker_reason"], "GUARDRAIL_INVALID");
}
