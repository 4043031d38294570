//! Budgets over the whole path: a call is refused, clipped or cut at them, and goes on when they are raised.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_front::budget;
use croft_front::budget::period::Period;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentLimits, AgentSpec, Budget, BudgetAction, BudgetPeriod, BudgetScope, BusyPolicy, DeleteBudgetRequest,
    ListBudgetsRequest, ListSessionsRequest, ListUsageEventsRequest, Model, SendMessageRequest, SessionEvent,
    SetBudgetRequest, StopReason, SubAgentTool, TenantLimits, TerminateSessionRequest, ToolSpec, UsageEvent,
};
use serde_json::json;
use tonic::Code;

use crate::world::{World, read_all, stop_reason};

fn reached(events: &[SessionEvent]) -> Vec<(String, String)> {
    let of = |event: &SessionEvent| match &event.kind {
        Some(Kind::BudgetReached(reached)) => Some((reached.scope.clone(), reached.message.clone())),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

async fn say(client: &mut Client, session_id: &str, text: &str) -> Vec<SessionEvent> {
    read_all(client.lifecycle.send_message(message(session_id, text)).await.unwrap().into_inner()).await
}

fn budget(scope: BudgetScope, subject: &str, limit_tokens: i64) -> SetBudgetRequest {
    SetBudgetRequest {
        budget: Some(Budget {
            scope: scope.into(),
            subject: subject.into(),
            period: BudgetPeriod::Life.into(),
            limit_tokens: Some(limit_tokens),
            action: BudgetAction::Block.into(),
            ..Budget::default()
        }),
    }
}

#[tokio::test]
async fn a_budget_that_is_used_up_refuses_and_one_that_is_raised_lets_it_go_on() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("spender")).await.unwrap();
    let events = say(&mut client, &session.session_id, "hello").await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));

    client.budgets.set_budget(budget(BudgetScope::Agent, "spender", 1)).await.unwrap();
    let events = say(&mut client, &session.session_id, "and again").await;
    assert_eq!(stop_reason(&events), Some(StopReason::Budget), "{events:?}");
    assert_eq!(reached(&events), [("agent".into(), "the budget of agent spender is used up".into())]);
    let other = client.create(scripted_agent("thrifty")).await.unwrap();
    let events = say(&mut client, &other.session_id, "hello").await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "another agent has its own");

    client.budgets.set_budget(budget(BudgetScope::Agent, "spender", 1_000_000)).await.unwrap();
    let events = say(&mut client, &session.session_id, "once more").await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
    let budgets = client.budgets.list_budgets(ListBudgetsRequest {}).await.unwrap().into_inner().budgets;
    assert_eq!(budgets.len(), 1);
    let spent = world.stored(&session.session_id).await.usage.tokens.unwrap();
    assert_eq!(budgets[0].spent_tokens, spent.input_uncached_tokens + spent.output_tokens);
    assert!(budgets[0].spent_nano_usd > 0);
    let delete = DeleteBudgetRequest {
        scope: BudgetScope::Agent.into(),
        subject: "spender".into(),
        period: BudgetPeriod::Life.into(),
    };
    assert!(client.budgets.delete_budget(delete.clone()).await.unwrap().into_inner().found);
    assert!(!client.budgets.delete_budget(delete).await.unwrap().into_inner().found);
}

#[tokio::test]
async fn the_platforms_and_the_agents_budgets_hold_too() {
    let limits = TenantLimits { monthly_budget_tokens: 100_000, ..TenantLimits::default() };
    let world = World::with_limits(limits).await;
    let mut client = world.client();
    let mut agent = scripted_agent("poor");
    agent.limits = Some(AgentLimits { budget_tokens: 5, ..AgentLimits::default() });
    let session = client.create(agent).await.unwrap();
    let events = say(&mut client, &session.session_id, "a text of more than five tokens, surely so").await;
    assert_eq!(stop_reason(&events), Some(StopReason::Budget));
    let told = format!("the budget of session {} is used up", session.session_id);
    assert_eq!(reached(&events), [("session".into(), told)]);
    assert_eq!(world.stored(&session.session_id).await.usage.attempts, 0, "the model was never called");

    let rich = client.create(scripted_agent("rich")).await.unwrap();
    assert_eq!(stop_reason(&say(&mut client, &rich.session_id, "hello").await), Some(StopReason::EndTurn));
    world.reroute(|route| route.limits.as_mut().unwrap().monthly_budget_tokens = 1);
    let events = say(&mut client, &rich.session_id, "hello").await;
    assert_eq!(reached(&events), [("tenant".into(), "the tenant's budget for the month is used up".into())]);
    let budgets = client.budgets.list_budgets(ListBudgetsRequest {}).await.unwrap().into_inner().budgets;
    assert!(budgets[0].by_platform && budgets[0].spent_tokens > 0, "{budgets:?}");
}

