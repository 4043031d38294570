//! A model that keeps failing is left alone.

use std::time::Duration;

use croft_llm::{Class, Delta, Providers, breaker};
use croft_proto::v1::{AgentSpec, StopReason, TokenUsage};
use croft_worker::tools::Builtins;

use crate::canned::{
    ATTEMPTS_MAX, Answer, Canned, Unending, agent, attempts, course, fails, opened, said, says, turn, worker,
};
use crate::support::{options, worker_with};

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
    let begins = vec![Ok(opened()), Ok(Delta::Text { block: 0, text: "once upon".into() })];
    assert_eq!(said_behind_a_trial(begins, &agent()).await, "noon");
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_thinks_in_silence_lets_the_next_call_through() {
    // With a second try, too, which is made once the first was silent for so long.
    for hedge_after_ms in [0, 50, 60_000] {
        let agent = AgentSpec { hedge_after_ms, ..agent() };
        assert_eq!(said_behind_a_trial(vec![Ok(opened())], &agent).await, "noon", "{hedge_after_ms}");
    }
}

/// What a turn is told that begins while the trial of a breaker goes on like this, without an end.
async fn said_behind_a_trial(begins: Answer, agent: &AgentSpec) -> String {
    let policy = breaker::Policy::default();
    let failures = usize::try_from(policy.outcomes_min).unwrap();
    let failing = std::iter::repeat_with(|| fails(Class::Overload)).take(failures);
    let (a, b) = (Canned::new("a", failing.chain([begins, says("noon")])), Canned::new("b", [says("from b")]));
    let providers = Providers::new().with(Unending(a.clone())).with(b.clone());
    let worker = worker_with(options(), providers, Builtins::default()).await;
    for _ in 0..failures.div_ceil(ATTEMPTS_MAX) {
        turn(&worker, agent, &[]).await;
    }
    tokio::time::advance(policy.open).await;
    let long = turn(&worker, agent, &[]);
    let begun = async {
        while a.calls() == failures {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        turn(&worker, agent, &[]).await
    };
    tokio::select! {
        _ = long => panic!("it has no end"),
        heard = begun => {
            let [(words, _)] = &said(&heard)[..] else { panic!("{heard:?}") };
            words.clone()
        }
    }
}
