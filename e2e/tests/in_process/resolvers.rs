//! Who answered a question: the same name in the log, in whatever shows it, and in the audit log, and never one that somebody gave themselves.

use std::net::SocketAddr;
use std::time::Duration;

use croft_e2e::client::{Client, message};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ApprovalResolved, ListAuditRecordsRequest, Permission, Session, SessionEvent, SessionState,
    StopReason,
};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::approvals::{asked, cautious};
use crate::colleague::Colleague;
use crate::sub_agents::{ask, children, editor, script};
use crate::world::{PATIENCE, World, read_all, stop_reason};

const LOOK_AGAIN: Duration = Duration::from_millis(10);
const TRIES_MAX: usize = 5;

/// The name that the front gave to who spoke first.
pub(crate) fn speaker(events: &[SessionEvent]) -> &str {
    let said = events.iter().find_map(|event| match &event.kind {
        Some(Kind::UserMessage(said)) => Some(said.sender.as_str()),
        _ => None,
    });
    said.unwrap()
}

fn decisions(events: &[SessionEvent]) -> Vec<ApprovalResolved> {
    let decision = |event: &SessionEvent| match &event.kind {
        Some(Kind::ApprovalResolved(decision)) => Some(decision.clone()),
        _ => None,
    };
    events.iter().filter_map(decision).collect()
}

/// A session whose turn has ended with its question open: its id and the turn.
async fn asked_in_vain(client: &mut Client) -> (Session, String, Vec<SessionEvent>) {
    let limits = AgentLimits { turn_timeout_ms: 2_000, ..AgentLimits::default() };
    let agent = AgentSpec { limits: Some(limits), ..cautious() };
    let asks = script(&json!([{"tool_call": {"name": "clock"}}, {"text": "done"}]));
    for _ in 0..TRIES_MAX {
        let session = client.create(agent.clone()).await.unwrap();
        let turn = client.lifecycle.send_message(message(&session.session_id, &asks)).await.unwrap().into_inner();
        let turn = read_all(turn).await;
        let question = turn.iter().find_map(|event| match &event.kind {
            Some(Kind::ApprovalRequired(asked)) => Some(asked.approval_id.clone()),
            _ => None,
        });
        // On a machine that stood still its time was up before it came so far.
        if let Some(approval_id) = question {
            assert_eq!(stop_reason(&turn), Some(StopReason::RequiresAction), "{turn:?}");
            return (session, approval_id, turn);
        }
    }
    panic!("nobody is asked within two seconds, {TRIES_MAX} times")
}

async fn stored(world: &World, session: &Session) -> Vec<SessionEvent> {
    let id = session.session_id.parse().unwrap();
    world.core.stores.events.read(world.tenant(), id, 0, 500).await.unwrap()
}

/// Who answered questions of this session, by the audit log, once it has so many answers.
async fn audited(client: &mut Client, session_id: &str, count: usize) -> Vec<String> {
    let resource = format!("sessions/{session_id}");
    let found = async {
        loop {
            let request = ListAuditRecordsRequest { after_number: 0, page_size: 500 };
            let records = client.audit.list_audit_records(request).await.unwrap().into_inner().records;
            let of_ours = records.into_iter().filter(|record| {
                (record.action.as_str(), record.outcome.as_str()) == ("approval.resolve", "ok")
                    && record.resource == resource
            });
            let actors: Vec<String> = of_ours.map(|record| record.actor).collect();
            if actors.len() >= count {
                return actors;
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, found).await.expect("the audit log does not have it")
}

/// The first decision that server-sent events show.
async fn shown_by_sse(http: SocketAddr, key: &str, session_id: &str) -> Value {
    let address = format!("http://{http}/v1/sessions/{session_id}/events?durable_only=true");
    let request = reqwest::Client::new().get(address).bearer_auth(key).header("accept", "text/event-stream");
    let mut stream = request.send().await.unwrap().error_for_status().unwrap();
    let mut text = String::new();
    let shown = async {
        loop {
            text.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().expect("it has ended")).unwrap());
            let is_decision = |line: &&str| line.contains("\"approvalResolved\"");
            let whole = &text[..text.rfind("\n\n").unwrap_or_default()];
            if let Some(line) = whole.lines().find(is_decision) {
                let event: Value = serde_json::from_str(line.strip_prefix("data:").unwrap()).unwrap();
                return event["approvalResolved"].clone();
            }
        }
    };
    timeout(PATIENCE, shown).await.expect("nothing is shown")
}

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(http: SocketAddr, key: &str) -> Self {
        let mut request = format!("ws://{http}/v1/ws").into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        Self(connect_async(request).await.unwrap().0)
    }

    async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// What the first frame holds that has this.
    async fn hear(&mut self, path: &str) -> Value {
        let heard = async {
            loop {
                let Message::Text(text) = self.0.next().await.expect("it is closed").unwrap() else { continue };
                let frame: Value = serde_json::from_str(&text).unwrap();
                assert!(frame.get("error").is_none(), "{frame}");
                if let Some(found) = frame.pointer(path) {
                    return found.clone();
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("nothing comes")
    }
}

#[tokio::test]
async fn who_answered_at_another_front_is_shown_everywhere_as_the_audit_log_has_it() {
    let world = World::start().await;
    let (mut client, mut colleague) = (world.client(), Colleague::of(&world).await);
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    let mut sockets = Vec::new();
    for (http, key) in [(world.http, &world.api_key), (colleague.http, &colleague.key)] {
        let mut socket = Socket::open(http, key).await;
        socket.say(json!({ "subscribe": { "sessionId": session_id, "since": 0 } })).await;
        socket.hear("/subscribed").await;
        sockets.push(socket);
    }
    colleague.answers(&session_id, &approval_id, true).await;
    let turn = read_all(events).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn), "{turn:?}");
    let [decision] = &decisions(&turn)[..] else { panic!("{turn:?}") };
    assert_eq!((decision.resolver.as_str(), decision.approved), (colleague.actor.as_str(), true));

    let shown = json!({ "approvalId": approval_id, "approved": true, "resolver": colleague.actor });
    for mut socket in sockets {
        assert_eq!(socket.hear("/event/approvalResolved").await, shown);
    }
    for http in [world.http, colleague.http] {
        assert_eq!(shown_by_sse(http, &world.api_key, &session_id).await, shown);
    }
    assert_eq!(audited(&mut client, &session_id, 1).await, [colleague.actor]);
}

