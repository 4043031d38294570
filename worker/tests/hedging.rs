//! A model that is slow to begin is asked a second time, where the agent says so: who begins first answers, and the other is
//! accounted for.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_llm::{Class, Delta, DeltaStream, Error, Provider, Providers, Request, Stop};
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, GrantRefused, ModelAttempt, StopReason, TokenUsage};
use croft_worker::tools::Builtins;
use futures::{StreamExt as _, stream};
use support::*;
use tokio::sync::Semaphore;

/// How one call goes.
#[derive(Clone)]
enum Way {
    /// Opens, then says this once the gate lets it, and ends.
    Says(&'static str, Arc<Semaphore>),
    /// Fails once the gate lets it.
    Fails(Arc<Semaphore>),
}

/// A provider whose calls go these ways, one after another.
#[derive(Clone, Default)]
struct Slow {
    ways: Arc<Mutex<VecDeque<Way>>>,
    /// Calls that were given up.
    dropped: Arc<Mutex<Vec<usize>>>,
    calls: Arc<Mutex<usize>>,
    /// Calls whose answer has begun, and was read so far.
    begun: Arc<Mutex<usize>>,
}

/// Says that a call was given up before its end.
struct Watch {
    call: usize,
    ended: bool,
    dropped: Arc<Mutex<Vec<usize>>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.ended {
            self.dropped.lock().unwrap().push(self.call);
        }
    }
}

impl Slow {
    fn new(ways: impl IntoIterator<Item = Way>) -> Self {
        Self { ways: Arc::new(Mutex::new(ways.into_iter().collect())), ..Self::default() }
    }

    fn calls(&self) -> usize {
        *self.calls.lock().unwrap()
    }
}

impl Provider for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn stream(&self, _: Request) -> DeltaStream {
        let way = self.ways.lock().unwrap().pop_front().expect("no more calls are made than there are ways");
        let call = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls
        };
        let mut watch = Watch { call, ended: false, dropped: Arc::clone(&self.dropped) };
        let (gate, items) = match way {
            Way::Fails(gate) => (gate, vec![Err(Error::new("slow", Class::Overload, "out of order"))]),
            Way::Says(text, gate) => {
                let usage = TokenUsage { input_uncached_tokens: 9, output_tokens: 3, ..TokenUsage::default() };
                let said = Delta::Text { block: 0, text: text.into() };
                (gate, vec![Ok(said), Ok(Delta::Usage(usage)), Ok(Delta::Stop(Stop::EndTurn))])
            }
        };
        let opened = Delta::Opened { response_id: format!("response-{call}"), model: "m".into() };
        let begun = Arc::clone(&self.begun);
        let rest = stream::once(async move { gate.acquire_owned().await.unwrap().forget() }).flat_map(move |()| {
            // The whole of it is held in here, not just this field.
            let watch = &mut watch;
            watch.ended = true;
            *begun.lock().unwrap() += 1;
            stream::iter(items.iter().map(copy).collect::<Vec<_>>())
        });
        stream::iter([Ok(opened)]).chain(rest).boxed()
    }
}

fn copy(item: &Result<Delta, Error>) -> Result<Delta, Error> {
    match item {
        Ok(delta) => Ok(delta.clone()),
        Err(error) => Err(Error::new(error.provider, error.class, error.message.clone())),
    }
}

fn gate(permits: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits))
}

fn agent() -> AgentSpec {
    AgentSpec { model: "m".into(), hedge_after_ms: 50, ..support::agent() }
}

async fn open(slow: &Slow, agent: &AgentSpec) -> Front {
    let worker = worker_with(options(), Providers::new().with(slow.clone()), Builtins::default()).await;
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    (front.provider, front.model) = ("slow".into(), "m".into());
    front
}

fn attempts(heard: &Heard) -> Vec<&ModelAttempt> {
    let made = heard.durables.iter().filter_map(|kind| match kind {
        Kind::ModelAttempt(attempt) => Some(attempt),
        _ => None,
    });
    made.collect()
}

fn answer(heard: &Heard) -> String {
    let said = heard.durables.iter().find_map(|kind| match kind {
        Kind::AgentMessage(message) => Some(texts(&message.content)),
        _ => None,
    });
    said.unwrap_or_default()
}

