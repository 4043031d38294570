//! A tenant's spec, read and filled up: all decisions made, so that the builders only write them down.

use std::collections::BTreeMap;
use std::sync::Arc;

use croft_crds::tenant::{
    AllowedRange, InternetAccess, McpServerSpec, ModelServiceSpec, OwnerSpec, ProviderApi, ProviderName,
    ProviderSource, ProviderSpec, SecretKeyRef, overlapping, parse_range,
};
use croft_crds::{AgentTenant, Quantity, labels};
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use super::bounds::{self, Quota, Resources};
use super::platform::PlatformProviders;
use super::surroundings::Surroundings;
use super::tier::Tiers;
use super::{Error, platform_keys};
use crate::keyring::Fingerprint;
use crate::worker::Problem;

/// What the operator was told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The operator's own namespace, where the fronts are too.
    pub namespace: String,
    pub worker_image: String,
    pub worker_image_pull_policy: String,
    /// Secrets of the operator's namespace with which nodes pull workers' images.
    pub worker_pull_secrets: Vec<String>,
    /// How many tenants' workers are exchanged at a time for the platform's sake, in percent of all, from 1 to 100.
    pub worker_rollouts_percent: u8,
    /// Which lines workers log; their own default if not set.
    pub worker_log: Option<String>,
    /// Where workers send traces, if anywhere.
    pub worker_otlp_endpoint: Option<String>,
    pub tiers: Arc<Tiers>,
    pub platform: Arc<PlatformProviders>,
    pub surroundings: Arc<Surroundings>,
    /// How long the end of a deleted tenant's sessions and the draining of its records may take, in seconds.
    pub removal_max_seconds: i64,
}

/// What was found of the key of each provider that the spec names.
pub(crate) type Keys = BTreeMap<ProviderName, Key>;

/// What was found of one provider's key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Key {
    NotNeeded,
    There(Fingerprint),
    Missing(Problem),
}

/// A tenant as it shall be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) owner: OwnerReference,
    pub(crate) quota: Quota,
    pub(crate) workers: Workers,
    /// Nothing gets in or out any more.
    pub(crate) is_stopped: bool,
    /// Workers may connect to whatever is public.
    pub(crate) has_internet: bool,
    /// Ranges that workers may connect to whatever else is closed, checked.
    pub(crate) ranges: Vec<AllowedRange>,
    /// Those whose key is there, or who need none: a worker does not start with one that lacks its key.
    pub(crate) providers: Vec<Provider>,
    /// Their tokens need no fingerprint: workers read them when they connect.
    pub(crate) mcp_servers: Vec<McpServerSpec>,
    /// Who may manage the tenant's declared sessions.
    pub(crate) owners: Vec<OwnerSpec>,
    /// Where the fronts are.
    pub(crate) front_namespace: String,
    pub(crate) surroundings: Arc<Surroundings>,
}

#[derive(Debug, Clone)]
pub(crate) struct Provider {
    pub(crate) name: ProviderName,
    /// Which interface the workers speak, where there is a choice.
    pub(crate) api: Option<ProviderApi>,
    pub(crate) base_url: Option<String>,
    pub(crate) key: Option<ProviderKey>,
    /// The pods that answer, where these are in the cluster.
    pub(crate) model: Option<ModelServiceSpec>,
}

#[derive(Debug, Clone)]
pub(crate) struct ProviderKey {
    /// Where the workers get it from, in their own namespace.
    pub(crate) secret: SecretKeyRef,
    /// Changes with the key.
    pub(crate) fingerprint: Fingerprint,
    /// Where it is copied from, if it is the platform's.
    pub(crate) lent_from: Option<SecretKeyRef>,
}

#[derive(Debug, Clone)]
pub(crate) struct Workers {
    pub(crate) replicas: i32,
    /// A rollout begins with a new worker rather than with one less: the quota has room for it beside all that are wanted.
    pub(crate) surges: bool,
    pub(crate) image: String,
    pub(crate) image_pull_policy: String,
    /// The platform has credentials for registries.
    pub(crate) has_pull_credentials: bool,
    pub(crate) requests: Resources,
    pub(crate) limits: Resources,
    pub(crate) sessions_per_worker: u32,
    pub(crate) log: Option<String>,
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) node_selector: BTreeMap<String, String>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) runtime_class: Option<String>,
}

