//! Agents that are called like tools: each call is a session of its own.

use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::store::Stores;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentLimits, AgentSpec, BuiltinTool, ContentBlock, GetSessionRequest, InterruptSessionRequest, ListSessionsRequest,
    Permission, ReplayClass, Session, SessionEvent, SessionState, StopReason, StreamEventsRequest, SubAgentTool,
    TerminateSessionRequest, ToolSpec,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Code;

use crate::approvals::say_yes;
use crate::doubles::{Call, Gate, hooked};
use crate::world::{Ground, STALL, World, names, read_all, stop_reason};

fn calls(agent: &str) -> ToolSpec {
    let source = Some(Source::SubAgent(SubAgentTool { agent: agent.to_owned() }));
    ToolSpec { name: format!("ask-{agent}"), source, ..ToolSpec::default() }
}

fn clock() -> ToolSpec {
    let source = Some(Source::Builtin(BuiltinTool { name: "clock".into() }));
    ToolSpec { name: "clock".into(), source, replay: ReplayClass::Safe.into(), ..ToolSpec::default() }
}

/// Who may call `reader`, who may call `scout` in turn.
pub(crate) fn editor() -> AgentSpec {
    let scout = AgentSpec { tools: vec![clock()], ..scripted_agent("scout") };
    let reader = AgentSpec { tools: vec![calls("scout"), clock()], ..scripted_agent("reader") };
    AgentSpec { tools: vec![calls("reader")], sub_agents: vec![reader, scout], ..scripted_agent("editor") }
}

pub(crate) fn ask(agent: &str, steps: &Value) -> Value {
    let message = json!({ "script": steps }).to_string();
    json!({"tool_call": {"name": format!("ask-{agent}"), "arguments": {"message": message}}})
}

pub(crate) fn script(steps: &Value) -> String {
    json!({ "script": steps }).to_string()
}

pub(crate) async fn say(client: &mut Client, session_id: &str, steps: &Value) -> Vec<SessionEvent> {
    read_all(client.lifecycle.send_message(message(session_id, &script(steps))).await.unwrap().into_inner()).await
}

async fn get(client: &mut Client, session_id: &str) -> Session {
    let get = GetSessionRequest { session_id: session_id.to_owned() };
    client.lifecycle.get_session(get).await.unwrap().into_inner().session.unwrap()
}

pub(crate) async fn children(client: &mut Client, session_id: &str) -> Vec<Session> {
    let request = ListSessionsRequest { parent_session_id: session_id.to_owned(), ..ListSessionsRequest::default() };
    client.lifecycle.list_sessions(request).await.unwrap().into_inner().sessions
}

/// What the model was told of its calls, and whether it was an error.
pub(crate) fn results(events: &[SessionEvent]) -> Vec<(String, bool)> {
    let result = |event: &SessionEvent| match &event.kind {
        Some(Kind::ToolResult(result)) => Some((words(&result.content), result.is_error)),
        _ => None,
    };
    events.iter().filter_map(result).collect()
}

