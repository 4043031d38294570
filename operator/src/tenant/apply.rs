//! Writes the children that are not as they shall be, and only those: a pass that changes nothing writes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use croft_crds::{AgentTenant, labels};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Resource, ResourceExt as _};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::observe::{self, Observed};
use super::part::{Failure, Part};
use super::platform_keys::{self, PlatformKeys};
use super::pull_credentials::{self, PullCredentials};
use super::{Children, Error, ensure, finalizer, in_time, owners};
use crate::cluster::{Kept, child_key, is_owned};
use crate::context::Context;
use crate::drift;
use crate::keyring::{Print, Prints};
use crate::secrets::SecretId;

/// The namespace first, as all else is in it; workers last, so that there is a fence before there is anything to fence, and as workers
/// mount what comes before them. What lies between is written at the same time. The first failure, in the
/// order of [`Part`], ends the pass once all that was begun with it has ended too. The owners are nothing to all of these: neither waits
/// for the other, and what they wait for is given up at `ends`, after which the rest can be told.
pub(super) async fn apply(
    tenant: &AgentTenant,
    children: Children,
    workers: Exchange,
    observed: &Observed,
    ends: Instant,
    context: &Context,
) -> Result<(), Failure> {
    let Children {
        namespace,
        fence,
        quota,
        limit_range,
        service_account,
        owner_role,
        owner_binding,
        providers,
        platform_keys,
        pull_credentials,
        tls,
        workers_service,
        disruption_budget,
    } = children;
    finalizer::ensure(tenant, context).await?;
    if observed.has_namespace {
        ensure::ensure(namespace, context).await.map_err(Part::Namespace.failed())?;
    } else {
        ensure::create_namespace(tenant, namespace, context).await.map_err(Part::Namespace.failed())?;
    }
    let owners = in_time(ends, ensure_owners(tenant, owner_role, owner_binding, context), context);
    let rest = async {
        let (fence, quota, limit_range, identity, certificate, providers, pull, service, budget) = tokio::join!(
            ensure::ensure(fence, context),
            ensure::ensure(quota, context),
            ensure::ensure(limit_range, context),
            ensure::ensure(service_account, context),
            ensure::ensure(tls, context),
            ensure_providers(providers, platform_keys.as_ref(), context),
            ensure_pull_credentials(pull_credentials.as_ref(), context),
            ensure::ensure(workers_service, context),
            ensure::ensure(disruption_budget, context),
        );
        fence.map_err(Part::Fence.failed())?;
        quota.map_err(Part::Quota.failed())?;
        limit_range.map_err(Part::LimitRange.failed())?;
        identity.map_err(Part::Identity.failed())?;
        certificate.map_err(Part::Certificate.failed())?;
        providers.map_err(Part::Providers.failed())?;
        pull.map_err(Part::Workers.failed())?;
        service.map_err(Part::Workers.failed())?;
        budget.map_err(Part::Workers.failed())?;
        let are_as_wanted = match workers {
            Exchange::Now(workers) => {
                ensure::ensure(*workers, context).await.map_err(Part::Workers.failed())?;
                context.cluster.rollouts.note_begun(&tenant.name_any());
                true
            }
            Exchange::Waits(held) => {
                held.keep_up(context).await.map_err(Part::Workers.failed())?;
                false
            }
        };
        // Last, as the workers had it mounted until now. Those that wait start without it too.
        if platform_keys.is_none() {
            remove_copy(tenant, platform_keys::NAME, context).await.map_err(Part::Providers.failed())?;
        }
        if pull_credentials.is_none() && are_as_wanted {
            remove_copy(tenant, pull_credentials::NAME, context).await.map_err(Part::Workers.failed())?;
        }
        Ok(())
    };
    let (owners, rest): (_, Result<(), Failure>) = tokio::join!(owners, rest);
    rest?;
    owners.map_err(Part::Owners.failed())
}

/// The binding goes before its Role does, and comes after it.
pub(super) async fn ensure_owners(
    tenant: &AgentTenant,
    role: Option<Role>,
    binding: Option<RoleBinding>,
    context: &Context,
) -> Result<(), Error> {
    match role {
        Some(role) => ensure::ensure(role, context).await?,
        None => remove::<RoleBinding>(tenant, owners::NAME, context).await?,
    }
    match binding {
        Some(binding) => ensure::ensure(binding, context).await,
        None => remove::<Role>(tenant, owners::NAME, context).await,
    }
}

pub(super) async fn ensure_providers(
    providers: ConfigMap,
    platform_keys: Option<&PlatformKeys>,
    context: &Context,
) -> Result<(), Error> {
    ensure::ensure(providers, context).await?;
    match platform_keys {
        Some(keys) => ensure_platform_keys(keys, context).await,
        None => Ok(()),
    }
}

/// Takes away a child that is no longer wanted, if it is there and this tenant's. One that was made a moment ago too, of which the copies
/// know nothing yet: the watch's word of our own write wakes nobody.
async fn remove<K>(tenant: &AgentTenant, name: &str, context: &Context) -> Result<(), Error>
where
    K: Kept + Resource<Scope = NamespaceResourceScope>,
{
    let namespace = tenant.namespace_name();
    let live = observe::latest::<K>(&namespace, name, context).await?;
    let Some(live) = live.filter(|live| is_owned(&**live, tenant)) else { return Ok(()) };
    let deleted = context.writer.delete::<K>(Some(&namespace), name, &live.uid().unwrap_or_default()).await;
    deleted.map_err(|source| Error::Delete { kind: K::kind(&()).into_owned(), name: name.to_owned(), source })
}