/// It would stay when nothing takes it away with its session, and use up the tenant's room for budgets.
#[tokio::test]
async fn a_session_that_has_ended_or_never_was_takes_no_budget() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("spender")).await.unwrap().session_id;
    client.budgets.set_budget(budget(BudgetScope::Session, &session_id, 1)).await.unwrap();
    let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "done".into() };
    client.lifecycle.terminate_session(end).await.unwrap();
    for (subject, code) in [(session_id, Code::FailedPrecondition), (SessionId::generate().to_string(), Code::NotFound)]
    {
        let refused = client.budgets.set_budget(budget(BudgetScope::Session, &subject, 2)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    let listed = client.budgets.list_budgets(ListBudgetsRequest {}).await.unwrap().into_inner().budgets;
    assert_eq!(listed.iter().map(|budget| budget.limit_tokens).collect::<Vec<_>>(), [Some(1)]);
}

/// An id may be written in several ways.
#[tokio::test]
async fn a_budget_holds_for_its_session_however_its_id_is_written() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("spender")).await.unwrap().session_id;
    let written = session_id.to_uppercase();
    let set = client.budgets.set_budget(budget(BudgetScope::Session, &written, 1)).await.unwrap().into_inner();
    assert_eq!(set.budget.unwrap().subject, session_id);
    let events = say(&mut client, &session_id, "hello").await;
    assert_eq!(stop_reason(&events), Some(StopReason::Budget));
    // As it was stored before ids were brought into one form.
    let old = budget::Budget {
        scope: budget::Scope::Session,
        subject: written.clone(),
        period: Period::Life,
        nano_usd: None,
        tokens: Some(1),
        action: BudgetAction::Block,
        is_given: false,
    };
    world.core.stores.budgets.put(world.tenant(), &old).await.unwrap();
    let (scope, period) = (BudgetScope::Session.into(), BudgetPeriod::Life.into());
    let old = DeleteBudgetRequest { scope, subject: written, period };
    client.budgets.delete_budget(old).await.unwrap();
    let left = client.budgets.list_budgets(ListBudgetsRequest {}).await.unwrap().into_inner().budgets;
    assert!(left.is_empty(), "{left:?}");
    client.budgets.set_budget(budget(BudgetScope::Session, &session_id, 1)).await.unwrap();
    let taken_away = DeleteBudgetRequest { scope, subject: session_id.replace('-', ""), period };
    client.budgets.delete_budget(taken_away).await.unwrap();
    let events = say(&mut client, &session_id, "hello").await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));
}

#[tokio::test]
async fn a_running_answer_is_cut_when_its_budget_is_lowered_below_it() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("talker")).await.unwrap();
    client.budgets.set_budget(budget(BudgetScope::Session, &session.session_id, 1_000_000)).await.unwrap();
    let steps: Vec<String> = (0..400).map(|_| r#"{"text":"word after word "},{"delay_ms":50}"#.to_owned()).collect();
    let script = format!(r#"{{"script": [{}]}}"#, steps.join(","));
    let mut running = client.lifecycle.send_message(message(&session.session_id, &script)).await.unwrap().into_inner();
    let mut seen = Vec::new();
    let mut shown = 0;
    while let Some(response) = running.message().await.unwrap() {
        let event = response.event.unwrap();
        if matches!(event.kind, Some(Kind::TextDelta(_))) {
            shown += 1;
            if shown == 3 {
                client.budgets.set_budget(budget(BudgetScope::Session, &session.session_id, 2)).await.unwrap();
            }
        }
        seen.push(event);
    }
    assert_eq!(stop_reason(&seen), Some(StopReason::Budget), "{:?}", seen.last());
    let told = format!("the budget of session {} is used up", session.session_id);
    assert_eq!(reached(&seen), [("session".into(), told)]);
    assert!(shown < 200, "{shown} pieces were shown");
    // What was said until then is kept and paid for.
    let usage = world.stored(&session.session_id).await.usage;
    assert_eq!(usage.attempts, 1);
    assert!(usage.cost_nano_usd > 0);
    assert!(seen.iter().any(|event| matches!(event.kind, Some(Kind::AgentMessage(_)))));
}

#[tokio::test]
async fn thresholds_are_events_and_each_comes_once() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("watched")).await.unwrap();
    let mut set = budget(BudgetScope::Session, &session.session_id, 40);
    set.budget.as_mut().unwrap().action = BudgetAction::Warn.into();
    client.budgets.set_budget(set).await.unwrap();
    for _ in 0..4 {
        let events = say(&mut client, &session.session_id, "a few words that are a few tokens").await;
        assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));
    }
    let events = world.core.stores.events.read(world.tenant(), session.session_id.parse().unwrap(), 0, 1_000);
    let alerts: Vec<_> = events
        .await
        .unwrap()
        .into_iter()
        .filter_map(|event| match event.kind {
            Some(Kind::BudgetAlert(alert)) => Some(alert.percent),
            _ => None,
        })
        .collect();
    assert_eq!(alerts, [50, 80, 90, 100]);
}

