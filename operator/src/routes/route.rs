//! What a front is told of one tenant.

use croft_crds::tenant::{OnExceeded, ProviderSource, nano_usd};
use croft_crds::{AgentTenant, AgentTenantStatus};
use croft_proto::v1::{
    BudgetAction, ProviderMode, ProviderRoute, TenantAdmission, TenantLimits, TenantRoute, WorkerRoute,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt as _;

use crate::cluster::{Cluster, is_owned};
use crate::tenant::{
    PROVIDERS, Tiers, WORKERS, budget, is_going, limits, provider_names, session_defaults, sessions_per_worker,
    workers_problem,
};
use crate::worker::Worker;

/// The tenant of that name, if there is one.
pub(super) fn route(name: &str, cluster: &Cluster, tiers: &Tiers) -> Option<TenantRoute> {
    let tenant = cluster.tenant(name)?;
    let namespace = tenant.namespace_name();
    let is_own = cluster.get::<Namespace>(None, &namespace).is_some_and(|found| is_owned(&*found, &tenant));
    // Workers of an older tenant of this name are not this one's: their namespace has another owner.
    let deployment =
        cluster.get::<Deployment>(Some(&namespace), WORKERS).filter(|deployment| is_owned(&**deployment, &tenant));
    let workers = if deployment.is_some() { cluster.workers(name) } else { Vec::new() };
    // Every replica serves routes, and only the one that leads looks for keys. What it found stands in the config map.
    let providers = cluster
        .get::<ConfigMap>(Some(&namespace), PROVIDERS)
        .filter(|providers| is_owned(&**providers, &tenant))
        .map(|providers| provider_names(&providers))
        .unwrap_or_default();
    Some(build(&tenant, is_own, deployment.as_deref(), &workers, &providers, tiers))
}

/// `is_own` says that the namespace of that name is the tenant's. Service accounts of somebody else's, or of one that is not there,
/// speak for nobody: their front is told of none.
fn build(
    tenant: &AgentTenant,
    is_own: bool,
    deployment: Option<&Deployment>,
    workers: &[Worker],
    providers: &[String],
    tiers: &Tiers,
) -> TenantRoute {
    let sessions_max = sessions_per_worker(tenant, tiers);
    let routed = workers.iter().filter_map(|worker| {
        Some(WorkerRoute {
            name: worker.name.clone(),
            address: worker.address.clone()?,
            ready: worker.ready,
            sessions_max,
        })
    });
    let problem = workers_problem(tenant, deployment, workers, tiers);
    let (workers_problem_reason, workers_problem) =
        problem.map(|problem| (problem.reason.to_owned(), problem.message)).unwrap_or_default();
    TenantRoute {
        tenant_id: tenant.uid().unwrap_or_default(),
        name: tenant.name_any(),
        namespace: if is_own { tenant.namespace_name() } else { String::new() },
        admission: admission(tenant).into(),
        workers: routed.collect(),
        limits: Some(bounds(tenant, tiers)),
        workers_problem,
        workers_problem_reason,
        tier: tenant.spec.tier.as_str().to_owned(),
        providers: usable(tenant, providers),
    }
}

/// The providers of the spec that the workers use, with who pays for each.
fn usable(tenant: &AgentTenant, names: &[String]) -> Vec<ProviderRoute> {
    let used =
        tenant.spec.llm.providers.iter().filter(|provider| names.iter().any(|name| name == provider.name.as_str()));
    let routed = used.map(|provider| {
        let mode = match provider.source {
            ProviderSource::Platform => ProviderMode::Platform,
            ProviderSource::TenantKey => ProviderMode::TenantKey,
            ProviderSource::TenantEndpoint => ProviderMode::TenantEndpoint,
            ProviderSource::InCluster => ProviderMode::InCluster,
        };
        ProviderRoute { name: provider.name.as_str().to_owned(), mode: mode.into() }
    });
    routed.collect()
}

/// What the tenant takes, of new sessions and of messages.
pub(crate) fn admission(tenant: &AgentTenant) -> TenantAdmission {
    if is_going(tenant, tenant.status.as_ref().unwrap_or(&AgentTenantStatus::default())) {
        TenantAdmission::Terminating
    } else if tenant.spec.emergency_stop {
        TenantAdmission::Stopped
    } else if tenant.spec.suspend {
        TenantAdmission::Suspended
    } else if tenant.spec.cordon {
        TenantAdmission::Cordoned
    } else {
        TenantAdmission::Open
    }
}

fn bounds(tenant: &AgentTenant, tiers: &Tiers) -> TenantLimits {
    let (limits, budget) = (limits(tenant, tiers), budget(tenant, tiers));
    let sessions = session_defaults(tenant, tiers);
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
        Worker {
            name: name.into(),
            address: address.map(str::to_owned),
            ready,
            problem: None,
            ends_within_seconds: None,
        }
    }

    #[test]
    fn a_route_says_all_that_the_spec_does() {
        let tenant = fixtures::full();
        let workers = [worker("w-1", Some("10.1.0.7:50052"), true), worker("w-2", None, false)];
        let route = build(&tenant, true, None, &workers, &["anthropic".to_owned()], &Tiers::default());
        assert_eq!(route.tenant_id, "0c9e2f6e-8a8f-4a8e-9a56-3f3b7b1c2d4e");
        assert_eq!((route.name.as_str(), route.namespace.as_str()), ("heron", "tenant-heron"));
        assert_eq!(route.admission(), TenantAdmission::Cordoned);
        assert_eq!(route.tier, "enterprise");
        assert_eq!(route.workers.len(), 1, "a pod without an address can't be dialled");
        assert_eq!(route.workers[0].address, "10.1.0.7:50052");
        assert_eq!(route.workers[0].sessions_max, 33);
        assert_eq!(route.workers_problem, "");
        let anthropic = ProviderRoute { name: "anthropic".into(), mode: ProviderMode::TenantKey.into() };
        assert_eq!(route.providers, [anthropic]);
        assert_eq!(build(&tenant, true, None, &workers, &[], &Tiers::default()).providers, [], "its key is not there");
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
    fn a_namespace_that_is_not_the_tenants_is_told_to_nobody() {
        let route = build(&fixtures::full(), false, None, &[], &[], &Tiers::default());
        assert_eq!((route.name.as_str(), route.namespace.as_str()), ("heron", ""));
    }

    #[test]
    fn what_the_spec_leaves_out_comes_from_the_tier() {
        let route = build(&fixtures::minimal(), true, None, &[], &[], &Tiers::default());
        assert_eq!(route.admission(), TenantAdmission::Open);
        assert_eq!(route.limits.unwrap().sessions_max, 1_000);
        assert_eq!(route.limits.unwrap().monthly_budget_nano_usd, 0);
        assert_eq!(route.workers_problem, "no worker is ready yet");
    }

    #[test]
    fn the_strongest_word_about_admission_counts() {
        let mut tenant = fixtures::full();
        tenant.spec.suspend = true;
        assert_eq!(admission(&tenant), TenantAdmission::Suspended);
        tenant.spec.emergency_stop = true;
        assert_eq!(admission(&tenant), TenantAdmission::Stopped);
        tenant.metadata.deletion_timestamp = serde_json::from_value(serde_json::json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(admission(&tenant), TenantAdmission::Terminating);
        tenant.spec.prevent_deletion = true;
        assert_eq!(admission(&tenant), TenantAdmission::Stopped, "it goes on as if nothing had been deleted");
    }
}
