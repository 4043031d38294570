//! What happens when a model can't answer: others take over, and one that keeps failing is left alone.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_llm::refusals::Part;
use croft_llm::{Class, Delta, DeltaStream, Error, Provider, Providers, Request, Stop, breaker, estimate};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::image::Source;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, ContentBlock, Grant, GrantRefused, Image, Message, ModelAttempt, NativeBlock, Role, SessionCheckpoint,
    StepStart, StopReason, TokenUsage,
};
use croft_worker::tools::Builtins;
use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use support::*;

/// Of one model in one turn.
const ATTEMPTS_MAX: usize = 3;

type Answer = Vec<Result<Delta, Error>>;

/// A provider that gives these answers one after another, and the last of them again and again.
#[derive(Clone)]
struct Canned {
    name: &'static str,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<Request>>>,
    counts: Option<u32>,
}

impl Canned {
    fn new(name: &'static str, answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
        Self { name, answers, requests: Arc::default(), counts: None }
    }

    fn calls(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Provider for Canned {
    fn name(&self) -> &'static str {
        self.name
    }

    fn stream(&self, request: Request) -> DeltaStream {
        self.requests.lock().unwrap().push(request);
        let mut answers = self.answers.lock().unwrap();
        let answer = match answers.pop_front() {
            Some(answer) if answers.is_empty() => {
                let again = copies(&answer);
                answers.push_front(again);
                answer
            }
            Some(answer) => answer,
            None => Vec::new(),
        };
        futures::stream::iter(answer).boxed()
    }

    fn count_tokens(&self, _: Request) -> BoxFuture<'_, Result<Option<u32>, Error>> {
        std::future::ready(Ok(self.counts)).boxed()
    }
}

/// The same, but an answer that has begun and is not over goes on without an end.
struct Unending(Canned);

impl Provider for Unending {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn stream(&self, request: Request) -> DeltaStream {
        let deltas = self.0.stream(request);
        // Whoever reads it reads no more behind its end.
        deltas.chain(futures::stream::pending()).boxed()
    }
}

fn copy(delta: &Result<Delta, Error>) -> Result<Delta, Error> {
    match delta {
        Ok(delta) => Ok(delta.clone()),
        Err(error) => Err(Error::new(error.provider, error.class, error.message.clone())),
    }
}

fn copies(answer: &Answer) -> Answer {
    answer.iter().map(copy).collect()
}

fn fails(class: Class) -> Answer {
    vec![Err(Error::new("canned", class, "out of order"))]
}

fn opened() -> Delta {
    Delta::Opened { response_id: "r".into(), model: "m".into() }
}

fn stops(said: &str, stop: Stop) -> Answer {
    let usage = TokenUsage { output_tokens: 3, ..TokenUsage::default() };
    vec![Ok(opened()), Ok(Delta::Text { block: 0, text: said.into() }), Ok(Delta::Usage(usage)), Ok(Delta::Stop(stop))]
}

fn says(said: &str) -> Answer {
    stops(said, Stop::EndTurn)
}

fn calls_the_clock() -> Answer {
    vec![
        Ok(opened()),
        Ok(Delta::ToolCallStarted { block: 0, tool_call_id: "one".into(), name: "clock".into() }),
        Ok(Delta::ToolCallStopped { block: 0, arguments_json: "{}".into() }),
        Ok(Delta::Stop(Stop::ToolUse)),
    ]
}

/// Models `a`, `b` and `c`, each of the provider of its name.
fn agent() -> AgentSpec {
    let fallback_models = ["b", "c"].map(str::to_owned).into();
    AgentSpec { model: "a".into(), fallback_models, ..support::agent() }
}

async fn worker(canned: &[&Canned]) -> Worker {
    let providers = canned.iter().fold(Providers::new(), |providers, canned| providers.with((*canned).clone()));
    worker_with(options(), providers, Builtins::default()).await
}

/// A turn of a new session at a front that finds these models unfit to take over.
async fn turn(worker: &Worker, agent: &AgentSpec, unfit: &[&str]) -> Heard {
    turn_from(worker, agent, unfit, None).await
}

