//! An API server that fails, in all the ways that one can: what is half made never says Ready, nothing loops, and all is
//! well once the server is.

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::tenant::TenantPhase;
use croft_crds::{AgentSession, AgentTenant};
use croft_proto::v1::SessionState;
use futures::{StreamExt as _, stream};
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::proxy::What;
use crate::stops::heard;
use crate::world::{Session, World, condition, tenant, until};

/// All that an API server answers when it can't.
const FAILURES: [u16; 5] = [409, 410, 429, 500, 503];

async fn read(session: &Session, name: &str) -> AgentTenant {
    session.all::<AgentTenant>().get(name).await.expect("the tenant is there")
}

async fn says(session: &Session, name: &str, kind: &str, text: &str) -> String {
    until(&format!("{kind} of {name} says {text}"), async || {
        condition(&read(session, name).await, kind).filter(|told| told.contains(text))
    })
    .await
}

#[tokio::test]
async fn each_failure_of_a_write_is_told_and_tried_again() {
    let session = World::shared().await;
    for code in FAILURES {
        // The fence is the first to be made after the namespace.
        let fault = session.world.proxy.inject(
            Method::POST,
            &format!("/namespaces/tenant-failing{code}-"),
            What::Answer(code),
            Some(3),
        );
        let made = session.tenant(&format!("failing{code}"), json!({ "workers": { "replicas": 0 } })).await;
        let name = made.name_any();
        until("it is whole", async || {
            let tenant = read(&session, &name).await;
            let is_ready = condition(&tenant, "Ready").is_some_and(|told| told.starts_with("True"));
            let fence = session.within::<NetworkPolicy>(&made.namespace_name()).get_opt("fence").await.ok()?;
            assert!(!is_ready || fence.is_some(), "half made and Ready");
            is_ready.then_some(())
        })
        .await;
        assert_eq!(fault.hits(), 3, "{code}");
    }
}

#[tokio::test]
async fn each_failure_of_a_change_is_tried_again_until_it_is_made() {
    let session = World::shared().await;
    for code in FAILURES {
        let spec = json!({ "workers": { "replicas": 0, "nodeSelector": { "pool": "agents" } } });
        let made = session.settled_tenant(&format!("changing{code}"), spec).await;
        let namespace = made.namespace_name();
        let path = format!("/namespaces/{namespace}/deployments/workers");
        let fault = session.world.proxy.inject(Method::PATCH, &path, What::Answer(code), Some(3));
        let less = json!({ "spec": { "workers": { "nodeSelector": { "pool": null } } } });
        session.merge(&session.all::<AgentTenant>(), &made.name_any(), less).await;
        until("the workers want no label of their nodes", async || {
            let found = session.within::<Deployment>(&namespace).get("workers").await.ok()?;
            found.spec?.template.spec?.node_selector.is_none_or(|selector| selector.is_empty()).then_some(())
        })
        .await;
        assert_eq!(fault.hits(), 3, "{code}");
    }
}