impl Resources {
    pub(crate) fn to_map(&self) -> BTreeMap<String, resource::Quantity> {
        BTreeMap::from([("cpu".to_owned(), amount(&self.cpu)), ("memory".to_owned(), amount(&self.memory))])
    }
}

impl Wanted {
    /// Reads `tenant`, of whose keys `keys` tells. Fails if the spec can't be used, which the rules on the kind mostly
    /// prevent.
    pub(crate) fn parse(tenant: &AgentTenant, keys: &Keys, settings: &Settings) -> Result<Self, Error> {
        check(tenant, &settings.tiers)?;
        Self::unchecked(tenant, keys, settings)
    }

    /// Reads a tenant whose spec may be unusable: of the fields that [`Wanted::parse`] refuses, ranges and the workers' resources,
    /// nothing may be built.
    pub(crate) fn unchecked(tenant: &AgentTenant, keys: &Keys, settings: &Settings) -> Result<Self, Error> {
        let (spec, tiers) = (&tenant.spec, &settings.tiers);
        let fits = bounds::quota_problem(tenant, tiers).is_none();
        Ok(Self {
            name: tenant.name_any(),
            namespace: tenant.namespace_name(),
            owner: owner(tenant)?,
            quota: bounds::quota(tenant, tiers),
            workers: Workers {
                replicas: if fits { bounds::replicas(tenant, tiers) } else { 0 },
                surges: bounds::has_room_to_surge(tenant, tiers),
                image: spec.workers.image.clone().unwrap_or_else(|| settings.worker_image.clone()),
                image_pull_policy: settings.worker_image_pull_policy.clone(),
                has_pull_credentials: !settings.worker_pull_secrets.is_empty(),
                requests: bounds::worker_requests(tenant, tiers),
                limits: bounds::worker_limits(tenant, tiers),
                sessions_per_worker: bounds::sessions_per_worker(tenant, tiers),
                log: settings.worker_log.clone(),
                otlp_endpoint: settings.worker_otlp_endpoint.clone(),
                node_selector: spec.workers.node_selector.clone(),
                tolerations: spec.workers.tolerations.clone(),
                runtime_class: spec.workers.runtime_class_name.clone(),
            },
            is_stopped: spec.emergency_stop,
            has_internet: spec.egress.internet == InternetAccess::Allow,
            ranges: spec.egress.allow.clone(),
            providers: spec.llm.providers.iter().filter_map(|spec| provider(spec, keys, &settings.platform)).collect(),
            mcp_servers: spec.mcp_servers.clone(),
            owners: spec.owners.clone(),
            front_namespace: settings.namespace.clone(),
            surroundings: Arc::clone(&settings.surroundings),
        })
    }

    /// The labels of everything that belongs to this tenant.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        labels_of(&self.name)
    }

    /// The labels by which worker pods are found. They never change: a Deployment's selector can't.
    pub(crate) fn worker_selector(&self) -> BTreeMap<String, String> {
        [(labels::TENANT, self.name.as_str()), (labels::COMPONENT, labels::COMPONENT_WORKER)]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into()
    }

    /// For a child called `name` in the tenant's namespace.
    pub(crate) fn child_meta(&self, name: &str) -> ObjectMeta {
        meta_of(&self.name, self.owner.clone(), name)
    }
}

fn check(tenant: &AgentTenant, tiers: &Tiers) -> Result<(), Error> {
    check_ranges(tenant)?;
    match bounds::request_problem(tenant, tiers) {
        Some(problem) => Err(Error::Spec { field: "workers.resources", problem }),
        None => Ok(()),
    }
}

