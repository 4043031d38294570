//! A tenant's spec, read and filled up: all decisions made, so that the builders only write them down.

use std::collections::BTreeMap;

use croft_crds::tenant::{
    AllowedRange, BudgetSpec, LimitsSpec, ProviderName, ProviderSpec, SecretKeyRef, SessionDefaultsSpec, overlapping,
    parse_range,
};
use croft_crds::{AgentTenant, Quantity, labels};
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use super::{Error, tier};

/// What the operator was told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The operator's own namespace, where the fronts are too.
    pub namespace: String,
    pub worker_image: String,
    pub worker_image_pull_policy: String,
}

/// Which of the keys that a spec refers to are there, each with its Secret's version.
pub(crate) type KeyVersions = BTreeMap<SecretKeyRef, String>;

/// A tenant as it shall be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) owner: OwnerReference,
    pub(crate) quota: Quota,
    pub(crate) workers: Workers,
    /// Ranges beyond the public internet, checked.
    pub(crate) ranges: Vec<AllowedRange>,
    /// Those whose key is there: a worker does not start with one that has none.
    pub(crate) providers: Vec<Provider>,
    /// Where the fronts are.
    pub(crate) front_namespace: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Provider {
    pub(crate) name: ProviderName,
    pub(crate) base_url: Option<String>,
    pub(crate) key: SecretKeyRef,
    /// Changes when the key may have changed.
    pub(crate) key_version: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Quota {
    pub(crate) cpu: Quantity,
    pub(crate) memory: Quantity,
    pub(crate) pods: i32,
}

#[derive(Debug, Clone)]
pub(crate) struct Workers {
    pub(crate) replicas: i32,
    pub(crate) image: String,
    pub(crate) image_pull_policy: String,
    pub(crate) requests: Resources,
    pub(crate) limits: Resources,
    pub(crate) sessions_per_worker: u32,
    pub(crate) node_selector: BTreeMap<String, String>,
    pub(crate) tolerations: Vec<Toleration>,
}

#[derive(Debug, Clone)]
pub(crate) struct Resources {
    pub(crate) cpu: Quantity,
    pub(crate) memory: Quantity,
}

impl Resources {
    pub(crate) fn to_map(&self) -> BTreeMap<String, resource::Quantity> {
        BTreeMap::from([("cpu".to_owned(), amount(&self.cpu)), ("memory".to_owned(), amount(&self.memory))])
    }
}

impl Wanted {
    /// Reads `tenant`, of whose keys those in `keys` are there. Fails if the spec can't be used, which the rules on the
    /// kind mostly prevent.
    pub(crate) fn parse(tenant: &AgentTenant, keys: &KeyVersions, settings: &Settings) -> Result<Self, Error> {
        let spec = &tenant.spec;
        let tier = tier::values(spec.tier);
        let or = |own: &Option<Quantity>, tier: &str| own.clone().unwrap_or_else(|| tier.into());
        for range in &spec.egress.allow {
            parse_range(&range.cidr).map_err(|unusable| Error::Spec {
                field: "egress.allow",
                problem: format!("{} {}", unusable.range, unusable.problem),
            })?;
        }
        if let Some((one, other)) = overlapping(&spec.egress.allow) {
            return Err(Error::Spec { field: "egress.allow", problem: format!("{one} and {other} overlap") });
        }
        let resources = &spec.workers.resources;
        let limits = Resources {
            cpu: or(&resources.cpu_limit, tier.cpu_limit),
            memory: or(&resources.memory_limit, tier.memory_limit),
        };
        // A limit below the tier's request lowers the request too, or every small worker would need both.
        let requests = Resources {
            cpu: resources.cpu_request.clone().unwrap_or_else(|| least(tier.cpu_request, &limits.cpu)),
            memory: resources.memory_request.clone().unwrap_or_else(|| least(tier.memory_request, &limits.memory)),
        };
        let owner = tenant
            .owner_reference()
            .ok_or(Error::Spec { field: "metadata.uid", problem: "the API server has given it none".to_owned() })?;
        Ok(Self {
            name: tenant.name_any(),
            namespace: tenant.namespace_name(),
            owner,
            quota: Quota {
                cpu: or(&spec.quota.cpu, tier.quota_cpu),
                memory: or(&spec.quota.memory, tier.quota_memory),
                pods: spec.quota.pods.unwrap_or(tier.quota_pods),
            },
            workers: Workers {
                replicas: replicas(tenant),
                image: spec.workers.image.clone().unwrap_or_else(|| settings.worker_image.clone()),
                image_pull_policy: settings.worker_image_pull_policy.clone(),
                requests,
                limits,
                sessions_per_worker: sessions_per_worker(tenant),
                node_selector: spec.workers.node_selector.clone(),
                tolerations: spec.workers.tolerations.clone(),
            },
            ranges: spec.egress.allow.clone(),
            providers: spec.llm.providers.iter().filter_map(|provider| with_key(provider, keys)).collect(),
            front_namespace: settings.namespace.clone(),
        })
    }

    /// The labels of everything that belongs to this tenant.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        [(labels::TENANT, self.name.as_str()), (labels::MANAGED_BY, labels::MANAGED_BY_CROFT), (labels::NAME, "croft")]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into()
    }

    /// The labels by which worker pods are found. They never change: a Deployment's selector can't.
    pub(crate) fn worker_selector(&self) -> BTreeMap<String, String> {
        [(labels::TENANT, self.name.as_str()), (labels::COMPONENT, labels::COMPONENT_WORKER)]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into()
    }

    /// For a child called `name` in the tenant's namespace.
    pub(crate) fn child_meta(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            owner_references: Some(vec![self.owner.clone()]),
            ..ObjectMeta::default()
        }
    }
}