/// Like [`ensure::ensure`], but compares fingerprints: of the platform's keys no copy is kept.
async fn ensure_platform_keys(wanted: &PlatformKeys, context: &Context) -> Result<(), Error> {
    let mut secret = wanted.secret.clone();
    let id: SecretId = (secret.namespace().unwrap_or_default(), platform_keys::NAME.to_owned());
    let prints: Prints =
        wanted.entries.iter().map(|(entry, lent)| (entry.clone(), Print::Usable(lent.fingerprint.clone()))).collect();
    let fingerprints: BTreeMap<_, _> = wanted.entries.iter().map(|(entry, lent)| (entry, &lent.fingerprint)).collect();
    let hash = drift::hash(&(&secret, fingerprints));
    secret.annotations_mut().insert(labels::APPLIED_HASH.to_owned(), hash.clone());
    let live = context.keyring.secrets().own(&id);
    let version = live.as_ref().and_then(|live| live.resource_version());
    let as_wanted = match context.cluster.applied.newer_than(&child_key(&secret), version.as_deref()) {
        Some(applied) => applied.hash == hash,
        None => match live {
            Some(live) if drift::covers(&live.metadata, &secret.metadata) => {
                let found = context.keyring.prints(&id).await;
                let what = || format!("secret {}/{}", id.0, id.1);
                found.map_err(|source| Error::Read { what: what(), source })?.is_some_and(|found| *found == prints)
            }
            _ => false,
        },
    };
    if as_wanted {
        return Ok(());
    }
    let mut keys = BTreeMap::new();
    for (entry, lent) in &wanted.entries {
        let from = (context.settings.namespace.clone(), lent.from.name.clone());
        let key = context.keyring.value(&from, &lent.from.key).await;
        let key = key.map_err(|source| Error::Read { what: "the platform's keys".to_owned(), source })?;
        // It has just gone or changed. The watch of Secrets says so too, and the pass that follows plans anew.
        let key = key.filter(|key| context.keyring.print_of(key) == Print::Usable(lent.fingerprint.clone()));
        let Some(key) = key else { return Ok(()) };
        keys.insert(entry.clone(), key);
    }
    let filled = platform_keys::filled(&secret, &keys);
    let applied = context.writer.apply(&filled).await;
    platform_keys::wipe(filled);
    let applied = applied.map_err(ensure::failed::<Secret>(platform_keys::NAME))?;
    ensure::remember(&secret, &applied, hash, context);
    context.keyring.remember(id, applied.resource_version.unwrap_or_default(), Arc::new(prints));
    Ok(())
}

/// Like [`ensure::ensure`], but compares the sources' versions. What is in the copy is not looked at: nobody but the operator may
/// change it.
pub(super) async fn ensure_pull_credentials(wanted: Option<&PullCredentials>, context: &Context) -> Result<(), Error> {
    let Some(PullCredentials { secret, sources }) = wanted else { return Ok(()) };
    let mut secret = secret.clone();
    let id: SecretId = (secret.namespace().unwrap_or_default(), pull_credentials::NAME.to_owned());
    let hash = drift::hash(&(&secret, sources));
    secret.annotations_mut().insert(labels::APPLIED_HASH.to_owned(), hash.clone());
    let live = context.keyring.secrets().own(&id);
    let version = live.as_ref().and_then(|live| live.resource_version());
    let as_wanted = match context.cluster.applied.newer_than(&child_key(&secret), version.as_deref()) {
        Some(applied) => applied.hash == hash,
        None => live.is_some_and(|live| drift::covers(&live.metadata, &secret.metadata)),
    };
    if as_wanted {
        return Ok(());
    }
    let mut found = Vec::new();
    for source in sources.keys() {
        let from = (context.settings.namespace.clone(), source.clone());
        let read = context.keyring.value(&from, pull_credentials::ENTRY).await;
        let failed = |error| Error::Read { what: "the platform's pull secrets".to_owned(), source: error };
        found.extend(read.map_err(failed)?);
    }
    let filled = pull_credentials::filled(&secret, &found);
    let applied = context.writer.apply(&filled).await;
    platform_keys::wipe(filled);
    let applied = applied.map_err(ensure::failed::<Secret>(pull_credentials::NAME))?;
    ensure::remember(&secret, &applied, hash, context);
    Ok(())
}

/// Takes away what was copied from the platform's Secrets, and of which no copy is kept here.
pub(super) async fn remove_copy(tenant: &AgentTenant, name: &str, context: &Context) -> Result<(), Error> {
    let id: SecretId = (tenant.namespace_name(), name.to_owned());
    let Some(live) = context.keyring.secrets().own(&id).filter(|live| is_owned(&**live, tenant)) else {
        return Ok(());
    };
    let deleted = context.writer.delete::<Secret>(Some(&id.0), &id.1, &live.uid().unwrap_or_default()).await;
    deleted.map_err(|source| Error::Delete { kind: "Secret".to_owned(), name: id.1, source })
}
