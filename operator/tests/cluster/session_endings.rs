//! How an AgentSession ends, and what becomes of its record.

use std::collections::HashMap;

use croft_crds::AgentSession;
use croft_crds::session::SessionPhase;
use croft_proto::v1::SessionState;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::json;

use crate::world::{World, in_phase, spec, until};

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
