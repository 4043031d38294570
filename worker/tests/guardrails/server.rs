//! Guardrails that ask a server: its word, its silence, and what it can't answer for.

use std::time::Duration;

use croft_llm::scripted::Scripted;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::{ContentBlock, HttpCheck, StepCancel, StepStart};
use croft_worker::RuntimeOptions;
use wiremock::matchers::body_json;

use super::*;

/// Longer than any answer takes that comes.
const ANSWERED_MS: i64 = 30_000;

fn asks(server: &MockServer, fail_open: bool, timeout_ms: i64) -> AgentSpec {
    let url = format!("{}/v1/check", server.uri());
    let check = Check::Http(HttpCheck { url, timeout_ms, fail_open });
    AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Output, check) }
}

#[tokio::test]
async fn a_server_is_asked_about_the_whole_text_and_its_word_counts() {
    let server = MockServer::start().await;
    for (said, allowed) in [("You said: good morning", true), ("You said: bad morning", false)] {
        let question = json!({"guardrail": "strict", "stage": "output", "text": said});
        Mock::given(method("POST"))
            .and(path("/v1/check"))
            .and(body_json(question))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!({ "allowed": allowed })))
            .mount(&server)
            .await;
    }
    let worker = worker().await;
    let heard = turn(&worker, &asks(&server, false, ANSWERED_MS), text("good morning")).await;
    assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("You said: good morning", StopReason::EndTurn));
    let heard = turn(&worker, &asks(&server, true, ANSWERED_MS), text("bad morning")).await;
    assert_eq!((said(&heard).as_str(), shown(&heard).as_str()), ("", ""));
    assert_eq!((violations(&heard), heard.stop_reason()), (vec![violation("output", "http")], StopReason::Guardrail));
}

#[tokio::test]
async fn a_server_is_not_asked_about_what_was_not_said() {
    let server = MockServer::start().await;
    let question = json!({"guardrail": "strict", "stage": "output", "text": "Done."});
    let yes = ResponseTemplate::new(200).set_body_json(json!({"allowed": true}));
    // Any other question has no answer, which refuses.
    Mock::given(body_json(question)).respond_with(yes).expect(1).mount(&server).await;
    let (worker, spade) = with_spade().await;
    let agent = AgentSpec { tools: vec![builtin("spade")], ..asks(&server, false, ANSWERED_MS) };
    let steps = json!([{"tool_call": {"name": "spade", "arguments": {"depth": 1}}}, {"text": "Done."}]);
    let heard = turn(&worker, &agent, script(&steps)).await;
    assert_eq!((said(&heard).as_str(), heard.stop_reason(), spade.digs()), ("Done.", StopReason::EndTurn, 1));
    assert_eq!(violations(&heard), []);
}

#[tokio::test]
async fn a_server_that_gives_no_answer_stops_the_text_unless_it_may_not() {
    let nonsense = ResponseTemplate::new(200).set_body_string("yes");
    let endless = ResponseTemplate::new(200).set_body_string("x".repeat(1024 * 1024));
    let late = ResponseTemplate::new(200).set_body_json(json!({"allowed": true})).set_delay(Duration::from_mins(1));
    let elsewhere = ResponseTemplate::new(302).insert_header("location", "/v1/other");
    for (answer, reason) in [
        (ResponseTemplate::new(500), "http_unanswered"),
        (ResponseTemplate::new(429), "http_unanswered"),
        (late, "http_unanswered"),
        (ResponseTemplate::new(413), "http_unusable"),
        (nonsense, "http_unusable"),
        (endless, "http_unusable"),
        (elsewhere, "http_unusable"),
    ] {
        let server = MockServer::start().await;
        Mock::given(path("/v1/check")).respond_with(answer).mount(&server).await;
        let worker = worker().await;
        let heard = turn(&worker, &asks(&server, false, 200), text("good morning")).await;
        assert_eq!(violations(&heard), [violation("output", reason)]);
        assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("", StopReason::Guardrail));
        let heard = turn(&worker, &asks(&server, true, 200), text("good morning")).await;
        assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("You said: good morning", StopReason::EndTurn));
    }
}

/// A check of what users say, by this server.
fn asks_about_input(server: &MockServer) -> AgentSpec {
    let agent = asks(server, false, ANSWERED_MS);
    let check = agent.guardrails[0].check.clone().unwrap();
    AgentSpec { tools: vec![builtin("spade")], ..guarded(GuardrailStage::Input, check) }
}

