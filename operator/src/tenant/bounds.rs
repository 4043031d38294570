//! What a tenant gets of everything that its tier gives too: its own word first, and its tier's for the rest.

use croft_crds::tenant::{BudgetSpec, LimitsSpec, MESSAGE_BYTES_MAX, SessionDefaultsSpec};
use croft_crds::{AgentTenant, Quantity};

use super::tier::Tiers;
use crate::worker::Problem;

/// What the whole namespace may use.
#[derive(Debug, Clone)]
pub(crate) struct Quota {
    pub(crate) cpu: Quantity,
    pub(crate) memory: Quantity,
    pub(crate) pods: i32,
    /// Not counted, if there is no number.
    pub(crate) agent_sessions: Option<u32>,
}

/// CPU and memory of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Resources {
    pub(crate) cpu: Quantity,
    pub(crate) memory: Quantity,
}

/// What this tenant's namespace may use.
pub(crate) fn quota(tenant: &AgentTenant, tiers: &Tiers) -> Quota {
    let (own, tier) = (tenant.spec.quota.clone(), tiers.of(tenant.spec.tier));
    Quota {
        cpu: own.cpu.unwrap_or_else(|| tier.quota_cpu.clone()),
        memory: own.memory.unwrap_or_else(|| tier.quota_memory.clone()),
        pods: own.pods.unwrap_or(tier.quota_pods),
        agent_sessions: own.agent_sessions.or(tier.quota_agent_sessions),
    }
}

/// What one worker may use at most.
pub(crate) fn worker_limits(tenant: &AgentTenant, tiers: &Tiers) -> Resources {
    let (own, tier) = (tenant.spec.workers.resources.clone(), tiers.of(tenant.spec.tier));
    Resources {
        cpu: own.cpu_limit.unwrap_or_else(|| tier.cpu_limit.clone()),
        memory: own.memory_limit.unwrap_or_else(|| tier.memory_limit.clone()),
    }
}

/// What the scheduler sets aside for one worker. A limit below the tier's request lowers the request too, or every small
/// worker would need both.
pub(crate) fn worker_requests(tenant: &AgentTenant, tiers: &Tiers) -> Resources {
    let (own, tier) = (tenant.spec.workers.resources.clone(), tiers.of(tenant.spec.tier));
    let limits = worker_limits(tenant, tiers);
    Resources {
        cpu: own.cpu_request.unwrap_or_else(|| least(&tier.cpu_request, &limits.cpu)),
        memory: own.memory_request.unwrap_or_else(|| least(&tier.memory_request, &limits.memory)),
    }
}

/// What of a worker's requests is above its limit, of which one may be the tenant's and one its tier's. The API server takes no such
/// pod.
pub(crate) fn request_problem(tenant: &AgentTenant, tiers: &Tiers) -> Option<String> {
    let (requests, limits) = (worker_requests(tenant, tiers), worker_limits(tenant, tiers));
    let above = |field, request: &Quantity, limit: &Quantity| {
        let told = || format!("{field} {request} is more than a worker may use, {limit}");
        (request.nanos()? > limit.nanos()?).then(told)
    };
    above("cpuRequest", &requests.cpu, &limits.cpu).or_else(|| above("memoryRequest", &requests.memory, &limits.memory))
}

/// Workers that this tenant shall have.
pub(crate) fn replicas(tenant: &AgentTenant, tiers: &Tiers) -> i32 {
    if tenant.spec.suspend || tenant.spec.emergency_stop {
        return 0;
    }
    tenant.spec.workers.replicas.unwrap_or(tiers.of(tenant.spec.tier).replicas)
}

/// Sessions that one worker of this tenant may run at a time.
pub(crate) fn sessions_per_worker(tenant: &AgentTenant, tiers: &Tiers) -> u32 {
    tenant.spec.workers.sessions_per_worker.unwrap_or(tiers.of(tenant.spec.tier).sessions_per_worker)
}

/// What this tenant's callers may do.
pub(crate) fn limits(tenant: &AgentTenant, tiers: &Tiers) -> LimitsSpec {
    let (own, tier) = (tenant.spec.limits.clone(), tiers.of(tenant.spec.tier));
    LimitsSpec {
        max_sessions: own.max_sessions.or(Some(tier.sessions_max)),
        requests_per_minute: own.requests_per_minute.or(Some(tier.requests_per_minute)),
        tokens_per_minute: own.tokens_per_minute.or(tier.tokens_per_minute),
        // The kind once took more than a front reads.
        max_message_bytes: Some(own.max_message_bytes.unwrap_or(tier.message_bytes_max).min(MESSAGE_BYTES_MAX)),
    }
}

