//! What becomes of an AgentSession.

use std::collections::HashMap;
use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentSessionStatus, AgentTenant};
use croft_proto::v1::{SessionState, TokenUsage, UsageTotals};
use http::Method;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use crate::kubelet;
use crate::proxy::What;
use crate::world::{Session, World, audited_writes, until, within};

fn spec() -> serde_json::Value {
    json!({ "agent": { "model": "scripted-1", "systemPrompt": "Be brief." } })
}

async fn in_phase(api: &Api<AgentSession>, name: &str, phase: SessionPhase) -> AgentSessionStatus {
    until(&format!("{name} is {phase:?}"), async || {
        api.get(name).await.ok()?.status.filter(|status| status.phase == Some(phase))
    })
    .await
}

#[tokio::test]
async fn a_declared_session_is_ready_after_two_writes_and_two_passes_at_most() {
    let session = World::alone().await;
    let tenant = session.settled_tenant("thrift", json!({})).await;
    let namespace = tenant.namespace_name();
    session.quiet().await;
    let writes = || session.world.count("croft_operator_api_writes_total", &["kind=\"AgentSession\""]);
    let (before, passes) = (writes(), session.world.passes("AgentSession"));

    let declared = session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let status = in_phase(&objects, "talk", SessionPhase::Ready).await;
    session.quiet().await;
    // The first write is the object itself. The tenant's own status counts its sessions, for all of them together.
    assert_eq!(writes() - before, 1);
    let passes = session.world.passes("AgentSession") - passes;
    assert!(passes <= 2, "{passes} passes");
    assert_eq!(audited_writes("agentsessions", &namespace), ["create ", "patch status"]);

    let made = session.world.front.sessions_of(&declared.uid().unwrap());
    assert_eq!(made.len(), 1);
    assert_eq!(status.session_id.as_deref(), Some(made[0].session_id.as_str()));
    assert_eq!(made[0].tenant, tenant.name_any());
    assert_eq!(status.worker, Some(format!("workers-of-{}", tenant.uid().unwrap())));
    assert_eq!(status.last_seq, Some(2));
    assert_eq!(status.observed_generation, Some(1));
    let agent = made[0].agent.clone().unwrap();
    assert_eq!((agent.name.as_str(), agent.system_prompt.as_str()), ("talk", "Be brief."));
}

/// One that was deleted while its last pass still ran.
#[tokio::test]
async fn a_session_that_is_declared_anew_has_nothing_of_the_old_ones_status() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("redeclared", json!({})).await;
    let namespace = tenant.namespace_name();
    let objects = session.within::<AgentSession>(&namespace);
    let path = format!("/{namespace}/agentsessions/talk/status");
    let held = session.world.proxy.inject(Method::PATCH, &path, What::Hold, Some(1));
    let old = session.declare(&namespace, "talk", spec()).await;
    until("its pass is about to write", async || (held.hits() == 1).then_some(())).await;
    objects.delete("talk", &DeleteParams::default()).await.expect("it can be deleted");
    let new = session.declare(&namespace, "talk", spec()).await;
    assert_ne!(new.uid(), old.uid());
    drop(held);
    let own =
        until("it has a session of its own", async || session.world.front.sessions_of(&new.uid()?).into_iter().next())
            .await;
    until("its status tells of that", async || {
        let status = objects.get("talk").await.ok()?.status?;
        (status.session_id.as_ref() == Some(&own.session_id)).then_some(())
    })
    .await;
    until("the old one is ended", async || {
        let olds = session.world.front.sessions_of(&old.uid()?);
        olds.iter().all(|session| session.state() == SessionState::Terminated).then_some(())
    })
    .await;
    let status = in_phase(&objects, "talk", SessionPhase::Ready).await;
    assert_eq!(status.session_id, Some(own.session_id));
}