/// What a turn comes to that begins with a conversation, and the texts that it leaves of it.
async fn goes_on_from(agent: &AgentSpec, messages: Vec<Message>, turn_id: &str, input: &str) -> (Heard, Vec<String>) {
    let (worker, _) = with_spade().await;
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    let checkpoint = SessionCheckpoint { messages, turn_id: "turn-1".into(), ..SessionCheckpoint::default() };
    let input = if input.is_empty() { Vec::new() } else { text(input) };
    let start = StepStart { turn_id: turn_id.into(), checkpoint: Some(checkpoint), ..start(&session_id, input) };
    let heard = Front::open(&worker.client, start).await.finish().await;
    let kept = heard.checkpoint().messages.iter().map(|message| texts(&message.content)).collect();
    (heard, kept)
}

/// The server was down for a moment, and an earlier message was gone for good, of which nobody was told.
#[tokio::test]
async fn words_that_the_model_has_answered_stay_where_a_server_is_down() {
    let server = MockServer::start().await;
    Mock::given(path("/v1/check")).respond_with(ResponseTemplate::new(500)).mount(&server).await;
    let message = |role: Role, content: Vec<ContentBlock>| Message { role: role.into(), content, ..Message::default() };
    let dig = ToolUse { tool_call_id: "call-1".into(), name: "spade".into(), arguments_json: r#"{"depth":1}"#.into() };
    let call = vec![ContentBlock { block: Some(Block::ToolUse(dig)) }];
    let messages = vec![
        message(Role::User, text("dig")),
        message(Role::User, text("now")),
        message(Role::Assistant, call.clone()),
    ];
    let (heard, kept) = goes_on_from(&asks_about_input(&server), messages.clone(), "turn-1", "").await;
    assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::EndTurn, Vec::new()));
    assert_eq!(kept[..2], ["dig", "now"]);

    // What it says no to goes, and is told.
    server.reset().await;
    let no = ResponseTemplate::new(200).set_body_json(json!({"allowed": false}));
    Mock::given(path("/v1/check")).respond_with(no).mount(&server).await;
    let (heard, kept) = goes_on_from(&asks_about_input(&server), messages, "turn-1", "").await;
    assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::EndTurn, vec![violation("input", "http")]));
    assert_eq!(kept[0], "now");
}

/// Whatever a server is asked about, or one text alone, is answered so.
async fn answers(server: &MockServer, of_text: Option<&str>, answer: ResponseTemplate) {
    let mock = Mock::given(path("/v1/check"));
    let mock = match of_text {
        Some(text) => mock.and(body_json(json!({"guardrail": "strict", "stage": "input", "text": text}))),
        None => mock,
    };
    mock.respond_with(answer).mount(server).await;
}

fn yes() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({"allowed": true}))
}

fn of_user(content: Vec<ContentBlock>) -> Message {
    Message { role: Role::User.into(), content, ..Message::default() }
}

/// The model has not seen them, and shall not before the server has said yes.
#[tokio::test]
async fn words_that_nobody_has_answered_wait_for_a_server_that_is_down() {
    let server = MockServer::start().await;
    answers(&server, None, ResponseTemplate::new(503)).await;
    let agent = asks_about_input(&server);
    let (heard, kept) = goes_on_from(&agent, vec![of_user(text("dig"))], "turn-2", "now").await;
    assert_eq!(heard.story(), ["started", "guardrail", "guardrail", "completed"]);
    assert_eq!(violations(&heard), vec![violation("input", "http_unanswered"); 2]);
    assert_eq!((heard.stop_reason(), kept), (StopReason::Guardrail, vec!["dig".to_owned()]));

    // Of a newest without words it says nothing either way.
    let image = Image { media_type: "image/png".into(), source: Some(image::Source::Data(b"png".as_slice().into())) };
    let image = vec![ContentBlock { block: Some(Block::Image(image)) }];
    let messages = vec![of_user(text("dig")), of_user(image)];
    let (heard, kept) = goes_on_from(&agent, messages, "turn-1", "").await;
    assert_eq!(violations(&heard), [violation("input", "http_unanswered")]);
    assert_eq!((heard.stop_reason(), kept[0].as_str(), kept.len()), (StopReason::Guardrail, "dig", 2));

    server.reset().await;
    answers(&server, None, yes()).await;
    let (heard, kept) = goes_on_from(&agent, vec![of_user(text("dig"))], "turn-3", "please").await;
    assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::EndTurn, Vec::new()));
    assert_eq!(kept[..2], ["dig", "please"]);
}

