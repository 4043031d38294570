//! Tells in the status how the pass went and how the tenant is. Written only when it says something new.

use croft_crds::condition::{self, Verdict};
use croft_crds::tenant::{TenantPhase, WorkersStatus};
use croft_crds::{AgentTenant, AgentTenantStatus};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::json;

use super::health;
use super::observe::Observed;
use super::wanted::replicas;
use super::{Error, workers};
use crate::context::Context;
use crate::controller::{PassError as _, chain};
use crate::worker::{Problem, Worker};

/// Says how the pass went.
pub(super) async fn report(
    tenant: &AgentTenant,
    outcome: Result<&Observed, &Error>,
    context: &Context,
) -> Result<(), Error> {
    let namespace = tenant.namespace_name();
    let deployment = context.cluster.get::<Deployment>(Some(&namespace), workers::NAME);
    let pods = context.cluster.workers(&tenant.name_any());
    let now = Time(context.timestamp());
    let before = current(tenant, context);
    let status = status(tenant, &before, outcome, deployment.as_deref(), &pods, &now);
    write(tenant, &before, status, context).await
}

/// Says that the tenant is on its way out.
pub(super) async fn report_deletion(tenant: &AgentTenant, step: &str, context: &Context) -> Result<(), Error> {
    let before = current(tenant, context);
    let mut status = before.clone();
    status.phase = Some(TenantPhase::Terminating);
    status.observed_generation = tenant.metadata.generation;
    let verdict = Verdict { kind: "Ready", holds: Some(false), reason: "Terminating", message: step.to_owned() };
    condition::set(&mut status.conditions, verdict, tenant.metadata.generation, &Time(context.timestamp()));
    write(tenant, &before, status, context).await
}