#[tokio::test]
async fn everything_that_is_declared_arrives() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("whole", json!({})).await;
    let namespace = tenant.namespace_name();
    let mut spec = spec();
    spec["idleTimeoutSeconds"] = json!(90);
    spec["lifetimeSeconds"] = json!(3600);
    spec["agent"]["limits"] = json!({ "budgetUsd": "2.5" });
    spec["agent"]["guardrails"] = json!([{ "name": "short", "length": { "maxCharacters": 900 } }]);
    let declared = session.declare(&namespace, "talk", spec).await;
    let objects = session.within::<AgentSession>(&namespace);
    in_phase(&objects, "talk", SessionPhase::Ready).await;
    let asked = session.world.front.asked_for(&declared.uid().unwrap());
    assert_eq!((asked.idle_timeout_ms, asked.lifetime_ms), (90_000, 3_600_000));
    let agent = asked.agent.unwrap();
    assert_eq!(agent.limits.unwrap().budget_nano_usd, 2_500_000_000);
    assert_eq!(agent.guardrails[0].name, "short");
}

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

/// An operator that began since knows of it by its status alone: fronts tell of nothing that ended long ago.
#[tokio::test]
async fn a_session_that_has_ended_is_not_ended_again_with_its_object() {
    let session = World::alone().await;
    let tenant = session.settled_tenant("over", json!({})).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    let objects = session.within::<AgentSession>(&namespace);
    for name in ["over", "open"] {
        session.declare(&namespace, name, spec()).await;
    }
    let over = in_phase(&objects, "over", SessionPhase::Ready).await.session_id.unwrap();
    let open = in_phase(&objects, "open", SessionPhase::Ready).await.session_id.unwrap();
    session.world.front.change(&over, |session| session.state = SessionState::Terminated.into());
    in_phase(&objects, "over", SessionPhase::Terminated).await;
    session.world.front.forget(&over);
    let watches = session.world.front.cut_watches();
    until("it watches again", async || (session.world.front.watches() > watches).then_some(())).await;
    session.quiet().await;
    for name in ["over", "open"] {
        objects.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let ended = |id: &str| session.world.front.calls(&name).contains(&format!("terminate {name} {id}"));
    until("the other is ended", async || ended(&open).then_some(())).await;
    assert!(!ended(&over));
}

#[tokio::test]
async fn one_agent_session_more_than_the_quota_counts_is_refused() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("counted", json!({ "quota": { "agentSessions": 2 } })).await;
    let namespace = tenant.namespace_name();
    let quotas = session.within::<ResourceQuota>(&namespace);
    until("they are counted", async || {
        let used = quotas.get_opt("tenant").await.ok()??.status?.used?;
        used.contains_key("count/agentsessions.croft.dev").then_some(())
    })
    .await;
    let objects = session.within::<AgentSession>(&namespace);
    for name in ["over", "open"] {
        session.declare(&namespace, name, spec()).await;
        in_phase(&objects, name, SessionPhase::Ready).await;
    }
    session.merge(&objects, "over", json!({ "spec": { "terminate": true } })).await;
    in_phase(&objects, "over", SessionPhase::Terminated).await;
    let more: AgentSession =
        serde_json::from_value(json!({ "metadata": { "name": "more" }, "spec": spec() })).expect("it is one");
    let refused = objects.create(&PostParams::default(), &more).await.expect_err("there are as many as there may be");
    let kube::Error::Api(status) = refused else { panic!("the API server refuses it: {refused}") };
    let told = "exceeded quota: tenant, requested: count/agentsessions.croft.dev=1, \
                used: count/agentsessions.croft.dev=2, limited: count/agentsessions.croft.dev=2";
    assert!(status.code == 403 && status.message.contains(told), "{status:?}");

    objects.delete("over", &DeleteParams::default()).await.unwrap();
    until("there is room again", async || objects.create(&PostParams::default(), &more).await.ok()).await;
}

#[tokio::test]
async fn a_record_goes_when_its_time_is_over_its_own_or_its_tenants() {
    let session = World::shared().await;
    let defaults = json!({ "sessionDefaults": { "ttlSecondsAfterFinished": 1 } });
    let tenant = session.settled_tenant("records", defaults).await;
    let namespace = tenant.namespace_name();
    let objects = session.within::<AgentSession>(&namespace);
    for (name, ttl) in [("own", json!(0)), ("tenants", json!(null)), ("long", json!(86_400))] {
        let mut spec = spec();
        spec["ttlSecondsAfterFinished"] = ttl;
        let declared = session.declare(&namespace, name, spec).await;
        in_phase(&objects, name, SessionPhase::Ready).await;
        let made = session.world.front.sessions_of(&declared.uid().unwrap());
        session.world.front.change(&made[0].session_id, |session| session.state = SessionState::Terminated.into());
    }
    for name in ["own", "tenants"] {
        until(&format!("{name} goes"), async || objects.get_opt(name).await.ok()?.is_none().then_some(())).await;
    }
    in_phase(&objects, "long", SessionPhase::Terminated).await;
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
async fn terminate_ends_the_session_and_keeps_the_record() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("stop", json!({})).await;
    let namespace = tenant.namespace_name();
    let declared = session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    in_phase(&objects, "talk", SessionPhase::Ready).await;
    session.merge(&objects, "talk", json!({ "spec": { "terminate": true } })).await;
    let status = in_phase(&objects, "talk", SessionPhase::Terminated).await;
    let made = session.world.front.sessions_of(&declared.uid().unwrap());
    assert_eq!(made[0].state(), SessionState::Terminated);
    assert_eq!(status.session_id.as_deref(), Some(made[0].session_id.as_str()));
}

