//! A provider that claims to have used what no model can have used and says what it was asked for, and a model that nobody knows.

use croft_e2e::client::{message, scripted_agent};
use croft_llm::{Delta, DeltaStream, Provider, Request, Stop};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, Budget, BudgetAction, BudgetPeriod, BudgetScope, ListBudgetsRequest, ListUsageEventsRequest, Model,
    SetBudgetRequest, StopReason, TokenUsage,
};
use futures::{StreamExt as _, stream};
use tonic::Code;

use crate::world::{World, read_all, stop_reason};

/// Claims by model.
const CLAIMS: [(&str, i64); 3] = [("liar-negative", i64::MIN), ("liar-absurd", i64::MAX), ("liar-modest", 7)];
/// What one class of tokens counts at most.
const BELIEVED_MAX: i64 = 1_000_000_000;

pub(crate) struct Liar;

impl Provider for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn stream(&self, request: Request) -> DeltaStream {
        let (_, claim) = CLAIMS.into_iter().find(|(model, _)| *model == request.model).expect("one of its models");
        let usage = TokenUsage { input_uncached_tokens: claim, output_tokens: claim, ..TokenUsage::default() };
        let answer = [
            Delta::Opened { response_id: "lie".into(), model: request.model.clone() },
            Delta::Text { block: 0, text: format!("believe me within {} tokens", request.output_tokens_max) },
            Delta::Usage(usage),
            Delta::Stop(Stop::EndTurn),
        ];
        stream::iter(answer.map(Ok)).boxed()
    }
}

/// A world that knows the liar's models, at the scripted one's price.
async fn world() -> World {
    let world = World::start().await;
    let scripted = (*world.core.models.get("scripted-1").unwrap()).clone();
    let of_liar = |(model, _): (&str, i64)| Model {
        model_id: model.into(),
        provider: "liar".into(),
        aliases: Vec::new(),
        ..scripted.clone()
    };
    world.core.models.replace(CLAIMS.map(of_liar).into_iter().chain([scripted.clone()]).collect());
    world
}

fn agent(model: &str) -> AgentSpec {
    AgentSpec { model: model.into(), ..scripted_agent("believer") }
}

#[tokio::test]
async fn absurd_usage_is_brought_into_bounds_and_breaks_no_sum() {
    let world = world().await;
    let mut client = world.client();
    let budget = Budget {
        scope: BudgetScope::Tenant.into(),
        period: BudgetPeriod::Life.into(),
        limit_tokens: Some(3 * BELIEVED_MAX),
        action: BudgetAction::Block.into(),
        ..Budget::default()
    };
    client.budgets.set_budget(SetBudgetRequest { budget: Some(budget) }).await.unwrap();
    let mut sum = 0;
    for (model, believed) in [("liar-negative", 0), ("liar-modest", 7), ("liar-absurd", BELIEVED_MAX)] {
        let session = client.create(agent(model)).await.unwrap();
        let sent = client.lifecycle.send_message(message(&session.session_id, "how much?")).await.unwrap();
        let events = read_all(sent.into_inner()).await;
        assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{model}");
        let list = ListUsageEventsRequest { session_id: session.session_id.clone(), ..Default::default() };
        let rows = client.usage.list_usage_events(list).await.unwrap().into_inner().usage_events;
        let tokens = TokenUsage { input_uncached_tokens: believed, output_tokens: believed, ..TokenUsage::default() };
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].tokens, Some(tokens), "{model}");
        assert_eq!(rows[0].usage_estimated, model != "liar-modest", "what was changed is no count: {model}");
        assert!(rows[0].cost_nano_usd.is_some_and(|cost| cost >= 0), "{model}");
        sum += 2 * believed;
    }
    let told = client.budgets.list_budgets(ListBudgetsRequest::default()).await.unwrap().into_inner().budgets;
    assert_eq!(told[0].spent_tokens, sum);
    // Two thousand million and fourteen are spent of three: another such lie is granted, the one behind it is not.
    for expected in [StopReason::EndTurn, StopReason::Budget] {
        let session = client.create(agent("liar-absurd")).await.unwrap();
        let sent = client.lifecycle.send_message(message(&session.session_id, "how much?")).await.unwrap();
        assert_eq!(stop_reason(&read_all(sent.into_inner()).await), Some(expected));
    }
}

/// Its provider would refuse the call.
#[tokio::test]
async fn a_model_is_asked_for_no_more_output_than_it_gives() {
    let world = world().await;
    let mut client = world.client();
    let liar = (*world.core.models.get("liar-modest").unwrap()).clone();
    for (gives, asked) in [(8_192, 8_192), (64_000, 16_384), (0, 4_096)] {
        let mut model = liar.clone();
        model.capabilities.as_mut().unwrap().output_tokens_max = gives;
        world.core.models.replace(vec![model]);
        let session = client.create(agent("liar-modest")).await.unwrap();
        let sent = client.lifecycle.send_message(message(&session.session_id, "how much?")).await.unwrap();
        let events = read_all(sent.into_inner()).await;
        let said = events.iter().find_map(|event| match &event.kind {
            Some(Kind::AgentMessage(message)) => Some(format!("{:?}", message.content)),
            _ => None,
        });
        assert!(said.is_some_and(|said| said.contains(&format!("within {asked} tokens"))), "{events:?}");
    }
}

#[tokio::test]
async fn a_model_that_nobody_knows_is_refused_before_anything_is_reserved() {
    let world = world().await;
    let mut client = world.client();
    let known = client.create(agent("liar-modest")).await.unwrap();
    // It is taken out of the registry while sessions have it.
    let scripted = (*world.core.models.get("scripted-1").unwrap()).clone();
    world.core.models.replace(vec![scripted]);
    let sent = client.lifecycle.send_message(message(&known.session_id, "hello?")).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::Error), "{events:?}");
    assert!(
        events
            .iter()
            .any(|event| matches!(&event.kind, Some(Kind::Error(error)) if error.message.contains("liar-modest")))
    );
    assert_eq!(world.stored(&known.session_id).await.usage.attempts, 0);
    // Nobody opens another.
    let refused = client.create(agent("liar-modest")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
}
