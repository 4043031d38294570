//! What becomes of all tenants when the platform wants other workers: the operator's program against a real API server and controller
//! manager, started anew with another image. There is no node: the test plays the kubelet.

#[path = "../cluster/kinds.rs"]
mod kinds;
#[path = "../cluster/kubelet.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod kubelet;
mod operator;
mod world;

use std::collections::BTreeSet;

use croft_crds::labels;
use croft_crds::tenant::TenantPhase;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use operator::Operator;
use world::{Session, until};

const TENANTS: usize = 25;
/// What may be under way of so few tenants.
const MOST: usize = 10;

/// The names of those whose workers have this image.
async fn with(session: &Session, image: &str) -> Option<BTreeSet<String>> {
    let image_of =
        |deployment: &Deployment| deployment.spec.as_ref()?.template.spec.as_ref()?.containers.first()?.image.clone();
    let all = session.workers().await?;
    Some(all.into_iter().filter(|(_, live)| image_of(live).as_deref() == Some(image)).map(|(name, _)| name).collect())
}

/// The names of those of which this condition tells this reason.
async fn told(session: &Session, kind: &str, reason: &str) -> Option<BTreeSet<String>> {
    let conditions = session.tenants().await?.into_iter().filter_map(|tenant| {
        let status = tenant.status?;
        let told = status.conditions.into_iter().find(|condition| condition.type_ == kind)?;
        (told.reason == reason).then_some(tenant.metadata.name?)
    });
    Some(conditions.collect())
}

async fn all_ready(session: &Session, image: &str, operator: &Operator, count: usize) {
    until("all have their workers", async || {
        assert!(operator.rollouts().await.under_way <= MOST);
        session.start_pods().await;
        let is_done =
            with(session, image).await?.len() == count && told(session, "Ready", "AllWell").await?.len() == count;
        is_done.then_some(())
    })
    .await;
}

/// Once, an image that fails at its start took the workers of all tenants within a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_never_becomes_ready_goes_no_further_than_to_a_few_tenants_and_a_mended_one_to_all() {
    let session = Session::start().await;
    let operator = Operator::start(&session.namespace, "croft/worker:1").await;
    let names: Vec<_> = (0..TENANTS).map(|at| format!("rolled-{}-{at}", session.suffix)).collect();
    for name in &names {
        session.tenant(name, json!({ "workers": { "replicas": 1 } })).await;
    }
    kubelet::pods(&session, &format!("tenant-{}", names[0]), 1).await;
    all_ready(&session, "croft/worker:1", &operator, TENANTS).await;

    operator.stop().await;
    let operator = Operator::start(&session.namespace, "croft/worker:2").await;
    until("no more are begun", async || {
        let begun = with(&session, "croft/worker:2").await?;
        let waiting = told(&session, "WorkersReady", "RolloutWaiting").await?;
        assert!(begun.len() <= MOST, "{begun:?}");
        (begun.len() == MOST && waiting.len() == TENANTS - MOST).then_some(())
    })
    .await;
    assert!(told(&session, "Ready", "RolloutWaiting").await.unwrap().is_empty(), "they are served as before");
    let begun = with(&session, "croft/worker:2").await.unwrap();
    let waiting: Vec<_> = names.iter().filter(|name| !begun.contains(*name)).collect();

    // All but the template is kept up.
    let namespace = format!("tenant-{}", waiting[0]);
    let (workers, fences) = (session.within::<Deployment>(&namespace), session.within::<NetworkPolicy>(&namespace));
    let edit = json!({ "metadata": { "labels": { "app.kubernetes.io/name": null } }, "spec": { "replicas": 3 } });
    workers.patch("workers", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    fences.delete("fence", &DeleteParams::default()).await.unwrap();
    until("what was edited is put right", async || {
        fences.get_opt("fence").await.ok()??;
        let live = workers.get("workers").await.ok()?;
        let is_labelled = live.metadata.labels?.contains_key("app.kubernetes.io/name");
        (is_labelled && live.spec?.replicas == Some(1)).then_some(())
    })
    .await;

    // What is done about a tenant is no reason to exchange its workers.
    session.edit(waiting[2], json!({ "cordon": true })).await;
    until("it is cordoned", async || {
        let tenant =
            session.tenants().await?.into_iter().find(|tenant| tenant.metadata.name.as_ref() == Some(waiting[2]))?;
        (tenant.status?.phase == Some(TenantPhase::Cordoned)).then_some(())
    })
    .await;
    assert_eq!(with(&session, "croft/worker:2").await.unwrap(), begun);

    // What a tenant changes of its workers goes at once, and so do a new one's first workers.
    session.edit(waiting[1], json!({ "workers": { "sessionsPerWorker": 7 } })).await;
    session.tenant(&format!("rolled-{}-new", session.suffix), json!({ "workers": { "replicas": 1 } })).await;
    until("the tenant's own change is there", async || {
        (with(&session, "croft/worker:2").await?.len() == MOST + 2).then_some(())
    })
    .await;
    assert!(with(&session, "croft/worker:2").await.unwrap().contains(waiting[1]));

    // A leader that comes after a crash goes by what it finds.
    operator.crash().await;
    let operator = Operator::start(&session.namespace, "croft/worker:2").await;
    until("all are looked at", async || {
        let rollouts = operator.rollouts().await;
        assert!(rollouts.under_way <= MOST);
        (rollouts.under_way == MOST && rollouts.waiting == TENANTS - MOST - 1).then_some(())
    })
    .await;
    assert_eq!(with(&session, "croft/worker:2").await.unwrap().len(), MOST + 2);

    operator.stop().await;
    let operator = Operator::start(&session.namespace, "croft/worker:3").await;
    until("the mended image goes to those who have the other first", async || {
        let mended = with(&session, "croft/worker:3").await?;
        (begun.is_subset(&mended)).then_some(())
    })
    .await;
    all_ready(&session, "croft/worker:3", &operator, TENANTS + 1).await;
    until("nobody has a permit any more", async || {
        let rollouts = operator.rollouts().await;
        let has_mark = |live: &Deployment| {
            live.metadata.annotations.iter().flatten().any(|(key, _)| key == labels::ROLLOUT_PERMIT)
        };
        let is_marked = session.workers().await?.into_iter().any(|(_, live)| has_mark(&live));
        (rollouts.under_way + rollouts.waiting == 0 && !is_marked).then_some(())
    })
    .await;
    operator.stop().await;
    session.clear_away().await;
}