/// Fails if no fence can be built of what the spec lists.
pub(super) fn check_ranges(tenant: &AgentTenant) -> Result<(), Error> {
    let ranges = &tenant.spec.egress.allow;
    for range in ranges {
        parse_range(&range.cidr).map_err(|unusable| Error::Spec {
            field: "egress.allow",
            problem: format!("{} {}", unusable.range, unusable.problem),
        })?;
    }
    if let Some((one, other)) = overlapping(ranges) {
        return Err(Error::Spec { field: "egress.allow", problem: format!("{one} and {other} overlap") });
    }
    Ok(())
}

/// [`Wanted::child_meta`] of a tenant whose spec may be unusable. Fails for one that was never stored.
pub(super) fn child_meta(tenant: &AgentTenant, name: &str) -> Result<ObjectMeta, Error> {
    Ok(meta_of(&tenant.name_any(), owner(tenant)?, name))
}

fn owner(tenant: &AgentTenant) -> Result<OwnerReference, Error> {
    let problem = || "the API server has given it none".to_owned();
    tenant.owner_reference().ok_or_else(|| Error::Spec { field: "metadata.uid", problem: problem() })
}

fn meta_of(tenant: &str, owner: OwnerReference, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(labels::tenant_namespace(tenant)),
        labels: Some(labels_of(tenant)),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    }
}

fn labels_of(tenant: &str) -> BTreeMap<String, String> {
    [(labels::TENANT, tenant), (labels::MANAGED_BY, labels::MANAGED_BY_CROFT), (labels::NAME, "croft")]
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into()
}

/// `None` while its key is not there.
fn provider(spec: &ProviderSpec, keys: &Keys, platform: &PlatformProviders) -> Option<Provider> {
    let fingerprint = match keys.get(&spec.name)? {
        Key::Missing(_) => return None,
        Key::NotNeeded => None,
        Key::There(fingerprint) => Some(fingerprint.clone()),
    };
    let own = |base_url: Option<String>| Provider {
        name: spec.name,
        api: spec.api(),
        base_url,
        key: fingerprint.clone().zip(spec.api_key_secret_ref.clone()).map(|(fingerprint, secret)| ProviderKey {
            secret,
            fingerprint,
            lent_from: None,
        }),
        model: None,
    };
    match spec.source {
        ProviderSource::TenantKey | ProviderSource::TenantEndpoint => Some(own(spec.base_url.clone())),
        ProviderSource::InCluster => {
            let service = spec.service.clone()?;
            Some(Provider { model: Some(service.clone()), ..own(Some(service.base_url())) })
        }
        ProviderSource::Platform => {
            let lent = platform.get(spec.name)?;
            let key = ProviderKey {
                secret: SecretKeyRef { name: platform_keys::NAME.to_owned(), key: spec.name.as_str().to_owned() },
                fingerprint: fingerprint.clone()?,
                lent_from: Some(SecretKeyRef { name: lent.secret_name.clone(), key: lent.key.clone() }),
            };
            Some(Provider { base_url: lent.base_url.clone(), key: Some(key), ..own(None) })
        }
    }
}

