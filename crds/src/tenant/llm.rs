//! The language model providers that a tenant's workers may use, and where each gets its key.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::labels_schema;
use crate::is_default;

/// Providers by name. The provider `scripted` is always there and needs no entry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LlmSpec {
    /// At most one entry a provider.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub providers: Vec<ProviderSpec>,
}

/// One provider.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.source != 'Platform' || (!has(self.apiKeySecretRef) && !has(self.baseUrl))")
        .message("with source Platform the platform has the key and the address: leave out apiKeySecretRef and baseUrl"),
    validation = Rule::new("self.source != 'TenantKey' || has(self.apiKeySecretRef)")
        .message("with source TenantKey apiKeySecretRef must name the tenant's key"),
    validation = Rule::new("self.source != 'TenantEndpoint' || (has(self.apiKeySecretRef) && has(self.baseUrl))")
        .message("with source TenantEndpoint apiKeySecretRef and baseUrl must name the tenant's key and address"),
    validation = Rule::new("self.source != 'InCluster' || (has(self.service) && !has(self.baseUrl))")
        .message("with source InCluster service must name the model's Service, and baseUrl is left out"),
    validation = Rule::new("self.source == 'InCluster' || !has(self.service)")
        .message("service goes with source InCluster only"),
    validation = Rule::new("self.name == 'openai' || !has(self.api)")
        .message("api goes with openai only: no other provider has two interfaces"),
)]
pub struct ProviderSpec {
    /// Whose interface it speaks.
    pub name: ProviderName,
    /// Which of OpenAI's two interfaces. Without it Responses, and Chat for models in the cluster: servers of one's own mostly
    /// speak that one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ProviderApi>,
    /// Whose account or machine answers.
    #[serde(default)]
    pub source: ProviderSource,
    /// Where it is, if not at the provider's own public address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHost() != ''")
            .message("baseUrl must be an address such as https://llm.example.com/v1"),
        validation = Rule::new("!self.contains('@') && !self.contains('?') && !self.contains('#')")
            .message("baseUrl carries more than an address: keys are given by apiKeySecretRef alone"),
    )]
    pub base_url: Option<String>,
    /// The key, in a Secret of the tenant's namespace. While it is not there the workers run without this provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// A model that is served in this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ModelServiceSpec>,
}

/// The providers whose interfaces the workers speak.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    Anthropic,
    Gemini,
    Openai,
}

impl ProviderName {
    /// As it is written in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Openai => "openai",
        }
    }
}

impl ProviderSpec {
    /// The interface that workers speak; `None` where there is but one.
    pub fn api(&self) -> Option<ProviderApi> {
        let usual = match self.source {
            ProviderSource::InCluster => ProviderApi::Chat,
            ProviderSource::Platform | ProviderSource::TenantKey | ProviderSource::TenantEndpoint => {
                ProviderApi::Responses
            }
        };
        (self.name == ProviderName::Openai).then(|| self.api.unwrap_or(usual))
    }
}

/// OpenAI's two interfaces.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderApi {
    /// Keeps what a model reasoned from one call to the next.
    Responses,
    /// Chat Completions, which many servers speak.
    Chat,
}

impl ProviderApi {
    /// As the workers' file of providers has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Responses => "responses",
            Self::Chat => "chat",
        }
    }
}

/// Whose account or machine answers, and so who pays the provider.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProviderSource {
    /// The platform's key, which the operator puts beside the workers.
    Platform,
    /// The tenant's own key, at the provider's public address or behind a proxy.
    #[default]
    TenantKey,
    /// The tenant's own account at a cloud.
    TenantEndpoint,
    /// A model that is served in this cluster.
    InCluster,
}

/// A model that is served in this cluster. The fence opens to its pods, on its port, and to nothing else there.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelServiceSpec {
    /// Where the Service and its pods are.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('tenant-') && !self.startsWith('kube-')")
            .message("a model is served neither in a tenant's namespace nor in one of the cluster's own"),
    )]
    pub namespace: String,
    /// The Service's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// The Service's port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// The pods' port, if it differs: a fence sees pods, not Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub target_port: Option<u16>,
    #[serde(default)]
    pub scheme: ServiceScheme,
    /// What comes before the provider's own path, for example `/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = r"^/[A-Za-z0-9._~/-]*$"))]
    pub path: Option<String>,
    /// Labels of the model's pods.
    #[schemars(schema_with = "labels_schema")]
    #[x_kube(
        validation = Rule::new("self.size() > 0")
            .message("podSelector must name a label of the model's pods: none would mean every pod there"),
        validation = Rule::new("self.all(key, key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))")
            .message("a key of podSelector is not the name of a label"),
    )]
    pub pod_selector: BTreeMap<String, String>,
}

/// How a model in the cluster is spoken to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ServiceScheme {
    #[default]
    Http,
    Https,
}

impl ServiceScheme {
    /// As it stands before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl ModelServiceSpec {
    /// The address that workers call.
    pub fn base_url(&self) -> String {
        let Self { namespace, name, port, scheme, path, .. } = self;
        format!("{}://{name}.{namespace}.svc:{port}{}", scheme.as_str(), path.as_deref().unwrap_or_default())
    }

    /// The port that its pods listen on.
    pub fn pod_port(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// A Secret in the tenant's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    #[x_kube(
        validation = Rule::new("!(self in ['worker-tls', 'platform-keys', 'pull-credentials'])")
            .message("worker-tls, platform-keys and pull-credentials are Croft's own Secrets: put the tokens into one of yours"),
    )]
    pub name: String,
}

/// One key of a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    #[x_kube(
        validation = Rule::new("!(self in ['worker-tls', 'platform-keys', 'pull-credentials'])")
            .message("worker-tls, platform-keys and pull-credentials are Croft's own Secrets: put the key into one of yours"),
    )]
    pub name: String,
    /// The key within it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}