#[tokio::test]
async fn a_model_without_a_price_is_not_called_on_a_budget_of_money() {
    let world = World::start().await;
    let mut client = world.client();
    let mut model = (*world.core.models.get("scripted-1").unwrap()).clone();
    model.prices.clear();
    world.core.models.replace(vec![model]);
    let session = client.create(scripted_agent("unpriced")).await.unwrap();
    assert_eq!(stop_reason(&say(&mut client, &session.session_id, "hello").await), Some(StopReason::EndTurn));
    let usage = world.stored(&session.session_id).await.usage;
    assert_eq!((usage.unpriced_attempts, usage.cost_nano_usd), (1, 0));

    let mut set = budget(BudgetScope::Tenant, "", 1_000_000);
    set.budget.as_mut().unwrap().limit_nano_usd = Some(1_000_000_000_000);
    client.budgets.set_budget(set).await.unwrap();
    let events = say(&mut client, &session.session_id, "hello").await;
    assert_eq!(stop_reason(&events), Some(StopReason::Budget));
    assert!(reached(&events)[0].1.contains("price of model scripted-1 is not known"), "{events:?}");
}

/// The provider decides how it serves a call; without a price for that nobody knows what the call cost.
#[tokio::test]
async fn a_call_costs_what_its_service_tier_costs_and_nothing_is_made_up() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("urgent")).await.unwrap();
    for tier in ["", r#"{"service_tier":"priority"},"#, r#"{"service_tier":"unheard-of"},"#] {
        let events =
            say(&mut client, &session.session_id, &format!(r#"{{"script":[{tier}{{"text":"one two"}}]}}"#)).await;
        assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));
    }
    let request =
        ListUsageEventsRequest { session_id: session.session_id.clone(), ..ListUsageEventsRequest::default() };
    let mut rows = client.usage.list_usage_events(request).await.unwrap().into_inner().usage_events;
    rows.reverse();
    let at = |row: &UsageEvent, input: i64, output: i64| {
        let tokens = row.tokens.unwrap();
        Some(tokens.input_uncached_tokens * input + tokens.output_tokens * output)
    };
    assert_eq!((&*rows[0].service_tier, rows[0].cost_nano_usd), ("", at(&rows[0], 1_000, 5_000)));
    assert_eq!((&*rows[1].service_tier, rows[1].cost_nano_usd), ("priority", at(&rows[1], 2_000, 10_000)));
    assert_eq!((&*rows[2].service_tier, rows[2].cost_nano_usd), ("unheard-of", None));
    assert_eq!(world.stored(&session.session_id).await.usage.unpriced_attempts, 1);
}

fn within_a_dollar(agent: AgentSpec) -> AgentSpec {
    let limits = Some(AgentLimits { budget_nano_usd: 1_000_000_000, ..AgentLimits::default() });
    AgentSpec { limits, ..agent }
}

/// Once, messages that waited were answered under the session as it was before the first of them.
#[tokio::test]
async fn an_attempt_without_a_price_ends_messages_that_wait_too() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(within_a_dollar(scripted_agent("urgent"))).await.unwrap().session_id;
    let unheard_of = r#"{"script":[{"service_tier":"unheard-of"},{"text":"one two three","token_delay_ms":200}]}"#;
    let first = client.lifecycle.send_message(message(&session_id, unheard_of)).await.unwrap().into_inner();
    let waits = SendMessageRequest {
        busy_policy: BusyPolicy::Enqueue.into(),
        ..message(&session_id, r#"{"script":[{"text":"done"}]}"#)
    };
    let second = client.lifecycle.send_message(waits).await.unwrap().into_inner();
    let told = &reached(&read_all(first).await)[0].1;
    assert!(told.starts_with("what a call of model scripted-1 cost is not known"), "{told}");
    let events = read_all(second).await;
    assert_eq!(stop_reason(&events), Some(StopReason::Budget), "{events:?}");
    let told = &reached(&events)[0].1;
    assert!(told.starts_with("the session used a model whose price is not known"), "{told}");
    assert_eq!(world.stored(&session_id).await.usage.attempts, 1);
}

