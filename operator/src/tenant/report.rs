//! Tells in the status how the pass went and how the tenant is. Written only when it says something new; what has turned
//! is told as an Event too.

use croft_crds::condition::{self, Verdict};
use croft_crds::tenant::{TenantPhase, WorkersStatus};
use croft_crds::{AgentTenant, AgentTenantStatus};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::json;

use super::observe::Observed;
use super::part::Failure;
use super::status::{Facts, PREVENTED, REMOVED, status};
use super::upkeep::KeptUp;
use super::{Error, reason, workers};
use crate::cluster::child_key;
use crate::context::Context;
use crate::events::{News, turns};

/// What there is to say of a pass.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    /// Whether all parts are as the spec wants them, or where the pass ended.
    pub(super) outcome: Result<(), &'a Failure>,
    /// `None` if it ended before it had looked.
    pub(super) observed: Option<&'a Observed>,
    /// What was done although the spec can't be used.
    pub(super) kept_up: &'a KeptUp,
}

/// Says how the pass went. Returns whether the copy of the workers' Deployment is from before the last write of it, so that more is
/// to be said once it has caught up.
pub(super) async fn report(tenant: &AgentTenant, pass: Pass<'_>, context: &Context) -> Result<bool, Error> {
    let namespace = tenant.namespace_name();
    let deployment = context.cluster.get::<Deployment>(Some(&namespace), workers::NAME);
    let is_outdated = deployment.as_ref().is_some_and(|deployment| {
        let version = deployment.resource_version();
        context.cluster.applied.newer_than(&child_key(&**deployment), version.as_deref()).is_some()
    });
    let before = current(tenant, context);
    let status = status(&Facts {
        tenant,
        before: &before,
        pass,
        deployment: deployment.as_deref(),
        is_outdated,
        pods: &context.cluster.workers(&tenant.name_any()),
        total: context.totals.of(tenant.metadata.uid.as_deref().unwrap_or_default()),
        tiers: &context.settings.tiers,
        now: &Time(context.timestamp()),
    });
    write(tenant, &before, status, context).await?;
    Ok(is_outdated)
}

/// Says how far the tenant's removal is.
pub(super) async fn report_removal(
    tenant: &AgentTenant,
    reason: &'static str,
    message: String,
    context: &Context,
) -> Result<(), Error> {
    let before = current(tenant, context);
    let mut status = before.clone();
    status.phase = Some(TenantPhase::Terminating);
    status.observed_generation = tenant.metadata.generation;
    // Nobody keeps the parts up any more. The removal's time counts from its beginning, and not from when it was put off.
    status.conditions.retain(|condition| match condition.type_.as_str() {
        REMOVED => condition.reason != PREVENTED,
        kind => kind == "Ready",
    });
    let deployment = context.cluster.get::<Deployment>(Some(&tenant.namespace_name()), workers::NAME);
    let ready = deployment.and_then(|deployment| deployment.status.as_ref()?.ready_replicas).unwrap_or(0);
    status.workers = Some(WorkersStatus { desired: 0, ready });
    let now = Time(context.timestamp());
    let going = Verdict { kind: "Ready", holds: Some(false), reason: "Terminating", message: message.clone() };
    condition::set(&mut status.conditions, going, tenant.metadata.generation, &now);
    let removed = Verdict { kind: REMOVED, holds: Some(false), reason, message };
    condition::set(&mut status.conditions, removed, tenant.metadata.generation, &now);
    write(tenant, &before, status, context).await
}

/// The status as we last wrote it, if the copy of the tenant can't have it yet.
pub(super) fn current(tenant: &AgentTenant, context: &Context) -> AgentTenantStatus {
    let version = tenant.resource_version();
    context
        .tenant_statuses
        .newer_than(&tenant.uid().unwrap_or_default(), version.as_deref())
        .unwrap_or_else(|| tenant.status.clone().unwrap_or_default())
}

async fn write(
    tenant: &AgentTenant,
    before: &AgentTenantStatus,
    status: AgentTenantStatus,
    context: &Context,
) -> Result<(), Error> {
    if *before == status {
        return Ok(());
    }
    debug_assert!(
        status.conditions.iter().all(|condition| reason::ALL.contains(&condition.reason.as_str())),
        "the runbook must know every reason: {:?}",
        status.conditions
    );
    let patch = json!({ "status": nulls_for_absent(&status) });
    let written =
        context.writer.merge_status::<AgentTenant>(None, &tenant.name_any(), &patch).await.map_err(Error::Status)?;
    // To a UID in the patch the API server pays no heed: of custom resources' metadata a write of the status changes nothing.
    if written.uid != tenant.metadata.uid {
        return take_back(&tenant.name_any(), context).await;
    }
    for turn in turns(&before.conditions, &status.conditions) {
        context.events.tell(News::about(tenant, turn));
    }
    let version = written.resource_version;
    context.tenant_statuses.remember(tenant.uid().unwrap_or_default(), version.as_deref(), status);
    Ok(())
}

/// Takes away what was written to a tenant that had been made anew under the name of another meanwhile. It is as one that nothing was said
/// of yet, and its own first pass comes next.
async fn take_back(name: &str, context: &Context) -> Result<(), Error> {
    let patch = json!({ "status": null });
    let written = context.writer.merge_status::<AgentTenant>(None, name, &patch).await.map_err(Error::Status)?;
    let version = written.resource_version;
    context.tenant_statuses.remember(written.uid.unwrap_or_default(), version.as_deref(), AgentTenantStatus::default());
    Ok(())
}

/// In a merge patch what is left out stays; `null` takes it away.
fn nulls_for_absent(status: &AgentTenantStatus) -> serde_json::Value {
    let AgentTenantStatus { observed_generation, phase, namespace, workers, sessions, spend, conditions } = status;
    json!({
        "observedGeneration": observed_generation,
        "phase": phase,
        "namespace": namespace,
        "workers": workers,
        "sessions": sessions,
        "spend": spend,
        "conditions": conditions,
    })
}
