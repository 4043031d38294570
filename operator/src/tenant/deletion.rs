//! A tenant's end, in order: its sessions, the records of what they used, what it has stored, its namespace, then the
//! object itself.

use std::time::Duration;

use croft_crds::tenant::DeletionPolicy;
use croft_crds::{AgentTenant, AgentTenantStatus, labels};
use croft_proto::v1::{RemovalPolicy, RemovalStep, RemoveTenantResponse};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::Api;
use serde_json::json;
use tonic::Status;

use super::status::{PREVENTED, REMOVED};
use super::{Error, report};
use crate::cluster::is_owned;
use crate::context::Context;
use crate::controller::Action;
use crate::token::TenantRef;

const SOON: Duration = Duration::from_secs(1);
/// Between two tries of a removal that is past its deadline.
const LATER: Duration = Duration::from_secs(10);
/// Between two looks at a namespace that does not go, at most.
const SELDOM: Duration = Duration::from_mins(1);
const NAMESPACE_GOES: &str = "the namespace is being deleted";

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

/// Whether the tenant, whose status this is, is being taken away. Nothing prevents a removal that has begun: the fronts have ended
/// sessions then, and take nothing of such a tenant again.
pub(crate) fn is_going(tenant: &AgentTenant, status: &AgentTenantStatus) -> bool {
    tenant.metadata.deletion_timestamp.is_some() && (!tenant.spec.prevent_deletion || begun(status).is_some())
}

/// What was told of the removal, once it has begun.
fn begun(status: &AgentTenantStatus) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == REMOVED && condition.reason != PREVENTED)
}

/// Goes as far as it can now. The routes have told the fronts already that the tenant takes nothing new.
///
/// What the fronts have to do may take until a deadline, which counts from when they were first asked: the deletion may be older, by
/// as long as it was prevented or no operator was there. Then the namespace goes all the same, and with it workers and
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
    let status = report::current(tenant, context);
    let namespace = namespace.filter(|namespace| is_ours(namespace, tenant, &status));
    let begun = if let Some(begun) = begun(&status) {
        Begun { told: begun.reason.clone(), at: begun.last_transition_time.0.as_second() }
    } else {
        let message = "the fronts are asked to end its sessions".to_owned();
        report::report_removal(tenant, "RemovalBegun", message, context).await?;
        Begun { told: "RemovalBegun".to_owned(), at: context.now() }
    };
    let is_removed = begun.told == "DeletingNamespace";
    let going = namespace.as_ref().filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
    if let Some(going) = going.filter(|_| is_removed) {
        report::report_removal(tenant, "DeletingNamespace", what_holds(going), context).await?;
        // The end of the namespace wakes us too. One that stays is looked at less and less often.
        let lasted = Duration::from_secs(u64::try_from(context.now() - begun.at).unwrap_or(0));
        return Ok(Action::requeue((lasted / 10).clamp(SOON, SELDOM)));
    }
    let is_going = going.is_some();
    // Who wants it erased may have said so while the namespace was going, and the fronts done with it before.
    let is_kept = tenant.spec.deletion_policy == DeletionPolicy::Archive;
    let removal = if is_removed && is_kept { Removal::Done } else { removal(tenant, context).await };
    let is_late = context.now() - begun.at >= context.settings.removal_max_seconds;
    let (reason, message) = match (removal, namespace.is_some()) {
        (Removal::Done, true) => ("DeletingNamespace", NAMESPACE_GOES.to_owned()),
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
    // The end of the namespace wakes us too.
    Ok(Action::requeue(if reason == "PastDeadline" { LATER } else { SOON }))
}

/// What Kubernetes says that the namespace still waits for, such as somebody's finalizer.
fn what_holds(namespace: &Namespace) -> String {
    let conditions = namespace.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let told = conditions.iter().filter(|condition| condition.status == "True");
    let told: Vec<_> = told.filter_map(|condition| condition.message.as_deref()).collect();
    if told.is_empty() { NAMESPACE_GOES.to_owned() } else { format!("{NAMESPACE_GOES}: {}", told.join("; ")) }
}

