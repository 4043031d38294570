//! What a front is told of one tenant.

use croft_crds::AgentTenant;
use croft_crds::tenant::{OnExceeded, nano_usd};
use croft_proto::v1::{BudgetAction, TenantAdmission, TenantLimits, TenantRoute, WorkerRoute};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;

use crate::cluster::{Cluster, is_owned};
use crate::tenant::{WORKERS, budget, limits, session_defaults, sessions_per_worker, workers_problem};
use crate::worker::Worker;

/// The tenant of that name, if there is one.
pub(super) fn route(name: &str, cluster: &Cluster) -> Option<TenantRoute> {
    let tenant = cluster.tenant(name)?;
    // Workers of an older tenant of this name are not this one's: their namespace has another owner.
    let deployment = cluster
        .get::<Deployment>(Some(&tenant.namespace_name()), WORKERS)
        .filter(|deployment| is_owned(&**deployment, &tenant));
    let workers = if deployment.is_some() { cluster.workers(name) } else { Vec::new() };
    Some(build(&tenant, deployment.as_deref(), &workers))
}

fn build(tenant: &AgentTenant, deployment: Option<&Deployment>, workers: &[Worker]) -> TenantRoute {
    let sessions_max = sessions_per_worker(tenant);
    let routed = workers.iter().filter_map(|worker| {
        Some(WorkerRoute {
            name: worker.name.clone(),
            address: worker.address.clone()?,
            ready: worker.ready,
            sessions_max,
        })
    });
    TenantRoute {
        tenant_id: tenant.uid().unwrap_or_default(),
        name: tenant.name_any(),
        namespace: tenant.namespace_name(),
        admission: admission(tenant).into(),
        workers: routed.collect(),
        limits: Some(bounds(tenant)),
        workers_problem: workers_problem(tenant, deployment, workers),
        tier: tenant.spec.tier.as_str().to_owned(),
        ..TenantRoute::default()
    }
}

fn admission(tenant: &AgentTenant) -> TenantAdmission {
    if tenant.metadata.deletion_timestamp.is_some() {
        TenantAdmission::Terminating
    } else if tenant.spec.suspend {
        TenantAdmission::Suspended
    } else if tenant.spec.cordon {
        TenantAdmission::Cordoned
    } else {
        TenantAdmission::Open
    }
}

fn bounds(tenant: &AgentTenant) -> TenantLimits {
    let (limits, budget, sessions) = (limits(tenant), budget(tenant), session_defaults(tenant));
    let budget_action = match budget.on_exceeded.unwrap_or_default() {
        OnExceeded::Block => BudgetAction::Block,
        OnExceeded::Throttle => BudgetAction::Throttle,
        OnExceeded::Warn => BudgetAction::Warn,
    };
    TenantLimits {
        sessions_max: limits.max_sessions.unwrap_or(0),
        requests_per_minute: limits.requests_per_minute.unwrap_or(0),
        message_bytes_max: limits.max_message_bytes.unwrap_or(0),
        session_idle_timeout_ms: i64::from(sessions.idle_timeout_seconds.unwrap_or(0)) * 1_000,
        monthly_budget_nano_usd: budget.monthly_usd.as_deref().and_then(nano_usd).unwrap_or(0),
        tokens_per_minute: limits.tokens_per_minute.unwrap_or(0),
        session_lifetime_ms: i64::from(sessions.lifetime_seconds.unwrap_or(0)) * 1_000,
        monthly_budget_tokens: budget.monthly_tokens.unwrap_or(0),
        budget_action: budget_action.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;

    fn worker(name: &str, address: Option<&str>, ready: bool) -> Worker {
        Worker { name: name.into(), address: address.map(str::to_owned), ready, problem: None }
    }

    #[test]
    fn a_route_says_all_that_the_spec_does() {
        let tenant = fixtures::full();
        let workers = [worker("w-1", Some("10.1.0.7:50052"), true), worker("w-2", None, false)];
        let route = build(&tenant, None, &workers);
        assert_eq!(route.tenant_id, "0c9e2f6e-8a8f-4a8e-9a56-3f3b7b1c2d4e");
        assert_eq!((route.name.as_str(), route.namespace.as_str()), ("heron", "tenant-heron"));
        assert_eq!(route.admission(), TenantAdmission::Cordoned);
        assert_eq!(route.tier, "enterprise");
        assert_eq!(route.workers.len(), 1, "a pod without an address can't be dialled");
        assert_eq!(route.workers[0].address, "10.1.0.7:50052");
        assert_eq!(route.workers[0].sessions_max, 33);
        assert_eq!(route.workers_problem, "");
        let expected = TenantLimits {
            sessions_max: 77,
            requests_per_minute: 88,
            message_bytes_max: 99_000,
            session_idle_timeout_ms: 600_000,
            monthly_budget_nano_usd: 123_450_000_000,
            tokens_per_minute: 66_000,
            session_lifetime_ms: 7_200_000,
            monthly_budget_tokens: 1_000_000,
            budget_action: BudgetAction::Warn.into(),
        };
        assert_eq!(route.limits, Some(expected));
    }

    #[test]
    fn what_the_spec_leaves_out_comes_from_the_tier() {
        let route = build(&fixtures::minimal(), None, &[]);
        assert_eq!(route.admission(), TenantAdmission::Open);
        assert_eq!(route.limits.unwrap().sessions_max, 1_000);
        assert_eq!(route.limits.unwrap().monthly_budget_nano_usd, 0);
        assert_eq!(route.workers_problem, "no worker is ready yet");
    }

    #[test]
    fn suspended_is_stronger_than_cordoned_and_going_stronger_than_both() {
        let mut tenant = fixtures::full();
        tenant.spec.suspend = true;
        assert_eq!(admission(&tenant), TenantAdmission::Suspended);
        tenant.metadata.deletion_timestamp = serde_json::from_value(serde_json::json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(admission(&tenant), TenantAdmission::Terminating);
    }
}
