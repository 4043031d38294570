//! The cost router, the recommender and the export of usage, over the whole path.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_front::events::log::NewEvent;
use croft_front::session::store::NewSession;
use croft_front::usage::GROUPS_MAX;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentRole, AgentSpec, Budget, BudgetAction, BudgetPeriod, BudgetScope, ExportUsageRequest, Model, ModelAttempt,
    ModelRouted, ProviderMode, ProviderRoute, RecommendModelsRequest, RoutingSpec, SessionEvent, SetBudgetRequest,
    SummarizeUsageRequest, TokenUsage, UsageDimension,
};
use tonic::Code;

use crate::world::{World, read_all};

/// A world in which the scripted provider has a cheaper model too.
async fn world() -> World {
    let world = World::start().await;
    let dear = (*world.core.models.get("scripted-1").unwrap()).clone();
    let mut cheap = dear.clone();
    cheap.model_id = "scripted-0".into();
    cheap.aliases.clear();
    for price in &mut cheap.prices {
        (price.input_usd, price.output_usd) = ("0.1".into(), "0.1".into());
    }
    world.core.models.replace(vec![dear, cheap]);
    world
}

fn agent(name: &str, role: AgentRole) -> AgentSpec {
    let routing = RoutingSpec { role: role.into(), economy_models: vec!["scripted-0".into()] };
    AgentSpec { routing: Some(routing), ..scripted_agent(name) }
}

async fn limit(client: &mut Client, agent: &str, limit_nano_usd: i64) {
    let budget = Budget {
        scope: BudgetScope::Agent.into(),
        subject: agent.into(),
        period: BudgetPeriod::Month.into(),
        limit_nano_usd: Some(limit_nano_usd),
        action: BudgetAction::Warn.into(),
        ..Budget::default()
    };
    client.budgets.set_budget(SetBudgetRequest { budget: Some(budget) }).await.unwrap();
}

async fn say(client: &mut Client, session_id: &str) -> Vec<SessionEvent> {
    read_all(client.lifecycle.send_message(message(session_id, "a few words")).await.unwrap().into_inner()).await
}

/// What was decided, and who answered.
fn told(events: &[SessionEvent]) -> (Option<ModelRouted>, String) {
    let (mut routed, mut answered) = (None, String::new());
    for event in events {
        match &event.kind {
            Some(Kind::ModelRouted(told)) => routed = Some(told.clone()),
            Some(Kind::ModelAttempt(attempt)) => answered.clone_from(&attempt.model),
            _ => {}
        }
    }
    (routed, answered)
}

#[tokio::test]
async fn near_its_budget_an_agent_is_answered_by_a_cheaper_model_unless_it_is_critical() {
    let world = world().await;
    let mut client = world.client();
    for (name, role, expected) in
        [("standard", AgentRole::Standard, "scripted-0"), ("critical", AgentRole::Critical, "scripted-1")]
    {
        let session = client.create(agent(name, role)).await.unwrap();
        limit(&mut client, name, 1_000_000_000_000).await;
        let (routed, answered) = told(&say(&mut client, &session.session_id).await);
        assert_eq!(answered, "scripted-1", "there is room");
        assert!(!routed.expect("each decision is told").reason.is_empty());
        limit(&mut client, name, 1).await;
        let events = say(&mut client, &session.session_id).await;
        let (routed, answered) = told(&events);
        let routed = routed.unwrap();
        assert_eq!((routed.requested_model.as_str(), routed.chosen_model.as_str()), ("scripted-1", expected));
        assert_eq!(answered, expected);
        let place = |wanted: fn(&Kind) -> bool| events.iter().position(|event| event.kind.as_ref().is_some_and(wanted));
        assert!(
            place(|kind| matches!(kind, Kind::ModelRouted(_))) < place(|kind| matches!(kind, Kind::ModelAttempt(_)))
        );
    }
    let plain = client.create(scripted_agent("plain")).await.unwrap();
    assert_eq!(told(&say(&mut client, &plain.session_id).await), (None, "scripted-1".into()));
    let unknown = AgentSpec {
        routing: Some(RoutingSpec { economy_models: vec!["nothing".into()], ..RoutingSpec::default() }),
        ..scripted_agent("unknown")
    };
    let refused = client.create(unknown).await.unwrap_err();
    assert!(refused.message().starts_with("agent.routing.economy_models"), "{refused:?}");
}