/// What this tenant may spend.
pub(crate) fn budget(tenant: &AgentTenant, tiers: &Tiers) -> BudgetSpec {
    let (own, tier) = (tenant.spec.budget.clone(), tiers.of(tenant.spec.tier));
    BudgetSpec {
        monthly_usd: own.monthly_usd.or_else(|| tier.monthly_budget_usd.clone()),
        monthly_tokens: own.monthly_tokens.or(tier.monthly_budget_tokens),
        on_exceeded: own.on_exceeded.or(Some(tier.on_budget_exceeded)),
    }
}

/// How long this tenant's sessions live that say nothing of their own.
pub(crate) fn session_defaults(tenant: &AgentTenant, tiers: &Tiers) -> SessionDefaultsSpec {
    let (own, tier) = (tenant.spec.session_defaults.clone(), tiers.of(tenant.spec.tier));
    SessionDefaultsSpec {
        idle_timeout_seconds: own.idle_timeout_seconds.or(Some(tier.session_idle_timeout_seconds)),
        lifetime_seconds: own.lifetime_seconds.or(tier.session_lifetime_seconds),
        ttl_seconds_after_finished: own.ttl_seconds_after_finished.or(tier.session_ttl_seconds_after_finished),
    }
}

/// What keeps even one worker out of the quota. Nothing is tried then: the API server would refuse it for ever.
pub(crate) fn quota_problem(tenant: &AgentTenant, tiers: &Tiers) -> Option<Problem> {
    let (quota, limits) = (quota(tenant, tiers), worker_limits(tenant, tiers));
    let short = |what, one: &Quantity, all: &Quantity| {
        (one.nanos() > all.nanos()).then(|| format!("one worker may use {one} of {what}, and the quota is {all}"))
    };
    let message = short("cpu", &limits.cpu, &quota.cpu)
        .or_else(|| short("memory", &limits.memory, &quota.memory))
        .or_else(|| (quota.pods < 1).then(|| "the quota allows no pod".to_owned()))?;
    Some(Problem { reason: "QuotaTooSmall", message: format!("quota exceeded: {message}") })
}

/// Whether the quota has room for one worker more than are wanted, so that a rollout can begin with a new one.
pub(crate) fn has_room_to_surge(tenant: &AgentTenant, tiers: &Tiers) -> bool {
    let (quota, limits) = (quota(tenant, tiers), worker_limits(tenant, tiers));
    let rolling = replicas(tenant, tiers).saturating_add(1);
    let fits = |one: &Quantity, all: &Quantity| match (one.nanos(), all.nanos()) {
        (Some(one), Some(all)) => one.saturating_mul(rolling.into()) <= all,
        _ => true,
    };
    fits(&limits.cpu, &quota.cpu) && fits(&limits.memory, &quota.memory) && rolling <= quota.pods
}