#[tokio::test]
async fn a_deleted_object_takes_its_session_along() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("gone", json!({})).await;
    let namespace = tenant.namespace_name();
    let declared = session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    in_phase(&objects, "talk", SessionPhase::Ready).await;
    objects.delete("talk", &DeleteParams::default()).await.unwrap();
    until("the session ends", async || {
        let made = session.world.front.sessions_of(&declared.uid().unwrap());
        (made[0].state() == SessionState::Terminated).then_some(())
    })
    .await;
    assert!(objects.get_opt("talk").await.unwrap().is_none(), "nothing holds the object back");
}

#[tokio::test]
async fn a_session_whose_object_went_unseen_is_found_and_ended_and_the_others_are_left() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("orphan", json!({})).await;
    let namespace = tenant.namespace_name();
    let declared = session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    in_phase(&objects, "talk", SessionPhase::Ready).await;
    let orphan = |uid: &str, labelled: bool| {
        let labels = [
            ("croft.dev/agentsession-uid", uid),
            ("croft.dev/agentsession-name", "talk-before"),
            ("croft.dev/source", "agentsession"),
        ];
        let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
        croft_proto::v1::Session {
            session_id: format!("{namespace}-{uid}"),
            tenant: tenant.name_any(),
            state: SessionState::Ready.into(),
            labels: if labelled { HashMap::from(labels) } else { HashMap::new() },
            ..croft_proto::v1::Session::default()
        }
    };
    for number in 0..3 {
        session.world.front.add(orphan(&format!("{namespace}-{number}"), true));
    }
    // Some are told as news, some in the picture of a new stream.
    session.world.front.cut_watches();
    session.world.front.add(orphan("opened-by-grpc", false));
    for number in 0..3 {
        until("it is ended", async || {
            let found = session.world.front.sessions_of(&format!("{namespace}-{number}"));
            (found[0].state() == SessionState::Terminated).then_some(())
        })
        .await;
    }
    let own = &session.world.front.sessions_of(&declared.uid().unwrap())[0];
    assert_eq!(own.state(), SessionState::Ready);
    let others = format!("terminate {} {namespace}-opened-by-grpc", tenant.name_any());
    assert!(!session.world.front.calls(&tenant.name_any()).contains(&others));
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

