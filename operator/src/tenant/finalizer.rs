//! The mark that keeps a tenant's object until all that was made for it is gone.

use croft_crds::{AgentTenant, labels};
use kube::ResourceExt as _;
use serde_json::json;

use super::{Error, ensure};
use crate::cluster::child_key;
use crate::context::Context;

/// Before anything is made, so that nothing is left when the tenant goes.
pub(super) async fn ensure(tenant: &AgentTenant, context: &Context) -> Result<(), Error> {
    // One that is being deleted takes no new finalizer; it may be here because its deletion is prevented.
    if tenant.metadata.deletion_timestamp.is_some() || is_there(tenant, context) {
        return Ok(());
    }
    let mut finalizers = tenant.finalizers().to_vec();
    finalizers.push(labels::FINALIZER.to_owned());
    // The version keeps us from dropping a finalizer that someone else has just added.
    let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": tenant.resource_version() } });
    let name = tenant.name_any();
    let written =
        context.writer.merge::<AgentTenant>(None, &name, &patch).await.map_err(ensure::failed::<AgentTenant>(&name))?;
    let version = written.resource_version;
    context.cluster.remember(tenant, version.as_deref(), labels::FINALIZER.to_owned());
    Ok(())
}

/// Whether a pass has come so far as to set it, also a moment ago.
pub(super) fn is_there(tenant: &AgentTenant, context: &Context) -> bool {
    tenant.finalizers().iter().any(|finalizer| finalizer == labels::FINALIZER)
        || context.cluster.applied.newer_than(&child_key(tenant), tenant.resource_version().as_deref()).is_some()
}