/// The same, of a session that has this checkpoint.
async fn turn_from(worker: &Worker, agent: &AgentSpec, unfit: &[&str], from: Option<SessionCheckpoint>) -> Heard {
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    let start = StepStart { checkpoint: from, ..start(&session_id, text("hello")) };
    let mut front = Front::open(&worker.client, start).await;
    front.grants = false;
    while let Some(message) = front.next().await.unwrap() {
        let FromWorker::GrantRequest(request) = message else { continue };
        let request_id = request.request_id.clone();
        let answer = if unfit.contains(&request.model.as_str()) {
            let (reason, message) = ("MODEL_UNFIT".into(), "can't".into());
            ToWorker::GrantRefused(GrantRefused { request_id, reason, message })
        } else {
            let (provider, model) = (request.model.clone(), request.model.clone());
            ToWorker::Grant(Grant { request_id, grant_id: "g".into(), provider, model, ..Grant::default() })
        };
        front.send(answer).await;
    }
    front.heard
}

fn attempts(heard: &Heard) -> Vec<&ModelAttempt> {
    let mut attempts = Vec::new();
    for kind in &heard.durables {
        if let Kind::ModelAttempt(attempt) = kind {
            attempts.push(attempt);
        }
    }
    attempts
}

/// Model, error class and reason to fall back of each attempt.
fn course(heard: &Heard) -> Vec<(&str, &str, &str)> {
    attempts(heard)
        .into_iter()
        .map(|attempt| (attempt.model.as_str(), attempt.error_class.as_str(), attempt.fallback_reason.as_str()))
        .collect()
}

fn said(heard: &Heard) -> Vec<(String, String)> {
    let said = |kind: &Kind| match kind {
        Kind::AgentMessage(message) => Some((texts(&message.content), message.model.clone())),
        _ => None,
    };
    heard.durables.iter().filter_map(said).collect()
}

/// For how much input each leave was asked.
fn reserved(heard: &Heard) -> Vec<u32> {
    heard.grants.iter().map(|request| request.input_tokens_estimated).collect()
}

