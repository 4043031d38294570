//! What becomes of an AgentSession.

use std::collections::HashMap;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentSessionStatus};
use croft_proto::v1::SessionState;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;
use tonic::Code;

use crate::world::{World, audited_writes, until};

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
    let (writes, passes) = (session.world.writes(), session.world.passes("AgentSession"));

    let declared = session.declare(&namespace, "talk", spec()).await;
    let objects = session.within::<AgentSession>(&namespace);
    let status = in_phase(&objects, "talk", SessionPhase::Ready).await;
    session.quiet().await;
    // The first write is the object itself.
    assert_eq!(session.world.writes() - writes, 1);
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
    session.world.front.change(&id, |session| session.state = SessionState::Idle.into());
    in_phase(&objects, "talk", SessionPhase::Idle).await;
    session.world.front.change(&id, |session| {
        session.state = SessionState::Terminated.into();
        session.terminate_reason = "its time was up".to_owned();
    });
    let status = in_phase(&objects, "talk", SessionPhase::Terminated).await;
    assert_eq!(status.message.as_deref(), Some("it has ended: its time was up"));
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
    session.world.front.refuse(&name, None);
    in_phase(&objects, "talk", SessionPhase::Ready).await;
}

#[tokio::test]
async fn an_agent_that_no_front_would_take_is_given_up() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("never", json!({})).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    session.world.front.refuse(&name, Some((Code::InvalidArgument, "there is no model scripted-0")));
    session.declare(&namespace, "talk", json!({ "agent": { "model": "scripted-0" } })).await;
    let objects = session.within::<AgentSession>(&namespace);
    let status = in_phase(&objects, "talk", SessionPhase::Failed).await;
    assert_eq!(status.message.as_deref(), Some("the front refuses it: there is no model scripted-0"));
    assert_eq!(session.world.front.calls(&name).iter().filter(|call| call.starts_with("create")).count(), 1);
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