/// As `k8s_openapi` has it.
pub(crate) fn amount(quantity: &Quantity) -> resource::Quantity {
    resource::Quantity(quantity.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;

    fn parse(tenant: &AgentTenant, keys: &Keys) -> Result<Wanted, Error> {
        Wanted::parse(tenant, keys, &fixtures::settings())
    }

    #[test]
    fn a_range_that_opens_too_much_is_refused_even_if_the_schema_let_it_in() {
        let mut tenant = fixtures::minimal();
        let ranges = |cidrs: &[&str]| -> Vec<AllowedRange> {
            cidrs.iter().map(|&cidr| AllowedRange { cidr: cidr.into(), ..AllowedRange::default() }).collect()
        };
        for (cidrs, told) in [
            (["0.0.0.0/0"].as_slice(), "0.0.0.0/0 reaches addresses that lead to the node's own credentials"),
            (["10.0.0.0/8", "10.1.0.0/16"].as_slice(), "10.0.0.0/8 and 10.1.0.0/16 overlap"),
        ] {
            tenant.spec.egress.allow = ranges(cidrs);
            let error = parse(&tenant, &Keys::new()).unwrap_err();
            assert_eq!(error.to_string(), format!("spec.egress.allow is not usable: {told}"));
        }
    }

    #[test]
    fn each_source_of_a_model_says_where_it_is_and_whose_key_it_takes() {
        let of = |provider: serde_json::Value, key: Key| {
            let mut tenant = fixtures::minimal();
            tenant.spec.llm.providers = vec![serde_json::from_value(provider).unwrap()];
            parse(&tenant, &Keys::from([(ProviderName::Anthropic, key)])).unwrap().providers.pop()
        };
        let there = || Key::There(fixtures::fingerprint("17"));
        let own = serde_json::json!({ "name": "models", "key": "a" });
        let (name, secret) = ("anthropic", own.clone());
        let tenant_key = serde_json::json!({ "name": name, "apiKeySecretRef": secret });
        let provider = of(tenant_key.clone(), there()).unwrap();
        assert_eq!((provider.base_url, provider.key.unwrap().secret.name.as_str()), (None, "models"));
        let missing = Key::Missing(Problem { reason: "KeysMissing", message: String::new() });
        assert!(of(tenant_key, missing).is_none());

        let platform = serde_json::json!({ "name": name, "source": "Platform" });
        let provider = of(platform, there()).unwrap();
        let key = provider.key.unwrap();
        assert_eq!(provider.base_url.as_deref(), Some("https://lent.example.com"));
        assert_eq!((key.secret.name.as_str(), key.secret.key.as_str()), ("platform-keys", "anthropic"));
        assert_eq!(key.lent_from.unwrap().name, "lent");

        let service = serde_json::json!({
            "namespace": "models", "name": "llama", "port": 80, "targetPort": 8000, "path": "/v1",
            "podSelector": { "app": "llama" },
        });
        let in_cluster = serde_json::json!({ "name": name, "source": "InCluster", "service": service });
        let provider = of(in_cluster, Key::NotNeeded).unwrap();
        assert_eq!(provider.base_url.as_deref(), Some("http://llama.models.svc:80/v1"));
        assert!(provider.key.is_none());
        assert_eq!(provider.model.unwrap().pod_port(), 8_000);
    }

    #[test]
    fn openai_is_spoken_to_by_responses_unless_it_is_a_server_of_ones_own() {
        let api = |provider: serde_json::Value| {
            let mut tenant = fixtures::minimal();
            tenant.spec.llm.providers = vec![serde_json::from_value(provider).unwrap()];
            let keys = Keys::from([
                (ProviderName::Openai, Key::There(fixtures::fingerprint("17"))),
                (ProviderName::Gemini, Key::There(fixtures::fingerprint("18"))),
            ]);
            parse(&tenant, &keys).unwrap().providers.pop().unwrap().api
        };
        let secret = serde_json::json!({ "name": "models", "key": "a" });
        let service = serde_json::json!({
            "namespace": "models", "name": "llama", "port": 80, "podSelector": { "app": "llama" },
        });
        let of = |name: &str| serde_json::json!({ "name": name, "apiKeySecretRef": secret });
        assert_eq!(api(of("openai")), Some(ProviderApi::Responses));
        assert_eq!(api(of("gemini")), None);
        let mut chosen = of("openai");
        chosen["api"] = "Chat".into();
        assert_eq!(api(chosen), Some(ProviderApi::Chat));
        let in_cluster = serde_json::json!({ "name": "openai", "source": "InCluster", "service": service });
        assert_eq!(api(in_cluster), Some(ProviderApi::Chat));
    }

    #[test]
    fn a_worker_that_no_quota_has_room_for_is_not_tried() {
        let mut tenant = fixtures::minimal();
        tenant.spec.quota.cpu = Some("300m".into());
        assert_eq!(parse(&tenant, &Keys::new()).unwrap().workers.replicas, 0);
    }
}