#[tokio::test]
async fn nobody_answers_in_the_name_of_another() {
    let world = World::start().await;
    let (mut client, colleague) = (world.client(), Colleague::of(&world).await);
    let session = client.create(cautious()).await.unwrap();
    let (approval_id, events) = asked(&mut client, &session.session_id).await;
    let mut socket = Socket::open(colleague.http, &colleague.key).await;
    let log = stored(&world, &session).await;
    let answer = json!({
        "sessionId": session.session_id, "approvalId": approval_id, "approved": true,
        "resolver": speaker(&log), "actor": speaker(&log), "sender": speaker(&log),
    });
    socket.say(json!({ "approve": answer })).await;
    assert_eq!(socket.hear("/approved/approvalId").await, json!(approval_id));
    let turn = read_all(events).await;
    let [decision] = &decisions(&turn)[..] else { panic!("{turn:?}") };
    assert_ne!(colleague.actor, speaker(&log));
    assert_eq!(decision.resolver, colleague.actor);
    assert_eq!(audited(&mut client, &session.session_id, 1).await, [colleague.actor]);
}

#[tokio::test]
async fn whoever_answers_a_turn_that_is_over_is_named_in_the_next_which_runs_for_whom_it_ran_before() {
    for approved in [true, false] {
        let world = World::start().await;
        let (mut client, mut colleague) = (world.client(), Colleague::of(&world).await);
        let mut tries = 0..TRIES_MAX;
        let (session, first) = loop {
            let (session, approval_id, first) = asked_in_vain(&mut client).await;
            assert_eq!(decisions(&first), [], "nobody has answered");
            colleague.answers(&session.session_id, &approval_id, approved).await;
            let seen = first.last().map_or(0, |event| event.seq);
            let is_over = |session: &croft_front::session::Session| {
                session.state == SessionState::Idle && session.last_seq > seen + 3
            };
            let answered = world.wait_for(&session.session_id, is_over).await;
            if answered.last_stop_reason == StopReason::EndTurn {
                break (session, first);
            }
            // On a machine that stood still its time was up before it came so far.
            tries.next().expect("the next turn goes on with the answer");
        };
        let log = stored(&world, &session).await;
        let [decision] = &decisions(&log)[..] else { panic!("{log:?}") };
        assert_eq!((&decision.resolver, decision.approved), (&colleague.actor, approved));
        let is_first = |event: &&SessionEvent| event.turn_id == first[0].turn_id;
        let next: Vec<_> = log.iter().skip_while(|event| !is_first(event)).skip_while(is_first).cloned().collect();
        assert_ne!(speaker(&next), colleague.actor);
        assert_eq!(speaker(&next), speaker(&log));
        assert_eq!(audited(&mut client, &session.session_id, 1).await, [colleague.actor]);
    }
}

#[tokio::test]
async fn whoever_answers_a_sub_agent_is_named_in_its_session() {
    let world = World::start().await;
    let (mut client, mut colleague) = (world.client(), Colleague::of(&world).await);
    let mut agent = editor();
    for tool in &mut agent.sub_agents[0].tools {
        tool.permission = Permission::Ask.into();
    }
    let session_id = client.create(agent).await.unwrap().session_id;
    let look = json!({"tool_call": {"name": "clock", "arguments": {}}});
    let steps = json!([ask("reader", &json!([look, {"text": "refreshed"}])), {"text": "good"}]);
    let stream = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
    let question = async {
        loop {
            if let Some(child) = children(&mut client, &session_id).await.pop() {
                let question = stored(&world, &child).await.into_iter().find_map(|event| match event.kind {
                    Some(Kind::ApprovalRequired(asked)) => Some(asked.approval_id),
                    _ => None,
                });
                if let Some(approval_id) = question {
                    return (child, approval_id);
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    let (child, approval_id) = timeout(PATIENCE, question).await.expect("nobody is asked");
    colleague.answers(&child.session_id, &approval_id, true).await;
    let turn = read_all(stream).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn), "{turn:?}");
    assert_eq!(decisions(&turn), [], "the question was the sub-agent's");
    let below = stored(&world, &child).await;
    let [decision] = &decisions(&below)[..] else { panic!("{below:?}") };
    assert_eq!(decision.resolver, colleague.actor);
    assert_eq!(speaker(&below), speaker(&turn), "it speaks for whom its caller speaks");
    assert_eq!(audited(&mut client, &child.session_id, 1).await, [colleague.actor]);
}
