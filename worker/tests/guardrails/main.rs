//! What guardrails do in a turn: what they refuse is neither shown nor stored, and goes no further.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod server;
#[path = "../support/mod.rs"]
mod support;

use croft_llm::gemini::Gemini;
use croft_llm::openai::Responses;
use croft_llm::{Limits, Providers, Settings};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, GuardrailMode, GuardrailSpec, GuardrailStage, GuardrailViolation, Image, JsonSchemaCheck, LengthCheck,
    Message, PatternCheck, PersonalDataCheck, Role, SessionCheckpoint, StopReason, ToolUse, image,
};
use croft_worker::tools::Builtins;
use secrecy::SecretString;
use serde_json::json;
use support::*;
use wiremock::matchers::{method, path};
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

#[tokio::test(start_paused = true)]
async fn an_agent_with_a_guardrail_that_can_not_be_made_is_refused_when_it_is_opened() {
    let worker = worker().await;
    let agent = AgentSpec { tools: Vec::new(), ..guarded(GuardrailStage::Input, denied("(")) };
    let refused = init(&worker.client, &session(), &agent).await.unwrap_err();
    assert_eq!(reason(&refused), "GUARDRAIL_INVALID");
    assert!(refused.message().contains("strict"), "{refused:?}");
}
