//! One conversation, again and again: its worker is killed once at each superstep, in the midst of each answer and of each tool, and
//! around its sub-agent; each time it must end as the one that nothing disturbed.

use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, GetSessionRequest, ListSessionsRequest, ListUsageEventsRequest, ReplayClass, SessionEvent,
    SessionState, StreamEventsRequest, SubAgentTool, ToolSpec,
};
use serde_json::json;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::stage::Stage;
use crate::transcript::{Excuses, Line, Record, differences, troubles};

/// How long tools take, and how far into that they are when their worker is killed.
const TOOL_MS: u64 = 500;
const IN_MID_TOOL: Duration = Duration::from_millis(150);
/// A history that is disturbed by the machine so often is so whatever the machine does.
const TRIES_MAX: usize = 5;

/// Whoever is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Worker,
    /// Of the sub-agent.
    ChildsWorker,
    /// That took the message, and so drives the turn and its sub-agent's.
    Front,
}

/// When something is seen for so many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    seen: &'static str,
    times: usize,
    victim: Victim,
}

/// What may be waited for; `None` for what tells of no moment of its own.
fn seen(event: &SessionEvent) -> Option<&'static str> {
    match event.kind.as_ref()? {
        Kind::StepStarted(_) => Some("step"),
        Kind::TextDelta(_) => Some("word"),
        Kind::AgentMessage(_) => Some("answer"),
        Kind::CheckpointTaken(_) => Some("checkpoint"),
        Kind::ToolCall(_) => Some("call"),
        Kind::SubAgentStarted(_) => Some("sub-agent"),
        Kind::ToolResult(_) => Some("result"),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_at_any_superstep_or_in_mid_tool_is_as_if_it_had_not_been() {
    let mut stage = Stage::set().await;
    let calm = calm(&mut stage).await;
    let mut wrong = calm.faults();
    let moments = moments(&calm.events);
    for moment in &moments {
        let found = match struck(&mut stage, *moment).await {
            Some(record) => [record.faults(), differences(&calm, &record, &Excuses::default())].concat(),
            None => vec!["it came to no end".to_owned()],
        };
        wrong.extend(found.into_iter().map(|fault| format!("{moment:?}: {fault}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(moments.len() >= 25, "{} moments: {moments:?}", moments.len());
    stage.strike().await;
}

/// The conversation that nothing disturbs. A lease is good for a second and a half: on a machine that stands still for longer another
/// front takes the turn over, and it is had again.
async fn calm(stage: &mut Stage) -> Record {
    let mut troubled = Vec::new();
    for _ in 0..TRIES_MAX {
        let history = timeout(PATIENCE, history(stage, None)).await.expect("it comes to an end");
        let record = history.expect("nobody is to be killed");
        let starts = record.events.iter().filter(|event| seen(event) == Some("step")).count();
        troubled = troubles(&record, &[]);
        if starts == 1 && troubled.is_empty() {
            return record;
        }
        troubled.push(format!("it was started {starts} times"));
    }
    panic!("{}", troubled.join("\n"));
}

/// The conversation whose victim is killed at the moment; `None` if it comes to no end. It is had again where the moment was missed.
async fn struck(stage: &mut Stage, moment: Moment) -> Option<Record> {
    for _ in 0..TRIES_MAX {
        if let Some(record) = timeout(PATIENCE, history(stage, Some(moment))).await.ok()? {
            return Some(record);
        }
    }
    panic!("{moment:?} never came");
}

/// Every durable event of the undisturbed conversation that ends or begins something, the first word of each answer, and the
/// sub-agent's own.
fn moments(calm: &[SessionEvent]) -> Vec<Moment> {
    let mut moments = Vec::new();
    for what in ["step", "answer", "checkpoint", "call", "result", "sub-agent"] {
        let count = calm.iter().filter(|event| seen(event) == Some(what)).count();
        moments.extend((1..=count).map(|times| Moment { seen: what, times, victim: Victim::Worker }));
    }
    // Words of the first, the third and the last answer; there are three in each.
    moments.extend([2, 5, 8].map(|times| Moment { seen: "word", times, victim: Victim::Worker }));
    moments.extend([Victim::ChildsWorker, Victim::Front].map(|victim| Moment { seen: "sub-agent", times: 1, victim }));
    moments.push(Moment { seen: "call", times: 1, victim: Victim::Front });
    moments
}

fn agent() -> AgentSpec {
    let tool = |name: &str, replay: ReplayClass| ToolSpec {
        name: name.into(),
        source: Some(Source::Builtin(BuiltinTool { name: "clock".into() })),
        replay: replay.into(),
        ..ToolSpec::default()
    };
    let look = || tool("look", ReplayClass::Safe);
    let helper = AgentSpec { tools: vec![look()], ..scripted_agent("helper") };
    let ask = ToolSpec {
        name: "delegate".into(),
        source: Some(Source::SubAgent(SubAgentTool { agent: "helper".into() })),
        ..ToolSpec::default()
    };
    let tools = vec![look(), tool("pay", ReplayClass::Idempotent), tool("launch", ReplayClass::Unsafe), ask];
    AgentSpec { tools, sub_agents: vec![helper], ..scripted_agent("killed-at-each") }
}

fn script() -> String {
    let call = |name: &str| json!({"tool_call": {"name": name, "arguments": {"sleep_ms": TOOL_MS}}});
    let said = |text: &str| json!({"text": text, "token_delay_ms": 40});
    let helper = json!({"script": [said("let me see"), call("look"), said("it is done")]}).to_string();
    let steps = json!([
        said("one two three"), call("look"), call("pay"),
        said("four five six"), {"tool_call": {"name": "delegate", "arguments": {"message": helper}}},
        said("seven eight nine"), call("launch"),
        said("good bye now"),
    ]);
    json!({ "script": steps }).to_string()
}

/// Has the conversation, and kills at the moment; `None` if that was missed.
async fn history(stage: &mut Stage, moment: Option<Moment>) -> Option<Record> {
    let [mut teller, mut reader] = <[Client; 2]>::try_from(stage.clients()).ok().expect("two fronts");
    // A front that was killed in the history before is ready again; its connections are not.
    let session_id = loop {
        match teller.create(agent()).await {
            Ok(session) => break session.session_id,
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let request = StreamEventsRequest { session_id: session_id.clone(), ..StreamEventsRequest::default() };
    let mut stream = reader.lifecycle.stream_events(request).await.unwrap().into_inner();
    drop(teller.lifecycle.send_message(message(&session_id, &script())).await.unwrap());
    let (mut events, mut times, mut worker, mut killed) = (Vec::new(), 0, String::new(), moment.is_none());
    loop {
        let event = stream.message().await.unwrap().unwrap().event.unwrap();
        if let Some(Kind::StepStarted(started)) = &event.kind {
            worker.clone_from(&started.worker);
        }
        if let Some(moment) = moment.filter(|moment| !killed && seen(&event) == Some(moment.seen)) {
            times += 1;
            // A word may overtake what tells of its worker.
            if times >= moment.times && !worker.is_empty() {
                killed = kill(stage, &mut reader, moment, &worker, &event).await;
            }
        }
        let is_last = matches!(event.kind, Some(Kind::SessionIdle(_)));
        if event.seq > 0 {
            events.push(event);
        }
        if is_last {
            break;
        }
    }
    if !killed {
        return None;
    }
    one_session_a_call(&mut reader, &session_id, &events).await;
    let usage = ListUsageEventsRequest { session_id, page_size: 500, ..ListUsageEventsRequest::default() };
    let usage = reader.usage.list_usage_events(usage).await.unwrap().into_inner().usage_events;
    let mut record = Record::new(events, usage, None);
    for line in record.turns.iter_mut().flatten() {
        // What the clock says differs, whatever happens.
        if let Line::Result { text, is_error: false, .. } = line
            && text.len() == "2026-11-25T12:00:00Z".len()
            && text.ends_with('Z')
        {
            "a time".clone_into(text);
        }
    }
    Some(record)
}

/// Kills the moment's victim; `false` if it was a sub-agent that had ended by then.
async fn kill(stage: &mut Stage, reader: &mut Client, moment: Moment, worker: &str, event: &SessionEvent) -> bool {
    let place = |worker: &str| worker.trim_start_matches("worker-").parse::<usize>().expect("worker-0 or worker-1");
    match (&event.kind, moment.victim) {
        (Some(Kind::SubAgentStarted(started)), Victim::ChildsWorker) => {
            let get = GetSessionRequest { session_id: started.session_id.clone() };
            let child = loop {
                let child = reader.lifecycle.get_session(get.clone()).await.unwrap().into_inner().session.unwrap();
                match child.state() {
                    SessionState::Running => break child,
                    SessionState::Terminated => return false,
                    _ => {}
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            tokio::time::sleep(IN_MID_TOOL).await;
            stage.kill_worker(place(&child.worker)).await;
        }
        (_, Victim::Front) => {
            tokio::time::sleep(IN_MID_TOOL).await;
            stage.kill_front(0).await;
        }
        (Some(Kind::ToolCall(_) | Kind::SubAgentStarted(_)), _) => {
            tokio::time::sleep(IN_MID_TOOL).await;
            stage.kill_worker(place(worker)).await;
        }
        _ => stage.kill_worker(place(worker)).await,
    }
    true
}

/// However often the call was asked for: one session, and one word of it.
async fn one_session_a_call(reader: &mut Client, session_id: &str, events: &[SessionEvent]) {
    let request = ListSessionsRequest { parent_session_id: session_id.to_owned(), ..ListSessionsRequest::default() };
    let children = reader.lifecycle.list_sessions(request).await.unwrap().into_inner().sessions;
    let told = events.iter().filter(|event| matches!(event.kind, Some(Kind::SubAgentStarted(_)))).count();
    assert_eq!((children.len(), told), (1, 1), "{children:?}");
    assert_eq!(children[0].state(), SessionState::Terminated, "it ended with its call");
}
