//! What a pass reads before it decides. Nearly all of it is in the warm copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use croft_crds::AgentTenant;
use croft_crds::tenant::{ProviderSource, ProviderSpec};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::Api;
use kube::{Resource, ResourceExt as _};

use super::wanted::{Key, Keys};
use super::{Error, finalizer, health, tls, workers};
use crate::certificate::Subject;
use crate::cluster::{Kept, is_owned, key_of};
use crate::context::Context;
use crate::keyring::Print;
use crate::rollouts::Waiting;
use crate::secrets::SecretId;
use crate::worker::Problem;

/// What was there.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// The namespace exists and is this tenant's. Of a tenant that no pass has begun with, nobody has looked beyond the copies: its
    /// creation will tell.
    pub(super) has_namespace: bool,
    /// As the workers are, one has to go before another one comes.
    pub(super) must_make_room: bool,
    /// Why the workers are not exchanged yet for those that the platform wants.
    pub(super) waiting: Option<Waiting>,
    /// The workers' certificate.
    pub(super) tls: Option<Arc<Secret>>,
    /// What was found of each provider's key.
    pub(super) keys: Keys,
    /// Which of the platform's pull secrets are there, with the version of each.
    pub(super) pull_sources: BTreeMap<String, String>,
}

impl Observed {
    /// What is wrong with the keys, in the order of the spec's providers.
    pub(super) fn key_problems(&self) -> impl Iterator<Item = &Problem> {
        self.keys.values().filter_map(|key| match key {
            Key::Missing(problem) => Some(problem),
            Key::There(_) | Key::NotNeeded => None,
        })
    }
}

/// Fails if the namespace is someone else's, or on its way out.
pub(super) async fn observe(tenant: &AgentTenant, context: &Context) -> Result<Observed, Error> {
    let name = tenant.namespace_name();
    let namespace = if finalizer::is_there(tenant, context) {
        namespace(&name, context).await?
    } else {
        context.cluster.get::<Namespace>(None, &name)
    };
    if let Some(namespace) = &namespace {
        if !is_owned(&**namespace, tenant) {
            return Err(Error::NamespaceTaken { name });
        }
        if namespace.metadata.deletion_timestamp.is_some() {
            return Err(Error::NamespaceEnding { name });
        }
    }
    let tls = if namespace.is_some() { certificate(tenant, &name, context).await? } else { None };
    let keys = keys(tenant, context).await?;
    let workers = context.cluster.get::<Deployment>(Some(&name), workers::NAME);
    let must_make_room = workers.is_some_and(|live| is_owned(&*live, tenant) && health::must_make_room(&live));
    let pull_sources = pull_sources(context);
    Ok(Observed { has_namespace: namespace.is_some(), must_make_room, waiting: None, tls, keys, pull_sources })
}

/// The workers' certificate. Another one restarts every worker, so before it is made, the API server has the last word on that there is
/// none, or none that holds: the copies may not know of one that was made since.
async fn certificate(tenant: &AgentTenant, namespace: &str, context: &Context) -> Result<Option<Arc<Secret>>, Error> {
    let subject = Subject::workers(&tenant.name_any(), namespace);
    let known = latest::<Secret>(namespace, tls::NAME, context).await?;
    let holds = |secret: &Secret| tls::holding(secret, &subject, &context.authority, context.now()).is_some();
    if known.as_deref().is_some_and(holds) { Ok(known) } else { read(namespace, tls::NAME, context).await }
}

fn pull_sources(context: &Context) -> BTreeMap<String, String> {
    let names = context.settings.worker_pull_secrets.iter();
    let version =
        |name: &String| context.keyring.secrets().version(&(context.settings.namespace.clone(), name.clone()));
    names.filter_map(|name| Some((name.clone(), version(name)?))).collect()
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

/// A child as it is, also if we made it a moment ago and the copies can't have it yet.
pub(super) async fn latest<K>(namespace: &str, name: &str, context: &Context) -> Result<Option<Arc<K>>, Error>
where
    K: Kept + Resource<Scope = NamespaceResourceScope>,
{
    let cached = context.cluster.get::<K>(Some(namespace), name);
    let version = cached.as_ref().and_then(|child| child.resource_version());
    if context.cluster.applied.newer_than(&key_of::<K>(namespace, name), version.as_deref()).is_none() {
        return Ok(cached);
    }
    read(namespace, name, context).await
}

/// A child as the API server has it.
pub(super) async fn read<K>(namespace: &str, name: &str, context: &Context) -> Result<Option<Arc<K>>, Error>
where
    K: Kept + Resource<Scope = NamespaceResourceScope>,
{
    let children: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let what = || format!("{} {namespace}/{name}", K::kind(&()));
    let found = children.get_opt(name).await.map_err(|source| Error::Read { what: what(), source })?;
    Ok(found.map(Arc::new))
}

async fn keys(tenant: &AgentTenant, context: &Context) -> Result<Keys, Error> {
    let mut keys = Keys::new();
    for provider in &tenant.spec.llm.providers {
        keys.insert(provider.name, key(tenant, provider, context).await?);
    }
    Ok(keys)
}

/// Looks for one provider's key. Whose it is decides what the tenant is told: where the platform's lies is not its
/// business.
async fn key(tenant: &AgentTenant, provider: &ProviderSpec, context: &Context) -> Result<Key, Error> {
    let name = provider.name.as_str();
    if provider.source == ProviderSource::Platform {
        let Some(lent) = context.settings.platform.get(provider.name) else {
            let message = format!("the platform lends no key for {name}");
            return Ok(Key::Missing(Problem { reason: "PlatformKeyMissing", message }));
        };
        let id = (context.settings.namespace.clone(), lent.secret_name.clone());
        return Ok(match print(&id, &lent.key, context).await? {
            Some(Print::Usable(fingerprint)) => Key::There(fingerprint),
            Some(Print::Unusable) => {
                let message = format!("the platform's key for {name} is not one line of printable ASCII");
                Key::Missing(Problem { reason: "PlatformKeyMissing", message })
            }
            None => {
                let message = format!("the platform's key for {name} is not there");
                Key::Missing(Problem { reason: "PlatformKeyMissing", message })
            }
        });
    }
    let Some(reference) = &provider.api_key_secret_ref else { return Ok(Key::NotNeeded) };
    let id = (tenant.namespace_name(), reference.name.clone());
    let (namespace, secret, entry) = (&id.0, &reference.name, &reference.key);
    Ok(match print(&id, entry, context).await? {
        Some(Print::Usable(fingerprint)) => Key::There(fingerprint),
        Some(Print::Unusable) => {
            let message = format!("{secret}/{entry} in namespace {namespace} is not one line of printable ASCII");
            Key::Missing(Problem { reason: "KeyUnusable", message })
        }
        None => {
            let message = format!("namespace {namespace} lacks {secret}/{entry}");
            Key::Missing(Problem { reason: "KeysMissing", message })
        }
    })
}

async fn print(id: &SecretId, entry: &str, context: &Context) -> Result<Option<Print>, Error> {
    let what = || format!("secret {}/{}", id.0, id.1);
    let prints = context.keyring.prints(id).await.map_err(|source| Error::Read { what: what(), source })?;
    Ok(prints.and_then(|prints| prints.get(entry).cloned()))
}