fn with_key(provider: &ProviderSpec, keys: &KeyVersions) -> Option<Provider> {
    let key = provider.api_key_secret_ref.clone()?;
    let key_version = keys.get(&key)?.clone();
    Some(Provider { name: provider.name, base_url: provider.base_url.clone(), key, key_version })
}

/// Workers that this tenant shall have.
pub(crate) fn replicas(tenant: &AgentTenant) -> i32 {
    if tenant.spec.suspend {
        return 0;
    }
    tenant.spec.workers.replicas.unwrap_or(tier::values(tenant.spec.tier).replicas)
}

/// Sessions that one worker of this tenant may run at a time.
pub(crate) fn sessions_per_worker(tenant: &AgentTenant) -> u32 {
    tenant.spec.workers.sessions_per_worker.unwrap_or(tier::values(tenant.spec.tier).sessions_per_worker)
}

/// What this tenant's callers may do: its own limits, and its tier's for the rest.
pub(crate) fn limits(tenant: &AgentTenant) -> LimitsSpec {
    let own = tenant.spec.limits.clone();
    let tier = tier::values(tenant.spec.tier);
    LimitsSpec {
        max_sessions: own.max_sessions.or(Some(tier.sessions_max)),
        requests_per_minute: own.requests_per_minute.or(Some(tier.requests_per_minute)),
        tokens_per_minute: own.tokens_per_minute,
        max_message_bytes: own.max_message_bytes.or(Some(tier.message_bytes_max)),
    }
}

/// What this tenant may spend: its own budget, and its tier's for the rest.
pub(crate) fn budget(tenant: &AgentTenant) -> BudgetSpec {
    let own = tenant.spec.budget.clone();
    let tier = tier::values(tenant.spec.tier);
    BudgetSpec { monthly_usd: own.monthly_usd.or(tier.monthly_budget_usd.map(str::to_owned)), ..own }
}

/// How long this tenant's sessions live that say nothing of their own.
pub(crate) fn session_defaults(tenant: &AgentTenant) -> SessionDefaultsSpec {
    let own = tenant.spec.session_defaults.clone();
    let tier = tier::values(tenant.spec.tier);
    SessionDefaultsSpec {
        idle_timeout_seconds: own.idle_timeout_seconds.or(Some(tier.session_idle_timeout_seconds)),
        ..own
    }
}

/// As `k8s_openapi` has it.
pub(crate) fn amount(quantity: &Quantity) -> resource::Quantity {
    resource::Quantity(quantity.as_str().to_owned())
}

fn least(request: &str, limit: &Quantity) -> Quantity {
    let request = Quantity::from(request);
    match (request.nanos(), limit.nanos()) {
        (Some(requested), Some(allowed)) if requested > allowed => limit.clone(),
        _ => request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;

    #[test]
    fn a_range_that_opens_too_much_is_refused_even_if_the_schema_let_it_in() {
        let mut tenant = fixtures::minimal();
        tenant.spec.egress.allow = vec![AllowedRange { cidr: "0.0.0.0/0".into(), ports: Vec::new() }];
        let error = Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "spec.egress.allow is not usable: 0.0.0.0/0 reaches addresses that lead to the node's own credentials"
        );
    }

    #[test]
    fn a_limit_below_the_tiers_request_lowers_the_request() {
        let mut tenant = fixtures::minimal();
        tenant.spec.workers.resources.cpu_limit = Some("20m".into());
        let wanted = Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap();
        assert_eq!(wanted.workers.requests.cpu.as_str(), "20m");
        assert_eq!(wanted.workers.requests.memory.as_str(), "128Mi");
    }

    #[test]
    fn a_suspended_tenant_has_no_workers() {
        let mut tenant = fixtures::full();
        tenant.spec.suspend = true;
        assert_eq!(Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap().workers.replicas, 0);
    }
}
