//! Keeps up what a tenant has whose spec is not usable, until someone mends it. Workers whose certificate ran out could not be reached. What
//! was taken back must not stay: a key, an owner's rights, a range where the ranges themselves are usable. Of providers and servers nothing
//! new is taken up, neither an address: the fence need not let workers go there. All else is as it was last applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use croft_crds::{AgentTenant, labels};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt as _;
use serde_json::json;
use tokio::time::Instant;

use super::mounts::Mounts;
use super::observe::{self, Observed};
use super::part::Part;
use super::providers::{Entry, File};
use super::wanted::{Keys, Provider, Wanted, check_ranges};
use super::{
    Error, apply, certificate, ensure, fence, in_time, owners, platform_keys, providers, pull_credentials, tls, workers,
};
use crate::cluster::{Kept, is_owned};
use crate::context::Context;

/// The parts that were looked after, and how that went.
pub(super) type KeptUp = BTreeMap<Part, Result<(), Error>>;

/// Does nothing for a tenant without a namespace, and of the workers' nothing where there are none: they are made when the spec can be used.
/// No part waits for the owners or for the fence. Each is given up at `ends`, for itself: so what is told is which one hung, beside what is
/// wrong with the spec.
pub(super) async fn keep_up(ends: Instant, tenant: &AgentTenant, observed: &Observed, context: &Context) -> KeptUp {
    // One that was never stored has nothing.
    let Ok(wanted) = Wanted::unchecked(tenant, &observed.keys, &context.settings) else { return KeptUp::new() };
    if !observed.has_namespace {
        return KeptUp::new();
    }
    let (role, binding) = (owners::role(&wanted), owners::role_binding(&wanted));
    let owners = in_time(ends, apply::ensure_owners(tenant, role, binding, context), context);
    let rest = keep_fence_and_workers_up(ends, tenant, wanted, observed, context);
    let (owners, mut kept_up) = tokio::join!(owners, rest);
    kept_up.insert(Part::Owners, owners);
    kept_up
}

/// The owners of a tenant whose workers can't be stopped, which holds up all else of it. Nothing where there is no namespace to have
/// rights in.
pub(super) async fn keep_owners_up(
    ends: Instant,
    tenant: &AgentTenant,
    context: &Context,
) -> Option<Result<(), Error>> {
    let namespace = context.cluster.get::<Namespace>(None, &tenant.namespace_name())?;
    if !is_owned(&*namespace, tenant) || namespace.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let wanted = Wanted::unchecked(tenant, &Keys::new(), &context.settings).ok()?;
    let (role, binding) = (owners::role(&wanted), owners::role_binding(&wanted));
    Some(in_time(ends, apply::ensure_owners(tenant, role, binding, context), context).await)
}

async fn keep_fence_and_workers_up(
    ends: Instant,
    tenant: &AgentTenant,
    mut wanted: Wanted,
    observed: &Observed,
    context: &Context,
) -> KeptUp {
    let deployment = match in_time(ends, live::<Deployment>(tenant, workers::NAME, context), context).await {
        Ok(deployment) => deployment,
        Err(error) => return KeptUp::from([(Part::Workers, Err(error))]),
    };
    let there = match in_time(ends, live::<ConfigMap>(tenant, providers::NAME, context), context).await {
        Ok(there) => there,
        Err(error) => return KeptUp::from([(Part::Providers, Err(error))]),
    };
    let there = there.as_deref().and_then(providers::read).map(|(text, file)| (text.to_owned(), file));
    let (text, mut file) = there.unwrap_or_else(|| (File::default().text(), File::default()));
    let mounts = deployment.as_deref().map(Mounts::of).unwrap_or_default();
    let changed = keep_entries(&mut file, &mut wanted, &mounts);
    let is_fenceable = check_ranges(tenant).is_ok() && models_are_where_they_were(&file, &wanted);
    let fence = async {
        if !is_fenceable {
            return None;
        }
        Some(in_time(ends, ensure::ensure(fence::fence(&wanted), context), context).await)
    };
    let workers = async {
        let Some(deployment) = deployment else { return KeptUp::new() };
        let text = if changed { file.text() } else { text };
        Box::pin(keep_workers_up(ends, tenant, &deployment, &wanted, text, observed, context)).await
    };
    let (fence, mut kept_up) = tokio::join!(fence, workers);
    kept_up.extend(fence.map(|fence| (Part::Fence, fence)));
    kept_up
}

async fn live<K>(tenant: &AgentTenant, name: &str, context: &Context) -> Result<Option<Arc<K>>, Error>
where
    K: Kept + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    let live = observe::latest::<K>(&tenant.namespace_name(), name, context).await?;
    Ok(live.filter(|live| is_owned(&**live, tenant)))
}

/// Takes out of the file, and out of what is wanted, whom the spec no longer names, whose key is not there, or whose Secrets the workers
/// don't have where the spec wants them: a key that comes anew is mounted with the rest of the spec, and one must never be taken for another.
/// Says whether the file is another now.
fn keep_entries(file: &mut File, wanted: &mut Wanted, mounts: &Mounts) -> bool {
    let text = file.text();
    // Of what is lent all is the platform's word, and none the spec's: it moves with the platform, and comes back.
    let is_lent = |provider: &&Provider| provider.key.as_ref().is_some_and(|key| key.lent_from.is_some());
    for provider in wanted.providers.iter().filter(is_lent).filter(|provider| mounts.have_key(provider)) {
        let Entry { base_url, api_key_file, api } = Entry::of(provider);
        let fresh = Entry { api, ..Entry::default() };
        let entry = file.providers.entry(provider.name.as_str().to_owned()).or_insert(fresh);
        (entry.base_url, entry.api_key_file) = (base_url, api_key_file);
    }
    file.providers.retain(|name, entry| {
        let provider = wanted.providers.iter().find(|provider| provider.name.as_str() == name);
        provider.is_some_and(|provider| entry.api_key_file.is_none() || mounts.have_key(provider))
    });
    file.mcp_servers.retain(|there| {
        let server = wanted.mcp_servers.iter().find(|server| server.name == there.name);
        server.is_some_and(|server| {
            (there.token_file.is_none() || mounts.have_token(server))
                && (there.user_tokens_folder.is_none() || mounts.have_user_tokens(server))
        })
    });
    wanted.providers.retain_mut(|provider| {
        if !mounts.have_key(provider) {
            provider.key = None;
        }
        file.providers.contains_key(provider.name.as_str())
    });
    file.text() != text
}

