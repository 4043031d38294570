//! Parts of a request that a model refuses: calls go without them.

use std::sync::Arc;

use croft_llm::refusals::Part;
use croft_llm::{Class, Delta, DeltaStream, Error, Provider, Providers, Request, Stop};
use croft_proto::v1::{AgentSpec, TokenUsage};
use croft_worker::tools::Builtins;
use futures::StreamExt as _;

use crate::canned::{
    ATTEMPTS_MAX, Answer, Canned, agent, attempts, calls_the_clock, course, fails, opened, said, says, told, turn,
    worker,
};
use crate::support::{options, worker_with};

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
