//! How an AgentSession is opened.

use croft_crds::AgentSession;
use croft_crds::session::SessionPhase;
use croft_proto::v1::SessionState;
use http::Method;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tonic::Code;

use crate::proxy::What;
use crate::world::{World, audited_writes, in_phase, spec, until};

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

/// A write for each state that it is seen in, and one that takes its record away.
#[tokio::test]
async fn a_declared_sessions_whole_life_costs_a_write_and_a_pass_or_two_for_each_of_its_states() {
    let session = World::alone().await;
    let tenant = session.settled_tenant("lifelong", json!({})).await;
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    session.quiet().await;
    let passes = session.world.passes("AgentSession");
    let mut short = spec();
    short["ttlSecondsAfterFinished"] = json!(1);
    session.declare(&namespace, "talk", short).await;
    let objects = session.within::<AgentSession>(&namespace);
    let id = in_phase(&objects, "talk", SessionPhase::Ready).await.session_id.unwrap();
    let becomes = |state: SessionState, last_seq| {
        session.world.front.change(&id, |session| {
            session.state = state.into();
            session.last_seq = last_seq;
        });
    };
    becomes(SessionState::Running, 4);
    in_phase(&objects, "talk", SessionPhase::Running).await;
    becomes(SessionState::Idle, 9);
    in_phase(&objects, "talk", SessionPhase::Idle).await;
    becomes(SessionState::Terminated, 10);
    until("its record goes", async || objects.get_opt("talk").await.ok()?.is_none().then_some(())).await;
    session.quiet().await;

    let states = ["patch status"; 4];
    assert_eq!(audited_writes("agentsessions", &namespace), [&["create "][..], &states, &["delete "]].concat());
    let passes = session.world.passes("AgentSession") - passes;
    assert!(passes <= 10, "{passes} passes");
    assert_eq!(session.world.front.calls(&name).len(), 1, "it is opened, and has ended by itself");
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
    // Whatever follows the old one's write is refused.
    let refused = session.world.proxy.inject(Method::PATCH, &path, What::Answer(503), None);
    drop(held);
    until("a write is refused", async || (refused.hits() > 0).then_some(())).await;
    assert_eq!(objects.get("talk").await.unwrap().status, None, "nothing was said of the new one");
    drop(refused);
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

/// As of a tenant of which the operator's copies have not heard yet.
#[tokio::test]
async fn a_session_in_a_namespace_that_is_labelled_as_a_tenants_waits_for_the_tenant() {
    let session = World::shared().await;
    let (namespace, namespaces) = (session.namespace("unheard-of").await, session.all::<Namespace>());
    let label = |tenant: Value| json!({ "metadata": { "labels": { "croft.dev/tenant": tenant } } });
    session.merge(&namespaces, &namespace, label(json!("unheard-of"))).await;
    let objects = session.within::<AgentSession>(&namespace);
    session.declare(&namespace, "talk", spec()).await;
    let status = in_phase(&objects, "talk", SessionPhase::Pending).await;
    assert_eq!(status.message, Some(format!("the tenant of namespace {namespace} is not known yet")));
    assert_eq!(status.conditions[0].reason, "TenantUnknown");

    // It is looked at again: without the label there is nobody to wait for.
    session.merge(&namespaces, &namespace, label(json!(null))).await;
    in_phase(&objects, "talk", SessionPhase::Failed).await;
    namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
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