#[tokio::test]
async fn a_session_outside_a_tenants_namespace_fails_with_a_sentence() {
    let session = World::shared().await;
    let objects = session.within::<AgentSession>(&session.world.namespace);
    session.declare(&session.world.namespace, "lost", spec()).await;
    let status = in_phase(&objects, "lost", SessionPhase::Failed).await;
    assert_eq!(
        status.message.unwrap(),
        format!("namespace {} is not a tenant's: a session must be declared in one that is", session.world.namespace)
    );
    objects.delete("lost", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_front_that_is_busy_is_asked_again() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("again", json!({})).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    session.world.front.refuse(&name, Some((Code::Unavailable, "no worker is ready yet")));
    session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let status = in_phase(&objects, "talk", SessionPhase::Pending).await;
    assert_eq!(status.message.as_deref(), Some("the front answers: no worker is ready yet"));
    assert_eq!(status.conditions[0].reason, "FrontUnavailable");
    session.world.front.refuse(&name, None);
    in_phase(&objects, "talk", SessionPhase::Ready).await;
}

/// Once, all that waited were tried at once, each time.
#[tokio::test]
async fn a_worker_that_is_ready_again_wakes_as_many_sessions_as_it_takes_and_they_the_rest() {
    const SESSIONS: usize = 40;
    let session = World::shared().await;
    let workers = json!({ "workers": { "replicas": 1, "sessionsPerWorker": 3 } });
    let tenant = session.settled_tenant("flapping", workers).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    let pods = kubelet::pods(&session, &namespace, 1).await;
    let becomes = async |status: &str| {
        let mut told = kubelet::ready("10.1.0.33");
        told["conditions"][0]["status"] = status.into();
        kubelet::set(&session, &pods[0], told).await;
        until("the operator has heard of it", async || {
            let tenant: AgentTenant = session.all().get(&name).await.ok()?;
            (tenant.status?.workers?.ready == i32::from(status == "True")).then_some(())
        })
        .await;
    };
    session.world.front.refuse(&name, Some((Code::Unavailable, "no worker is ready yet")));
    for number in 0..SESSIONS {
        session.declare(&namespace, &format!("talk-{number}"), spec()).await;
    }
    let tried = || session.world.front.creates(&name);
    until("they are tried seldom by now", async || (tried() >= 6 * SESSIONS).then_some(())).await;
    // Each is tried by itself, too, every eight seconds or more: what took longer than five says nothing of the worker.
    let mut rounds = 0;
    loop {
        let (before, began) = (tried(), Instant::now());
        becomes("True").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (count, took) = (tried() - before, began.elapsed());
        becomes("False").await;
        if took < Duration::from_secs(5) {
            assert!(count < SESSIONS * 3 / 4, "{count} were tried");
            break;
        }
        rounds += 1;
        assert!(rounds < 10, "the machine is too busy for this");
    }
    session.world.front.refuse(&name, None);
    becomes("True").await;
    let objects = session.within::<AgentSession>(&namespace);
    // Sooner than each would be tried by itself.
    within(Duration::from_secs(5), "all are open", async || {
        let found = objects.list(&ListParams::default()).await.ok()?;
        let is_open = |object: &AgentSession| object.status.as_ref().is_some_and(|status| status.session_id.is_some());
        found.iter().all(is_open).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_no_front_would_take_is_given_up() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("never", json!({})).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    session.world.front.refuse(&name, Some((Code::InvalidArgument, "agent.tools[0].name is taken")));
    session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let status = in_phase(&objects, "talk", SessionPhase::Failed).await;
    assert_eq!(status.message.as_deref(), Some("the front refuses it: agent.tools[0].name is taken"));
    assert_eq!(session.world.front.creates(&name), 1);
}

#[tokio::test]
async fn a_model_that_is_not_registered_yet_is_waited_for() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("early", json!({})).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    let message = "agent.model names \"scripted-1\", which the registry does not have";
    session.world.front.refuse_for(&name, Code::InvalidArgument, "MODEL_NOT_FOUND", message);
    session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let status = in_phase(&objects, "talk", SessionPhase::Pending).await;
    assert_eq!(status.conditions[0].reason, "ModelNotFound");
    assert_eq!(status.message, Some(format!("the front answers: {message}")));
    another_is_tried_often(&session).await;
    assert_eq!(session.world.front.creates(&name), 1);
    session.world.front.refuse(&name, None);
    // Any change of its tenant wakes it sooner than the time that it waits.
    let touched = json!({ "spec": { "limits": { "maxSessions": 9 } } });
    session.merge(&session.all::<AgentTenant>(), &name, touched).await;
    in_phase(&objects, "talk", SessionPhase::Ready).await;
}

/// One whose front is only busy is tried often: by then so would any other be that is tried in the same way.
async fn another_is_tried_often(session: &Session) {
    let busy = session.settled_tenant("busy", json!({})).await;
    session.world.front.refuse(&busy.name_any(), Some((Code::Unavailable, "no worker is ready yet")));
    session.declare(&busy.namespace_name(), "talk", spec()).await;
    until("the other is tried often", async || (session.world.front.creates(&busy.name_any()) >= 4).then_some(()))
        .await;
    session.world.front.refuse(&busy.name_any(), None);
    in_phase(&session.within(&busy.namespace_name()), "talk", SessionPhase::Ready).await;
}

#[tokio::test]
async fn a_tenant_that_takes_no_sessions_is_asked_for_none_until_it_changes() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("shut", json!({})).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    let (tenants, objects) = (session.all::<AgentTenant>(), session.within::<AgentSession>(&namespace));
    for (field, why) in
        [("cordon", "it is cordoned"), ("suspend", "it is suspended"), ("emergencyStop", "it is stopped")]
    {
        session.merge(&tenants, &name, json!({ "spec": { field: true } })).await;
        until("the operator knows", async || {
            let tenant = tenants.get(&name).await.ok()?;
            (tenant.status?.observed_generation == tenant.metadata.generation).then_some(())
        })
        .await;
        let talk = field.to_lowercase();
        session.declare(&namespace, &talk, spec()).await;
        let status = in_phase(&objects, &talk, SessionPhase::Pending).await;
        assert_eq!(status.conditions[0].reason, "TenantNotOpen");
        assert_eq!(status.message, Some(format!("the tenant takes no new sessions: {why}")));
    }
    another_is_tried_often(&session).await;
    assert_eq!(session.world.front.creates(&name), 0);
    let open = json!({ "spec": { "cordon": false, "suspend": false, "emergencyStop": false } });
    session.merge(&tenants, &name, open).await;
    for talk in ["cordon", "suspend", "emergencystop"] {
        in_phase(&objects, talk, SessionPhase::Ready).await;
    }
}

/// A tenant of one session, which it has; how that is.
async fn full_tenant(session: &Session, name: &str) -> (AgentTenant, AgentSessionStatus) {
    let tenant = session.settled_tenant(name, json!({ "limits": { "maxSessions": 1 } })).await;
    let namespace = tenant.namespace_name();
    session.declare(&namespace, "first", spec()).await;
    let status = in_phase(&session.within(&namespace), "first", SessionPhase::Ready).await;
    until("the fronts have told of it", async || {
        let status = session.all::<AgentTenant>().get(&tenant.name_any()).await.ok()?.status?;
        (status.sessions?.open == 1).then_some(())
    })
    .await;
    (tenant, status)
}

#[tokio::test]
async fn a_session_that_its_tenant_has_no_room_for_is_opened_when_another_ends() {
    let session = World::shared().await;
    let (tenant, first) = full_tenant(&session, "full").await;
    let first = first.session_id.unwrap();
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    let objects = session.within::<AgentSession>(&namespace);
    let before = session.world.front.creates(&name);
    let message = "the tenant has 1 sessions, its limit";
    session.world.front.refuse_for(&name, Code::ResourceExhausted, "SESSION_LIMIT", message);
    session.declare(&namespace, "second", spec()).await;
    let status = in_phase(&objects, "second", SessionPhase::Pending).await;
    assert_eq!(status.conditions[0].reason, "LimitReached");
    // By now the next try is 10 s away, or more.
    until("it was tried often", async || (session.world.front.creates(&name) >= before + 7).then_some(())).await;
    session.world.front.refuse(&name, None);
    session.world.front.change(&first, |session| session.state = SessionState::Terminated.into());
    crate::world::within(std::time::Duration::from_secs(7), "it is opened", async || {
        (objects.get("second").await.ok()?.status?.phase? == SessionPhase::Ready).then_some(())
    })
    .await;
}

/// Of those that wait the two oldest can't use the room: one is going, and one's agent no front takes.
#[tokio::test]
async fn room_that_a_session_cannot_use_goes_to_the_next() {
    let session = World::shared().await;
    let (tenant, first) = full_tenant(&session, "crowded").await;
    let first = first.session_id.unwrap();
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    let objects = session.within::<AgentSession>(&namespace);
    session.world.front.refuse_for(&name, Code::ResourceExhausted, "SESSION_LIMIT", "it has 1 session, its limit");
    let mut uids = Vec::new();
    for waiting in ["a-going", "b-refused", "c-next"] {
        uids.push(session.declare(&namespace, waiting, spec()).await.uid().unwrap());
        in_phase(&objects, waiting, SessionPhase::Pending).await;
    }
    let held = |finalizers: serde_json::Value| json!({ "metadata": { "finalizers": finalizers } });
    session.merge(&objects, "a-going", held(json!(["croft.dev/test"]))).await;
    objects.delete("a-going", &DeleteParams::default()).await.unwrap();
    // By now the next try of the last, and so that of each before it, is 10 s away, or more.
    let tries = |uid: &String| {
        let calls = session.world.front.calls(&name).into_iter();
        calls.filter(|call| call.starts_with("create") && call.ends_with(uid.as_str())).count()
    };
    until("they were tried often", async || uids[1..].iter().all(|uid| tries(uid) >= 7).then_some(())).await;
    session.world.front.refuse_object(&uids[1], Code::InvalidArgument, "agent.tools[0].name is taken");
    session.world.front.refuse(&name, None);
    session.world.front.change(&first, |session| session.state = SessionState::Terminated.into());
    crate::world::within(std::time::Duration::from_secs(7), "the next is opened", async || {
        (objects.get("c-next").await.ok()?.status?.phase? == SessionPhase::Ready).then_some(())
    })
    .await;
    in_phase(&objects, "b-refused", SessionPhase::Failed).await;
    session.merge(&objects, "a-going", held(json!(null))).await;
}

#[tokio::test]
async fn what_the_workers_lack_is_told_and_not_tried_again_and_again() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("lacking", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    session.world.front.refuse_as_worker(&name, "PROVIDER_MISSING");
    session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let status = in_phase(&objects, "talk", SessionPhase::Pending).await;
    assert_eq!(status.conditions[0].reason, "WorkersLack");
    another_is_tried_often(&session).await;
    assert_eq!(session.world.front.creates(&name), 1);
    session.world.front.refuse(&name, None);
    let pods = kubelet::pods(&session, &namespace, 1).await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.12")).await;
    in_phase(&objects, "talk", SessionPhase::Ready).await;
}

#[tokio::test]
async fn an_object_of_an_old_name_gets_a_session_of_its_own() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("twice", json!({})).await;
    let namespace = tenant.namespace_name();
    let objects = session.within::<AgentSession>(&namespace);
    let first = session.declare(&namespace, "talk", spec()).await;
    let first_id = in_phase(&objects, "talk", SessionPhase::Ready).await.session_id;
    objects.delete("talk", &DeleteParams::default()).await.unwrap();
    let again: AgentSession =
        serde_json::from_value(json!({ "metadata": { "name": "talk" }, "spec": spec() })).unwrap();
    let second = objects.create(&PostParams::default(), &again).await.unwrap();
    let second_id = in_phase(&objects, "talk", SessionPhase::Ready).await.session_id;
    assert_ne!(first_id, second_id);
    until("the first one's session ends", async || {
        let made = session.world.front.sessions_of(&first.uid().unwrap());
        (made[0].state() == SessionState::Terminated).then_some(())
    })
    .await;
    assert_eq!(session.world.front.sessions_of(&second.uid().unwrap())[0].state(), SessionState::Ready);
}

