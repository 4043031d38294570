//! P4: each component that a program's `main` builds leaves its trace: a row, a metric, an event.

use anyhow::ensure;
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentLimits, AgentSpec};

use crate::support::{eventually, front_pods, metrics, pods, whole_turn};

/// What is counted of a tenant in Redis: calls and tokens of the last minute, and what budgets have room for.
async fn counted(system: &System, tenant: &str) -> anyhow::Result<Vec<String>> {
    let mut redis = redis::Client::open(&*system.redis_url)?.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("HKEYS").arg(format!("croft:{{{tenant}}}:state")).query_async(&mut redis).await?)
}

/// The sum over all series of this name.
fn total(metrics: &str, name: &str) -> f64 {
    metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_leaves_rows_metrics_and_events() {
    let system = System::from_env_file().unwrap();
    let mut client = Client::new(&system.grpc, &system.api_key).unwrap();
    let limits = AgentLimits { budget_nano_usd: 1_000_000_000, ..AgentLimits::default() };
    let agent = AgentSpec { limits: Some(limits), ..scripted_agent("traced") };
    let session = client.create(agent).await.unwrap();
    let sent = client.lifecycle.send_message(message(&session.session_id, "leave a trace")).await.unwrap();
    let events = whole_turn(sent.into_inner()).await.unwrap();
    let attempt = events.iter().find_map(|event| match &event.kind {
        Some(Kind::ModelAttempt(attempt)) => Some(attempt.clone()),
        _ => None,
    });
    let attempt = attempt.expect("the attempt is told");
    assert!(attempt.cost_nano_usd.is_some_and(|cost| cost > 0), "the registry prices the scripted model");
    assert!(events.iter().any(|event| matches!(event.kind, Some(Kind::CheckpointTaken(_)))), "the state is kept");

    let database = sqlx::PgPool::connect(&system.postgres_url).await.unwrap();
    let session_id = uuid::Uuid::parse_str(&session.session_id).unwrap();
    let rows: i64 = sqlx::query_scalar("select count(*) from llm_usage_events where session_id = $1")
        .bind(session_id)
        .fetch_one(&database)
        .await
        .unwrap();
    assert_eq!(rows, 1, "one attempt, one row");
    eventually("the audit log has both actions", async || {
        let actions: Vec<String> =
            sqlx::query_scalar("select action from audit_log where resource = $1 order by number")
                .bind(format!("sessions/{session_id}"))
                .fetch_all(&database)
                .await?;
        ensure!(actions == ["session.create", "session.send_message"], "{actions:?}");
        Ok(())
    })
    .await;

    let tenant = system.kubectl(&["get", "agenttenant", "demo", "-o", "jsonpath={.metadata.uid}"]).await.unwrap();
    let counted = counted(&system, &tenant).await.unwrap();
    assert!(counted.iter().any(|field| field == "moments:requests"), "the limiter counts no calls: {counted:?}");
    let is_bound = |field: &&String| field.starts_with("bound:") && field.contains(&session.session_id);
    assert!(counted.iter().any(|field| is_bound(&field)), "nobody keeps the session's budget: {counted:?}");

    // One answer that is late has them tell of an outage for a moment.
    eventually("each front has its relay, its counters and its routes", async || {
        for front in front_pods(&system).await {
            let text = metrics(&front.ip).await?;
            for line in ["croft_event_relay_up 1", "croft_counters_away 0", "croft_routes_connected 1"] {
                ensure!(text.lines().any(|told| told == line), "{} has not {line}: {text}", front.name);
            }
        }
        Ok(())
    })
    .await;
    let (mut created, mut stored, mut calls, mut placed) = (0.0, 0.0, 0.0, 0.0);
    for front in front_pods(&system).await {
        let text = metrics(&front.ip).await.unwrap();
        placed += total(&text, "croft_turn_stage_seconds_count{stage=\"place\"}");
        created += total(&text, "croft_sessions_created_total");
        stored += total(&text, "croft_events_stored_total");
        calls += total(&text, "croft_grpc_requests_total");
        assert!(text.contains("croft_build_info"), "{text}");
    }
    assert!(created >= 1.0 && stored >= 5.0 && calls >= 2.0, "{created} created, {stored} stored, {calls} calls");
    assert!(placed >= 1.0, "{placed} placed");
    // A record is counted once it is stored.
    eventually("the records are counted", async || {
        let mut audited = 0.0;
        for front in front_pods(&system).await {
            audited += total(&metrics(&front.ip).await?, "croft_audit_records_total");
        }
        ensure!(audited >= 2.0, "{audited} records");
        Ok(())
    })
    .await;
    let worker = pods(&system, "tenant-demo", "app.kubernetes.io/component=worker").await.unwrap().remove(0);
    let text = metrics(&worker.ip).await.unwrap();
    assert!(total(&text, "croft_worker_model_attempts_total") >= 1.0);
    let shut = "croft_worker_model_breaker_open{provider=\"scripted\"} 0";
    assert!(text.lines().any(|line| line == shut), "the breaker tells nothing: {text}");
    // One of them writes; all of them serve routes.
    let (mut passes, mut watchers) = (0.0, 0.0);
    for operator in pods(&system, "croft-system", "app.kubernetes.io/component=operator").await.unwrap() {
        let text = metrics(&operator.ip).await.unwrap();
        passes += total(&text, "croft_operator_reconciles_total");
        watchers += total(&text, "croft_operator_route_watchers");
    }
    assert!(passes >= 1.0 && watchers >= 1.0, "{passes} passes, {watchers} fronts watch");
}
