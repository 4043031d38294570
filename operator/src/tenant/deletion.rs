//! A tenant's end, in order: its sessions, the records of what they used, what it has stored, its namespace, then the
//! object itself.

use std::time::Duration;

use croft_crds::tenant::DeletionPolicy;
use croft_crds::{AgentTenant, labels};
use croft_proto::v1::{RemovalPolicy, RemovalStep, RemoveTenantResponse};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::Api;
use kube::runtime::controller::Action;
use serde_json::json;
use tonic::Status;

use super::{Error, report};
use crate::cluster::is_owned;
use crate::context::Context;
use crate::token::TenantRef;

const SOON: Duration = Duration::from_secs(1);
/// Between two tries of a removal that is past its deadline.
const LATER: Duration = Duration::from_secs(10);

/// How far the fronts are.
#[derive(Debug, PartialEq)]
enum Removal {
    Done,
    /// Not yet, and this is why.
    Waiting {
        reason: &'static str,
        message: String,
    },
}

/// Goes as far as it can now. The routes have told the fronts already that the tenant takes nothing new.
///
/// What the fronts have to do may take until a deadline. Then the namespace goes all the same, and with it workers and
/// keys: a tenant must not run for ever because a front is away. One that shall be erased stays as an object until the
/// fronts have done it, as nobody else would remember to.
pub(super) async fn step(tenant: &AgentTenant, context: &Context) -> Result<Action, Error> {
    if !tenant.finalizers().iter().any(|finalizer| finalizer == labels::FINALIZER) {
        return Ok(Action::await_change());
    }
    let name = tenant.namespace_name();
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let what = || format!("namespace {name}");
    let namespace = namespaces.get_opt(&name).await.map_err(|source| Error::Read { what: what(), source })?;
    let namespace = namespace.filter(|namespace| is_owned(namespace, tenant));
    let told = report::removal_told(tenant, context);
    let is_removed = told.as_deref() == Some("DeletingNamespace");
    let is_going = namespace.as_ref().is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some());
    if is_going && (is_removed || told.as_deref() == Some("PastDeadline")) {
        return Ok(Action::requeue(SOON));
    }
    let removal = if is_removed { Removal::Done } else { removal(tenant, context).await };
    let is_late = is_late(tenant, context);
    let (reason, message) = match (removal, namespace.is_some()) {
        (Removal::Done, true) => ("DeletingNamespace", "the namespace is being deleted".to_owned()),
        (Removal::Waiting { reason, message }, _) if !is_late => {
            report::report_removal(tenant, reason, message, context).await?;
            return Ok(Action::requeue(SOON));
        }
        (Removal::Waiting { message, .. }, false) if tenant.spec.deletion_policy == DeletionPolicy::Erase => {
            let message = format!("it stays until all that it has stored is erased: {message}");
            report::report_removal(tenant, "ErasingPastDeadline", message, context).await?;
            return Ok(Action::requeue(LATER));
        }
        (Removal::Done | Removal::Waiting { .. }, false) => return finish(tenant, context).await,
        (Removal::Waiting { message, .. }, true) => {
            ("PastDeadline", format!("the namespace is being deleted although this is not done: {message}"))
        }
    };
    if let Some(namespace) = namespace.filter(|_| !is_going) {
        let uid = namespace.uid().unwrap_or_default();
        let deleted = context.writer.delete::<Namespace>(None, &name, &uid).await;
        deleted.map_err(|source| Error::Delete { kind: "Namespace".to_owned(), name: name.clone(), source })?;
    }
    report::report_removal(tenant, reason, message, context).await?;
    Ok(Action::requeue(SOON))
}

fn is_late(tenant: &AgentTenant, context: &Context) -> bool {
    let deleted_at = tenant.metadata.deletion_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    context.now() - deleted_at >= context.settings.removal_max_seconds
}

/// Has the fronts take one step.
async fn removal(tenant: &AgentTenant, context: &Context) -> Removal {
    let policy = match tenant.spec.deletion_policy {
        DeletionPolicy::Archive => RemovalPolicy::Archive,
        DeletionPolicy::Erase => RemovalPolicy::Erase,
    };
    let answer = context.front.remove(&TenantRef::from(tenant), policy).await;
    if let Err(status) = &answer {
        tracing::warn!(tenant = tenant.name_any(), error = %status, "the fronts do not remove the tenant");
    }
    told(answer)
}

/// The message must not change from one try to the next while nothing else does.
fn told(answer: Result<RemoveTenantResponse, Status>) -> Removal {
    let response = match answer {
        Ok(response) => response,
        Err(status) => {
            let message = format!("the front answers {:?}", status.code());
            return Removal::Waiting { reason: "FrontAway", message };
        }
    };
    let left = response.left;
    let (reason, message) = match response.step() {
        RemovalStep::Done => return Removal::Done,
        RemovalStep::Unspecified | RemovalStep::EndingSessions => {
            ("EndingSessions", format!("{left} sessions have not ended"))
        }
        RemovalStep::Draining => ("Draining", format!("{left} records of usage and audit are not written yet")),
        RemovalStep::Erasing => ("Erasing", format!("{left} rows are not erased yet")),
    };
    Removal::Waiting { reason, message }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_says_what_is_left() {
        let of = |step: RemovalStep, left| told(Ok(RemoveTenantResponse { step: step.into(), left }));
        assert_eq!(of(RemovalStep::Done, 0), Removal::Done);
        for (step, reason, message) in [
            (RemovalStep::EndingSessions, "EndingSessions", "3 sessions have not ended"),
            (RemovalStep::Draining, "Draining", "3 records of usage and audit are not written yet"),
            (RemovalStep::Erasing, "Erasing", "3 rows are not erased yet"),
        ] {
            assert_eq!(of(step, 3), Removal::Waiting { reason, message: message.to_owned() });
        }
        let away = Removal::Waiting { reason: "FrontAway", message: "the front answers Unavailable".to_owned() };
        assert_eq!(told(Err(Status::unavailable("connection 17 was refused at 12:01:02"))), away);
    }
}