#[tokio::test]
async fn a_session_that_waits_for_its_tenants_workers_is_opened_when_one_is_ready() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("awaited", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    session.world.front.refuse(&name, Some((Code::Unavailable, "no worker is ready yet")));
    session.declare(&namespace, "talk", spec()).await;
    // By now the next try is 10 s away, or more.
    until("it was tried often", async || (session.world.front.creates(&name) >= 7).then_some(())).await;
    session.world.front.refuse(&name, None);
    let pods = kubelet::pods(&session, &namespace, 1).await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.11")).await;
    crate::world::within(std::time::Duration::from_secs(7), "it is opened", async || {
        let objects = session.within::<AgentSession>(&namespace);
        (objects.get("talk").await.ok()?.status?.phase? == SessionPhase::Ready).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_object_that_is_deleted_while_its_session_is_being_opened_leaves_no_session() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("hasty", json!({})).await;
    let namespace = tenant.namespace_name();
    let objects = session.within::<AgentSession>(&namespace);
    let mut uids = Vec::new();
    for number in 0..20 {
        let name = format!("talk-{number}");
        uids.push(session.declare(&namespace, &name, spec()).await.uid().unwrap());
        objects.delete(&name, &DeleteParams::default()).await.unwrap();
    }
    // One that is declared later has had its turn by the time all of theirs are over.
    session.declare(&namespace, "last", spec()).await;
    in_phase(&objects, "last", SessionPhase::Ready).await;
    until("none is left open", async || {
        let mut made = uids.iter().flat_map(|uid| session.world.front.sessions_of(uid));
        made.all(|session| session.state() == SessionState::Terminated).then_some(())
    })
    .await;
}
