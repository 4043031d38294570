//! What the status of an AgentSession, and of its tenant, tells of what the fronts tell.

use std::collections::HashMap;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentTenant};
use croft_proto::v1::{BudgetAlert, SessionState, TokenUsage, UsageTotals};
use kube::ResourceExt as _;
use serde_json::json;

use crate::stops::heard as events_of;
use crate::world::{Session, World, condition, in_phase, spec, until};

#[tokio::test]
async fn the_status_follows_the_session() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("follow", json!({})).await;
    let namespace = tenant.namespace_name();
    session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let id = in_phase(&objects, "talk", SessionPhase::Ready).await.session_id.unwrap();
    session.world.front.change(&id, |session| {
        session.state = SessionState::Running.into();
        session.last_seq = 9;
    });
    assert_eq!(in_phase(&objects, "talk", SessionPhase::Running).await.last_seq, Some(9));
    session.world.front.change(&id, |session| {
        session.state = SessionState::Idle.into();
        session.update_time = Some(croft_proto::Timestamp { seconds: 1_793_491_207, nanos: 5 });
        session.usage = Some(UsageTotals {
            attempts: 2,
            tokens: Some(TokenUsage { input_uncached_tokens: 30, output_tokens: 4, ..TokenUsage::default() }),
            cost_nano_usd: 50_000,
            unpriced_attempts: 0,
        });
    });
    let status = in_phase(&objects, "talk", SessionPhase::Idle).await;
    let usage = status.usage.unwrap();
    assert_eq!((usage.attempts, usage.input_tokens, usage.output_tokens), (2, 30, 4));
    assert_eq!(usage.cost_usd, "0.00005");
    assert_eq!(status.last_activity_time.unwrap().0.as_second(), 1_793_491_207);
    session.world.front.change(&id, |session| {
        session.state = SessionState::Terminated.into();
        session.terminate_reason = "its time was up".to_owned();
    });
    let status = in_phase(&objects, "talk", SessionPhase::Terminated).await;
    assert_eq!(status.message.as_deref(), Some("it has ended: its time was up"));
    assert!(status.finish_time.is_some());
}

/// Waits until the front has told the operator of something new.
async fn heard(session: &Session, before: u64) {
    until("the operator is told", async || (session.world.front.told() > before).then_some(())).await;
    session.quiet().await;
}

#[tokio::test]
async fn numbers_alone_are_not_worth_a_write_each_and_come_with_the_next_change() {
    let session = World::alone().await;
    let tenant = session.settled_tenant("numbers", json!({})).await;
    let namespace = tenant.namespace_name();
    session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let id = in_phase(&objects, "talk", SessionPhase::Ready).await.session_id.unwrap();
    session.quiet().await;
    let (writes, passes) = (session.world.writes(), session.world.passes("AgentSession"));
    for number in 1..=5 {
        let told = session.world.front.told();
        session.world.front.change(&id, |session| session.last_seq = 10 + number);
        heard(&session, told).await;
    }
    assert_eq!(session.world.writes() - writes, 0);
    let passes = session.world.passes("AgentSession") - passes;
    assert!(passes <= 5, "{passes} passes");
    session.world.front.change(&id, |session| session.state = SessionState::Running.into());
    assert_eq!(in_phase(&objects, "talk", SessionPhase::Running).await.last_seq, Some(15));
    session.quiet().await;
    assert_eq!(session.world.writes() - writes, 1);
}

#[tokio::test]
async fn a_stream_that_breaks_costs_nothing_and_a_session_that_is_lost_meanwhile_is_told() {
    let session = World::alone().await;
    let tenant = session.settled_tenant("broken", json!({})).await;
    let namespace = tenant.namespace_name();
    let objects = session.within::<AgentSession>(&namespace);
    for name in ["stays", "lost"] {
        session.declare(&namespace, name, spec()).await;
    }
    in_phase(&objects, "stays", SessionPhase::Ready).await;
    let lost = in_phase(&objects, "lost", SessionPhase::Ready).await.session_id.unwrap();
    session.quiet().await;
    let (writes, passes) = (session.world.writes(), session.world.passes("AgentSession"));
    let again = async || {
        let watches = session.world.front.cut_watches();
        until("it watches again", async || (session.world.front.watches() > watches).then_some(())).await;
        session.quiet().await;
    };
    again().await;
    assert_eq!(session.world.writes() - writes, 0);
    assert_eq!(session.world.passes("AgentSession") - passes, 0, "a picture that says nothing new wakes nobody");

    session.world.front.forget(&lost);
    again().await;
    let status = in_phase(&objects, "lost", SessionPhase::Failed).await;
    assert_eq!(status.message.as_deref(), Some("the front no longer knows the session"));
    in_phase(&objects, "stays", SessionPhase::Ready).await;
}

