//! What people are asked while a turn waits for them, and may still answer.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_front::session::Session;
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentLimits, AgentSpec, BuiltinTool, InterruptSessionRequest, Permission, ReplayClass, ResolveApprovalRequest,
    SendMessageResponse, SessionEvent, SessionState, StopReason, ToolSpec,
};
use futures::future::join_all;
use tonic::{Code, Status, Streaming};

use crate::doubles::{Call, Outage, hooked};
use crate::world::{Ground, PATIENCE, World, read_all, stop_reason};

pub(crate) fn cautious() -> AgentSpec {
    let clock = ToolSpec {
        name: "clock".into(),
        source: Some(Source::Builtin(BuiltinTool { name: "clock".into() })),
        replay: ReplayClass::Safe.into(),
        permission: Permission::Ask.into(),
        ..ToolSpec::default()
    };
    AgentSpec { tools: vec![clock], ..scripted_agent("cautious") }
}

/// The same, whose turns give up waiting after three seconds.
pub(crate) fn impatient() -> AgentSpec {
    AgentSpec { limits: Some(AgentLimits { turn_timeout_ms: 3_000, ..AgentLimits::default() }), ..cautious() }
}

/// Has the question asked; its id, and the turn's stream.
pub(crate) async fn asked(client: &mut Client, session_id: &str) -> (String, Streaming<SendMessageResponse>) {
    let script = r#"{"script": [{"tool_call": {"name": "clock"}}, {"text": "done"}]}"#;
    let mut events = client.lifecycle.send_message(message(session_id, script)).await.unwrap().into_inner();
    loop {
        if let Some(Kind::ApprovalRequired(asked)) = events.message().await.unwrap().unwrap().event.unwrap().kind {
            return (asked.approval_id, events);
        }
    }
}

pub(crate) async fn answer(
    client: &mut Client,
    session_id: &str,
    approval_id: &str,
    approved: bool,
) -> Result<(), Status> {
    let (session_id, approval_id) = (session_id.to_owned(), approval_id.to_owned());
    let answer = ResolveApprovalRequest { session_id, approval_id, approved, ..ResolveApprovalRequest::default() };
    client.lifecycle.resolve_approval(answer).await.map(drop)
}

pub(crate) async fn say_yes(client: &mut Client, session_id: &str, approval_id: &str) {
    answer(client, session_id, approval_id, true).await.unwrap();
}

pub(crate) async fn assert_refused(client: &mut Client, session_id: &str, approval_id: &str, approved: bool) {
    let refused = answer(client, session_id, approval_id, approved).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
}

/// The log, once a turn has gone on with the answer to its end.
pub(crate) async fn went_on(world: &World, session_id: &str) -> Vec<SessionEvent> {
    let done =
        |session: &Session| session.state == SessionState::Idle && session.last_stop_reason == StopReason::EndTurn;
    world.wait_for(session_id, done).await;
    world.log(session_id, 0).await
}

/// Of each result of a tool, whether it is an error.
pub(crate) fn failures(log: &[SessionEvent]) -> Vec<bool> {
    let failure = |event: &SessionEvent| match &event.kind {
        Some(Kind::ToolResult(result)) => Some(result.is_error),
        _ => None,
    };
    log.iter().filter_map(failure).collect()
}

pub(crate) fn questions(log: &[SessionEvent]) -> Vec<String> {
    let question = |event: &SessionEvent| match &event.kind {
        Some(Kind::ApprovalRequired(asked)) => Some(asked.approval_id.clone()),
        _ => None,
    };
    log.iter().filter_map(question).collect()
}

#[tokio::test]
async fn of_several_who_decide_at_the_same_time_the_first_one_counts() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    let (world, session_id, approval_id) = (&world, &session_id, &approval_id);
    let answers = join_all((0..8).map(|person| async move {
        answer(&mut world.client(), session_id, approval_id, person % 2 == 0).await.map_err(|status| status.code())
    }));
    let answers = answers.await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    assert!(answers.iter().filter_map(|answer| answer.as_ref().err()).all(|code| *code == Code::FailedPrecondition));
    let rest = read_all(events).await;
    assert_eq!(stop_reason(&rest), Some(StopReason::EndTurn));
    let decisions = rest.iter().filter(|event| matches!(event.kind, Some(Kind::ApprovalResolved(_)))).count();
    assert_eq!(decisions, 1, "{rest:?}");
}

/// A yes was taken once the turn had been interrupted, and told to all who watched, and nothing came of it.
#[tokio::test]
async fn an_approval_that_comes_after_its_call_is_over_is_refused() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    let interrupt = InterruptSessionRequest { session_id: session_id.clone() };
    assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::Interrupted));
    let before = world.stored(&session_id).await;
    assert_refused(&mut client, &session_id, &approval_id, true).await;
    assert_eq!(world.stored(&session_id).await.last_seq, before.last_seq);
}

/// The store was away for a second, and every turn that waited for a person was torn down.
#[tokio::test]
async fn a_turn_that_waits_for_a_person_waits_also_while_the_log_cannot_be_read() {
    let (mut stores, outage) = (Stores::memory(), Outage::default());
    stores.events = hooked(stores.events, outage.before(|call| matches!(call, Call::Read)));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    outage.begin();
    // Its own looks, and those of whoever watches: two of each at least.
    for _ in 0..4 {
        outage.met().await;
    }
    outage.end();
    say_yes(&mut client, &session_id, &approval_id).await;
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::EndTurn));
    let log = world.log(&session_id, 0).await;
    let steps = log.iter().filter(|event| matches!(event.kind, Some(Kind::StepStarted(_)))).count();
    assert_eq!((steps, world.core.metrics.takeovers.get()), (1, 0), "{log:?}");
}

/// Whoever had decided was told that nobody could say, and once more that nothing is pending, while the call was made.
#[tokio::test]
async fn a_decision_counts_though_nobody_heard_that_it_is_stored() {
    let (mut stores, outage) = (Stores::memory(), Outage::of(1));
    let decides = |call: &Call<'_>| call.appends(|kind| matches!(kind, Kind::ApprovalResolved(_)));
    stores.events = hooked(stores.events, outage.after(decides));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    say_yes(&mut client, &session_id, &approval_id).await;
    outage.met().await;
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::EndTurn));
    assert_eq!(failures(&world.log(&session_id, 0).await), [false], "the call was made");
    assert_eq!(world.core.audit.unwritten(PATIENCE).await, 0);
    let records = world.core.stores.audit.list(world.tenant(), 0, 100).await.unwrap();
    let decisions = records.iter().filter(|record| record.action == "approval.resolve");
    assert_eq!(decisions.map(|record| &*record.outcome).collect::<Vec<_>>(), ["ok"]);
}
