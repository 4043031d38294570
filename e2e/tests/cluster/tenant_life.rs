//! What a platform admin does to a tenant that has sessions: changes its keys, stops it, removes it.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{GetSessionRequest, SendMessageResponse, Session, SessionEvent, SessionState, StopReason};
use serde_json::json;
use tonic::{Code, Streaming};

use crate::support::{
    PATIENCE, Tenant, answer, assert_contiguous, assert_on_no_page, eventually, pods, put_key, whole_turn,
};

const WORKERS: &str = "app.kubernetes.io/component=worker";
/// About five seconds.
const SLOW: &str =
    r#"{"script": [{"text": "a b c d e f g h i j k l m n o p q r s t u v w x y z", "token_delay_ms": 200}]}"#;

/// A word, and no end that a test would see.
const ENDLESS: &str = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_is_used_by_the_same_workers_and_loses_no_session() {
    let system = System::from_env_file().unwrap();
    let tenant = Tenant::apply(&system, "rotating", 1).await;
    put_key(&system, &tenant, "sk-before").await;
    let provider = json!({ "spec": { "llm": { "providers": [
        { "name": "anthropic", "apiKeySecretRef": { "name": "models", "key": "anthropic" } },
    ] } } });
    patch(&system, &tenant, &provider).await;
    let found = ["wait", &format!("agenttenant/{}", tenant.name), "--for=condition=ProvidersReady", "--timeout=60s"];
    system.kubectl(&found).await.unwrap();
    rolled_out(&system, &tenant).await;
    let before = pods(&system, &tenant.namespace, WORKERS).await.unwrap();

    let mut client = tenant.client(&system);
    let session = client.create(scripted_agent("rotating")).await.unwrap();
    let sent = client.lifecycle.send_message(message(&session.session_id, SLOW)).await.unwrap();
    let (mut seen, rest) = until_first_token(sent.into_inner()).await;
    put_key(&system, &tenant, "sk-afterwards").await;
    seen.extend(whole_turn(rest).await.unwrap());
    assert_contiguous(&seen);
    let last = seen.last().and_then(|event| event.kind.clone());
    assert!(matches!(&last, Some(Kind::SessionIdle(idle)) if idle.stop_reason() == StopReason::EndTurn), "{last:?}");
    assert!(answer(&seen).ends_with("x y z"), "{}", answer(&seen));

    for pod in &before {
        let mut looks = 0;
        eventually("the worker takes the new key", async || {
            // A node looks at what a pod has mounted about once a minute, and at once when the pod changes.
            looks += 1;
            let look = format!("croft.example/look={looks}");
            let annotate = ["annotate", "--overwrite", "pod", &pod.name, "-n", &tenant.namespace, &look];
            system.kubectl(&annotate).await?;
            let log = system.kubectl(&["logs", &pod.name, "-n", &tenant.namespace]).await?;
            anyhow::ensure!(log.contains("the provider's key has changed"), "{log}");
            anyhow::ensure!(!log.contains("sk-afterwards"), "the key is in the log");
            Ok(())
        })
        .await;
    }
    let mut after = pods(&system, &tenant.namespace, WORKERS).await.unwrap();
    after.retain(|pod| before.iter().all(|old| old.name != pod.name));
    assert!(after.is_empty(), "other workers: {after:?}");
    let next = client.lifecycle.send_message(message(&session.session_id, r#"{"script": [{"text": "still here"}]}"#));
    assert_eq!(answer(&whole_turn(next.await.unwrap().into_inner()).await.unwrap()), "still here");
    tenant.remove(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emergency_stop_ends_the_turn_at_once_and_keeps_the_session() {
    let system = System::from_env_file().unwrap();
    let tenant = Tenant::apply(&system, "halted", 1).await;
    let mut client = tenant.client(&system);
    let session = client.create(scripted_agent("halted")).await.unwrap();
    let sent = client.lifecycle.send_message(message(&session.session_id, ENDLESS)).await.unwrap();
    let (mut seen, rest) = until_first_token(sent.into_inner()).await;
    patch(&system, &tenant, &json!({ "spec": { "emergencyStop": true } })).await;
    seen.extend(whole_turn(rest).await.unwrap());
    let last = seen.last().and_then(|event| event.kind.clone());
    assert!(matches!(&last, Some(Kind::SessionIdle(idle)) if idle.stop_reason() != StopReason::EndTurn), "{last:?}");

    let refused = client.create(scripted_agent("halted")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(get(&mut client, &session.session_id).await.state(), SessionState::Idle);
    eventually("no worker is left", async || {
        let left = system.kubectl(&["get", "pods", "-n", &tenant.namespace, "-o", "name"]).await?;
        anyhow::ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
    .await;
    let object = format!("agenttenant/{}", tenant.name);
    system.kubectl(&["wait", &object, "--for=jsonpath={.status.phase}=Stopped", "--timeout=90s"]).await.unwrap();

    patch(&system, &tenant, &json!({ "spec": { "emergencyStop": false } })).await;
    system.kubectl(&["wait", &object, "--for=condition=Ready", "--timeout=90s"]).await.unwrap();
    eventually("the session answers again", async || {
        let sent = message(&session.session_id, r#"{"script": [{"text": "back again"}]}"#);
        let next = whole_turn(client.lifecycle.send_message(sent).await?.into_inner()).await?;
        anyhow::ensure!(answer(&next) == "back again", "{next:?}");
        Ok(())
    })
    .await;
    tenant.remove(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_tenant_leaves_its_books_and_nothing_else() {
    let system = System::from_env_file().unwrap();
    let tenant = Tenant::apply(&system, "erased", 1).await;
    let mut client = tenant.client(&system);
    let session = client.create(scripted_agent("erased")).await.unwrap();
    let sent = client.lifecycle.send_message(message(&session.session_id, "hello")).await.unwrap();
    whole_turn(sent.into_inner()).await.unwrap();
    let database = sqlx::PgPool::connect(&system.postgres_url).await.unwrap();
    let session_id: uuid::Uuid = session.session_id.parse().unwrap();
    let rows = async |table: &str| -> i64 {
        let counted = format!("select count(*) from {table} where session_id = $1");
        sqlx::query_scalar(sqlx::AssertSqlSafe(counted)).bind(session_id).fetch_one(&database).await.unwrap()
    };
    assert!(rows("events").await > 0);
    let uid = ["get", "agenttenant", &tenant.name, "-o", "jsonpath={.metadata.uid}"];
    let uid = system.kubectl(&uid).await.unwrap();
    assert!(uid.len() > 30, "{uid:?}");
    // While it is there already, so that nothing of it can be left.
    let names = [session.session_id, uid, format!("\"{}\"", tenant.name), tenant.namespace.clone()];
    assert_on_no_page(&system, &names).await;

    patch(&system, &tenant, &json!({ "spec": { "deletionPolicy": "Erase" } })).await;
    tenant.remove(&system).await;
    assert_eq!((rows("sessions").await, rows("events").await, rows("checkpoints").await), (0, 0, 0));
    assert_eq!(rows("llm_usage_events").await, 1);
    // Each front hears of it on its own.
    eventually("its key is nobody's", async || match client.create(scripted_agent("erased")).await {
        Err(gone) if gone.code() == Code::Unauthenticated => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .await;
    assert_on_no_page(&system, &names).await;
}

async fn patch(system: &System, tenant: &Tenant, patch: &serde_json::Value) {
    system.kubectl(&["patch", "agenttenant", &tenant.name, "--type=merge", "-p", &patch.to_string()]).await.unwrap();
}

async fn rolled_out(system: &System, tenant: &Tenant) {
    let rollout = ["rollout", "status", "deployment/workers", "-n", &tenant.namespace, "--timeout=90s"];
    system.kubectl(&rollout).await.unwrap();
}

async fn get(client: &mut Client, session_id: &str) -> Session {
    let get = GetSessionRequest { session_id: session_id.to_owned() };
    client.lifecycle.get_session(get).await.unwrap().into_inner().session.unwrap()
}

async fn until_first_token(
    mut events: Streaming<SendMessageResponse>,
) -> (Vec<SessionEvent>, Streaming<SendMessageResponse>) {
    let mut seen = Vec::new();
    let reading = async {
        while let Some(response) = events.message().await.unwrap() {
            let event = response.event.unwrap();
            let is_token = matches!(event.kind, Some(Kind::TextDelta(_)));
            seen.push(event);
            if is_token {
                return;
            }
        }
        panic!("the turn ended without a token: {seen:?}");
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("no token came");
    (seen, events)
}