#[tokio::test]
async fn a_tenants_status_shows_its_sessions_and_its_spend_and_what_shows_nothing_new_costs_nothing() {
    let session = World::alone().await;
    let tenant = session.settled_tenant("spent", json!({ "limits": { "maxSessions": 9 } })).await;
    let (name, namespace, uid) = (tenant.name_any(), tenant.namespace_name(), tenant.uid().unwrap());
    session.declare(&namespace, "talk", spec()).await;
    in_phase(&session.within(&namespace), "talk", SessionPhase::Ready).await;
    let spend = |cost_nano_usd| UsageTotals { cost_nano_usd, unpriced_attempts: 1, ..UsageTotals::default() };
    session.world.front.spend(&uid, spend(12_340_000_000));
    let tenants = session.all::<AgentTenant>();
    until("the status says so", async || {
        let status = tenants.get(&name).await.ok()?.status?;
        let (sessions, spend) = (status.sessions?, status.spend?);
        assert_eq!(sessions.max, 9);
        (sessions.open == 1 && spend.month == "2026-11" && spend.usd == "12.34" && spend.unpriced_attempts == 1)
            .then_some(())
    })
    .await;
    session.quiet().await;
    let writes = session.world.writes();
    let told = session.world.front.told();
    session.world.front.spend(&uid, spend(12_340_000_001));
    heard(&session, told).await;
    assert_eq!(session.world.writes() - writes, 0);
}

#[tokio::test]
async fn how_a_tenant_stands_with_its_budget_is_a_condition_and_people_hear_once_that_it_is_spent() {
    let session = World::alone().await;
    let budget = json!({ "budget": { "monthlyUsd": "20", "onExceeded": "Block" } });
    let tenant = session.settled_tenant("frugal", budget).await;
    let (name, namespace, uid) = (tenant.name_any(), tenant.namespace_name(), tenant.uid().unwrap());
    session.declare(&namespace, "talk", spec()).await;
    in_phase(&session.within(&namespace), "talk", SessionPhase::Ready).await;
    let tenants = session.all::<AgentTenant>();
    let spend = |cents: i64| {
        let used = UsageTotals { cost_nano_usd: cents * 10_000_000, ..UsageTotals::default() };
        session.world.front.spend(&uid, used);
    };
    let told_as = async |told: &str| {
        until(told, async || {
            let tenant = tenants.get(&name).await.ok()?;
            (condition(&tenant, "WithinBudget")? == told).then_some(())
        })
        .await;
    };
    for (cents, told) in [
        (999, "True BudgetAmple: less than half of the month's 20 USD is spent"),
        (1_234, "True BudgetHalfSpent: 50 % of the month's 20 USD is spent"),
        (1_800, "True BudgetNearlySpent: 90 % of the month's 20 USD is spent"),
        (1_999, "True BudgetNearlySpent: 90 % of the month's 20 USD is spent"),
    ] {
        spend(cents);
        told_as(told).await;
    }
    let alert = BudgetAlert {
        scope: "tenant".into(),
        percent: 100,
        period: "2026-11".into(),
        unit: "nano_usd".into(),
        limit: 20_000_000_000,
        spent: 19_990_000_000,
        ..BudgetAlert::default()
    };
    session.world.front.alert(&uid, alert);
    told_as("False BudgetSpent: what is left of the month's 20 USD has no room for a call: model calls are refused")
        .await;
    spend(2_000);
    told_as("False BudgetSpent: the month's 20 USD is spent: model calls are refused").await;
    until("people hear of it", async || (!events_of(&session, &tenant).await.is_empty()).then_some(())).await;
    spend(2_500);
    until("more is spent", async || (tenants.get(&name).await.ok()?.status?.spend?.usd == "25.00").then_some(())).await;
    session.quiet().await;
    assert_eq!(events_of(&session, &tenant).await, ["Warning BudgetSpent"]);
}

#[tokio::test]
async fn a_session_of_another_tenant_is_not_taken_for_the_objects_own() {
    let session = World::alone().await;
    let [ours, theirs] =
        [session.settled_tenant("ours", json!({})).await, session.settled_tenant("theirs", json!({})).await];
    let namespace = ours.namespace_name();
    let declared = session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let own = in_phase(&objects, "talk", SessionPhase::Ready).await.session_id.unwrap();
    let told = session.world.front.told();
    let labels = HashMap::from([("croft.dev/agentsession-uid".to_owned(), declared.uid().unwrap())]);
    for (number, state) in [SessionState::Idle, SessionState::Terminated].into_iter().enumerate() {
        session.world.front.add(croft_proto::v1::Session {
            session_id: format!("{}-{number}", theirs.name_any()),
            tenant: theirs.name_any(),
            state: state.into(),
            last_seq: 99,
            labels: labels.clone(),
            ..croft_proto::v1::Session::default()
        });
    }
    heard(&session, told).await;
    session.world.front.change(&own, |session| session.state = SessionState::Running.into());
    let status = in_phase(&objects, "talk", SessionPhase::Running).await;
    assert_eq!((status.session_id, status.last_seq), (Some(own.clone()), Some(2)));
    let calls = session.world.front.calls(&theirs.name_any());
    assert!(calls.iter().all(|call| !call.starts_with("terminate")), "{calls:?}");

    // Nor does a picture that names theirs alone keep ours from being missed.
    session.world.front.forget(&own);
    session.world.front.cut_watches();
    in_phase(&objects, "talk", SessionPhase::Failed).await;
}
