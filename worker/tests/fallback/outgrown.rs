//! Conversations that do not fit their model.

use croft_llm::{Class, Stop, estimate};
use croft_proto::v1::{AgentSpec, Message, Role, SessionCheckpoint, StopReason};

use crate::canned::{
    Canned, agent, calls_the_clock, copies, course, fails, reserved, said, says, stops, told, turn, turn_from, worker,
};
use crate::support::text;

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