#[tokio::test]
async fn a_cheaper_model_that_can_not_answer_gives_way_to_the_agents_own() {
    let world = World::start().await;
    let dear = (*world.core.models.get("scripted-1").unwrap()).clone();
    let mut cheap = Model { model_id: "elsewhere-0".into(), provider: "elsewhere".into(), ..dear.clone() };
    cheap.aliases.clear();
    for price in &mut cheap.prices {
        (price.input_usd, price.output_usd) = ("0.1".into(), "0.1".into());
    }
    world.core.models.replace(vec![dear, cheap]);
    // The tenant has a key for it, and the worker that runs has none yet.
    world.reroute(|route| {
        route.providers = vec![ProviderRoute { name: "elsewhere".into(), mode: ProviderMode::TenantKey.into() }];
    });
    let mut client = world.client();
    let routing = RoutingSpec { role: AgentRole::Standard.into(), economy_models: vec!["elsewhere-0".into()] };
    let session = client.create(AgentSpec { routing: Some(routing), ..scripted_agent("saver") }).await.unwrap();
    limit(&mut client, "saver", 1).await;
    // Until something is spent there is nothing to save.
    say(&mut client, &session.session_id).await;
    let events = say(&mut client, &session.session_id).await;
    let (mut chosen, mut attempts) = (Vec::new(), Vec::new());
    for event in &events {
        match &event.kind {
            Some(Kind::ModelRouted(told)) => chosen.push(told.chosen_model.as_str()),
            Some(Kind::ModelAttempt(attempt)) => attempts.push((attempt.model.as_str(), attempt.error_class.as_str())),
            _ => {}
        }
    }
    assert_eq!(chosen, ["elsewhere-0", "scripted-1"], "{events:?}");
    assert_eq!(attempts, [("elsewhere-0", "auth"), ("scripted-1", "")]);
    assert!(events.iter().any(|event| matches!(event.kind, Some(Kind::AgentMessage(_)))));
}

#[tokio::test]
async fn a_cheaper_model_is_recommended_by_what_was_used() {
    let world = world().await;
    let mut client = world.client();
    for name in ["first", "second"] {
        let session = client.create(scripted_agent(name)).await.unwrap();
        say(&mut client, &session.session_id).await;
    }
    let all = client.models.recommend_models(RecommendModelsRequest::default()).await.unwrap().into_inner();
    let [one] = &all.recommendations[..] else { panic!("{all:?}") };
    assert_eq!(
        (one.used_model.as_str(), one.recommended_model.as_str(), one.attempts),
        ("scripted-1", "scripted-0", 2)
    );
    assert!(one.saving_nano_usd > 0 && one.saving_nano_usd == one.cost_nano_usd - one.recommended_cost_nano_usd);
    let of_one = RecommendModelsRequest { agent: "first".into(), days: 1 };
    let of_one = client.models.recommend_models(of_one).await.unwrap().into_inner();
    assert_eq!(of_one.recommendations[0].attempts, 1);
    let theirs = world.stranger().models.recommend_models(RecommendModelsRequest::default()).await.unwrap();
    assert!(theirs.into_inner().recommendations.is_empty(), "another tenant has used nothing");
    let refused = client.models.recommend_models(RecommendModelsRequest { days: 367, ..Default::default() }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

/// What the first ten thousand by name had used was all that it was reckoned with.
#[tokio::test]
async fn of_many_agents_the_last_has_a_recommendation_by_all_that_it_used() {
    let world = world().await;
    let usage = Some(TokenUsage { input_uncached_tokens: 1_000_000, ..TokenUsage::default() });
    for number in 0..=GROUPS_MAX {
        let (provider, model) = ("scripted".into(), "scripted-1".into());
        let attempt =
            ModelAttempt { attempt_id: number.to_string(), provider, model, usage, ..ModelAttempt::default() };
        let agent = AgentSpec { name: format!("agent-{number:05}"), ..AgentSpec::default() };
        let events = vec![NewEvent::now(Kind::ModelAttempt(attempt))];
        let new = NewSession::of(SessionId::generate(), world.tenant(), "acme", agent, events);
        world.core.stores.sessions.insert(new).await.unwrap();
    }
    let mut client = world.client();
    for (agent, attempts) in [(format!("agent-{GROUPS_MAX:05}"), 1), (String::new(), 1 + GROUPS_MAX)] {
        let asked = RecommendModelsRequest { agent, days: 1 };
        let told = client.models.recommend_models(asked).await.unwrap().into_inner().recommendations;
        let told: Vec<_> = told.iter().map(|one| (&*one.recommended_model, one.attempts)).collect();
        assert_eq!(told, [("scripted-0", attempts.try_into().unwrap())]);
    }
}

#[tokio::test]
async fn usage_is_exported_row_by_row() {
    let world = world().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("spender")).await.unwrap();
    for _ in 0..3 {
        say(&mut client, &session.session_id).await;
    }
    let mut export = client.usage.export_usage(ExportUsageRequest::default()).await.unwrap().into_inner();
    let mut csv = String::new();
    while let Some(piece) = export.message().await.unwrap() {
        csv.push_str(&piece.csv);
    }
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines.len(), 4, "{csv}");
    assert!(lines[0].starts_with("attempt_id,session_id,agent,provider,model,mode,"));
    assert!(lines[1..].iter().all(|line| line.contains(",spender,scripted,scripted-1,platform,")), "{csv}");
    let future = croft_proto::Timestamp { seconds: 4_000_000_000, nanos: 0 };
    let later = ExportUsageRequest { start_time: Some(future), ..ExportUsageRequest::default() };
    let piece = client.usage.export_usage(later).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(piece.csv.lines().count(), 1, "nothing but the names of the columns");

    let by_mode = SummarizeUsageRequest { group_by: vec![UsageDimension::Mode.into()], ..Default::default() };
    let summaries = client.usage.summarize_usage(by_mode).await.unwrap().into_inner().summaries;
    assert_eq!(summaries.len(), 1);
    assert_eq!((&summaries[0].keys[..], summaries[0].totals.unwrap().attempts), (&["platform".to_owned()][..], 3));
}
