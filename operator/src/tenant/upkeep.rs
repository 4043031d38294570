//! Keeps up what a tenant has whose spec is not usable, until someone mends it: workers whose certificate ran out could not be reached, and
//! a key that was taken back must not stay. All else is as it was last applied. Of what is new in the spec the rest waits, but for what it says
//! of providers and servers whose keys the workers have: the file of those is made anew with the keys.

use croft_crds::{AgentTenant, labels};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use serde_json::json;

use super::mounts::Mounts;
use super::observe::{self, Observed};
use super::platform_keys::{self, PlatformKeys};
use super::pull_credentials::{self, PullCredentials};
use super::wanted::Wanted;
use super::{Error, apply, certificate, ensure, providers, tls, workers};
use crate::cluster::is_owned;
use crate::context::Context;

/// All that is kept up.
struct Upkeep {
    tls: Secret,
    pull_credentials: Option<PullCredentials>,
    providers: ConfigMap,
    platform_keys: Option<PlatformKeys>,
    config_hash: String,
}

/// Does nothing for a tenant without workers: they are made when its spec can be used.
pub(super) async fn keep_up(tenant: &AgentTenant, observed: &Observed, context: &Context) -> Result<(), Error> {
    let namespace = tenant.namespace_name();
    let live = observe::latest::<Deployment>(&namespace, workers::NAME, context).await?;
    let Some(live) = live.filter(|live| is_owned(&**live, tenant)) else { return Ok(()) };
    let Upkeep { tls, pull_credentials, providers, platform_keys, config_hash } =
        plan(tenant, &live, observed, context)?;
    let (certificate, providers, pull) = tokio::join!(
        ensure::ensure(tls, context),
        apply::ensure_providers(providers, platform_keys.as_ref(), context),
        apply::ensure_pull_credentials(pull_credentials.as_ref(), context),
    );
    certificate?;
    providers?;
    pull?;
    roll_out(&live, &config_hash, context).await?;
    // Last, as the workers had it mounted until now.
    if platform_keys.is_none() {
        apply::remove_copy(tenant, platform_keys::NAME, context).await?;
    }
    if pull_credentials.is_none() {
        apply::remove_copy(tenant, pull_credentials::NAME, context).await?;
    }
    Ok(())
}

/// Of providers and MCP servers only those stay whose Secrets the workers have where the spec wants them: a key that comes anew is mounted
/// with the rest of the spec, and one must never be taken for another.
fn plan(tenant: &AgentTenant, live: &Deployment, observed: &Observed, context: &Context) -> Result<Upkeep, Error> {
    let mut wanted = Wanted::unchecked(tenant, &observed.keys, &context.settings)?;
    let mounts = Mounts::of(live);
    wanted.providers.retain(|provider| mounts.serve(provider));
    wanted.mcp_servers.retain(|server| mounts.serve_mcp(server));
    let issued = certificate(&wanted, observed, &context.authority, context.now())?;
    Ok(Upkeep {
        tls: tls::tls(&wanted, &context.authority, &issued),
        pull_credentials: pull_credentials::pull_credentials(&wanted, &observed.pull_sources),
        providers: providers::providers(&wanted),
        platform_keys: platform_keys::platform_keys(&wanted),
        config_hash: workers::config_hash(&wanted, &issued),
    })
}

/// Workers read certificate and providers at their start. Nothing else of their Deployment changes, so that a rollout needs no more room
/// than the last one did.
async fn roll_out(live: &Deployment, config_hash: &str, context: &Context) -> Result<(), Error> {
    let template = live.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let annotations = template.and_then(|metadata| metadata.annotations.as_ref());
    if annotations.and_then(|annotations| annotations.get(labels::CONFIG_HASH)).is_some_and(|hash| hash == config_hash)
    {
        return Ok(());
    }
    let rolled = json!({
        "metadata": { "uid": live.uid() },
        "spec": { "template": { "metadata": { "annotations": { labels::CONFIG_HASH: config_hash } } } },
    });
    let written = context.writer.merge::<Deployment>(live.namespace().as_deref(), workers::NAME, &rolled).await;
    written.map(drop).map_err(ensure::failed::<Deployment>(workers::NAME))
}