/// Whether a fence that is built of the spec lets the workers reach the models of the cluster that the file names.
fn models_are_where_they_were(file: &File, wanted: &Wanted) -> bool {
    wanted.providers.iter().all(|provider| {
        let there = file.providers.get(provider.name.as_str()).and_then(|entry| entry.base_url.as_deref());
        let in_cluster = there.is_some_and(|url| url.contains(".svc:"));
        !in_cluster || there == provider.base_url.as_deref()
    })
}

async fn keep_workers_up(
    ends: Instant,
    tenant: &AgentTenant,
    live: &Deployment,
    wanted: &Wanted,
    text: String,
    observed: &Observed,
    context: &Context,
) -> KeptUp {
    let issued = match certificate(wanted, observed, &context.authority, context.now()) {
        Ok(issued) => issued,
        Err(error) => return KeptUp::from([(Part::Certificate, Err(error.into()))]),
    };
    let config_hash = workers::config_hash(&text, &issued);
    let platform_keys = platform_keys::platform_keys(wanted);
    let pull_credentials = pull_credentials::pull_credentials(wanted, &observed.pull_sources);
    let providers = providers::config_map(wanted, text);
    let (certificate, mut providers, mut workers) = tokio::join!(
        in_time(ends, ensure::ensure(tls::tls(wanted, &context.authority, &issued), context), context),
        in_time(ends, apply::ensure_providers(providers, platform_keys.as_ref(), context), context),
        in_time(ends, apply::ensure_pull_credentials(pull_credentials.as_ref(), context), context),
    );
    if workers.is_ok() && certificate.is_ok() && providers.is_ok() {
        workers = in_time(ends, roll_out(live, &config_hash, context), context).await;
        // Last, as the workers had it mounted until now.
        if workers.is_ok() && platform_keys.is_none() {
            providers = in_time(ends, apply::remove_copy(tenant, platform_keys::NAME, context), context).await;
        }
        if workers.is_ok() && pull_credentials.is_none() {
            workers = in_time(ends, apply::remove_copy(tenant, pull_credentials::NAME, context), context).await;
        }
    }
    KeptUp::from([(Part::Certificate, certificate), (Part::Providers, providers), (Part::Workers, workers)])
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
    let written = written.map_err(ensure::failed::<Deployment>(workers::NAME))?;
    // As no spec wants it: when it is mended, all of it is applied.
    let noted = format!("kept up {config_hash}");
    context.cluster.remember(live, written.resource_version.as_deref(), noted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Issued;
    use crate::tenant::fixtures;

    fn unchecked(tenant: &AgentTenant) -> Wanted {
        Wanted::unchecked(tenant, &fixtures::keys_of(tenant), &fixtures::settings()).unwrap()
    }

    /// What is left of the file and what is wanted when `before`, which is applied, is edited to `after`.
    fn kept(before: &AgentTenant, after: &AgentTenant) -> (File, Wanted) {
        let (applied, mut wanted) = (unchecked(before), unchecked(after));
        let issued = Issued { cert: "the certificate".to_owned(), key: "the key".to_owned() };
        let mut file = providers::file(&applied);
        let changed = keep_entries(&mut file, &mut wanted, &Mounts::of(&workers::workers(&applied, &issued)));
        assert_eq!(changed, file != providers::file(&applied));
        (file, wanted)
    }

    #[test]
    fn who_has_no_key_stays_whatever_key_it_shall_have_and_who_has_one_goes_with_its_place() {
        let before = fixtures::full();
        let mut after = before.clone();
        let token = after.spec.mcp_servers[0].token_secret_ref.take();
        after.spec.mcp_servers[1].token_secret_ref = token;
        let file = kept(&before, &after).0;
        assert_eq!(file.providers, providers::file(&unchecked(&before)).providers);
        let names: Vec<_> = file.mcp_servers.iter().map(|server| server.name.as_str()).collect();
        assert_eq!(names, ["maps", "mail"], "the first shall have no token any more");
        assert_eq!(file.mcp_servers[0].token_file, None);

        after.spec.llm.providers[0].api_key_secret_ref.as_mut().unwrap().name = "another".to_owned();
        let (file, wanted) = kept(&before, &after);
        assert!(file.providers.is_empty() && wanted.providers.is_empty());
    }

    #[test]
    fn a_fence_waits_where_a_model_of_the_cluster_has_moved() {
        let before = fixtures::in_cluster();
        let mut after = before.clone();
        let (file, wanted) = kept(&before, &after);
        assert!(models_are_where_they_were(&file, &wanted));
        after.spec.llm.providers[0].service.as_mut().unwrap().name = "another".to_owned();
        let (file, wanted) = kept(&before, &after);
        assert_eq!(file, providers::file(&unchecked(&before)));
        assert!(!models_are_where_they_were(&file, &wanted));
        after.spec.llm.providers.clear();
        let (file, wanted) = kept(&before, &after);
        assert!(
            file.providers.is_empty() && models_are_where_they_were(&file, &wanted),
            "it is gone, and so is the way there"
        );
    }
}