fn told(heard: &Heard) -> Vec<String> {
    let told = |kind: &Kind| match kind {
        Kind::Error(error) => Some(error.reason.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(told).collect()
}

#[tokio::test(start_paused = true)]
async fn a_model_that_can_not_answer_gives_way_to_the_next_which_the_attempt_tells() {
    let (a, b) = (Canned::new("a", [fails(Class::Auth)]), Canned::new("b", [says("noon")]));
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(course(&heard), [("a", "auth", ""), ("b", "", "error")]);
    assert_eq!(said(&heard), [("noon".to_owned(), "b".to_owned())]);
    assert!(told(&heard).is_empty(), "nobody need know");
    assert_eq!(heard.grants[0].takeover, None);
    let takeover = heard.grants[1].takeover.clone().unwrap();
    assert_eq!((takeover.from_model.as_str(), takeover.reason.as_str()), ("a", "error"));
    assert!(takeover.tools && !takeover.images);
}

#[tokio::test(start_paused = true)]
async fn each_model_is_tried_again_before_it_gives_way() {
    let models = ["a", "b", "c"].map(|name| Canned::new(name, [fails(Class::Overload)]));
    let heard = turn(&worker(&models.each_ref()).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    assert_eq!(models.map(|model| model.calls()), [3, 3, 3]);
    assert_eq!(told(&heard), ["MODEL_OVERLOADED"], "one error is told, at the end");
}

/// Newer models take none, and say so of each call.
#[tokio::test(start_paused = true)]
async fn a_model_that_refuses_the_temperature_is_asked_once_more_without_it_and_from_then_on() {
    let refusal = || vec![Err(Error::new("canned", Class::Invalid, "`temperature` is deprecated for this model."))];
    let (a, b) = (Canned::new("a", [refusal(), says("noon")]), Canned::new("b", [says("from b")]));
    let worker = worker(&[&a, &b]).await;
    let agent = AgentSpec { temperature: Some(0.2), ..agent() };
    let heard = turn(&worker, &agent, &[]).await;
    assert_eq!(said(&heard), [("noon".to_owned(), "a".to_owned())]);
    assert_eq!(course(&heard), [("a", "invalid", ""), ("a", "", "")]);
    assert_eq!(attempts(&heard)[0].usage, Some(TokenUsage::default()), "nobody charges for a refusal");
    assert_eq!(heard.checkpoint().model_calls, 1, "it is no further call");
    assert!(told(&heard).is_empty(), "nobody need know");

    // Another session, too. What a model refused says nothing of another value, nor of another model.
    turn(&worker, &agent, &[]).await;
    turn(&worker, &AgentSpec { temperature: Some(1.0), ..agent.clone() }, &[]).await;
    turn(&worker, &AgentSpec { model: "b".into(), ..agent }, &[]).await;
    let sent = |canned: &Canned| -> Vec<_> {
        canned.requests.lock().unwrap().iter().map(|request| request.temperature).collect()
    };
    assert_eq!(sent(&a), [Some(0.2), None, None, Some(1.0)]);
    assert_eq!(sent(&b), [Some(0.2)]);
}

/// It was something else that the model refused.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_without_a_temperature_too_gives_way_and_nothing_is_learnt_of_it() {
    let refusal = vec![Err(Error::new("canned", Class::Invalid, "temperature: no such thing"))];
    let (a, b) = (Canned::new("a", [refusal]), Canned::new("b", [says("noon")]));
    let agent = AgentSpec { temperature: Some(0.2), ..agent() };
    let worker = worker(&[&a, &b]).await;
    for _ in 0..2 {
        let heard = turn(&worker, &agent, &[]).await;
        assert_eq!(course(&heard), [("a", "invalid", ""), ("a", "invalid", ""), ("b", "", "error")]);
    }
    let sent: Vec<_> = a.requests.lock().unwrap().iter().map(|request| request.temperature).collect();
    assert_eq!(sent, [Some(0.2), None, Some(0.2), None]);
}

/// What the first refused is nothing to the one that takes over.
#[tokio::test(start_paused = true)]
async fn one_that_takes_over_may_refuse_the_same_part_and_is_asked_without_it_too() {
    let refusal = || vec![Err(Error::new("canned", Class::Invalid, "`temperature` is deprecated for this model."))];
    let a = Canned::new("a", [refusal(), fails(Class::Overload)]);
    let b = Canned::new("b", [refusal(), says("noon")]);
    let worker = worker(&[&a, &b]).await;
    let agent = AgentSpec { temperature: Some(0.2), ..agent() };
    let heard = turn(&worker, &agent, &[]).await;
    assert_eq!(said(&heard), [("noon".to_owned(), "b".to_owned())]);
    assert_eq!(course(&heard)[ATTEMPTS_MAX + 1..], [("b", "invalid", "error"), ("b", "", "error")]);

    turn(&worker, &AgentSpec { model: "b".into(), ..agent }, &[]).await;
    let sent: Vec<_> = b.requests.lock().unwrap().iter().map(|request| request.temperature).collect();
    assert_eq!(sent, [Some(0.2), None, None], "it is learnt");
}

/// Refuses temperatures, two calls at the same moment.
struct Pairwise(Arc<tokio::sync::Barrier>);

impl Provider for Pairwise {
    fn name(&self) -> &'static str {
        "a"
    }

    fn stream(&self, request: Request) -> DeltaStream {
        if request.temperature.is_none() {
            return futures::stream::iter(says("noon")).boxed();
        }
        let both = Arc::clone(&self.0);
        let refusal = async move {
            both.wait().await;
            Err(Error::new("canned", Class::Invalid, "`temperature` is deprecated for this model."))
        };
        futures::stream::once(refusal).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn two_calls_that_are_refused_at_the_same_moment_are_both_made_again() {
    let providers = Providers::new().with(Pairwise(Arc::new(tokio::sync::Barrier::new(2))));
    let worker = worker_with(options(), providers, Builtins::default()).await;
    let agent = AgentSpec { temperature: Some(0.2), ..agent() };
    let (one, other) = tokio::join!(turn(&worker, &agent, &[]), turn(&worker, &agent, &[]));
    for heard in [one, other] {
        assert_eq!(course(&heard), [("a", "invalid", ""), ("a", "", "")]);
    }
}

/// Behind a gateway nobody can tell which of the two the model takes, and a router's next server may know no thoughts.
#[tokio::test(start_paused = true)]
async fn a_field_that_a_model_does_not_know_is_put_in_the_other_way_and_from_then_on() {
    let refusal = |message| vec![Err(Error::new("canned", Class::Invalid, message))];
    let answers = [
        refusal(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        ),
        refusal("property 'reasoning_content' is unsupported"),
        says("noon"),
    ];
    let a = Canned::new("a", answers);
    let worker = worker(&[&a]).await;
    let heard = turn(&worker, &agent(), &[]).await;
    assert_eq!(course(&heard), [("a", "invalid", ""), ("a", "invalid", ""), ("a", "", "")]);
    turn(&worker, &agent(), &[]).await;
    let sent: Vec<_> = a.requests.lock().unwrap().iter().map(|request| request.refused.clone()).collect();
    let both = vec![Part::MaxTokens, Part::ReasoningContent];
    assert_eq!(sent, [vec![], vec![Part::MaxTokens], both.clone(), both]);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_counts_no_token_has_counted_and_one_that_counts_nothing_has_not() {
    let said = || vec![Ok(opened()), Ok(Delta::Text { block: 0, text: "It is noon.".into() })];
    let counts = |usage: &[TokenUsage]| usage.iter().map(|usage| Ok(Delta::Usage(*usage))).collect::<Answer>();
    for (told, is_estimated) in [(vec![TokenUsage::default()], false), (vec![], true)] {
        let answer = [said(), counts(&told), vec![Ok(Delta::Stop(Stop::EndTurn))]].into_iter().flatten();
        let a = Canned::new("a", [answer.collect::<Answer>()]);
        let heard = turn(&worker(&[&a]).await, &agent(), &[]).await;
        let attempt = attempts(&heard)[0];
        assert_eq!(attempt.usage_estimated, is_estimated);
        assert_eq!(attempt.usage == Some(TokenUsage::default()), !is_estimated, "{attempt:?}");
    }
}

/// As models of Mistral's do, wherever they are served. Else no later message of the session would be answered.
#[tokio::test(start_paused = true)]
async fn a_word_behind_results_that_a_model_refuses_is_put_apart_from_them_and_from_then_on() {
    let refusal = || vec![Err(Error::new("canned", Class::Invalid, "Unexpected role 'user' after role 'tool'"))];
    let a = Canned::new("a", [calls_the_clock(), refusal(), says("noon")]);
    let worker = worker(&[&a]).await;
    let heard = turn(&worker, &agent(), &[]).await;
    assert_eq!(course(&heard), [("a", "", ""), ("a", "invalid", ""), ("a", "", "")]);
    turn(&worker, &agent(), &[]).await;
    let sent: Vec<_> = a.requests.lock().unwrap().iter().map(|request| request.refused.clone()).collect();
    let learnt = || vec![Part::UserAfterResults];
    assert_eq!(sent, [vec![], vec![], learnt(), learnt()]);
}

/// What models were sent of the image of a conversation, each told of by its grant, or by none, as from an older front.
#[tokio::test(start_paused = true)]
async fn a_model_that_does_not_see_is_told_of_images_in_words() {
    let image = |data: &'static [u8]| {
        let (media_type, source) = ("image/png".into(), Some(Source::Data(data.into())));
        ContentBlock { block: Some(Block::Image(Image { media_type, source })) }
    };
    let (good, bad) = (image(b"\x89PNG\r\n\x1a\n\0"), image(b"from an older release"));
    for (images, expected) in [(None, 1), (Some(true), 1), (Some(false), 0)] {
        let a = Canned::new("a", [says("noon")]);
        let worker = worker(&[&a]).await;
        let session_id = session();
        init(&worker.client, &session_id, &agent()).await.unwrap();
        let input = [text("what is this?"), vec![good.clone(), bad.clone()]].concat();
        let mut front = Front::open(&worker.client, start(&session_id, input.clone())).await;
        front.grants = false;
        while let Some(message) = front.next().await.unwrap() {
            let FromWorker::GrantRequest(request) = message else { continue };
            let provider = request.model.clone();
            front
                .send(ToWorker::Grant(Grant { model: provider.clone(), provider, images, ..front.grant(&request) }))
                .await;
        }
        let sent = &a.requests.lock().unwrap()[0].messages[0].content;
        let seen = sent.iter().filter(|block| matches!(block.block, Some(Block::Image(_)))).count();
        assert_eq!((sent.len(), seen), (3, expected), "{images:?}: {sent:?}");
        assert!(texts(sent).contains("[an image that can't be shown") || images == Some(false), "{sent:?}");
        assert_eq!(front.heard.checkpoint().messages[0].content, input, "what is stored stays");
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_whose_tool_call_made_no_sense_is_asked_again_and_what_it_said_before_does_not_stay() {
    let a = Canned::new("a", [stops("let me look", Stop::BadToolCall), says("noon")]);
    let heard = turn(&worker(&[&a]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(said(&heard), [("noon".to_owned(), "a".to_owned())]);
    assert!(told(&heard).is_empty(), "nobody need know");
    let reasons: Vec<_> = attempts(&heard).into_iter().map(|attempt| attempt.finish_reason.as_str()).collect();
    assert_eq!(reasons, ["bad_tool_call", "end_turn"]);
    assert_eq!(heard.checkpoint().model_calls, 1, "a try again is no further call");
}

#[tokio::test(start_paused = true)]
async fn a_model_whose_tool_calls_never_make_sense_gives_way_and_people_hear_why_if_no_other_answers() {
    let confused = |name| Canned::new(name, [stops("let me look", Stop::BadToolCall)]);
    let (a, b) = (confused("a"), Canned::new("b", [says("noon")]));
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!((heard.stop_reason(), a.calls()), (StopReason::EndTurn, ATTEMPTS_MAX));
    assert_eq!(course(&heard).last(), Some(&("b", "", "error")));

    let models = ["a", "b", "c"].map(confused);
    let heard = turn(&worker(&models.each_ref()).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    assert_eq!(models.map(|model| model.calls()), [3, 3, 3]);
    let Some(Kind::Error(error)) = heard.durables.iter().find(|kind| matches!(kind, Kind::Error(_))) else { panic!() };
    assert_eq!((error.reason.as_str(), error.retryable), ("MODEL_BAD_TOOL_CALL", true));
    assert_eq!(error.message, "c could make no sense of the tool call that the model wrote");
    assert_eq!(heard.checkpoint().messages.len(), 1, "the question stays, so that it can be asked again");
}

#[tokio::test(start_paused = true)]
async fn whole_calls_beside_one_that_made_no_sense_are_made() {
    let calls = vec![
        Ok(opened()),
        Ok(Delta::ToolCallStarted { block: 0, tool_call_id: "one".into(), name: "clock".into() }),
        Ok(Delta::ToolCallStopped { block: 0, arguments_json: "{}".into() }),
        Ok(Delta::Stop(Stop::BadToolCall)),
    ];
    let a = Canned::new("a", [calls, says("noon")]);
    let heard = turn(&worker(&[&a]).await, &agent(), &[]).await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "call", "result", "attempt", "message", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_only_if_no_model_answers() {
    let refusal = || stops("I can't help with that.", Stop::Refusal);
    let (a, b) = (Canned::new("a", [refusal()]), Canned::new("b", [says("gladly")]));
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!(course(&heard), [("a", "", ""), ("b", "", "content")]);
    assert_eq!(said(&heard), [("gladly".to_owned(), "b".to_owned())]);

    let models = ["a", "b", "c"].map(|name| Canned::new(name, [refusal()]));
    let heard = turn(&worker(&models.each_ref()).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::Refusal);
    assert_eq!(said(&heard), [("I can't help with that.".to_owned(), "c".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_does_not_fit_is_counted_for_the_model_that_takes_over() {
    for answer in [fails(Class::Context), stops("", Stop::ContextFull)] {
        let mut a = Canned::new("a", [answer]);
        a.counts = Some(300_000);
        let c = Canned::new("c", [calls_the_clock(), says("noon")]);
        let heard = turn(&worker(&[&a, &c]).await, &agent(), &["b"]).await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        let reasons: Vec<_> =
            heard.grants.iter().map(|grant| grant.takeover.as_ref().map(|t| t.reason.as_str())).collect();
        assert_eq!(reasons, [None, Some("context"), Some("context"), Some("context")]);
        assert_eq!(reserved(&heard)[1..3], [300_000, 300_000]);
        assert!(reserved(&heard)[3] < 1_000, "it is known to fit, and the count was another model's");
        assert_eq!(course(&heard).last(), Some(&("c", "", "context")), "b was passed over");
    }
}

/// Twenty exchanges of some 250 tokens each.
fn long_talk() -> SessionCheckpoint {
    let message = |role: Role| Message { role: role.into(), content: text(&"x".repeat(500)), ..Message::default() };
    let messages = (0..20).flat_map(|_| [message(Role::User), message(Role::Assistant)]).collect();
    SessionCheckpoint { checkpoint_id: "long".into(), messages, turn_id: "turn-0".into(), ..Default::default() }
}

/// Models of the same size are what most agents have.
#[tokio::test(start_paused = true)]
async fn a_conversation_that_no_other_model_takes_either_is_shortened_for_the_one_that_it_did_not_fit() {
    for answer in [fails(Class::Context), stops("", Stop::ContextFull)] {
        let mut a = Canned::new("a", [copies(&answer), answer, says("noon")]);
        a.counts = Some(300_000);
        let heard = turn_from(&worker(&[&a]).await, &agent(), &["b", "c"], Some(long_talk())).await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        assert_eq!(said(&heard), [("noon".to_owned(), "a".to_owned())]);
        assert!(told(&heard).is_empty(), "nobody need know");
        let asked: Vec<_> = heard.grants.iter().map(|request| request.model.as_str()).collect();
        assert_eq!(asked, ["a", "b", "c", "a", "b", "c", "a"], "each may take over what is left of it");
        assert!(course(&heard).iter().all(|(model, _, reason)| (*model, *reason) == ("a", "")));
        let requests = a.requests.lock().unwrap();
        let sent: Vec<_> = requests.iter().map(|request| estimate::conversation_tokens(&request.messages)).collect();
        assert!(sent.len() == 3 && sent.is_sorted_by(|one, other| one > other), "{sent:?}");
        assert!(reserved(&heard)[3] < 300_000, "the count was of what did not fit");
        assert_eq!(heard.checkpoint().messages.len(), 42, "the conversation itself stays whole");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_another_model_fails_on_for_another_reason_is_shortened_for_the_one_that_it_did_not_fit() {
    let (a, b) = (Canned::new("a", [fails(Class::Context), says("noon")]), Canned::new("b", [fails(Class::Auth)]));
    let agent = AgentSpec { fallback_models: vec!["b".into()], ..agent() };
    let heard = turn_from(&worker(&[&a, &b]).await, &agent, &[], Some(long_talk())).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(said(&heard), [("noon".to_owned(), "a".to_owned())]);
    assert_eq!((a.calls(), b.calls()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_fits_none_however_short_ends_the_turn_with_its_reason() {
    let a = Canned::new("a", [fails(Class::Context)]);
    let heard = turn_from(&worker(&[&a]).await, &agent(), &["b", "c"], Some(long_talk())).await;
    assert_eq!((heard.stop_reason(), told(&heard)), (StopReason::ContextFull, vec!["MODEL_CONTEXT_FULL".to_owned()]));
    assert!((2..8).contains(&a.calls()), "{} calls", a.calls());
}

#[tokio::test(start_paused = true)]
async fn what_failed_first_is_told_when_none_is_fit_to_take_over() {
    let a = Canned::new("a", [fails(Class::Quota)]);
    let heard = turn(&worker(&[&a]).await, &agent(), &["b", "c"]).await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    assert_eq!(told(&heard), ["MODEL_QUOTA_SPENT"]);
    assert_eq!(course(&heard), [("a", "quota", "")]);
}

#[tokio::test(start_paused = true)]
async fn a_model_whose_provider_is_not_there_gives_way_too() {
    let c = Canned::new("c", [says("noon")]);
    let heard = turn(&worker(&[&c]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    // The front must hear of all leave, also where no call is made.
    assert_eq!(course(&heard), [("a", "auth", ""), ("b", "auth", "error"), ("c", "", "error")]);
    assert!(attempts(&heard)[..2].iter().all(|attempt| attempt.usage == Some(TokenUsage::default())));

    let heard = turn(&worker(&[]).await, &agent(), &[]).await;
    assert_eq!((heard.stop_reason(), told(&heard)), (StopReason::Error, vec!["PROVIDER_MISSING".to_owned()]));
}

/// A turn at a front that lets `cheap` answer for `own` unless it is told not to, or, if it is an older one, even then.
async fn routed(worker: &Worker, agent: &AgentSpec, listens: bool) -> Heard {
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    front.grants = false;
    while let Some(message) = front.next().await.unwrap() {
        let FromWorker::GrantRequest(request) = message else { continue };
        let is_routed = request.model == "own" && !(listens && request.as_asked);
        let model = if is_routed { "cheap".to_owned() } else { request.model.clone() };
        let grant = Grant { provider: model.clone(), model, routed: is_routed, ..front.grant(&request) };
        front.send(ToWorker::Grant(grant)).await;
    }
    front.heard
}

#[tokio::test(start_paused = true)]
async fn a_model_that_was_chosen_to_save_and_can_not_answer_gives_way_to_the_agents_own() {
    let alone = AgentSpec { model: "own".into(), ..support::agent() };
    let with_next = AgentSpec { fallback_models: vec!["b".into()], ..alone.clone() };
    let down = [fails(Class::Auth), fails(Class::Context), stops("", Stop::ContextFull), stops("No.", Stop::Refusal)];
    for (answer, agent) in down.into_iter().flat_map(|down| [(copies(&down), &alone), (down, &with_next)]) {
        let own = Canned::new("own", [calls_the_clock(), says("noon")]);
        let cheap = Canned::new("cheap", [answer]);
        let heard = routed(&worker(&[&cheap, &own]).await, agent, true).await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        assert_eq!(said(&heard).last(), Some(&("noon".to_owned(), "own".to_owned())));
        assert!(told(&heard).is_empty(), "nobody need know");
        let asked: Vec<_> = heard.grants.iter().map(|request| (request.model.as_str(), request.as_asked)).collect();
        assert_eq!(asked, [("own", false), ("own", true), ("own", true)], "it is left alone for the rest of the turn");
        assert_eq!(cheap.calls(), 1);
        let reasons: Vec<_> = course(&heard).into_iter().map(|(model, _, reason)| (model, reason)).collect();
        assert_eq!(reasons, [("cheap", ""), ("own", ""), ("own", "")]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_whose_provider_is_not_there_gives_way_to_the_agents_own_and_an_older_front_is_asked_once() {
    let own = Canned::new("own", [says("noon")]);
    let agent = AgentSpec { model: "own".into(), ..support::agent() };
    let heard = routed(&worker(&[&own]).await, &agent, true).await;
    assert_eq!(
        (heard.stop_reason(), course(&heard)),
        (StopReason::EndTurn, vec![("cheap", "auth", ""), ("own", "", "")])
    );

    let heard = routed(&worker(&[&own]).await, &agent, false).await;
    assert_eq!((heard.stop_reason(), heard.grants.len()), (StopReason::Error, 2));
    assert_eq!(told(&heard), ["PROVIDER_MISSING"]);
}

#[tokio::test(start_paused = true)]
async fn what_only_one_model_understands_does_not_reach_the_next_and_the_turn_stays_with_it() {
    let native = NativeBlock { provider: "a".into(), json: "{}".into() };
    let calls = |id: &str| {
        vec![
            Ok(opened()),
            Ok(Delta::Thinking { block: 0, text: "hm".into() }),
            Ok(Delta::Signature { block: 0, signature: "of-this-model".into() }),
            Ok(Delta::Native { block: 1, native: native.clone() }),
            Ok(Delta::Text { block: 2, text: "let me look".into() }),
            Ok(Delta::ToolCallStarted { block: 3, tool_call_id: id.into(), name: "clock".into() }),
            Ok(Delta::ToolCallStopped { block: 3, arguments_json: "{}".into() }),
            Ok(Delta::Stop(Stop::ToolUse)),
        ]
    };
    let a = Canned::new("a", [calls("one"), fails(Class::Invalid)]);
    let b = Canned::new("b", [calls("two"), says("noon")]);
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let went = course(&heard);
    assert_eq!(went, [("a", "", ""), ("a", "invalid", ""), ("b", "", "error"), ("b", "", "error")]);

    let kept = |request: &Request| {
        let blocks = request.messages.iter().flat_map(|message| &message.content);
        blocks.filter(|block| matches!(block.block, Some(Block::Thinking(_) | Block::Native(_)))).count()
    };
    assert_eq!(a.requests.lock().unwrap().iter().map(kept).collect::<Vec<_>>(), [0, 2], "its own comes back to it");
    let of_b = b.requests.lock().unwrap();
    assert_eq!(of_b.iter().map(kept).collect::<Vec<_>>(), [0, 2], "the other's does not, and its own does");
    let called = of_b[0].messages.iter().flat_map(|message| &message.content);
    assert_eq!(called.filter(|block| matches!(block.block, Some(Block::ToolUse(_) | Block::ToolOutput(_)))).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_keeps_failing_is_left_alone_by_all_sessions_and_then_tried_again() {
    let policy = breaker::Policy::default();
    let failures = usize::try_from(policy.outcomes_min).unwrap();
    let answers = std::iter::repeat_with(|| fails(Class::Overload)).take(failures).chain([says("well again")]);
    let (a, b) = (Canned::new("a", answers), Canned::new("b", [says("from b")]));
    let worker = worker(&[&a, &b]).await;
    for _ in 0..failures.div_ceil(ATTEMPTS_MAX) {
        assert_eq!(turn(&worker, &agent(), &[]).await.stop_reason(), StopReason::EndTurn);
    }
    assert_eq!(a.calls(), failures);

    let began = tokio::time::Instant::now();
    let heard = turn(&worker, &agent(), &[]).await;
    assert_eq!(a.calls(), failures, "it was not called, though it would have answered");
    assert_eq!(course(&heard), [("a", "overload", ""), ("b", "", "error")]);
    assert_eq!(attempts(&heard)[0].usage, Some(TokenUsage::default()));
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for it while another answers");

    tokio::time::advance(policy.open).await;
    let heard = turn(&worker, &agent(), &[]).await;
    assert_eq!(said(&heard), [("well again".to_owned(), "a".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn without_another_model_the_turn_waits_for_the_breaker() {
    let failures = usize::try_from(breaker::Policy::default().outcomes_min).unwrap();
    let answers = std::iter::repeat_with(|| fails(Class::Network)).take(failures).chain([says("well again")]);
    let a = Canned::new("a", answers);
    let worker = worker(&[&a]).await;
    let alone = AgentSpec { fallback_models: Vec::new(), ..agent() };
    for _ in 0..failures.div_ceil(ATTEMPTS_MAX) {
        assert_eq!(turn(&worker, &alone, &[]).await.stop_reason(), StopReason::Error);
    }
    assert_eq!(a.calls(), failures);
    let heard = turn(&worker, &alone, &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(said(&heard), [("well again".to_owned(), "a".to_owned())]);
}

/// A trial of minutes would keep all others waiting for a provider that is well.
#[tokio::test(start_paused = true)]
async fn a_trial_that_has_begun_to_answer_lets_the_next_call_through() {
    let policy = breaker::Policy::default();
    let failures = usize::try_from(policy.outcomes_min).unwrap();
    let begins = vec![Ok(opened()), Ok(Delta::Text { block: 0, text: "once upon".into() })];
    let failing = std::iter::repeat_with(|| fails(Class::Overload)).take(failures);
    let (a, b) = (Canned::new("a", failing.chain([begins, says("noon")])), Canned::new("b", [says("from b")]));
    let providers = Providers::new().with(Unending(a.clone())).with(b.clone());
    let worker = worker_with(options(), providers, Builtins::default()).await;
    for _ in 0..failures.div_ceil(ATTEMPTS_MAX) {
        turn(&worker, &agent(), &[]).await;
    }
    tokio::time::advance(policy.open).await;
    let agent = agent();
    let long = turn(&worker, &agent, &[]);
    let begun = async {
        while a.calls() == failures {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        turn(&worker, &agent, &[]).await
    };
    tokio::select! {
        _ = long => panic!("it has no end"),
        heard = begun => assert_eq!(said(&heard), [("noon".to_owned(), "a".to_owned())]),
    }
}
