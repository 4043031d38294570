//! Stops the workers of a tenant that is suspended or stopped, before anything else of it is looked at: whatever of the rest can't be
//! read, planned or applied must not keep them running, nor the end of its sessions while it is being removed. In an emergency it is done
//! beside the passes too, which may have to wait for each other.

use std::pin::pin;
use std::time::Duration;

use croft_crds::AgentTenant;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use serde_json::json;

use super::part::{Failure, Part};
use super::{Error, ensure, fence, wanted, workers};
use crate::cluster::is_owned;
use crate::context::Context;
use crate::worker::Worker;

/// How long workers have to end in an emergency. One second rather than none: with none the API server would forget the
/// pod at once, and nobody could see whether its node has heard of it.
const STOP_SECONDS: u32 = 1;
/// How long the pods of an emergency wait for their Deployment to want none, as it would make others. One that does not answer keeps them
/// no longer; what it makes meanwhile is stopped by the next pass.
const HEAD_START: Duration = Duration::from_secs(2);
/// After so many conflicts in a row it is someone else who writes the fence, and the pass says so.
const CONFLICTS_MAX: u32 = 3;
/// Between two tries to shut it.
const CONFLICT_OVER: Duration = Duration::from_millis(100);
/// Pods that are stopped at a time; more wait.
const AT_A_TIME: usize = 16;

/// Shuts the fence in an emergency and takes the workers away; neither waits for the other, nor is kept from by its failure. The rest
/// of the pass then finds both as it wants them.
pub(super) async fn stop(tenant: &AgentTenant, context: &Context) -> Result<(), Failure> {
    let is_stopped = tenant.spec.emergency_stop;
    let namespace = context.cluster.get::<Namespace>(None, &tenant.namespace_name());
    let Some(namespace) = namespace.filter(|namespace| is_owned(&**namespace, tenant)) else { return Ok(()) };
    if !(is_stopped || tenant.spec.suspend) {
        return Ok(());
    }
    // In a namespace that is going nothing can be made any more, and a fence goes after the pods.
    let has_fence = || context.cluster.get::<NetworkPolicy>(Some(&namespace.name_any()), fence::NAME).is_some();
    let shuts = is_stopped && (namespace.metadata.deletion_timestamp.is_none() || has_fence());
    let shut = async { if shuts { shut_fence(tenant, context).await } else { Ok(()) } };
    let (fence, workers) = tokio::join!(shut, take_workers(tenant, context));
    fence.map_err(Part::Fence.failed_early())?;
    workers.map_err(Part::Workers.failed_early())
}

/// A pass and the stop beside it may do this at the same time. Whoever comes second then finds it done. Neither tries when the emergency
/// is over: a fence that the next pass had opened would be shut again, and nobody would be told.
async fn shut_fence(tenant: &AgentTenant, context: &Context) -> Result<(), Error> {
    let mut conflicts = 0;
    while !is_over(tenant, context) {
        let shut = fence::shut(wanted::child_meta(tenant, fence::NAME)?);
        match ensure::ensure_at_once(shut, context).await {
            Err(Error::Apply { source: kube::Error::Api(status), .. })
                if status.code == 409 && conflicts < CONFLICTS_MAX =>
            {
                conflicts += 1;
                tokio::time::sleep(CONFLICT_OVER).await;
            }
            outcome => return outcome,
        }
    }
    Ok(())
}

/// Whether the emergency of a tenant is over, as the watch last told it.
pub(super) fn is_over(tenant: &AgentTenant, context: &Context) -> bool {
    let now = context.cluster.tenant(&tenant.name_any());
    now.is_some_and(|now| !now.spec.emergency_stop)
}

/// First no new ones are made, and in an emergency those that are there then go, whatever came of the first: their Deployment would give
/// them their usual time.
async fn take_workers(tenant: &AgentTenant, context: &Context) -> Result<(), Error> {
    let mut scaling = pin!(scale_down(tenant, context));
    if !tenant.spec.emergency_stop {
        return scaling.await;
    }
    let in_time = tokio::time::timeout(HEAD_START, &mut scaling).await;
    let scaled = async {
        match in_time {
            Ok(scaled) => scaled,
            Err(_) => scaling.await,
        }
    };
    let (scaled, stopped) = tokio::join!(scaled, stop_workers(tenant, context));
    scaled.and(stopped)
}

async fn scale_down(tenant: &AgentTenant, context: &Context) -> Result<(), Error> {
    let namespace = tenant.namespace_name();
    let live = context.cluster.get::<Deployment>(Some(&namespace), workers::NAME);
    if let Some(live) = live.filter(|live| is_owned(&**live, tenant))
        && live.spec.as_ref().and_then(|spec| spec.replicas) != Some(0)
    {
        let none = json!({ "metadata": { "uid": live.uid() }, "spec": { "replicas": 0 } });
        let scaled = context.writer.merge::<Deployment>(Some(&namespace), workers::NAME, &none).await;
        scaled.map_err(ensure::failed::<Deployment>(workers::NAME))?;
    }
    Ok(())
}

/// Tries all, and tells of a failure afterwards.
async fn stop_workers(tenant: &AgentTenant, context: &Context) -> Result<(), Error> {
    let namespace = &tenant.namespace_name();
    let workers = context.cluster.workers(&tenant.name_any()).into_iter();
    let stays = |worker: &Worker| worker.ends_within_seconds.is_none_or(|seconds| seconds > STOP_SECONDS.into());
    let stopped = workers.filter(stays).map(|Worker { name, .. }| async move {
        let stopped = context.writer.delete_within::<Pod>(Some(namespace), &name, STOP_SECONDS).await;
        stopped.map_err(|source| Error::Delete { kind: "Pod".to_owned(), name, source })
    });
    stream::iter(stopped).buffer_unordered(AT_A_TIME).fold(Ok(()), async |all, one| all.and(one)).await
}
