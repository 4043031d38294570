//! Tells in the status how the pass went and how the tenant is. Written only when it says something new; what has turned
//! is told as an Event too.

use croft_crds::condition::{self, Verdict};
use croft_crds::tenant::{TenantPhase, WorkersStatus};
use croft_crds::{AgentTenant, AgentTenantStatus};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

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
    let uid = tenant.uid().unwrap_or_default();
    let written = context.writer.replace_status::<AgentTenant>(None, &tenant.name_any(), &uid, &status).await;
    // Of one that is gone nobody is told; another of its name has a first pass of its own.
    let Some(written) = written.map_err(Error::Status)? else { return Ok(()) };
    for turn in turns(&before.conditions, &status.conditions) {
        context.events.tell(News::about(tenant, turn));
    }
    context.tenant_statuses.remember(uid, written.resource_version.as_deref(), status);
    Ok(())
}