/// A removal under way.
struct Begun {
    told: String,
    /// When the fronts were first asked, in seconds since 1970.
    at: i64,
}

/// Whether the namespace was made for this very tenant, also if its owner was taken off it since, as a deletion does that leaves
/// parts behind. Of a namespace that is someone else's the tenant's status says nothing.
fn is_ours(namespace: &Namespace, tenant: &AgentTenant, status: &AgentTenantStatus) -> bool {
    let is_left_behind = || {
        namespace.owner_references().is_empty()
            && namespace.labels().get(labels::TENANT) == Some(&tenant.name_any())
            && status.namespace.as_deref() == Some(&*tenant.namespace_name())
    };
    is_owned(namespace, tenant) || is_left_behind()
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
    use crate::tenant::fixtures;

    #[test]
    fn a_deletion_is_prevented_only_until_its_removal_has_begun() {
        let mut tenant = fixtures::minimal();
        let told = |reason: &str| AgentTenantStatus {
            conditions: serde_json::from_value(json!([{
                "type": "Removed", "status": "False", "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]))
            .unwrap(),
            ..AgentTenantStatus::default()
        };
        assert!(!is_going(&tenant, &AgentTenantStatus::default()));
        tenant.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(is_going(&tenant, &AgentTenantStatus::default()));
        tenant.spec.prevent_deletion = true;
        assert!(!is_going(&tenant, &AgentTenantStatus::default()));
        assert!(!is_going(&tenant, &told("DeletionPrevented")));
        assert!(is_going(&tenant, &told("EndingSessions")));
    }

    #[test]
    fn only_a_namespace_that_was_made_for_the_tenant_goes_with_it() {
        let tenant = fixtures::minimal();
        let namespace = |owners: serde_json::Value, label: &str| -> Namespace {
            serde_json::from_value(json!({ "metadata": {
                "name": "tenant-egret", "ownerReferences": owners, "labels": { "croft.dev/tenant": label },
            } }))
            .unwrap()
        };
        let owner = |uid: &str| json!([{ "apiVersion": "v1", "kind": "AgentTenant", "name": "egret", "uid": uid }]);
        let told = AgentTenantStatus { namespace: Some("tenant-egret".into()), ..AgentTenantStatus::default() };
        let nothing = AgentTenantStatus::default();
        assert!(is_ours(&namespace(owner(&tenant.uid().unwrap()), "egret"), &tenant, &nothing));
        assert!(is_ours(&namespace(json!([]), "egret"), &tenant, &told));
        assert!(!is_ours(&namespace(json!([]), "egret"), &tenant, &nothing), "it was never this tenant's");
        assert!(!is_ours(&namespace(json!([]), "heron"), &tenant, &told));
        assert!(!is_ours(&namespace(owner("another"), "egret"), &tenant, &told));
    }

    #[test]
    fn a_namespace_that_stays_says_what_holds_it() {
        let namespace = |conditions: serde_json::Value| -> Namespace {
            serde_json::from_value(json!({ "metadata": {}, "status": { "conditions": conditions } })).unwrap()
        };
        assert_eq!(what_holds(&namespace(json!([]))), "the namespace is being deleted");
        let condition = |kind: &str, status: &str, message: &str| {
            let time = "2026-01-01T00:00:00Z";
            json!({ "type": kind, "status": status, "message": message, "reason": "", "lastTransitionTime": time })
        };
        let held = namespace(json!([
            condition("NamespaceDeletionContentFailure", "False", "All content successfully deleted"),
            condition("NamespaceContentRemaining", "True", "Some resources are remaining: configmaps."),
        ]));
        assert_eq!(what_holds(&held), "the namespace is being deleted: Some resources are remaining: configmaps.");
    }

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
