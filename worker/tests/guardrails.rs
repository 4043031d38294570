//! What guardrails do in a turn: what they refuse is neither shown nor stored, and goes no further.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::time::Duration;

use croft_llm::gemini::Gemini;
use croft_llm::openai::Responses;
use croft_llm::scripted::Scripted;
use croft_llm::{Limits, Providers, Settings};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, ContentBlock, GuardrailMode, GuardrailSpec, GuardrailStage, GuardrailViolation, HttpCheck, Image,
    JsonSchemaCheck, LengthCheck, Message, PatternCheck, PersonalDataCheck, Role, SessionCheckpoint, StepCancel,
    StepStart, StopReason, ToolUse, image,
};
use croft_worker::RuntimeOptions;
use croft_worker::tools::Builtins;
use secrecy::SecretString;
use serde_json::json;
use support::*;
use wiremock::matchers::{body_json, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

fn denied(pattern: &str) -> Check {
    Check::Pattern(PatternCheck { denied: vec![pattern.into()] })
}

fn redacting() -> Check {
    Check::PersonalData(PersonalDataCheck { kinds: Vec::new(), redact: true })
}

fn guarded(stage: GuardrailStage, check: Check) -> AgentSpec {
    let mut guardrail = GuardrailSpec { name: "strict".into(), check: Some(check), ..GuardrailSpec::default() };
    guardrail.stages = vec![stage.into()];
    AgentSpec { guardrails: vec![guardrail], tools: vec![builtin("clock"), builtin("spade")], ..agent() }
}

async fn with_spade() -> (Worker, Spade) {
    let spade = Spade::default();
    (worker_with_spade(&spade).await.0, spade)
}

fn violations(heard: &Heard) -> Vec<GuardrailViolation> {
    let violation = |kind: &Kind| match kind {
        Kind::GuardrailViolation(violation) => Some(violation.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(violation).collect()
}

fn violation(point: &str, reason: &str) -> GuardrailViolation {
    GuardrailViolation {
        guardrail: "strict".into(),
        point: point.into(),
        blocked: true,
        reason: reason.into(),
        ..GuardrailViolation::default()
    }
}

fn shown(heard: &Heard) -> String {
    let text = |kind: &Kind| match kind {
        Kind::TextDelta(delta) => Some(delta.text.clone()),
        _ => None,
    };
    heard.previews.iter().filter_map(text).collect()
}

fn said(heard: &Heard) -> String {
    let text = |kind: &Kind| match kind {
        Kind::AgentMessage(message) => Some(texts(&message.content)),
        _ => None,
    };
    heard.durables.iter().filter_map(text).collect()
}

/// Whether a text is anywhere in what the front heard: events, previews, checkpoints.
fn is_anywhere(heard: &Heard, text: &str) -> bool {
    let finished = heard.finished.as_ref().and_then(|finished| finished.checkpoint.clone());
    let checkpoints = heard.checkpoints.iter().chain(&finished).map(prost::Message::encode_to_vec);
    let mut all: Vec<u8> = checkpoints.flatten().collect();
    for kind in heard.durables.iter().chain(&heard.previews) {
        kind.encode(&mut all);
    }
    all.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test(start_paused = true)]
async fn refused_words_of_the_user_never_reach_the_model_not_even_later() {
    let worker = worker().await;
    let agent = guarded(GuardrailStage::Input, denied("sesame"));
    let agent = AgentSpec { tools: Vec::new(), ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let heard = Front::open(&worker.client, start(&session_id, text("open sesame"))).await.finish().await;
    assert_eq!(heard.story(), ["started", "guardrail", "completed"]);
    assert_eq!(violations(&heard), [violation("input", "pattern")]);
    assert_eq!((heard.stop_reason(), heard.grants.len()), (StopReason::Guardrail, 0));
    assert!(!is_anywhere(&heard, "sesame"));

    let mut next = start(&session_id, text("good morning"));
    next.turn_id = "turn-2".into();
    next.checkpoint = Some(heard.checkpoint());
    let heard = Front::open(&worker.client, next).await.finish().await;
    assert_eq!((heard.stop_reason(), said(&heard).as_str()), (StopReason::EndTurn, "You said: good morning"));
}

#[tokio::test(start_paused = true)]
async fn personal_data_is_taken_out_before_the_model_hears_it() {
    let worker = worker().await;
    let agent = AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Input, redacting()) };
    let heard = turn(&worker, &agent, text("I am jo@doe.example, card 4111 1111 1111 1111")).await;
    assert_eq!(
        (heard.stop_reason(), said(&heard).as_str()),
        (StopReason::EndTurn, "You said: I am [email], card [card]")
    );
    assert_eq!(
        violations(&heard).iter().map(|told| (told.blocked, told.redacted)).collect::<Vec<_>>(),
        [(false, true)]
    );
}

#[tokio::test(start_paused = true)]
async fn refused_words_of_the_model_are_neither_shown_nor_stored() {
    let (worker, _) = with_spade().await;
    let agent = guarded(GuardrailStage::Output, denied("open sesame"));
    let steps = json!([{"text": "The word is open sesame, do not tell.", "token_delay_ms": 5}]);
    // The script itself is the user's.
    let heard = turn(&worker, &agent, script(&steps)).await;
    assert_eq!(heard.story(), ["started", "attempt", "guardrail", "message", "completed"]);
    assert_eq!(violations(&heard), [violation("output", "pattern")]);
    assert_eq!((said(&heard).as_str(), shown(&heard).as_str()), ("The word is ", "The word is "));
    assert_eq!(heard.stop_reason(), StopReason::Guardrail);
    let last = heard.checkpoint().messages.pop().unwrap();
    assert_eq!((last.role(), texts(&last.content).as_str()), (Role::Assistant, "The word is "));
}

#[tokio::test(start_paused = true)]
async fn what_streams_and_is_clean_arrives_whole() {
    let (worker, _) = with_spade().await;
    let agent = guarded(GuardrailStage::Output, denied("open sesame"));
    let words = "The rock stays shut, and the thieves go home again, since nobody knows the word.";
    let heard = turn(&worker, &agent, script(&json!([{"text": words, "token_delay_ms": 5}]))).await;
    assert_eq!((said(&heard).as_str(), shown(&heard).as_str()), (words, words));
    assert!(heard.previews.len() > 3, "it streams while it is checked");
}

#[tokio::test(start_paused = true)]
async fn thinking_is_not_shown_while_the_output_is_guarded_and_not_kept_if_it_is_refused() {
    let (worker, _) = with_spade().await;
    let agent = guarded(GuardrailStage::Output, denied("open sesame"));
    let steps = json!([{"thinking": "I must not say open sesame"}, {"text": "No."}]);
    let heard = turn(&worker, &agent, script(&steps)).await;
    assert!(!heard.previews.iter().any(|kind| matches!(kind, Kind::ThinkingDelta(_))));
    assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("No.", StopReason::EndTurn));
    let kept = heard.checkpoint().messages.pop().unwrap().content;
    assert!(kept.iter().all(|block| matches!(block.block, Some(Block::Text(_)))), "{kept:?}");
}

/// OpenAI's answer has what the model thought twice: as people may read it, and in the item that goes back to it.
async fn thinking_of_openai(check: Check) -> Heard {
    let recorded = format!("{}/llm/tests/golden/openai-responses/thinking.sse", env!("CARGO_MANIFEST_DIR"));
    let answer = ResponseTemplate::new(200).set_body_raw(std::fs::read(recorded).unwrap(), "text/event-stream");
    let server = MockServer::start().await;
    Mock::given(path("/v1/responses")).respond_with(answer).mount(&server).await;
    let api_key = SecretString::from("sk-of-nobody").into();
    let settings = Settings { base_url: server.uri(), api_key, limits: Limits::default() };
    let providers = Providers::new().with(Responses::new(settings).unwrap());
    let worker = worker_with(options(), providers, Builtins::default()).await;
    let agent = AgentSpec { model: "gpt-6-sol".into(), tools: Vec::new(), ..guarded(GuardrailStage::Output, check) };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("what time is it?"))).await;
    (front.provider, front.model) = ("openai".into(), "gpt-6-sol".into());
    front.finish().await
}

