//! What an AgentSession waits for that can't be opened yet, and what wakes it.

use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentSessionStatus, AgentTenant};
use croft_proto::v1::SessionState;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use crate::kubelet;
use crate::world::{Session, World, in_phase, spec, until, within};

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
    within(Duration::from_secs(7), "it is opened", async || {
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
    within(Duration::from_secs(7), "the next is opened", async || {
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
    within(Duration::from_secs(7), "it is opened", async || {
        let objects = session.within::<AgentSession>(&namespace);
        (objects.get("talk").await.ok()?.status?.phase? == SessionPhase::Ready).then_some(())
    })
    .await;
}
