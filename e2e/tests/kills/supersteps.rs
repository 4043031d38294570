//! One conversation, again and again: its worker is killed once at each superstep, in the midst of each answer and of each tool, and
//! around its sub-agent; each time it must end as the one that nothing disturbed. Somebody outside, whom its tools call, must have
//! heard of each call once, but of one that may be repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, GetSessionRequest, ListSessionsRequest, ListUsageEventsRequest, McpTool, ReplayClass,
    SessionEvent, SessionState, StreamEventsRequest, SubAgentTool, ToolCall, ToolSpec,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::mcp_server::{Era, Server};
use crate::stage::{Flags, Stage};
use crate::transcript::{Excuses, Line, Record, differences, troubles};

/// After so long a call is not made any more.
const MADE_WITHIN: Duration = Duration::from_secs(10);
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

/// Where it is played, and who is called from there.
struct Scene {
    stage: Stage,
    outside: Server,
}

/// A conversation that was had, and how often somebody outside heard of each key.
struct History {
    record: Record,
    heard: BTreeMap<String, usize>,
}

impl History {
    /// The calls that went outside, each with how often it was heard of.
    fn outside(&self) -> Vec<(&ToolCall, usize)> {
        let calls = self.record.events.iter().filter_map(as_call).filter(|call| is_outside(call));
        calls.map(|call| (call, self.heard.get(&call.idempotency_key).copied().unwrap_or_default())).collect()
    }

    fn has_result(&self, call: &ToolCall) -> bool {
        let of_call =
            |kind: &Kind| matches!(kind, Kind::ToolResult(result) if result.tool_call_id == call.tool_call_id);
        self.record.events.iter().filter_map(|event| event.kind.as_ref()).any(of_call)
    }

    /// What is wrong with it by itself; empty when nothing is.
    fn faults(&self) -> Vec<String> {
        let mut wrong = self.record.faults();
        let calls = self.outside();
        for (call, times) in &calls {
            let is_repeated = *times > 1 && call.replay() == ReplayClass::Unsafe;
            if is_repeated || (*times == 0 && self.has_result(call)) {
                wrong.push(format!("{} was heard of {times} times", call.name));
            }
        }
        if !self.heard.keys().all(|key| calls.iter().any(|(call, _)| call.idempotency_key == *key)) {
            wrong.push(format!("not all that was done is in the log: {:?}", self.heard));
        }
        wrong
    }
}

fn as_call(event: &SessionEvent) -> Option<&ToolCall> {
    if let Some(Kind::ToolCall(call)) = &event.kind { Some(call) } else { None }
}

