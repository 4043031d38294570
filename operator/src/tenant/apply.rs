//! Writes the children that are not as they shall be, and only those: a pass that changes nothing writes nothing.

use std::sync::Arc;

use croft_crds::{AgentTenant, labels};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use serde_json::json;

use super::observe::Observed;
use super::{Children, Error};
use crate::cluster::{Kept, child_key};
use crate::context::Context;
use crate::drift;
use crate::writes::Object;

/// In this order, so that there is a fence before there is anything to fence. The first failure ends the pass.
pub(super) async fn apply(
    tenant: &AgentTenant,
    children: Children,
    observed: &Observed,
    context: &Context,
) -> Result<(), Error> {
    let Children {
        namespace,
        fence,
        quota,
        limit_range,
        service_account,
        providers,
        tls,
        workers,
        workers_service,
        disruption_budget,
    } = children;
    ensure_finalizer(tenant, context).await?;
    if observed.has_namespace {
        ensure(namespace, context).await?;
    } else {
        create_namespace(namespace, context).await?;
    }
    ensure(fence, context).await?;
    ensure(quota, context).await?;
    ensure(limit_range, context).await?;
    ensure(service_account, context).await?;
    ensure(providers, context).await?;
    ensure(tls, context).await?;
    ensure(workers_service, context).await?;
    ensure(disruption_budget, context).await?;
    ensure(workers, context).await
}

/// Before anything is made, so that nothing is left when the tenant goes.
async fn ensure_finalizer(tenant: &AgentTenant, context: &Context) -> Result<(), Error> {
    let key = child_key(tenant);
    let version = tenant.resource_version();
    let is_written = context.cluster.applied.newer_than(&key, version.as_deref()).is_some();
    if is_written || tenant.finalizers().iter().any(|finalizer| finalizer == labels::FINALIZER) {
        return Ok(());
    }
    let mut finalizers = tenant.finalizers().to_vec();
    finalizers.push(labels::FINALIZER.to_owned());
    // The version keeps us from dropping a finalizer that someone else has just added.
    let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": version } });
    let name = tenant.name_any();
    let written: AgentTenant = context.writer.merge(None, &name, &patch).await.map_err(failed::<AgentTenant>(&name))?;
    context.cluster.applied.remember(key, written.metadata.resource_version.as_deref(), labels::FINALIZER.to_owned());
    Ok(())
}

/// Creates rather than applies: between our look and our write someone may have made a namespace of that name, and to
/// apply would be to take it over.
async fn create_namespace(mut namespace: Namespace, context: &Context) -> Result<(), Error> {
    let hash = stamp(&mut namespace);
    let name = namespace.name_any();
    match context.writer.create(&namespace).await {
        Ok(created) => {
            remember(&created, hash, context);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::NamespaceTaken { name }),
        Err(source) => Err(failed::<Namespace>(&name)(source)),
    }
}

async fn ensure<K: Kept>(mut wanted: K, context: &Context) -> Result<(), Error> {
    let hash = stamp(&mut wanted);
    let (namespace, name) = (wanted.namespace(), wanted.name_any());
    let live: Option<Arc<K>> = context.cluster.get(namespace.as_deref(), &name);
    let version = live.as_ref().and_then(|live| live.resource_version());
    let as_wanted = match context.cluster.applied.newer_than(&child_key(&wanted), version.as_deref()) {
        Some(applied) => applied == hash,
        None => live.is_some_and(|live| {
            live.annotations().get(labels::APPLIED_HASH) == Some(&hash) && drift::covers(&*live, &wanted)
        }),
    };
    if as_wanted {
        return Ok(());
    }
    let applied = context.writer.apply(&wanted).await.map_err(failed::<K>(&name))?;
    remember(&applied, hash, context);
    Ok(())
}

fn stamp<K: Object>(wanted: &mut K) -> String {
    let hash = drift::hash(wanted);
    wanted.annotations_mut().insert(labels::APPLIED_HASH.to_owned(), hash.clone());
    hash
}

fn remember<K: Object>(applied: &K, hash: String, context: &Context) {
    context.cluster.applied.remember(child_key(applied), applied.resource_version().as_deref(), hash);
}

fn failed<K: Object>(name: &str) -> impl FnOnce(kube::Error) -> Error {
    let (kind, name) = (K::kind(&()).into_owned(), name.to_owned());
    move |source| Error::Apply { kind, name, source }
}