/// Nobody knew any more what its call had cost, and the session was refused for good, with any other model, too.
#[tokio::test]
async fn a_call_whose_model_is_taken_out_of_the_table_costs_what_it_was_granted_at() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(within_a_dollar(scripted_agent("patient"))).await.unwrap().session_id;
    let slow = r#"{"script":[{"text":"a b c d e f g h i j k l m n o p","token_delay_ms":100}]}"#;
    let models: Vec<Model> = world.core.models.list("").iter().map(|model| Model::clone(model)).collect();
    // Nothing, and a model at ten times the price that takes the name over.
    let mut heir = models.iter().find(|model| model.model_id == "scripted-1").unwrap().clone();
    (heir.model_id, heir.aliases) = ("scripted-2".into(), vec!["scripted-1".into()]);
    for price in &mut heir.prices {
        (price.input_usd, price.output_usd) = ("10".into(), "50".into());
    }
    for (attempts, left) in [(1, Vec::new()), (2, vec![heir])] {
        let mut events = client.lifecycle.send_message(message(&session_id, slow)).await.unwrap().into_inner();
        while !matches!(events.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::TextDelta(_))) {}
        world.core.models.replace(left);
        let rest = read_all(events).await;
        assert_eq!(stop_reason(&rest), Some(StopReason::EndTurn), "{rest:?}");
        let usage = world.stored(&session_id).await.usage;
        let tokens = usage.tokens.unwrap();
        let cost = tokens.input_uncached_tokens * 1_000 + tokens.output_tokens * 5_000;
        assert_eq!((usage.attempts, usage.unpriced_attempts, usage.cost_nano_usd), (attempts, 0, cost));
        world.core.models.replace(models.clone());
    }

    let events = say(&mut client, &session_id, "and again").await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
}

#[tokio::test]
async fn an_attempt_of_a_sub_agents_without_a_price_ends_its_caller_too() {
    let world = World::start().await;
    let mut client = world.client();
    let source = Some(Source::SubAgent(SubAgentTool { agent: "urgent".into() }));
    let tools = vec![ToolSpec { name: "ask".into(), source, ..ToolSpec::default() }];
    let caller = AgentSpec { tools, sub_agents: vec![scripted_agent("urgent")], ..scripted_agent("caller") };
    let asked = r#"{"script":[{"service_tier":"unheard-of"},{"text":"one two"}]}"#;
    let call = json!({"tool_call": {"name": "ask", "arguments": {"message": asked}}});
    let script = json!({"script": [call.clone(), {"text": "once more"}, call, {"text": "done"}]}).to_string();

    let session_id = client.create(caller.clone()).await.unwrap().session_id;
    let events = say(&mut client, &session_id, &script).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "nothing holds it to a price: {events:?}");

    let session_id = client.create(within_a_dollar(caller)).await.unwrap().session_id;
    let events = say(&mut client, &session_id, &script).await;
    assert_eq!(stop_reason(&events), Some(StopReason::Budget), "{events:?}");
    let told = &reached(&events)[0].1;
    assert!(told.starts_with("a session above or below used a model whose price is not known"), "{told}");
    let request = ListSessionsRequest { parent_session_id: session_id.clone(), ..ListSessionsRequest::default() };
    let children = client.lifecycle.list_sessions(request).await.unwrap().into_inner().sessions;
    assert_eq!(children.iter().map(|child| child.usage.unwrap().attempts).collect::<Vec<_>>(), [1]);
    assert_eq!(world.stored(&session_id).await.usage.attempts, 1);
}

#[tokio::test]
async fn nonsense_is_no_budget() {
    let world = World::start().await;
    let mut client = world.client();
    for (field, request) in [
        ("budget.limit_tokens", budget(BudgetScope::Tenant, "", -1)),
        ("budget.limit_tokens", budget(BudgetScope::Tenant, "", i64::MAX)),
        ("subject", budget(BudgetScope::Tenant, "somebody", 1)),
        ("subject", budget(BudgetScope::Session, "nonsense", 1)),
        ("subject", budget(BudgetScope::Agent, "", 1)),
        ("scope", budget(BudgetScope::Unspecified, "", 1)),
        ("budget", SetBudgetRequest::default()),
    ] {
        let refused = client.budgets.set_budget(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(field), "{field}: {}", refused.message());
    }
}