/// It was asked about again in each turn, and each ended there.
#[tokio::test]
async fn words_for_which_alone_a_server_has_no_answer_are_taken_out_and_the_session_goes_on() {
    for (status, reason) in [(413, "http_unusable"), (500, "http_unanswered")] {
        let server = MockServer::start().await;
        answers(&server, Some("dig"), ResponseTemplate::new(status)).await;
        answers(&server, None, yes()).await;
        let agent = asks_about_input(&server);
        let (heard, kept) = goes_on_from(&agent, vec![of_user(text("dig"))], "turn-2", "now").await;
        assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::EndTurn, vec![violation("input", reason)]));
        assert_eq!(kept[0], "now");
    }
    // What it says to that text it says each time, whatever it says of others.
    let server = MockServer::start().await;
    answers(&server, Some("dig"), ResponseTemplate::new(422)).await;
    answers(&server, None, ResponseTemplate::new(503)).await;
    let (heard, kept) = goes_on_from(&asks_about_input(&server), vec![of_user(text("dig"))], "turn-2", "now").await;
    assert_eq!(violations(&heard), [violation("input", "http_unanswered"), violation("input", "http_unusable")]);
    assert_eq!((heard.stop_reason(), kept), (StopReason::Guardrail, Vec::new()));
}

/// What a step tells that is ended from outside while the server thinks about the arguments of a call.
async fn ended_at_the_check(server: &MockServer, agent: &AgentSpec, session_id: &str, why: StopReason) -> Heard {
    let options = RuntimeOptions { drain: Duration::from_millis(1), ..options() };
    let builtins = Builtins::default().with("spade", Spade::default());
    let worker = worker_with(options, Providers::new().with(Scripted::new()), builtins).await;
    init(&worker.client, session_id, agent).await.unwrap();
    let steps = json!([{"text": "Let me dig."}, {"tool_call": {"name": "spade", "arguments": {"depth": 1}}}, {"text": "Done."}]);
    let mut front = Front::open(&worker.client, start(session_id, script(&steps))).await;
    let asked = async {
        while server.received_requests().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let hearing = async { while front.next().await.unwrap().is_some() {} };
    tokio::select! {
        () = asked => {}
        () = hearing => panic!("it ended by itself"),
    }
    if why == StopReason::HandedBack {
        worker.tasks.stopping().cancel();
    } else {
        front.send(ToWorker::Cancel(StepCancel { stop_reason: why.into() })).await;
    }
    front.finish().await
}

#[tokio::test]
async fn a_call_whose_check_outlasts_the_worker_is_made_elsewhere_and_was_refused_by_nobody() {
    let server = MockServer::start().await;
    let slow = ResponseTemplate::new(200).set_body_json(json!({"allowed": true})).set_delay(Duration::from_mins(1));
    Mock::given(path("/v1/check")).respond_with(slow).mount(&server).await;
    let check = HttpCheck { url: format!("{}/v1/check", server.uri()), timeout_ms: 30_000, fail_open: false };
    let agent = guarded(GuardrailStage::ToolArguments, Check::Http(check));
    let session_id = session();
    let heard = ended_at_the_check(&server, &agent, &session_id, StopReason::HandedBack).await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    assert_eq!(heard.story(), ["started", "attempt", "completed"], "its usage is told, the answer is not");
    let state = heard.checkpoint();
    assert_eq!((state.messages.len(), state.model_calls), (1, 0));

    server.reset().await;
    let quick = ResponseTemplate::new(200).set_body_json(json!({"allowed": true}));
    Mock::given(path("/v1/check")).respond_with(quick).mount(&server).await;
    let (worker, spade) = with_spade().await;
    init(&worker.client, &session_id, &agent).await.unwrap();
    let resumed = StepStart { epoch: 2, checkpoint: Some(state), ..start(&session_id, Vec::new()) };
    let heard = Front::open(&worker.client, resumed).await.finish().await;
    assert_eq!((heard.stop_reason(), spade.digs(), violations(&heard)), (StopReason::EndTurn, 1, Vec::new()));
}

#[tokio::test]
async fn of_an_answer_that_people_stop_in_mid_check_the_text_stays_and_no_call() {
    let server = MockServer::start().await;
    let slow = ResponseTemplate::new(200).set_body_json(json!({"allowed": true})).set_delay(Duration::from_mins(1));
    Mock::given(path("/v1/check")).respond_with(slow).mount(&server).await;
    let check = HttpCheck { url: format!("{}/v1/check", server.uri()), timeout_ms: 30_000, fail_open: false };
    let agent = guarded(GuardrailStage::ToolArguments, Check::Http(check));
    let heard = ended_at_the_check(&server, &agent, &session(), StopReason::Interrupted).await;
    assert_eq!((heard.stop_reason(), said(&heard).as_str()), (StopReason::Interrupted, "Let me dig."));
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"], "no call, and no result made up for one");
    let kept = heard.checkpoint().messages.pop().unwrap().content;
    assert!(matches!(&kept[..], [ContentBlock { block: Some(Block::Text(_)) }]), "{kept:?}");
}
