//! Makes one child be as it shall be, with as little work for the API server as that takes.

use croft_crds::{AgentTenant, labels};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::{GetParams, ObjectMeta};
use kube::core::{PartialObjectMeta, Request};
use serde_json::json;

use super::{Error, observe};
use crate::cluster::{Kept, child_key, is_owned};
use crate::context::Context;
use crate::writes::Object;
use crate::{drift, ownership};

/// Creates rather than applies: someone else may have made a namespace of that name, and to apply would be to take it over.
pub(super) async fn create_namespace(
    tenant: &AgentTenant,
    mut namespace: Namespace,
    context: &Context,
) -> Result<(), Error> {
    let hash = stamp(&mut namespace);
    let name = namespace.name_any();
    match context.writer.create(&namespace).await {
        Ok(created) => {
            remember(&namespace, &created, hash, context);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => match observe::namespace(&name, context).await? {
            Some(found) if !is_owned(&*found, tenant) => Err(Error::NamespaceTaken { name }),
            // Ours, or gone meanwhile: the next pass looks first.
            _ => Err(failed::<Namespace>(&name)(kube::Error::Api(status))),
        },
        Err(source) => Err(failed::<Namespace>(&name)(source)),
    }
}

pub(super) async fn ensure<K: Kept>(mut wanted: K, context: &Context) -> Result<(), Error> {
    let hash = stamp(&mut wanted);
    if is_as_wanted(&wanted, &hash, context) {
        return Ok(());
    }
    let _turn = context.child_turns.acquire().await.expect("nobody closes it");
    put(&wanted, hash, context).await
}

/// [`ensure`], past all that wait for their turn: for an emergency, which writes of another kind that hang must not hold up.
pub(super) async fn ensure_at_once<K: Kept>(mut wanted: K, context: &Context) -> Result<(), Error> {
    let hash = stamp(&mut wanted);
    if is_as_wanted(&wanted, &hash, context) { Ok(()) } else { put(&wanted, hash, context).await }
}

fn is_as_wanted<K: Kept>(wanted: &K, hash: &String, context: &Context) -> bool {
    let (namespace, name) = (wanted.namespace(), wanted.name_any());
    let version = context.cluster.version::<K>(namespace.as_deref(), &name);
    if context.cluster.is_from_before::<K>(namespace.as_deref(), &name) {
        // What we have put into the very namespace that is there has not gone with an older one.
        let there = namespace.and_then(|namespace| context.cluster.namespace_uid(&namespace));
        let applied = context.cluster.applied.not_older_than(&child_key(wanted), version.as_deref());
        return applied.is_some_and(|applied| applied.hash == *hash && applied.namespace_uid == there);
    }
    // What is just as we left it need not be looked at.
    match context.cluster.applied.not_older_than(&child_key(wanted), version.as_deref()) {
        Some(applied) => applied.hash == *hash,
        None => context.cluster.get::<K>(namespace.as_deref(), &name).is_some_and(|live| {
            live.annotations().get(labels::APPLIED_HASH) == Some(hash) && drift::covers(&*live, wanted)
        }),
    }
}

async fn put<K: Kept>(wanted: &K, hash: String, context: &Context) -> Result<(), Error> {
    let name = wanted.name_any();
    let live = context.cluster.get::<K>(wanted.namespace().as_deref(), &name);
    let written = write(wanted, live.as_deref(), context).await.map_err(failed::<K>(&name))?;
    remember(wanted, &written, hash, context);
    Ok(())
}

/// Creates what is not there, and applies over what is.
async fn write<K: Object>(wanted: &K, live: Option<&K>, context: &Context) -> kube::Result<ObjectMeta> {
    if live.is_none() {
        match context.writer.create(wanted).await {
            // Someone else made it, or we did and the copies can't know yet.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            outcome => return outcome,
        }
    }
    if live.is_none_or(|live| ownership::is_created(live.managed_fields())) {
        own_by_apply(wanted, context).await?;
    }
    context.writer.apply(wanted).await
}

/// Has what we created count as applied, so that to apply takes away what is no longer wanted. Fails if the object changes
/// meanwhile; if it is gone, there is nothing to do.
async fn own_by_apply<K: Object>(wanted: &K, context: &Context) -> kube::Result<()> {
    let (namespace, name) = (wanted.namespace(), wanted.name_any());
    let look = Request::new(K::url_path(&(), namespace.as_deref())).get_metadata(&name, &GetParams::default());
    let look = context.client.request::<PartialObjectMeta<K>>(look.map_err(kube::Error::BuildRequest)?).await;
    let metadata = match look {
        Ok(found) => found.metadata,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(entries) = ownership::as_applied(metadata.managed_fields.unwrap_or_default()) else { return Ok(()) };
    let patch = json!({ "metadata": { "managedFields": entries, "resourceVersion": metadata.resource_version } });
    context.writer.merge::<K>(namespace.as_deref(), &name, &patch).await.map(drop)
}

fn stamp<K: Object>(wanted: &mut K) -> String {
    let hash = drift::hash(wanted);
    wanted.annotations_mut().insert(labels::APPLIED_HASH.to_owned(), hash.clone());
    hash
}

pub(super) fn remember<K: Object>(wanted: &K, written: &ObjectMeta, hash: String, context: &Context) {
    context.cluster.remember(wanted, written.resource_version.as_deref(), hash);
}

pub(super) fn failed<K: Object>(name: &str) -> impl FnOnce(kube::Error) -> Error {
    let (kind, name) = (K::kind(&()).into_owned(), name.to_owned());
    move |source| Error::Apply { kind, name, source }
}
