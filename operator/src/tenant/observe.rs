//! What a pass reads before it decides. Nearly all of it is in the warm copies.

use std::sync::Arc;

use croft_crds::AgentTenant;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::ResourceExt as _;
use kube::api::Api;

use super::wanted::KeyVersions;
use super::{Error, tls};
use crate::cluster::{child_key, is_owned};
use crate::context::Context;

/// What was there.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// The namespace exists and is this tenant's.
    pub(super) has_namespace: bool,
    /// The workers' certificate.
    pub(super) tls: Option<Arc<Secret>>,
    /// Keys that the spec refers to and that are there.
    pub(super) keys: KeyVersions,
}

impl Observed {
    /// Keys that the spec refers to and that are not there, as `secret/key`.
    pub(super) fn missing_keys(&self, tenant: &AgentTenant) -> Vec<String> {
        let references = tenant.spec.llm.providers.iter().filter_map(|provider| provider.api_key_secret_ref.as_ref());
        let missing = references.filter(|reference| !self.keys.contains_key(reference));
        missing.map(|reference| format!("{}/{}", reference.name, reference.key)).collect()
    }
}

/// Fails if the namespace is someone else's, or on its way out.
pub(super) async fn observe(tenant: &AgentTenant, context: &Context) -> Result<Observed, Error> {
    let name = tenant.namespace_name();
    let Some(namespace) = namespace(&name, context).await? else {
        return Ok(Observed::default());
    };
    if !is_owned(&*namespace, tenant) {
        return Err(Error::NamespaceTaken { name });
    }
    if namespace.metadata.deletion_timestamp.is_some() {
        return Err(Error::NamespaceEnding { name });
    }
    let tls = tls_secret(&name, context).await?;
    Ok(Observed { has_namespace: true, tls, keys: keys(tenant, context).await? })
}

/// The namespace of that name, whoever made it. One that isn't labelled as ours is not in the copies, so the API server
/// is asked.
pub(super) async fn namespace(name: &str, context: &Context) -> Result<Option<Arc<Namespace>>, Error> {
    if let Some(namespace) = context.cluster.get::<Namespace>(None, name) {
        return Ok(Some(namespace));
    }
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found =
        namespaces.get_opt(name).await.map_err(|source| Error::Read { what: format!("namespace {name}"), source });
    Ok(found?.map(Arc::new))
}

/// A certificate that we made a moment ago may not be in the copies yet. Another one would restart every worker.
async fn tls_secret(namespace: &str, context: &Context) -> Result<Option<Arc<Secret>>, Error> {
    let cached = context.cluster.get::<Secret>(Some(namespace), tls::NAME);
    let placeholder = Secret {
        metadata: kube::api::ObjectMeta {
            name: Some(tls::NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..kube::api::ObjectMeta::default()
        },
        ..Secret::default()
    };
    let version = cached.as_ref().and_then(|secret| secret.resource_version());
    if context.cluster.applied.newer_than(&child_key(&placeholder), version.as_deref()).is_none() {
        return Ok(cached);
    }
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let what = || format!("secret {namespace}/{}", tls::NAME);
    let found = secrets.get_opt(tls::NAME).await.map_err(|source| Error::Read { what: what(), source })?;
    Ok(found.map(Arc::new))
}

/// The keys are looked for and dropped: no copy of them stays here.
async fn keys(tenant: &AgentTenant, context: &Context) -> Result<KeyVersions, Error> {
    let namespace = tenant.namespace_name();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let mut there = KeyVersions::new();
    for reference in tenant.spec.llm.providers.iter().filter_map(|provider| provider.api_key_secret_ref.as_ref()) {
        let what = || format!("secret {namespace}/{}", reference.name);
        let found = secrets.get_opt(&reference.name).await.map_err(|source| Error::Read { what: what(), source })?;
        let holds_key = |secret: &Secret| secret.data.as_ref().is_some_and(|data| data.contains_key(&reference.key));
        if let Some(secret) = found.filter(holds_key) {
            there.insert(reference.clone(), secret.resource_version().unwrap_or_default());
        }
    }
    Ok(there)
}
