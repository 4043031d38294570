//! A tenant's end, in order: its sessions, its namespace, then the object itself.

use std::time::Duration;

use croft_crds::{AgentTenant, labels};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::Api;
use kube::runtime::controller::Action;
use serde_json::json;

use super::{Error, report};
use crate::cluster::is_owned;
use crate::context::Context;
use crate::front::Ending;
use crate::token::TenantRef;

/// How long sessions may take to end, and the front to answer at all. Then the namespace goes all the same: a tenant
/// must not stay for ever because a front is away.
const SESSIONS_MAX_SECONDS: i64 = 30;
const SOON: Duration = Duration::from_secs(1);

/// Goes as far as it can now. The routes have told the fronts already that the tenant takes nothing new.
pub(super) async fn step(tenant: &AgentTenant, context: &Context) -> Result<Action, Error> {
    if !tenant.finalizers().iter().any(|finalizer| finalizer == labels::FINALIZER) {
        return Ok(Action::await_change());
    }
    let name = tenant.namespace_name();
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let what = || format!("namespace {name}");
    let namespace = namespaces.get_opt(&name).await.map_err(|source| Error::Read { what: what(), source })?;
    let Some(namespace) = namespace.filter(|namespace| is_owned(namespace, tenant)) else {
        return finish(tenant, context).await;
    };
    if namespace.metadata.deletion_timestamp.is_some() {
        report::report_deletion(tenant, "the namespace is being deleted", context).await?;
        return Ok(Action::requeue(SOON));
    }
    if !sessions_ended(tenant, context).await {
        report::report_deletion(tenant, "sessions are being ended", context).await?;
        return Ok(Action::requeue(SOON));
    }
    let uid = namespace.uid().unwrap_or_default();
    let deleted = context.writer.delete::<Namespace>(None, &name, &uid).await;
    deleted.map_err(|source| Error::Delete { kind: "Namespace", name: name.clone(), source })?;
    report::report_deletion(tenant, "the namespace is being deleted", context).await?;
    Ok(Action::requeue(SOON))
}

async fn sessions_ended(tenant: &AgentTenant, context: &Context) -> bool {
    let deleted_at = tenant.metadata.deletion_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let is_late = context.now() - deleted_at >= SESSIONS_MAX_SECONDS;
    match context.front.end_all(&TenantRef::from(tenant), "the tenant is being deleted").await {
        Ok(Ending::Ended) => true,
        Ok(Ending::UnderWay) => is_late,
        Err(status) => {
            tracing::warn!(tenant = tenant.name_any(), error = %status, is_late, "cannot end the tenant's sessions");
            is_late
        }
    }
}

async fn finish(tenant: &AgentTenant, context: &Context) -> Result<Action, Error> {
    let others: Vec<_> = tenant.finalizers().iter().filter(|&finalizer| finalizer != labels::FINALIZER).collect();
    let patch = json!({ "metadata": { "finalizers": others, "resourceVersion": tenant.resource_version() } });
    let name = tenant.name_any();
    match context.writer.merge::<AgentTenant>(None, &name, &patch).await {
        Ok(_) => Ok(Action::await_change()),
        // Someone else's last finalizer went first, and the object with it.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::await_change()),
        Err(source) => Err(Error::Apply { kind: "AgentTenant".to_owned(), name, source }),
    }
}