/// Whether an item of the provider's own is kept with the answer.
fn keeps_native(heard: &Heard) -> bool {
    let kept = heard.checkpoint().messages.pop().unwrap().content;
    kept.iter().any(|block| matches!(block.block, Some(Block::Native(_))))
}

#[tokio::test]
async fn refused_thoughts_are_in_no_item_of_the_provider_either() {
    let heard = thinking_of_openai(denied("user wants")).await;
    assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("It is noon.", StopReason::EndTurn));
    assert!(!is_anywhere(&heard, "user wants") && !keeps_native(&heard));
    assert_eq!(violations(&heard), [violation("output", "pattern")], "it is told once");

    let heard = thinking_of_openai(denied("reasoning|completed|gAAAA|rs_00")).await;
    assert!(keeps_native(&heard), "what nobody can read is no word of the model");
    assert_eq!(violations(&heard), []);
}

/// Its megabytes went through each pattern, in which some match is found sooner or later.
#[tokio::test]
async fn an_image_in_an_answer_is_not_looked_at() {
    let parts = json!([{"text": "A rose:"}, {"inlineData": {"mimeType": "image/png", "data": "iVBORwAAAsesameAAA"}}]);
    let chunk = json!({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]});
    let answer = ResponseTemplate::new(200).set_body_raw(format!("data: {chunk}\n\n"), "text/event-stream");
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(answer).mount(&server).await;
    let api_key = SecretString::from("key-of-nobody").into();
    let settings = Settings { base_url: server.uri(), api_key, limits: Limits::default() };
    let providers = Providers::new().with(Gemini::new(settings).unwrap());
    let worker = worker_with(options(), providers, Builtins::default()).await;
    let agent = guarded(GuardrailStage::Output, denied("sesame"));
    let agent = AgentSpec { model: "gemini-3.8-flash".into(), tools: Vec::new(), ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("draw a rose"))).await;
    (front.provider, front.model) = ("gemini".into(), "gemini-3.8-flash".into());
    let heard = front.finish().await;
    assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("A rose:", StopReason::EndTurn));
    assert_eq!(violations(&heard), []);
    assert!(keeps_native(&heard), "the model is sent its image with the next question");
}