fn least(request: &Quantity, limit: &Quantity) -> Quantity {
    match (request.nanos(), limit.nanos()) {
        (Some(requested), Some(allowed)) if requested > allowed => limit.clone(),
        _ => request.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;

    #[test]
    fn a_tenants_own_word_comes_first_and_its_tiers_for_the_rest() {
        let tiers = Tiers::parse(
            "standard: { limits: { tokensPerMinute: 900 }, budget: { monthlyTokens: 70, onExceeded: Warn }, \
             sessionDefaults: { lifetimeSeconds: 90000, ttlSecondsAfterFinished: 50 } }",
        )
        .unwrap();
        let mut tenant = fixtures::minimal();
        assert_eq!(limits(&tenant, &tiers).tokens_per_minute, Some(900));
        assert_eq!(budget(&tenant, &tiers).monthly_tokens, Some(70));
        assert_eq!(session_defaults(&tenant, &tiers).ttl_seconds_after_finished, Some(50));
        tenant.spec.limits.tokens_per_minute = Some(11);
        tenant.spec.budget.monthly_tokens = Some(12);
        tenant.spec.session_defaults.lifetime_seconds = Some(90_001);
        assert_eq!(limits(&tenant, &tiers).tokens_per_minute, Some(11));
        assert_eq!(budget(&tenant, &tiers).monthly_tokens, Some(12));
        assert_eq!(session_defaults(&tenant, &tiers).lifetime_seconds, Some(90_001));
    }

    #[test]
    fn agent_sessions_are_counted_where_a_number_is_said() {
        let mut tenant = fixtures::minimal();
        let told = |tenant: &AgentTenant, tiers: &str| quota(tenant, &Tiers::parse(tiers).unwrap()).agent_sessions;
        assert_eq!(told(&tenant, "{}"), Some(2_100));
        assert_eq!(told(&tenant, "standard: {}"), None);
        assert_eq!(told(&tenant, "standard: { quota: { agentSessions: 70 } }"), Some(70));
        tenant.spec.quota.agent_sessions = Some(71);
        assert_eq!(told(&tenant, "standard: { quota: { agentSessions: 70 } }"), Some(71));
    }

    #[test]
    fn no_message_is_larger_than_what_a_front_reads() {
        let mut tenant = fixtures::minimal();
        let told = |tenant: &AgentTenant| limits(tenant, &Tiers::default()).max_message_bytes;
        tenant.spec.limits.max_message_bytes = Some(67_108_864);
        assert_eq!(told(&tenant), Some(16_777_216));
        tenant.spec.limits.max_message_bytes = Some(7);
        assert_eq!(told(&tenant), Some(7));
    }

    #[test]
    fn a_limit_below_the_tiers_request_lowers_the_request() {
        let mut tenant = fixtures::minimal();
        tenant.spec.workers.resources.cpu_limit = Some("20m".into());
        let requests = worker_requests(&tenant, &Tiers::default());
        assert_eq!((requests.cpu.as_str(), requests.memory.as_str()), ("20m", "128Mi"));
    }

    #[test]
    fn a_request_above_the_tiers_limit_is_named() {
        let mut tenant = fixtures::minimal();
        assert_eq!(request_problem(&tenant, &Tiers::default()), None);
        tenant.spec.workers.resources.memory_request = Some("513Mi".into());
        let told = "memoryRequest 513Mi is more than a worker may use, 512Mi";
        assert_eq!(request_problem(&tenant, &Tiers::default()).as_deref(), Some(told));
        tenant.spec.workers.resources.cpu_request = Some("1001m".into());
        let told = "cpuRequest 1001m is more than a worker may use, 1";
        assert_eq!(request_problem(&tenant, &Tiers::default()).as_deref(), Some(told));
    }

    #[test]
    fn a_quota_that_no_worker_fits_into_is_named() {
        let problem = |cpu: &str, memory: &str| {
            let mut tenant = fixtures::minimal();
            tenant.spec.quota.cpu = Some(cpu.into());
            tenant.spec.quota.memory = Some(memory.into());
            quota_problem(&tenant, &Tiers::default()).map(|problem| problem.message)
        };
        assert_eq!(problem("1000m", "512Mi"), None);
        let told = "quota exceeded: one worker may use 1 of cpu, and the quota is 999m";
        assert_eq!(problem("999m", "8Gi").as_deref(), Some(told));
        let told = "quota exceeded: one worker may use 512Mi of memory, and the quota is 100Mi";
        assert_eq!(problem("4", "100Mi").as_deref(), Some(told));
    }

    #[test]
    fn a_rollout_begins_with_a_new_worker_only_where_there_is_room() {
        let tiers = Tiers::default();
        let mut tenant = fixtures::minimal();
        assert!(has_room_to_surge(&tenant, &tiers));
        tenant.spec.quota.pods = Some(2);
        assert!(!has_room_to_surge(&tenant, &tiers), "there are two already");
        assert!(!has_room_to_surge(&fixtures::full(), &tiers), "five of 1250m are more than 6");
    }

    #[test]
    fn a_suspended_or_stopped_tenant_has_no_workers() {
        let tiers = Tiers::default();
        let mut tenant = fixtures::full();
        assert_eq!(replicas(&tenant, &tiers), 4);
        tenant.spec.suspend = true;
        assert_eq!(replicas(&tenant, &tiers), 0);
        (tenant.spec.suspend, tenant.spec.emergency_stop) = (false, true);
        assert_eq!(replicas(&tenant, &tiers), 0);
    }
}