fn words(content: &[ContentBlock]) -> String {
    let text = |block: &ContentBlock| match &block.block {
        Some(Block::Text(text)) => text.text.clone(),
        other => panic!("{other:?}"),
    };
    content.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn started(events: &[SessionEvent]) -> Vec<String> {
    let session = |event: &SessionEvent| match &event.kind {
        Some(Kind::SubAgentStarted(started)) => Some(started.session_id.clone()),
        _ => None,
    };
    events.iter().filter_map(session).collect()
}

async fn log(client: &mut Client, session_id: &str) -> Vec<SessionEvent> {
    let last = get(client, session_id).await.last_seq;
    let request = StreamEventsRequest { session_id: session_id.to_owned(), durable_only: true, after_seq: 0 };
    let mut stream = client.lifecycle.stream_events(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while events.len() < usize::try_from(last).unwrap() {
        events.push(stream.message().await.unwrap().unwrap().event.unwrap());
    }
    events
}

/// The session that a call of this one's runs in, once there is one that runs a turn.
async fn running_child(world: &World, client: &mut Client, session_id: &str) -> Session {
    loop {
        if let Some(child) = children(client, session_id).await.first() {
            world.wait_for(&child.session_id, |child| child.state == SessionState::Running).await;
            return child.clone();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_call_is_a_session_whose_answer_is_the_result() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(editor()).await.unwrap().session_id;
    let deep = ask("scout", &json!([{"text": "forty two"}]));
    let events = say(
        &mut client,
        &session_id,
        &json!([
            ask("reader", &json!([{"text": "let me see"}, deep, {"text": "it is 42"}])),
            {"text": "as I thought"}
        ]),
    )
    .await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
    assert_eq!(results(&events), [("it is 42".to_owned(), false)]);
    let [child] = &children(&mut client, &session_id).await[..] else { panic!("one call, one session") };
    assert_eq!(started(&events), std::slice::from_ref(&child.session_id), "the link is in the caller's log");
    let parent = child.parent.clone().unwrap();
    assert_eq!(parent.session_id, session_id);
    assert_eq!(parent.turn_id, events[0].turn_id);
    assert_eq!((child.state(), child.terminate_reason.as_str()), (SessionState::Terminated, "ANSWERED"));
    assert_eq!(child.agent.as_ref().unwrap().name, "reader");

    let own = log(&mut client, &child.session_id).await;
    assert!(matches!(&own[0].kind, Some(Kind::SessionCreated(created)) if created.parent == Some(parent)));
    assert_eq!(names(&own).last(), Some(&"terminated"));
    let [grandchild] = &children(&mut client, &child.session_id).await[..] else { panic!("one call, one session") };
    assert_eq!(grandchild.agent.as_ref().unwrap().sub_agents, [], "it may call nobody");

    // Each has what it used itself, and those above have it, too.
    let mut total = (0, 0);
    for one in [grandchild.clone(), get(&mut client, &child.session_id).await, get(&mut client, &session_id).await] {
        let usage = one.usage.unwrap();
        let tokens = usage.tokens.unwrap();
        total = (total.0 + usage.cost_nano_usd, total.1 + tokens.input_uncached_tokens + tokens.output_tokens);
        if let Some(family) = one.family_usage {
            assert_eq!((family.cost_nano_usd, family.tokens), total);
        }
        assert!(usage.attempts > 0);
    }
    assert!(total.0 > 0 && total.1 > 0);
}

#[tokio::test]
async fn calls_of_one_answer_run_side_by_side_and_each_has_its_own_result() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(editor()).await.unwrap().session_id;
    let slow = json!([{"delay_ms": 400}, {"text": "the first"}]);
    let mut steps: Vec<_> = vec![ask("reader", &slow)];
    steps.extend((0..9).map(|_| ask("reader", &json!([{"delay_ms": 100}, {"text": "another"}]))));
    steps.push(json!({"text": "done"}));
    let events = say(&mut client, &session_id, &json!(steps)).await;
    let results = results(&events);
    assert_eq!(results.len(), 10, "{events:?}");
    let first = events.iter().find_map(|event| match &event.kind {
        Some(Kind::ToolCall(call)) => Some(call.tool_call_id.clone()),
        _ => None,
    });
    for event in &events {
        if let Some(Kind::ToolResult(result)) = &event.kind {
            let is_first = Some(&result.tool_call_id) == first.as_ref();
            let expected = if is_first { "the first" } else { "another" };
            assert_eq!((words(&result.content).as_str(), result.is_error), (expected, false));
        }
    }
    assert_eq!(children(&mut client, &session_id).await.len(), 10);
}

#[tokio::test]
async fn what_a_sub_agent_spends_is_its_callers() {
    let world = World::start().await;
    let mut client = world.client();
    // Its own slice.
    let mut agent = editor();
    agent.sub_agents[0].limits = Some(AgentLimits { budget_tokens: 5, ..AgentLimits::default() });
    let session_id = client.create(agent).await.unwrap().session_id;
    let call = ask("reader", &json!([{"text": "a few words"}]));
    let events = say(&mut client, &session_id, &json!([call.clone(), {"text": "never mind"}])).await;
    let [child] = &children(&mut client, &session_id).await[..] else { panic!("one call, one session") };
    let told =
        format!("The sub-agent was stopped at a budget (the budget of session {} is used up).", child.session_id);
    assert_eq!(results(&events), [(told, true)]);
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "the caller has its own, and goes on");

    // What is left of the caller's: its sub-agent alone would need several times as much.
    let mut agent = editor();
    agent.limits = Some(AgentLimits { budget_tokens: 6_000, ..AgentLimits::default() });
    let session_id = client.create(agent).await.unwrap().session_id;
    let look = json!({"tool_call": {"name": "clock", "arguments": {}}});
    let long: Vec<_> =
        (0..20).flat_map(|_| [look.clone(), json!({"text": "once more, to see how late it is"})]).collect();
    let events = say(&mut client, &session_id, &json!([ask("reader", &json!(long)), {"text": "?"}])).await;
    let [(told, true)] = &results(&events)[..] else { panic!("{events:?}") };
    let whose = format!("The sub-agent was stopped at a budget (the budget of session {session_id} is used up).");
    assert!(told.starts_with(&whose), "its caller's: {told}");
    assert_eq!(stop_reason(&events), Some(StopReason::Budget), "{events:?}");
    let family = get(&mut client, &session_id).await.family_usage.unwrap();
    assert!((3_000..=6_000).contains(&family.tokens), "{family:?}");
    let [child] = &children(&mut client, &session_id).await[..] else { panic!("one call, one session") };
    assert!(child.usage.unwrap().attempts > 2, "{child:?}");
}

#[tokio::test]
async fn an_interrupt_goes_down_to_the_last_and_what_was_used_is_kept() {
    steady(STALL, async || {
        let world = World::start().await;
        let mut client = world.client();
        let session_id = client.create(editor()).await.unwrap().session_id;
        let endless = json!([{"text": "word after word after word after word", "token_delay_ms": 2_000}]);
        let steps = json!([ask("reader", &json!([ask("scout", &endless)]))]);
        let stream = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
        let child = running_child(&world, &mut client, &session_id).await;
        let grandchild = running_child(&world, &mut client, &child.session_id).await;
        let asked = Instant::now();
        let interrupt = InterruptSessionRequest { session_id: session_id.clone() };
        assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
        let events = read_all(stream).await;
        assert_eq!(stop_reason(&events), Some(StopReason::Interrupted));
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        for below in [child, grandchild] {
            let ended = get(&mut client, &below.session_id).await;
            assert_eq!(ended.state(), SessionState::Terminated, "before the caller's last word");
            assert_eq!(ended.last_stop_reason(), StopReason::Interrupted);
            assert_eq!(ended.usage.unwrap().attempts, 1, "the call of its model is paid for");
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_session_is_the_end_of_all_below_it() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(editor()).await.unwrap().session_id;
    let endless = json!([{"text": "word after word after word after word", "token_delay_ms": 2_000}]);
    let steps = json!([ask("reader", &json!([ask("scout", &endless)]))]);
    let stream = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
    let child = running_child(&world, &mut client, &session_id).await;
    let grandchild = running_child(&world, &mut client, &child.session_id).await;
    let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "enough".into() };
    client.lifecycle.terminate_session(end).await.unwrap();
    drop(stream);
    for below in [child, grandchild] {
        let ended = world.wait_for(&below.session_id, |below| below.state == SessionState::Terminated).await;
        assert_eq!(ended.terminate_reason, "CALL_ENDED");
    }
}

#[tokio::test]
async fn whoever_ends_a_sub_agent_ends_the_call_and_its_caller_goes_on() {
    let world = World::start().await;
    let mut client = world.client();
    for interrupts in [true, false] {
        let session_id = client.create(editor()).await.unwrap().session_id;
        let endless = json!([{"text": "word after word after word after word", "token_delay_ms": 2_000}]);
        let steps = json!([ask("reader", &endless), {"text": "never mind"}]);
        let stream = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
        let child = running_child(&world, &mut client, &session_id).await.session_id;
        if interrupts {
            client.lifecycle.interrupt_session(InterruptSessionRequest { session_id: child }).await.unwrap();
        } else {
            let end = TerminateSessionRequest { session_id: child, reason: "too slow".into() };
            client.lifecycle.terminate_session(end).await.unwrap();
        }
        let events = read_all(stream).await;
        assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));
        let [(told, true)] = &results(&events)[..] else { panic!("{events:?}") };
        let expected = if interrupts {
            "The sub-agent was interrupted."
        } else {
            "The sub-agent did not answer: its session was ended (too slow)."
        };
        assert!(told.starts_with(expected), "{told}");
    }
}

#[tokio::test]
async fn a_sub_agent_asks_people_in_its_own_session() {
    let world = World::start().await;
    let mut client = world.client();
    let mut agent = editor();
    agent.sub_agents[0].tools = vec![ToolSpec { permission: Permission::Ask.into(), ..clock() }];
    let session_id = client.create(agent).await.unwrap().session_id;
    let look = json!({"tool_call": {"name": "clock", "arguments": {}}});
    let steps = json!([ask("reader", &json!([look, {"text": "refreshed"}])), {"text": "good"}]);
    let stream = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
    let child = running_child(&world, &mut client, &session_id).await.session_id;
    let approval_id = loop {
        let asked = log(&mut client, &child).await.into_iter().find_map(|event| match event.kind {
            Some(Kind::ApprovalRequired(asked)) => Some(asked.approval_id),
            _ => None,
        });
        if let Some(approval_id) = asked {
            break approval_id;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    say_yes(&mut client, &child, &approval_id).await;
    let events = read_all(stream).await;
    assert_eq!(results(&events), [("refreshed".to_owned(), false)]);
}

#[tokio::test]
async fn a_sub_agent_that_takes_too_long_is_stopped_in_its_own_time() {
    let world = World::start().await;
    let mut client = world.client();
    let mut agent = editor();
    agent.tools[0].timeout_ms = 150;
    let session_id = client.create(agent).await.unwrap().session_id;
    let steps = json!([ask("reader", &json!([{"text": "a b c d e f", "token_delay_ms": 400}])), {"text": "too slow"}]);
    let events = say(&mut client, &session_id, &steps).await;
    let [(told, true)] = &results(&events)[..] else { panic!("{events:?}") };
    assert!(told.starts_with("The sub-agent was stopped: it took too long"), "{told}");
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));
}

#[tokio::test]
async fn an_agent_whose_sub_agents_make_no_sense_is_refused() {
    let world = World::start().await;
    let mut client = world.client();
    let mut ring = editor();
    ring.sub_agents[1].tools = vec![calls("reader")];
    let mut unknown = editor();
    unknown.tools.push(calls("nobody"));
    let mut rich = editor();
    rich.limits = Some(AgentLimits { budget_nano_usd: 5, ..AgentLimits::default() });
    rich.sub_agents[0].limits = Some(AgentLimits { budget_nano_usd: 6, ..AgentLimits::default() });
    let mut modelless = editor();
    modelless.sub_agents[1].model = "nonesuch-9".into();
    for (agent, says) in [
        (ring, "agent.sub_agents calls editor → reader → scout → reader"),
        (unknown, "agent.tools[1].sub_agent.agent names \"nobody\""),
        (rich, "agent.sub_agents[0].limits.budget_nano_usd is 6, and agent \"editor\", which calls it, has 5"),
        (modelless, "agent.model names \"nonesuch-9\", which the registry does not have"),
    ] {
        let refused = client.create(agent).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(says), "{}", refused.message());
    }
    let foreign = ListSessionsRequest { parent_session_id: "nonsense".into(), ..ListSessionsRequest::default() };
    assert_eq!(client.lifecycle.list_sessions(foreign).await.unwrap_err().code(), Code::NotFound);
}

/// Its first turn was taken for the call's, which was never made.
#[tokio::test]
async fn who_speaks_to_a_sub_agent_before_its_caller_does_is_not_taken_for_the_caller() {
    let (mut stores, gate) = (Stores::memory(), Gate::default());
    let starts = |call: &Call<'_>| call.appends(|kind| matches!(kind, Kind::SubAgentStarted(_)));
    stores.events = hooked(stores.events, gate.before(starts));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(editor()).await.unwrap().session_id;
    let steps = script(&json!([ask("reader", &json!([{"text": "it is 42"}])), {"text": "as I thought"}]));
    let sent = client.lifecycle.send_message(message(&session_id, &steps)).await.unwrap().into_inner();
    gate.reached().await;
    let child = children(&mut client, &session_id).await.remove(0);
    say(&mut client, &child.session_id, &json!([{"text": "who are you?"}])).await;
    gate.open();
    assert_eq!(results(&read_all(sent).await), [("it is 42".to_owned(), false)]);
}