fn is_outside(call: &ToolCall) -> bool {
    matches!(call.name.as_str(), "pay" | "launch")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_at_any_superstep_or_in_mid_tool_is_as_if_it_had_not_been() {
    let outside = Server::start(Era::Stateless).await;
    let file = std::env::temp_dir().join(format!("croft-outside-{}.json", uuid::Uuid::new_v4()));
    let declared = json!({"providers": {}, "mcp_servers": [{"name": "outside", "url": outside.url}]});
    std::fs::write(&file, declared.to_string()).unwrap();
    let workers = vec![format!("--providers={}", file.display())];
    let mut scene = Scene { stage: Stage::told(&Flags { workers, ..Flags::default() }).await, outside };
    let calm = calm(&mut scene).await;
    let mut wrong = calm.faults();
    let moments = moments(&calm.record.events);
    let (mut repeated, mut left_open) = (0, 0);
    for moment in &moments {
        let found = match struck(&mut scene, *moment).await {
            Some(history) => {
                repeated += history.outside().iter().filter(|(_, times)| *times > 1).count();
                left_open += history.outside().iter().filter(|(call, _)| !history.has_result(call)).count();
                [history.faults(), differences(&calm.record, &history.record, &Excuses::default())].concat()
            }
            None => vec!["it came to no end".to_owned()],
        };
        wrong.extend(found.into_iter().map(|fault| format!("{moment:?}: {fault}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(moments.len() >= 25, "{} moments: {moments:?}", moments.len());
    assert!(repeated > 0 && left_open > 0, "in mid call outside: {repeated} made again, {left_open} left to people");
    scene.stage.strike().await;
    scene.outside.stop().await;
    std::fs::remove_file(file).unwrap();
}

/// The conversation that nothing disturbs. A lease is good for a second and a half: on a machine that stands still for longer another
/// front takes the turn over, and it is had again.
async fn calm(scene: &mut Scene) -> History {
    let mut troubled = Vec::new();
    for _ in 0..TRIES_MAX {
        let history = timeout(PATIENCE, history(scene, None)).await.expect("it comes to an end");
        let history = history.expect("nobody is to be killed");
        let starts = history.record.events.iter().filter(|event| seen(event) == Some("step")).count();
        troubled = troubles(&history.record, &[]);
        if starts == 1 && troubled.is_empty() {
            return history;
        }
        troubled.push(format!("it was started {starts} times"));
    }
    panic!("{}", troubled.join("\n"));
}

/// The conversation whose victim is killed at the moment; `None` if it comes to no end. It is had again where the moment was missed.
async fn struck(scene: &mut Scene, moment: Moment) -> Option<History> {
    for _ in 0..TRIES_MAX {
        if let Some(history) = timeout(PATIENCE, history(scene, Some(moment))).await.ok()? {
            return Some(history);
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

fn agent(outside: &Server) -> AgentSpec {
    let tool = |name: &str, source: Source, replay: ReplayClass| ToolSpec {
        name: name.into(),
        source: Some(source),
        replay: replay.into(),
        ..ToolSpec::default()
    };
    let look = || tool("look", Source::Builtin(BuiltinTool { name: "clock".into() }), ReplayClass::Safe);
    let add = || Source::Mcp(McpTool { server_url: outside.url.clone(), tool_name: "add".into() });
    let helper = AgentSpec { tools: vec![look()], ..scripted_agent("helper") };
    let ask = ToolSpec {
        name: "delegate".into(),
        source: Some(Source::SubAgent(SubAgentTool { agent: "helper".into() })),
        ..ToolSpec::default()
    };
    let tools =
        vec![look(), tool("pay", add(), ReplayClass::Idempotent), tool("launch", add(), ReplayClass::Unsafe), ask];
    AgentSpec { tools, sub_agents: vec![helper], ..scripted_agent("killed-at-each") }
}

fn script() -> String {
    let call = |name: &str, arguments: Value| json!({"tool_call": {"name": name, "arguments": arguments}});
    let look = || call("look", json!({"sleep_ms": TOOL_MS}));
    let outside = |name: &str, number: u64| call(name, json!({"wait_ms": TOOL_MS, "a": number, "b": number}));
    let said = |text: &str| json!({"text": text, "token_delay_ms": 40});
    let helper = json!({"script": [said("let me see"), look(), said("it is done")]}).to_string();
    let steps = json!([
        said("one two three"), look(), outside("pay", 1),
        said("four five six"), {"tool_call": {"name": "delegate", "arguments": {"message": helper}}},
        said("seven eight nine"), outside("launch", 2),
        said("good bye now"),
    ]);
    json!({ "script": steps }).to_string()
}

/// Has the conversation, and kills at the moment; `None` if that was missed.
async fn history(scene: &mut Scene, moment: Option<Moment>) -> Option<History> {
    let heard_before = scene.outside.idempotency_keys().len();
    let [mut teller, mut reader] = <[Client; 2]>::try_from(scene.stage.clients()).ok().expect("two fronts");
    // A front that was killed in the history before is ready again; its connections are not.
    let session_id = loop {
        match teller.create(agent(&scene.outside)).await {
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
                killed = kill(scene, &mut reader, moment, &worker, &event).await;
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
    if !killed || moment.is_some_and(|moment| is_too_late(moment, &events)) {
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
    let mut heard = BTreeMap::new();
    for key in scene.outside.idempotency_keys().split_off(heard_before) {
        *heard.entry(key).or_default() += 1;
    }
    Some(History { record, heard })
}

/// Whether a worker that was to be killed in mid call outside was killed after the call's end.
fn is_too_late(moment: Moment, events: &[SessionEvent]) -> bool {
    if (moment.seen, moment.victim) != ("call", Victim::Worker) {
        return false;
    }
    let mut behind = events.iter().filter(|event| seen(event) == Some("call")).skip(moment.times - 1);
    let Some((call, seq)) = behind.next().and_then(|event| Some((as_call(event)?, event.seq))) else { return false };
    let came_first = events.iter().filter(|event| event.seq > seq).find_map(|event| match &event.kind {
        Some(Kind::StepStarted(_) | Kind::SessionIdle(_)) => Some(false),
        Some(Kind::ToolResult(result)) if result.tool_call_id == call.tool_call_id => Some(true),
        _ => None,
    });
    is_outside(call) && came_first == Some(true)
}

/// Kills the moment's victim; `false` if it was a sub-agent that had ended by then.
async fn kill(scene: &mut Scene, reader: &mut Client, moment: Moment, worker: &str, event: &SessionEvent) -> bool {
    let Scene { stage, outside } = scene;
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
        (Some(Kind::ToolCall(call)), _) if is_outside(call) => {
            let made = async {
                while !outside.idempotency_keys().contains(&call.idempotency_key) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            // Of a turn that changed hands before, a person is asked in place of making it.
            if timeout(MADE_WITHIN, made).await.is_err() {
                return false;
            }
            stage.kill_worker(place(worker)).await;
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
