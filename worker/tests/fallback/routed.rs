//! Models that the front chose to save money.

use croft_llm::{Class, Delta, Error, Providers, Stop};
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::{AgentSpec, Grant, StopReason};
use croft_worker::tools::Builtins;

use crate::canned::{
    Canned, Unending, calls_the_clock, copies, course, fails, opened, said, says, stops, told, worker,
};
use crate::support::{self, Front, Heard, Worker, init, options, session, start, text, worker_with};

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

/// Its second call was granted by its own name, and once told nothing of whom it stood in for: the turn ended, or went on to the next
/// model, and the agent's own was not asked.
#[tokio::test(start_paused = true)]
async fn one_whose_second_call_begins_first_and_fails_gives_way_to_the_agents_own() {
    let alone = AgentSpec { model: "own".into(), hedge_after_ms: 50, ..support::agent() };
    let with_next = AgentSpec { fallback_models: vec!["b".into()], ..alone.clone() };
    for agent in [alone, with_next] {
        let begins = Ok(Delta::Text { block: 0, text: "no".into() });
        let breaks_off = vec![Ok(opened()), begins, Err(Error::new("canned", Class::Auth, "out of order"))];
        let own = Canned::new("own", [says("noon")]);
        let cheap = Canned::new("cheap", [Vec::new(), breaks_off]);
        let providers = Providers::new().with(Unending(cheap.clone())).with(own.clone());
        let heard = routed(&worker_with(options(), providers, Builtins::default()).await, &agent, true).await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        assert_eq!(said(&heard), [("noon".to_owned(), "own".to_owned())]);
        assert!(told(&heard).is_empty(), "nobody need know");
        let asked: Vec<_> =
            heard.grants.iter().map(|request| (request.model.as_str(), request.hedges, request.as_asked)).collect();
        assert_eq!(asked, [("own", false, false), ("cheap", true, false), ("own", false, true)]);
        assert_eq!((cheap.calls(), own.calls()), (2, 1));
        assert_eq!(course(&heard), [("cheap", "", ""), ("cheap", "auth", ""), ("own", "", "")]);
    }
}