#[tokio::test]
async fn a_tenant_without_its_fence_gets_no_workers_and_says_why_and_nothing_loops() {
    let session = World::shared().await;
    let fault = session.world.proxy.inject(Method::POST, "/tenant-fenceless-", What::Answer(500), None);
    let made = session.tenant("fenceless", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let told = says(&session, &name, "Ready", "False").await;
    assert!(told.contains("NetworkPolicy fence"), "{told}");
    // Now all but the fence can be made.
    let everything = fault;
    let fence = format!("/namespaces/{namespace}/networkpolicies");
    let fault = session.world.proxy.inject(Method::POST, &fence, What::Answer(500), None);
    drop(everything);
    until("the rest is made", async || {
        session.within::<PodDisruptionBudget>(&namespace).get_opt("workers").await.ok()?.map(drop)
    })
    .await;
    let before = fault.hits();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tries = fault.hits() - before;
    assert!(tries <= 6, "{tries} tries in three seconds");
    let status = read(&session, &name).await.status.expect("it has one");
    assert!(matches!(status.phase, Some(TenantPhase::Pending)), "{:?}", status.phase);
    assert!(session.within::<Deployment>(&namespace).get_opt("workers").await.unwrap().is_none());
    drop(fault);
    says(&session, &name, "Applied", "True").await;
}

#[tokio::test]
async fn owners_change_whatever_else_cant_be_written() {
    let session = World::shared().await;
    let owner = |name: &str| json!([{ "kind": "User", "name": name }]);
    let made = session.settled_tenant("disputed", json!({ "owners": owner("ada@example.com") })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let bound = async |user: &str| {
        until(&format!("{user} is bound"), async || {
            let binding = session.within::<RoleBinding>(&namespace).get_opt("owners").await.ok()??;
            let subjects = binding.subjects.unwrap_or_default();
            (subjects.len() == 1 && subjects[0].name == user).then_some(())
        })
        .await;
    };
    bound("ada@example.com").await;
    let path = format!("/namespaces/{namespace}/poddisruptionbudgets");
    let fault = session.world.proxy.inject(Method::POST, &path, What::Answer(500), None);
    let budgets = session.within::<PodDisruptionBudget>(&namespace);
    budgets.delete("workers", &DeleteParams::default()).await.expect("it can be deleted");
    says(&session, &name, "WorkersApplied", "PodDisruptionBudget").await;
    let changed = json!({ "spec": { "owners": owner("grace@example.com") } });
    session.merge(&session.all::<AgentTenant>(), &name, changed).await;
    bound("grace@example.com").await;
    drop(fault);
    says(&session, &name, "Applied", "True").await;
}

#[tokio::test]
async fn owners_change_although_the_workers_of_a_suspended_tenant_cant_be_taken_away() {
    let session = World::shared().await;
    let tenants = session.all::<AgentTenant>();
    let owned = |names: &[&str]| names.iter().map(|name| json!({ "kind": "User", "name": name })).collect::<Vec<_>>();
    for (what, why) in [(What::Answer(500), "False ApiFailed"), (What::Stall, "False DeadlineExceeded")] {
        let spec = json!({ "owners": owned(&["ada@example.com", "grace@example.com"]), "workers": { "replicas": 1 } });
        let made = session.settled_tenant("clinging", spec).await;
        let (name, namespace) = (made.name_any(), made.namespace_name());
        let workers = format!("/namespaces/{namespace}/deployments/workers");
        let fault = session.world.proxy.inject(Method::PATCH, &workers, what, None);
        let changed = json!({ "spec": { "suspend": true, "owners": owned(&["grace@example.com"]) } });
        session.merge(&tenants, &name, changed).await;
        until("one owner is left", async || {
            let binding = session.within::<RoleBinding>(&namespace).get_opt("owners").await.ok()??;
            (binding.subjects.unwrap_or_default().len() == 1).then_some(())
        })
        .await;
        says(&session, &name, "Applied", why).await;
        says(&session, &name, "OwnersBound", "True").await;
        drop(fault);
        says(&session, &name, "WorkersReady", "Suspended").await;
    }
}

#[tokio::test]
async fn whatever_cant_be_written_changes_whoever_the_owners_are() {
    let session = World::shared().await;
    let owned = |name: &str, replicas: i32| json!({ "owners": [{ "kind": "User", "name": name }], "workers": { "replicas": replicas } });
    let replicas = async |namespace: &str, wanted: i32| {
        until(&format!("{wanted} workers are wanted"), async || {
            let workers = session.within::<Deployment>(namespace).get_opt("workers").await.ok()??;
            (workers.spec?.replicas == Some(wanted)).then_some(())
        })
        .await;
    };
    for (what, why) in [(What::Answer(500), "False ApiFailed"), (What::Stall, "False DeadlineExceeded")] {
        let made = session.settled_tenant("unbound", owned("ada@example.com", 0)).await;
        let (name, namespace) = (made.name_any(), made.namespace_name());
        let bindings = format!("/namespaces/{namespace}/rolebindings");
        let fault = session.world.proxy.inject(Method::PATCH, &bindings, what, None);
        let changed = json!({ "spec": owned("grace@example.com", 1) });
        session.merge(&session.all::<AgentTenant>(), &name, changed).await;
        replicas(&namespace, 1).await;
        says(&session, &name, "OwnersBound", why).await;
        says(&session, &name, "WorkersApplied", "True").await;
        says(&session, &name, "Applied", why).await;
        drop(fault);
        says(&session, &name, "Applied", "True").await;

        let new = crate::world::tenant(&format!("new-{name}"), &owned("ada@example.com", 1));
        let (name, namespace) = (new.name_any(), new.namespace_name());
        let bindings = format!("/namespaces/{namespace}/rolebindings");
        let fault = session.world.proxy.inject(Method::POST, &bindings, what, None);
        session.all::<AgentTenant>().create(&PostParams::default(), &new).await.expect("the tenant can be made");
        replicas(&namespace, 1).await;
        says(&session, &name, "OwnersBound", why).await;
        drop(fault);
        says(&session, &name, "Applied", "True").await;
    }
}

#[tokio::test]
async fn a_status_that_cannot_be_written_is_written_later() {
    let session = World::shared().await;
    for code in FAILURES {
        let path = format!("/agenttenants/mute{code}-");
        // The first is the finalizer, then comes the status.
        let fault = session.world.proxy.inject(Method::PATCH, &path, What::Answer(code), Some(4));
        let made = session.tenant(&format!("mute{code}"), json!({})).await;
        says(&session, &made.name_any(), "Applied", "True").await;
        assert_eq!(fault.hits(), 4, "{code}");
    }
}

/// An edit is what mends the spec, so its passes are far between.
#[tokio::test]
async fn a_status_that_an_unusable_spec_leads_to_is_written_soon_although_it_could_not_at_first() {
    let session = World::shared().await;
    let made = session.settled_tenant("stammering", json!({ "workers": { "replicas": 0 } })).await;
    let name = made.name_any();
    let path = format!("/agenttenants/{name}/status");
    let fault = session.world.proxy.inject(Method::PATCH, &path, What::Answer(500), Some(1));
    let unusable = json!({ "spec": { "workers": { "resources": { "cpuRequest": "2" } } } });
    session.merge(&session.all::<AgentTenant>(), &name, unusable).await;
    says(&session, &name, "Applied", "False SpecNotUsable").await;
    assert_eq!(fault.hits(), 1);
}

#[tokio::test]
async fn an_event_whose_write_is_never_answered_is_not_the_last() {
    let session = World::alone().await;
    let lacking = json!({ "workers": { "replicas": 0 }, "llm": { "providers": [
        { "name": "anthropic", "apiKeySecretRef": { "name": "models", "key": "anthropic-key" } },
    ] } });
    let fault = session.world.proxy.inject(Method::POST, "/namespaces/default/events", What::Stall, Some(1));
    session.settled_tenant("unheard", lacking.clone()).await;
    until("it is stalled", async || (fault.hits() == 1).then_some(())).await;
    let made = session.settled_tenant("heard", lacking).await;
    until("people hear of the next", async || {
        heard(&session, &made).await.contains(&"Warning KeysMissing".to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn looks_that_are_never_answered_keep_no_deleted_session_from_its_end() {
    /// As many as the operator ends at a time.
    const AT_A_TIME: u32 = 8;
    let session = World::alone().await;
    let made = session.settled_tenant("lingering", json!({})).await;
    let namespace = made.namespace_name();
    let declared = session.declare(&namespace, "talk", json!({ "agent": { "model": "scripted-1" } })).await;
    becomes(&session, &namespace, "talk", SessionPhase::Ready).await;
    let looks = format!("/namespaces/{namespace}/agentsessions/");
    let fault = session.world.proxy.inject(Method::GET, &looks, What::Stall, Some(AT_A_TIME));
    let front = &session.world.front;
    for number in 0..AT_A_TIME {
        let orphan = format!("{namespace}-{number}");
        let labels = [("croft.dev/agentsession-uid", orphan.as_str()), ("croft.dev/agentsession-name", "gone")];
        front.add(croft_proto::v1::Session {
            session_id: orphan.clone(),
            tenant: made.name_any(),
            state: SessionState::Ready.into(),
            labels: labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into(),
            ..croft_proto::v1::Session::default()
        });
    }
    until("all hang", async || (fault.hits() == AT_A_TIME).then_some(())).await;
    let objects = session.within::<AgentSession>(&namespace);
    objects.delete("talk", &DeleteParams::default()).await.expect("it can be deleted");
    let is_ended = |uid: &str| front.sessions_of(uid).iter().all(|session| session.state() == SessionState::Terminated);
    let uid = declared.uid().expect("it is stored");
    until("its session is ended", async || is_ended(&uid).then_some(())).await;
    until("and so are the others", async || {
        (0..AT_A_TIME).all(|number| is_ended(&format!("{namespace}-{number}"))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_namespace_whose_making_was_not_answered_is_still_the_tenants() {
    let session = World::shared().await;
    let fault = session.world.proxy.inject(Method::POST, "/api/v1/namespaces?", What::LoseAnswer, Some(1));
    let made = session.tenant("unanswered", json!({})).await;
    says(&session, &made.name_any(), "Applied", "True").await;
    // Another test's namespace may have been the one; it must not have minded either.
    assert_eq!(fault.hits(), 1);
}

#[tokio::test]
async fn one_tenant_that_hangs_holds_up_no_other() {
    let session = World::shared().await;
    let fault = session.world.proxy.inject(Method::POST, "/tenant-hanging-", What::Stall, None);
    let hanging = session.tenant("hanging", json!({})).await;
    until("it hangs", async || (fault.hits() > 0).then_some(())).await;
    for number in 0..5 {
        session.settled_tenant(&format!("healthy{number}"), json!({})).await;
    }
    // It says so meanwhile, rather than what was last known.
    says(&session, &hanging.name_any(), "Applied", "False DeadlineExceeded").await;
    says(&session, &hanging.name_any(), "FenceApplied", "NotReached").await;
    until("its pass is begun again", async || (fault.hits() > 1).then_some(())).await;
    drop(fault);
    says(&session, &hanging.name_any(), "Applied", "True").await;
}

#[tokio::test]
async fn a_tenant_that_is_deleted_while_it_is_being_made_leaves_nothing() {
    let session = World::shared().await;
    for (number, part) in ["networkpolicies", "secrets", "deployments"].into_iter().enumerate() {
        let label = format!("aborted{number}");
        let made = session.tenant(&label, json!({})).await;
        let stuck = session.world.proxy.inject(
            Method::POST,
            &format!("/namespaces/{}/{part}?", made.namespace_name()),
            What::Answer(503),
            None,
        );
        let name = made.name_any();
        session.all::<AgentTenant>().delete(&name, &DeleteParams::default()).await.expect("it can be deleted");
        until("the tenant goes", async || {
            session.all::<AgentTenant>().get_opt(&name).await.ok()?.is_none().then_some(())
        })
        .await;
        until("its namespace goes", async || {
            let namespace = session.all::<Namespace>().get_opt(&made.namespace_name()).await.ok()?;
            namespace.is_none().then_some(())
        })
        .await;
        drop(stuck);
    }
}

#[tokio::test]
async fn watches_that_are_cut_cost_no_write_and_miss_nothing() {
    let session = World::alone().await;
    let made = session.settled_tenant("watched", json!({})).await;
    let namespace = made.namespace_name();
    session.quiet().await;
    let writes = session.world.writes();
    for _ in 0..3 {
        session.world.proxy.cut_watches();
        session.quiet().await;
    }
    assert_eq!(session.world.writes(), writes);

    session.world.proxy.cut_watches();
    let config_maps = session.within::<ConfigMap>(&namespace);
    config_maps.delete("providers", &DeleteParams::default()).await.expect("it can be deleted");
    session.declare(&namespace, "talk", json!({ "agent": { "model": "scripted-1" } })).await;
    until("the part is back", async || config_maps.get_opt("providers").await.ok()?).await;
    becomes(&session, &namespace, "talk", SessionPhase::Ready).await;
}

#[tokio::test]
async fn a_watch_that_is_too_old_begins_anew_whatever_the_server_says_meanwhile() {
    let session = World::alone().await;
    let made = session.settled_tenant("expired", json!({})).await;
    let namespace = made.namespace_name();
    session.quiet().await;
    let writes = session.world.writes();
    for code in FAILURES {
        let expired =
            session.world.proxy.inject(Method::GET, "/networkpolicies?&watch=true", What::WatchError(410), Some(1));
        let failing = session.world.proxy.inject(Method::GET, "/networkpolicies?", What::Answer(code), Some(2));
        session.world.proxy.cut_watches();
        until("both have struck", async || {
            (expired.hits() + failing.hits() >= 2 && failing.passed() > 0).then_some(())
        })
        .await;
    }
    session.quiet().await;
    assert_eq!(session.world.writes(), writes, "nothing had changed");
    let fences = session.within::<NetworkPolicy>(&namespace);
    fences.delete("fence", &DeleteParams::default()).await.expect("it can be deleted");
    until("the fence is back", async || fences.get_opt("fence").await.ok()?).await;
}

#[tokio::test]
async fn a_session_has_one_twin_however_often_its_status_is_lost() {
    let session = World::shared().await;
    let made = session.settled_tenant("doubled", json!({})).await;
    let namespace = made.namespace_name();
    for (number, what) in
        [What::LoseAnswer, What::Answer(409), What::Answer(500), What::Answer(503)].into_iter().enumerate()
    {
        let name = format!("talk-{number}");
        let path = format!("/{namespace}/agentsessions/{name}/status");
        let fault = session.world.proxy.inject(Method::PATCH, &path, what, Some(2));
        let declared = session.declare(&namespace, &name, json!({ "agent": { "model": "scripted-1" } })).await;
        becomes(&session, &namespace, &name, SessionPhase::Ready).await;
        until("it was tried", async || (fault.hits() > 0).then_some(())).await;
        assert_eq!(session.world.front.sessions_of(&declared.uid().expect("it is stored")).len(), 1, "{what:?}");
    }
}

#[tokio::test]
async fn ten_thousand_events_at_once_are_digested() {
    const SESSIONS: usize = 20;
    const TOUCHES: usize = 500;
    let session = World::alone().await;
    let namespace = session.settled_tenant("flooded", json!({})).await.namespace_name();
    let objects = session.within::<AgentSession>(&namespace);
    for number in 0..SESSIONS {
        session.declare(&namespace, &format!("talk-{number}"), json!({ "agent": { "model": "scripted-1" } })).await;
    }
    for number in 0..SESSIONS {
        becomes(&session, &namespace, &format!("talk-{number}"), SessionPhase::Ready).await;
    }
    session.quiet().await;
    let (writes, passes) = (session.world.writes(), session.world.passes("AgentSession"));
    let (session, objects) = (&session, &objects);
    stream::iter(0..SESSIONS)
        .for_each_concurrent(None, |number| async move {
            touch(session, objects, &format!("talk-{number}"), 0..TOUCHES, 1).await;
        })
        .await;
    session.quiet().await;
    assert_eq!(session.world.writes(), writes, "nothing that we write has changed");
    let passes = session.world.passes("AgentSession") - passes;
    assert!(passes <= SESSIONS as u64, "nor anything that a pass reads: {passes} passes");
    session.declare(&namespace, "late", json!({ "agent": { "model": "scripted-1" } })).await;
    becomes(session, &namespace, "late", SessionPhase::Ready).await;
}

/// Of a tenant the labels are read.
#[tokio::test]
async fn a_tenant_that_is_flooded_has_no_more_passes_than_changes_and_one_for_all_that_come_during_one() {
    const DURING: usize = 100;
    const TOUCHES: usize = 500;
    const AT_A_TIME: usize = 2;
    let session = World::alone().await;
    let made = session.settled_tenant("flooded", json!({})).await;
    let (namespace, tenant) = (made.namespace_name(), made.name_any());
    let (tenants, config_maps) = (session.all::<AgentTenant>(), session.within::<ConfigMap>(&namespace));
    session.quiet().await;
    // Other tests' tenants are looked at too meanwhile, now and then.
    let before = session.world.passes("AgentTenant");
    let path = format!("/namespaces/{namespace}/configmaps");
    let held = session.world.proxy.inject(Method::POST, &path, What::Hold, Some(1));
    config_maps.delete("providers", &DeleteParams::default()).await.expect("it can be deleted");
    until("a pass is held up", async || (held.hits() > 0).then_some(())).await;
    touch(&session, &tenants, &tenant, 0..DURING, AT_A_TIME).await;
    drop(held);
    until("the part is back", async || config_maps.get_opt("providers").await.ok()?).await;
    session.quiet().await;
    let during = session.world.passes("AgentTenant") - before;
    assert!(during < DURING as u64 / 2, "{during} passes");

    let writes = session.world.writes();
    touch(&session, &tenants, &tenant, DURING..TOUCHES, AT_A_TIME).await;
    session.quiet().await;
    assert_eq!(session.world.writes(), writes, "nothing that we write has changed");
    let passes = session.world.passes("AgentTenant") - before;
    assert!((during + 1..=TOUCHES as u64).contains(&passes), "{passes} passes");
}

/// Gives an object one label's values, so many requests at a time.
async fn touch<K>(session: &Session, objects: &Api<K>, name: &str, values: Range<usize>, at_a_time: usize)
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    stream::iter(values)
        .for_each_concurrent(at_a_time, |value| async move {
            let touched = json!({ "metadata": { "labels": { "touched": value.to_string() } } });
            session.merge(objects, name, touched).await;
        })
        .await;
}

async fn becomes(session: &Session, namespace: &str, name: &str, phase: SessionPhase) {
    let objects = session.within::<AgentSession>(namespace);
    until(&format!("{name} is {phase:?}"), async || {
        (objects.get(name).await.ok()?.status?.phase? == phase).then_some(())
    })
    .await;
}

/// One that was torn down by force, so that its last pass still runs when another of its name is there.
#[tokio::test]
async fn a_tenant_that_is_made_anew_has_nothing_of_the_old_ones_status() {
    let session = World::shared().await;
    let tenants = session.all::<AgentTenant>();
    let fault = session.world.proxy.inject(Method::POST, "/tenant-reborn-", What::Stall, Some(1));
    let old = session.tenant("reborn", json!({ "workers": { "replicas": 0 } })).await;
    let name = old.name_any();
    until("its pass stands still", async || (fault.hits() == 1).then_some(())).await;
    session.merge(&tenants, &name, json!({ "metadata": { "finalizers": null } })).await;
    tenants.delete(&name, &DeleteParams::default()).await.unwrap();
    until("it is gone", async || tenants.get_opt(&name).await.ok()?.is_none().then_some(())).await;
    let new = tenant(&name, &json!({ "workers": { "replicas": 0 } }));
    let new = tenants.create(&PostParams::default(), &new).await.expect("another may have its name");
    assert_ne!(new.uid(), old.uid());
    let path = format!("/agenttenants/{name}/status");
    let late = session.world.proxy.inject(Method::PATCH, &path, What::Hold, Some(1));

    let only = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(120);
    let version = new.resource_version().expect("it is stored");
    let mut changes = std::pin::pin!(tenants.watch(&only, &version).await.expect("it can be watched"));
    until("the old one's pass has ended, and says so", async || (late.hits() == 1).then_some(())).await;
    drop(late);
    let mut statuses = Vec::new();
    while !statuses.iter().any(|told: &Option<String>| told.as_ref().is_some_and(|told| told.starts_with("True"))) {
        let change = changes.next().await.expect("it is applied in time").expect("the watch holds");
        let WatchEvent::Modified(tenant) = change else { continue };
        statuses.push(condition(&tenant, "Applied"));
    }
    let is_late = |told: &Option<String>| told.as_ref().is_some_and(|told| told.contains("DeadlineExceeded"));
    assert!(!statuses.iter().any(is_late), "nothing that it said is the new one's: {statuses:?}");
}