#[tokio::test(start_paused = true)]
async fn refused_arguments_reach_no_tool_and_no_store_and_the_model_is_told() {
    let (worker, spade) = with_spade().await;
    let agent = guarded(GuardrailStage::ToolArguments, denied("12345"));
    let steps = json!([{"tool_call": {"name": "spade", "arguments": {"depth": 12345}}}, {"text": "I give up."}]);
    let heard = turn(&worker, &agent, script(&steps)).await;
    assert_eq!(spade.digs(), 0);
    assert_eq!(
        heard.story(),
        ["started", "attempt", "guardrail", "message", "call", "result", "attempt", "message", "completed"]
    );
    let told = violations(&heard).remove(0);
    assert!(told.blocked && !told.tool_call_id.is_empty());
    let messages = heard.checkpoint().messages;
    let Some(Block::ToolOutput(output)) = &messages[2].content[0].block else { panic!("{messages:?}") };
    assert!(output.is_error && texts(&output.content).contains("\"strict\" refused its arguments"));
    assert!(!heard.previews.iter().any(|kind| matches!(kind, Kind::ToolArgumentDelta(_))));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_goes_on_makes_no_call_whose_arguments_were_withheld() {
    let (worker, spade) = with_spade().await;
    let agent = guarded(GuardrailStage::ToolArguments, denied("12345"));
    let steps = json!([{"tool_call": {"name": "spade", "arguments": {"depth": 12345}}}, {"text": "I give up."}]);
    let heard = turn(&worker, &agent, script(&steps)).await;
    // As another worker would find it that lost this one right after the answer.
    let after_answer = heard.checkpoints[0].clone();
    let session_id = session();
    init(&worker.client, &session_id, &AgentSpec { guardrails: Vec::new(), ..agent }).await.unwrap();
    let mut again = start(&session_id, Vec::new());
    again.checkpoint = Some(after_answer);
    let heard = Front::open(&worker.client, again).await.finish().await;
    assert_eq!((spade.digs(), heard.stop_reason()), (0, StopReason::EndTurn));
}

/// The check saw the last value of a key, and the rest of the system the text with all of them.
#[tokio::test(start_paused = true)]
async fn arguments_with_a_repeated_key_reach_nobody_but_as_they_were_checked() {
    let (worker, spade) = with_spade().await;
    let hidden = r#"{"depth":"project heron","depth":1}"#;
    let steps = json!([{"tool_call": {"name": "spade", "arguments": hidden}}, {"text": "Done."}]);
    for mode in [GuardrailMode::Enforce, GuardrailMode::Shadow] {
        let mut agent = guarded(GuardrailStage::ToolArguments, denied("heron"));
        agent.guardrails[0].mode = mode.into();
        let heard = turn(&worker, &agent, script(&steps)).await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        // The script itself is the user's.
        let told: Vec<_> = heard.durables.iter().map(|kind| format!("{kind:?}")).collect();
        assert!(!told.concat().contains("heron"), "{told:?}");
        let answers = heard.checkpoint().messages.into_iter().filter(|message| message.role() == Role::Assistant);
        assert!(!format!("{:?}", answers.collect::<Vec<_>>()).contains("heron"));
    }
    assert_eq!(spade.digs(), 2);
}

/// The check had made another number of it, and a tool was called with that.
#[tokio::test(start_paused = true)]
async fn a_number_that_would_change_on_its_way_is_refused_behind_a_check_too() {
    let (worker, spade) = with_spade().await;
    let deep = r#"{"depth":12345678901234567890123,"for":"jo@doe.example"}"#;
    let steps = json!([{"tool_call": {"name": "spade", "arguments": deep}}, {"text": "Done."}]);
    for (check, mode) in [
        (denied("heron"), GuardrailMode::Shadow),
        (denied("heron"), GuardrailMode::Enforce),
        (redacting(), GuardrailMode::Enforce),
    ] {
        let mut agent = guarded(GuardrailStage::ToolArguments, check);
        agent.guardrails[0].mode = mode.into();
        let heard = turn(&worker, &agent, script(&steps)).await;
        let result = heard.durables.iter().find_map(|kind| match kind {
            Kind::ToolResult(result) => Some(texts(&result.content)),
            _ => None,
        });
        let told = result.unwrap();
        assert!(told.starts_with("A whole number in the arguments is beyond 64 bits"), "{told}");
        let messages = heard.checkpoint().messages;
        assert!(format!("{messages:?}").contains(r#"{\"depth\":12345678901234567890123,\"for\""#), "{messages:?}");
    }
    assert_eq!(spade.digs(), 0);
}

fn object() -> Check {
    Check::JsonSchema(JsonSchemaCheck { schema_json: json!({"type": "object"}).to_string() })
}

#[tokio::test(start_paused = true)]
async fn a_shape_is_asked_of_the_answer_and_not_of_what_leads_to_it() {
    let (worker, spade) = with_spade().await;
    let agent = guarded(GuardrailStage::Output, object());
    let dig = json!({"tool_call": {"name": "spade", "arguments": {"depth": 1}}});
    let steps = json!([
        {"thinking": "I dig first"}, dig,
        {"text": "Let me see."}, dig,
        {"text": "{\"day\":1}"}
    ]);
    let heard = turn(&worker, &agent, script(&steps)).await;
    assert_eq!((spade.digs(), heard.stop_reason()), (2, StopReason::EndTurn));
    assert_eq!(violations(&heard), []);
    let answer = r#"{"day":1}"#;
    assert_eq!((said(&heard).as_str(), shown(&heard).as_str()), (answer, answer), "what has not the shape is left out");
    let messages = heard.checkpoint().messages;
    let thinks =
        |message: &Message| message.content.iter().any(|block| matches!(block.block, Some(Block::Thinking(_))));
    assert!(thinks(&messages[1]), "{messages:?}");

    let heard = turn(&worker, &agent, script(&json!([dig, {"text": "day 1"}]))).await;
    assert_eq!((violations(&heard), heard.stop_reason()), (vec![violation("output", "schema")], StopReason::Guardrail));
    assert!(said(&heard).is_empty() && shown(&heard).is_empty());
}

/// As a front puts a conversation together from its log: with the input as the user sent it.
#[tokio::test(start_paused = true)]
async fn input_that_a_front_brings_back_is_guarded_again() {
    let worker = worker().await;
    let mut agent = AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Input, redacting()) };
    agent.guardrails.push(GuardrailSpec {
        name: "words".into(),
        ..guarded(GuardrailStage::Input, denied("sesame")).guardrails.remove(0)
    });
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let message = |said: &str| Message { role: Role::User.into(), content: text(said), ..Message::default() };
    let mut start = start(&session_id, text("and me?"));
    let messages = vec![message("I am jo@doe.example"), message("open sesame")];
    start.checkpoint = Some(SessionCheckpoint { messages, turn_id: "turn-0".into(), ..SessionCheckpoint::default() });
    let heard = Front::open(&worker.client, start).await.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let said: Vec<_> = heard.checkpoint().messages.iter().map(|message| texts(&message.content)).collect();
    assert_eq!(said, ["I am [email]", "and me?", "You said: and me?"]);
}

/// The worker was lost after the first answer, and the turn ended with no other.
#[tokio::test(start_paused = true)]
async fn input_of_an_earlier_turn_that_a_front_brings_back_is_guarded_again() {
    let worker = worker().await;
    let mut agent = AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Input, redacting()) };
    agent.guardrails.push(GuardrailSpec {
        name: "words".into(),
        ..guarded(GuardrailStage::Input, denied("sesame")).guardrails.remove(0)
    });
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let message = |role: Role, said: &str| Message { role: role.into(), content: text(said), ..Message::default() };
    // The second was refused when it came; nobody has answered it.
    let messages = vec![
        message(Role::User, "I am jo@doe.example"),
        message(Role::Assistant, "Hello."),
        message(Role::User, "open sesame"),
        message(Role::User, "my card is 4111 1111 1111 1111"),
        message(Role::Assistant, "Thank you."),
    ];
    let mut start = start(&session_id, text("and me?"));
    start.checkpoint = Some(SessionCheckpoint { messages, turn_id: "turn-0".into(), ..SessionCheckpoint::default() });
    let heard = Front::open(&worker.client, start).await.finish().await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"], "it was told when it came");
    let said: Vec<_> = heard.checkpoint().messages.iter().map(|message| texts(&message.content)).collect();
    assert_eq!(said, ["I am [email]", "Hello.", "my card is [card]", "Thank you.", "and me?", "You said: and me?"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_result_is_withheld_from_the_model_and_the_store() {
    let (worker, spade) = with_spade().await;
    let agent = guarded(GuardrailStage::ToolResult, denied("dug 7"));
    let steps = json!([{"tool_call": {"name": "spade", "arguments": {"depth": 7}}}, {"text": "Done."}]);
    let heard = turn(&worker, &agent, script(&steps)).await;
    assert_eq!((spade.digs(), heard.stop_reason()), (1, StopReason::EndTurn));
    assert!(!is_anywhere(&heard, "dug 7"));
    assert_eq!(violations(&heard)[0].point, "tool_result");
}

#[tokio::test(start_paused = true)]
async fn a_shadow_tells_and_changes_nothing() {
    let worker = worker().await;
    let mut agent = AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Output, denied("sesame")) };
    agent.guardrails[0].stages.clear();
    agent.guardrails[0].mode = GuardrailMode::Shadow.into();
    let heard = turn(&worker, &agent, text("open sesame")).await;
    assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("You said: open sesame", StopReason::EndTurn));
    let told: Vec<_> = violations(&heard).into_iter().map(|told| (told.point, told.blocked)).collect();
    assert_eq!(told, [("input".to_owned(), false), ("output".to_owned(), false)]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_where_it_is_too_long() {
    let worker = worker().await;
    let length = Check::Length(LengthCheck { characters_max: 19 });
    let agent = AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Output, length) };
    let heard = turn(&worker, &agent, text("one two three four")).await;
    assert_eq!((said(&heard).as_str(), heard.stop_reason()), ("You said: one two t", StopReason::Guardrail));
    assert!(!is_anywhere(&Heard { checkpoints: Vec::new(), finished: None, ..heard }, "three"));
}

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

#[tokio::test(start_paused = true)]
async fn an_agent_with_a_guardrail_that_can_not_be_made_is_refused_when_it_is_opened() {
    let worker = worker().await;
    let agent = AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Input, denied("(")) };
    let refused = init(&worker.client, &session(), &agent).await.unwrap_err();
    assert_eq!(reason(&refused), "GUARDRAIL_INVALID");
    assert!(refused.message().contains("strict"), "{refused:?}");
}
