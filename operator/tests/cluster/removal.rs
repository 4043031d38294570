//! A tenant's end: what the fronts do first, how far it is, and what happens when they don't.

use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::tenant::TenantPhase;
use croft_crds::{AgentSession, AgentTenant};
use croft_proto::v1::{RemovalStep, Session as FrontSession, SessionState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams, PropagationPolicy};
use serde_json::json;

use crate::front::Removal;
use crate::kubelet;
use crate::world::{Session, World, condition, until};

async fn delete(session: &Session, name: &str) {
    session.all::<AgentTenant>().delete(name, &DeleteParams::default()).await.expect("it can be deleted");
}

async fn removed(session: &Session, name: &str, beginning: &str) -> String {
    until(&format!("Removed is {beginning}"), async || {
        let tenant: AgentTenant = session.all().get(name).await.ok()?;
        condition(&tenant, "Removed").filter(|told| told.starts_with(beginning))
    })
    .await
}

async fn gone(session: &Session, name: &str) {
    until("the tenant goes", async || session.all::<AgentTenant>().get_opt(name).await.ok()?.is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn a_tenants_end_takes_its_sessions_and_records_first_and_leaves_nothing() {
    let session = World::shared().await;
    let made = session.settled_tenant("ending", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    for number in 0..3 {
        session.world.front.add(FrontSession {
            session_id: format!("{name}-{number}"),
            tenant: name.clone(),
            state: SessionState::Idle.into(),
            ..FrontSession::default()
        });
    }
    let namespaces = session.all::<Namespace>();
    delete(&session, &name).await;
    let told = removed(&session, &name, "False EndingSessions").await;
    assert!(told.ends_with("sessions have not ended"), "{told}");
    assert_eq!(namespaces.get(&namespace).await.unwrap().metadata.deletion_timestamp, None, "not before they have");
    until("the namespace is told to go", async || {
        let namespace = namespaces.get_opt(&namespace).await.ok()?;
        namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
    let calls = session.world.front.calls(&name);
    assert!(calls.iter().any(|call| call.ends_with("REMOVAL_POLICY_ARCHIVE")), "{calls:?}");
    gone(&session, &name).await;
    assert!(namespaces.get_opt(&namespace).await.unwrap().is_none(), "the tenant goes last");
}

#[tokio::test]
async fn each_step_is_told_while_it_lasts() {
    let session = World::shared().await;
    let made = session.settled_tenant("stepwise", json!({ "deletionPolicy": "Erase" })).await;
    let name = made.name_any();
    let hold = |step, left| session.world.front.hold_removal(&name, Some(Removal::At(step, left)));
    hold(RemovalStep::Draining, 7);
    delete(&session, &name).await;
    let told = removed(&session, &name, "False Draining").await;
    assert_eq!(told, "False Draining: 7 records of usage and audit are not written yet");
    hold(RemovalStep::Erasing, 900);
    assert_eq!(removed(&session, &name, "False Erasing").await, "False Erasing: 900 rows are not erased yet");
    let tenant: AgentTenant = session.all().get(&name).await.unwrap();
    assert_eq!(tenant.status.unwrap().phase, Some(TenantPhase::Terminating));
    session.world.front.hold_removal(&name, None);
    gone(&session, &name).await;
    let calls = session.world.front.calls(&name);
    assert!(calls.iter().all(|call| !call.starts_with("remove") || call.ends_with("REMOVAL_POLICY_ERASE")));
}

#[tokio::test]
async fn fronts_that_stay_away_hold_up_a_removal_only_so_long() {
    let session = World::shared().await;
    let made = session.settled_tenant("forsaken", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    session.declare(&namespace, "talk", json!({ "agent": { "model": "scripted-1" } })).await;
    until("the session is open", async || {
        let talk: AgentSession = session.within(&namespace).get("talk").await.ok()?;
        (talk.status?.phase? == SessionPhase::Ready).then_some(())
    })
    .await;
    session.world.front.hold_removal(&name, Some(Removal::Away));
    delete(&session, &name).await;
    let told = removed(&session, &name, "False FrontAway").await;
    assert_eq!(told, "False FrontAway: the front answers Unavailable");
    gone(&session, &name).await;
    assert!(session.all::<Namespace>().get_opt(&namespace).await.unwrap().is_none());
    // Fronts that come back know of no such tenant; its sessions' ends must not be asked for until they do.
    let asked = || session.world.front.calls(&name).iter().filter(|call| call.starts_with("terminate")).count();
    let before = asked();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(asked() <= before + 1, "one may have been under way");
}

#[tokio::test]
async fn what_shall_be_erased_is_not_forgotten_past_the_deadline() {
    let session = World::shared().await;
    let made = session.settled_tenant("erased", json!({ "deletionPolicy": "Erase" })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    session.world.front.hold_removal(&name, Some(Removal::At(RemovalStep::Erasing, 5)));
    delete(&session, &name).await;
    let told = removed(&session, &name, "False ErasingPastDeadline").await;
    assert!(told.ends_with("it stays until all that it has stored is erased: 5 rows are not erased yet"), "{told}");
    assert!(session.all::<Namespace>().get_opt(&namespace).await.unwrap().is_none(), "workers and keys are gone");
    session.world.front.hold_removal(&name, None);
    gone(&session, &name).await;
}

#[tokio::test]
async fn a_prevented_deletion_waits_and_the_tenant_goes_on() {
    let session = World::shared().await;
    let made = session.settled_tenant("kept", json!({ "preventDeletion": true, "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let pods = kubelet::pods(&session, &namespace, 1).await;
    // Where the chart's policies are, the deletion is refused before it comes so far.
    delete(&session, &name).await;
    removed(&session, &name, "False DeletionPrevented").await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.31")).await;
    until("it is kept up like any other", async || {
        let tenant: AgentTenant = session.all().get(&name).await.ok()?;
        condition(&tenant, "Ready")?.starts_with("True").then_some(())
    })
    .await;
    let calls = session.world.front.calls(&name);
    assert!(calls.iter().all(|call| !call.starts_with("remove")), "{calls:?}");
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": { "preventDeletion": false } })).await;
    gone(&session, &name).await;
}

/// Where the chart's policies are, such a deletion is refused. Without them the namespace is left with no owner.
#[tokio::test]
async fn parts_that_a_deletion_leaves_to_nobody_are_taken_away_all_the_same() {
    let session = World::shared().await;
    let made = session.settled_tenant("orphaning", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    session.world.front.hold_removal(&name, Some(Removal::At(RemovalStep::EndingSessions, 1)));
    let orphaning = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    session.all::<AgentTenant>().delete(&name, &orphaning).await.expect("it can be deleted");
    let namespaces = session.all::<Namespace>();
    until("the namespace has no owner", async || {
        namespaces.get(&namespace).await.ok()?.owner_references().is_empty().then_some(())
    })
    .await;
    session.world.front.hold_removal(&name, None);
    gone(&session, &name).await;
    assert!(namespaces.get_opt(&namespace).await.unwrap().is_none(), "workers and keys are gone with it");
}

#[tokio::test]
async fn the_fronts_have_their_time_from_when_they_are_asked_and_not_from_the_deletion() {
    let session = World::shared().await;
    let made = session.settled_tenant("released", json!({ "preventDeletion": true })).await;
    let name = made.name_any();
    session.world.front.hold_removal(&name, Some(Removal::At(RemovalStep::EndingSessions, 2)));
    delete(&session, &name).await;
    removed(&session, &name, "False DeletionPrevented").await;
    // As long as the fronts may take in these tests.
    until("it was deleted long ago", async || {
        let tenant: AgentTenant = session.all().get(&name).await.ok()?;
        let deleted_at = tenant.metadata.deletion_timestamp?.0;
        (Timestamp::now().duration_since(deleted_at) > SignedDuration::from_secs(21)).then_some(())
    })
    .await;
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": { "preventDeletion": false } })).await;
    let told = until("the fronts have answered", async || {
        let tenant: AgentTenant = session.all().get(&name).await.ok()?;
        let told = condition(&tenant, "Removed")?;
        let waits = ["False DeletionPrevented", "False RemovalBegun"].iter().any(|reason| told.starts_with(reason));
        (!waits).then_some(told)
    })
    .await;
    assert_eq!(told, "False EndingSessions: 2 sessions have not ended");
    session.world.front.hold_removal(&name, None);
    gone(&session, &name).await;
}

#[tokio::test]
async fn a_removal_that_has_begun_is_not_halted() {
    let session = World::shared().await;
    let made = session.settled_tenant("begun", json!({})).await;
    let name = made.name_any();
    session.world.front.hold_removal(&name, Some(Removal::At(RemovalStep::EndingSessions, 1)));
    delete(&session, &name).await;
    removed(&session, &name, "False EndingSessions").await;
    // Where the chart's policies are, this is refused. The front takes nothing of a tenant any more that it began to remove.
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": { "preventDeletion": true } })).await;
    session.world.front.hold_removal(&name, None);
    gone(&session, &name).await;
}

#[tokio::test]
async fn fronts_that_come_back_end_the_sessions_of_a_tenant_whose_namespace_is_going() {
    let session = World::shared().await;
    let made = session.settled_tenant("late", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let maps = session.within::<ConfigMap>(&namespace);
    let held = json!({ "metadata": { "name": "held", "finalizers": ["croft.dev/a-test-holds-it"] } });
    maps.create(&PostParams::default(), &serde_json::from_value(held).unwrap()).await.unwrap();
    session.world.front.hold_removal(&name, Some(Removal::Away));
    delete(&session, &name).await;
    removed(&session, &name, "False PastDeadline").await;
    session.world.front.hold_removal(&name, None);
    removed(&session, &name, "False DeletingNamespace").await;
    session.merge(&maps, "held", json!({ "metadata": { "finalizers": null } })).await;
    gone(&session, &name).await;
}

/// It was archived, and somebody saw in time that it should have been erased.
#[tokio::test]
async fn a_tenant_that_shall_be_erased_after_all_is_erased() {
    let session = World::shared().await;
    let made = session.settled_tenant("regretted", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let maps = session.within::<ConfigMap>(&namespace);
    let held = json!({ "metadata": { "name": "held", "finalizers": ["croft.dev/a-test-holds-it"] } });
    maps.create(&PostParams::default(), &serde_json::from_value(held).unwrap()).await.unwrap();
    delete(&session, &name).await;
    removed(&session, &name, "False DeletingNamespace").await;
    session.world.front.hold_removal(&name, Some(Removal::At(RemovalStep::Erasing, 3)));
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": { "deletionPolicy": "Erase" } })).await;
    session.merge(&maps, "held", json!({ "metadata": { "finalizers": null } })).await;
    // By then it may be past the deadline, which is another reason with the same end.
    let told = removed(&session, &name, "False Erasing").await;
    assert!(told.ends_with("3 rows are not erased yet"), "{told}");
    session.world.front.hold_removal(&name, None);
    gone(&session, &name).await;
}

#[tokio::test]
async fn a_tenant_that_is_being_removed_can_still_be_stopped() {
    let session = World::shared().await;
    let made = session.settled_tenant("halted", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    kubelet::pods(&session, &namespace, 1).await;
    session.world.front.hold_removal(&name, Some(Removal::At(RemovalStep::EndingSessions, 1)));
    delete(&session, &name).await;
    removed(&session, &name, "False EndingSessions").await;
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": { "emergencyStop": true } })).await;
    kubelet::pods(&session, &namespace, 0).await;
    let told = removed(&session, &name, "False").await;
    assert_eq!(told, "False EndingSessions: 1 sessions have not ended", "that is not what takes them away");
    session.world.front.hold_removal(&name, None);
    gone(&session, &name).await;
}

#[tokio::test]
async fn a_tenant_that_is_going_claims_no_parts_and_says_what_holds_it() {
    let session = World::shared().await;
    let made = session.settled_tenant("claimless", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let pods = kubelet::pods(&session, &namespace, 1).await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.32")).await;
    until("its worker is told of", async || {
        let tenant: AgentTenant = session.all().get(&name).await.ok()?;
        (tenant.status?.workers?.ready == 1).then_some(())
    })
    .await;
    let maps = session.within::<ConfigMap>(&namespace);
    let held = json!({ "metadata": { "name": "held", "finalizers": ["croft.dev/a-test-holds-it"] } });
    maps.create(&PostParams::default(), &serde_json::from_value(held).unwrap()).await.unwrap();
    delete(&session, &name).await;
    let status = until("it says what holds it", async || {
        let tenant: AgentTenant = session.all().get(&name).await.ok()?;
        let told = condition(&tenant, "Removed")?;
        let is_told = told.starts_with("False DeletingNamespace") && told.contains("croft.dev/a-test-holds-it");
        tenant.status.filter(|status| is_told && status.workers.is_some_and(|workers| workers.ready == 0))
    })
    .await;
    assert_eq!(status.workers.unwrap().desired, 0);
    let kinds: Vec<_> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(kinds, ["Ready", "Removed"]);
    session.merge(&maps, "held", json!({ "metadata": { "finalizers": null } })).await;
    gone(&session, &name).await;
}