fn shown(heard: &Heard) -> String {
    let text = |kind: &Kind| match kind {
        Kind::TextDelta(delta) => Some(delta.text.clone()),
        _ => None,
    };
    heard.previews.iter().filter_map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn the_second_answers_when_it_begins_first_and_the_other_is_given_up_and_accounted_for() {
    let slow = Slow::new([Way::Says("late", gate(0)), Way::Says("soon", gate(1))]);
    let heard = open(&slow, &agent()).await.finish().await;
    assert_eq!((heard.stop_reason(), answer(&heard).as_str()), (StopReason::EndTurn, "soon"));
    assert_eq!(shown(&heard), "soon", "nobody sees anything of the other");
    assert_eq!(*slow.dropped.lock().unwrap(), [1], "the call is ended at the provider");
    let [given_up, made] = attempts(&heard)[..] else { panic!("{heard:?}") };
    assert_eq!((given_up.finish_reason.as_str(), given_up.grant_id.as_str()), ("hedged", "grant-0"));
    assert_eq!((given_up.usage_estimated, given_up.error_class.as_str()), (true, ""));
    assert!(given_up.usage.unwrap().input_uncached_tokens > 0, "a provider charges for what it has begun");
    assert_eq!((made.finish_reason.as_str(), made.grant_id.as_str()), ("end_turn", "grant-1"));
    assert_eq!((made.response_id.as_str(), made.usage_estimated), ("response-2", false));
    let asked: Vec<_> = heard.grants.iter().map(|request| (request.model.as_str(), request.hedges)).collect();
    assert_eq!(asked, [("m", false), ("m", true)]);
}

#[tokio::test(start_paused = true)]
async fn the_first_answers_when_it_begins_after_all() {
    let first = gate(0);
    let slow = Slow::new([Way::Says("first", Arc::clone(&first)), Way::Says("second", gate(0))]);
    let mut front = open(&slow, &agent()).await;
    front.until(|message| matches!(message, FromWorker::GrantRequest(request) if request.hedges)).await;
    while slow.calls() < 2 {
        tokio::task::yield_now().await;
    }
    first.add_permits(1);
    let heard = front.finish().await;
    assert_eq!((heard.stop_reason(), answer(&heard).as_str()), (StopReason::EndTurn, "first"));
    let told: Vec<_> = attempts(&heard).into_iter().map(|made| (&*made.finish_reason, &*made.grant_id)).collect();
    assert_eq!(told, [("hedged", "grant-1"), ("end_turn", "grant-0")]);
    assert_eq!(*slow.dropped.lock().unwrap(), [2]);
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_leaves_the_field_to_the_other() {
    let second = gate(0);
    let slow = Slow::new([Way::Fails(gate(0)), Way::Says("second", Arc::clone(&second))]);
    let fails = match &slow.ways.lock().unwrap()[0] {
        Way::Fails(gate) | Way::Says(_, gate) => Arc::clone(gate),
    };
    let mut front = open(&slow, &agent()).await;
    front.until(|message| matches!(message, FromWorker::GrantRequest(request) if request.hedges)).await;
    while slow.calls() < 2 {
        tokio::task::yield_now().await;
    }
    fails.add_permits(1);
    front.until_event(|kind| matches!(kind, Kind::ModelAttempt(_))).await;
    second.add_permits(1);
    let heard = front.finish().await;
    assert_eq!((heard.stop_reason(), answer(&heard).as_str()), (StopReason::EndTurn, "second"));
    let told: Vec<_> = attempts(&heard).into_iter().map(|made| (&*made.finish_reason, &*made.error_class)).collect();
    assert_eq!(told, [("error", "overload"), ("end_turn", "")]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_second_try_ends_nothing_and_one_that_is_needless_is_told() {
    for reason in ["BUDGET", ""] {
        let first = gate(0);
        let slow = Slow::new([Way::Says("first", Arc::clone(&first))]);
        let mut front = open(&slow, &agent()).await;
        front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
        front.grants = false;
        let asked = front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
        let FromWorker::GrantRequest(request) = asked else { panic!() };
        first.add_permits(1);
        if reason.is_empty() {
            // It is read while a grant is waited for.
            while *slow.begun.lock().unwrap() == 0 {
                tokio::task::yield_now().await;
            }
            front.send(ToWorker::Grant(front.grant(&request))).await;
        } else {
            let (request_id, message) = (request.request_id, "no room".to_owned());
            front.send(ToWorker::GrantRefused(GrantRefused { request_id, reason: reason.into(), message })).await;
        }
        let heard = front.finish().await;
        assert_eq!((heard.stop_reason(), answer(&heard).as_str()), (StopReason::EndTurn, "first"));
        assert_eq!(slow.calls(), 1);
        let told: Vec<_> = attempts(&heard).into_iter().map(|made| &*made.finish_reason).collect();
        if reason.is_empty() {
            assert_eq!(told, ["hedged", "end_turn"]);
            assert_eq!(attempts(&heard)[0].usage, Some(TokenUsage::default()), "it cost nothing");
        } else {
            assert_eq!(told, ["end_turn"]);
        }
    }
}

/// The front took longer than the worker waits. Until the turn's end it held what the call might have cost.
#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_when_nobody_waits_for_it_is_told_as_not_used_while_the_call_goes_on() {
    let first = gate(0);
    let slow = Slow::new([Way::Says("first", Arc::clone(&first))]);
    let mut front = open(&slow, &agent()).await;
    front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
    front.grants = false;
    let asked = front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
    let FromWorker::GrantRequest(request) = asked else { panic!() };
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    front.send(ToWorker::Grant(front.grant(&request))).await;
    let told = front.until_event(|kind| matches!(kind, Kind::ModelAttempt(_))).await;
    let Kind::ModelAttempt(unused) = told else { panic!() };
    assert_eq!(
        (&*unused.finish_reason, &*unused.grant_id, unused.usage),
        ("hedged", "grant-2", Some(TokenUsage::default()))
    );
    first.add_permits(1);
    let heard = front.finish().await;
    assert_eq!((heard.stop_reason(), answer(&heard).as_str(), slow.calls()), (StopReason::EndTurn, "first", 1));
    let told: Vec<_> = attempts(&heard).into_iter().map(|made| &*made.finish_reason).collect();
    assert_eq!(told, ["hedged", "end_turn"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_twice_unless_the_agent_says_so() {
    let first = gate(0);
    let slow = Slow::new([Way::Says("first", Arc::clone(&first))]);
    let mut front = open(&slow, &AgentSpec { hedge_after_ms: 0, ..agent() }).await;
    front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.add_permits(1);
    let heard = front.finish().await;
    assert_eq!((answer(&heard).as_str(), heard.grants.len(), attempts(&heard).len()), ("first", 1, 1));
}