/// The status as we last wrote it, if the copy of the tenant can't have it yet.
fn current(tenant: &AgentTenant, context: &Context) -> AgentTenantStatus {
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
    let patch = json!({ "status": nulls_for_absent(&status) });
    let written: AgentTenant =
        context.writer.merge_status(None, &tenant.name_any(), &patch).await.map_err(Error::Status)?;
    let version = written.resource_version();
    context.tenant_statuses.remember(tenant.uid().unwrap_or_default(), version.as_deref(), status);
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

fn status(
    tenant: &AgentTenant,
    before: &AgentTenantStatus,
    outcome: Result<&Observed, &Error>,
    deployment: Option<&Deployment>,
    pods: &[Worker],
    now: &Time,
) -> AgentTenantStatus {
    let workers = count(tenant, deployment);
    let rollout = rollout(deployment, workers, pods);
    let mut verdicts = vec![applied(outcome), workers_ready(tenant, workers, &rollout)];
    verdicts.extend(providers_ready(tenant, outcome));
    verdicts.insert(0, ready(&verdicts));
    let mut conditions = before.conditions.clone();
    conditions.retain(|condition| verdicts.iter().any(|verdict| verdict.kind == condition.type_));
    for verdict in verdicts {
        condition::set(&mut conditions, verdict, tenant.metadata.generation, now);
    }
    let taken = matches!(outcome, Err(Error::NamespaceTaken { .. }));
    AgentTenantStatus {
        observed_generation: tenant.metadata.generation,
        phase: Some(phase(tenant, outcome, workers, &rollout)),
        namespace: (!taken).then(|| tenant.namespace_name()),
        workers: Some(workers),
        sessions: before.sessions,
        spend: before.spend.clone(),
        conditions,
    }
}

/// How far the workers are from what is wanted.
#[derive(Debug, PartialEq)]
enum Rollout {
    Done,
    /// Not yet, and this is why, if it is known.
    Waiting(Option<Problem>),
}

/// What is wanted comes from the spec: the copy of a Deployment that was applied a moment ago may be behind.
fn count(tenant: &AgentTenant, deployment: Option<&Deployment>) -> WorkersStatus {
    let ready = deployment.and_then(|deployment| deployment.status.as_ref()?.ready_replicas).unwrap_or(0);
    WorkersStatus { desired: replicas(tenant), ready }
}

fn rollout(deployment: Option<&Deployment>, workers: WorkersStatus, pods: &[Worker]) -> Rollout {
    let is_done = deployment.is_some_and(|deployment| {
        let status = deployment.status.as_ref();
        let is_current = status.and_then(|status| status.observed_generation) >= deployment.metadata.generation;
        let updated = status.and_then(|status| status.updated_replicas).unwrap_or(0);
        let scaled = deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(workers.desired);
        is_current && scaled && updated >= workers.desired && workers.ready >= workers.desired
    });
    if is_done { Rollout::Done } else { Rollout::Waiting(health::problem(deployment, pods)) }
}

fn applied(outcome: Result<&Observed, &Error>) -> Verdict {
    let (holds, reason, message) = match outcome {
        Ok(_) => (true, "Applied", "all parts are as the spec wants them".to_owned()),
        Err(error) => (false, error.reason(), chain(error)),
    };
    Verdict { kind: "Applied", holds: Some(holds), reason, message }
}

fn workers_ready(tenant: &AgentTenant, workers: WorkersStatus, rollout: &Rollout) -> Verdict {
    let WorkersStatus { desired, ready } = workers;
    let (holds, reason, message) = match rollout {
        Rollout::Done if tenant.spec.suspend => (false, "Suspended", "the tenant is suspended".to_owned()),
        Rollout::Done => (true, "AllReady", format!("{ready} of {desired} workers are ready")),
        Rollout::Waiting(Some(problem)) => (false, problem.reason, problem.message.clone()),
        Rollout::Waiting(None) => (false, "Starting", format!("{ready} of {desired} workers are ready")),
    };
    Verdict { kind: "WorkersReady", holds: Some(holds), reason, message }
}

fn providers_ready(tenant: &AgentTenant, outcome: Result<&Observed, &Error>) -> Option<Verdict> {
    if tenant.spec.llm.providers.is_empty() {
        return None;
    }
    let missing = outcome.ok().map(|observed| observed.missing_keys(tenant));
    let (holds, reason, message) = match missing {
        Some(missing) if missing.is_empty() => {
            (Some(true), "KeysFound", "every key that the spec refers to is there".to_owned())
        }
        Some(missing) => {
            let message = format!("namespace {} lacks {}", tenant.namespace_name(), missing.join(", "));
            (Some(false), "KeysMissing", message)
        }
        None => (None, "NotLookedFor", "the pass ended before keys were looked for".to_owned()),
    };
    Some(Verdict { kind: "ProvidersReady", holds, reason, message })
}

/// The first of the others that doesn't hold, or that all do.
fn ready(others: &[Verdict]) -> Verdict {
    match others.iter().find(|verdict| verdict.holds != Some(true)) {
        Some(verdict) => Verdict { kind: "Ready", ..verdict.clone() },
        None => Verdict {
            kind: "Ready",
            holds: Some(true),
            reason: "AllWell",
            message: "all is as the spec wants it".to_owned(),
        },
    }
}

fn phase(
    tenant: &AgentTenant,
    outcome: Result<&Observed, &Error>,
    workers: WorkersStatus,
    rollout: &Rollout,
) -> TenantPhase {
    match (outcome, rollout) {
        (Err(Error::NamespaceTaken { .. } | Error::Spec { .. }), _) => TenantPhase::Failed,
        (Ok(_), Rollout::Done) if tenant.spec.suspend => TenantPhase::Suspended,
        (Ok(observed), Rollout::Done) if !observed.missing_keys(tenant).is_empty() => TenantPhase::Degraded,
        (Ok(_), Rollout::Done) => TenantPhase::Ready,
        _ if workers.ready > 0 => TenantPhase::Degraded,
        _ => TenantPhase::Pending,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::*;
    use crate::tenant::fixtures;

    fn deployment(desired: i32, ready: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "generation": 2 },
            "spec": { "replicas": desired, "selector": {}, "template": {} },
            "status": { "observedGeneration": 2, "updatedReplicas": desired, "readyReplicas": ready },
        }))
        .unwrap()
    }

    fn told(
        tenant: &AgentTenant,
        outcome: Result<&Observed, &Error>,
        deployment: Option<&Deployment>,
    ) -> AgentTenantStatus {
        let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
        status(tenant, &AgentTenantStatus::default(), outcome, deployment, &[], &now)
    }

    fn condition<'a>(status: &'a AgentTenantStatus, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == kind).unwrap()
    }

    #[test]
    fn a_tenant_is_ready_when_all_of_its_workers_are() {
        let tenant = fixtures::minimal();
        let observed = Observed { has_namespace: true, ..Observed::default() };
        let status = told(&tenant, Ok(&observed), Some(&deployment(2, 2)));
        assert_eq!(status.phase, Some(TenantPhase::Ready));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(status.observed_generation, Some(3));
        let status = told(&tenant, Ok(&observed), Some(&deployment(2, 1)));
        assert_eq!(status.phase, Some(TenantPhase::Degraded));
        assert_eq!(condition(&status, "Ready").reason, "Starting");
        assert_eq!(told(&tenant, Ok(&observed), None).phase, Some(TenantPhase::Pending));
    }

    #[test]
    fn an_older_deployments_numbers_are_not_taken_for_the_new_ones() {
        let mut deployment = deployment(2, 2);
        deployment.metadata.generation = Some(3);
        let observed = Observed::default();
        assert_eq!(told(&fixtures::minimal(), Ok(&observed), Some(&deployment)).phase, Some(TenantPhase::Degraded));
    }

    #[test]
    fn a_taken_namespace_is_told_and_not_claimed() {
        let error = Error::NamespaceTaken { name: "tenant-egret".into() };
        let status = told(&fixtures::minimal(), Err(&error), None);
        assert_eq!(status.phase, Some(TenantPhase::Failed));
        assert_eq!(status.namespace, None);
        assert_eq!(condition(&status, "Ready").reason, "NamespaceTaken");
        assert_eq!(condition(&status, "Ready").message, "namespace tenant-egret exists and belongs to someone else");
    }

    #[test]
    fn a_missing_key_is_named_and_its_value_never_known() {
        let observed = Observed::default();
        let status = told(&fixtures::full(), Ok(&observed), Some(&deployment(4, 4)));
        assert_eq!(condition(&status, "ProvidersReady").message, "namespace tenant-heron lacks models/anthropic-key");
        assert_eq!(condition(&status, "Ready").reason, "KeysMissing");
        assert_eq!(status.phase, Some(TenantPhase::Degraded));
    }

    #[test]
    fn the_same_again_changes_nothing_later() {
        let (tenant, observed) = (fixtures::full(), Observed::default());
        let first = told(&tenant, Ok(&observed), Some(&deployment(4, 4)));
        let later = Time("2026-01-01T01:00:00Z".parse().unwrap());
        assert_eq!(status(&tenant, &first, Ok(&observed), Some(&deployment(4, 4)), &[], &later), first);
    }
}
