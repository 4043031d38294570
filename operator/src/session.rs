//! Reconciles [`AgentSession`]: turns the wish for a session into a call to the front, once.
//!
//! A session costs the API server two writes: the object's own and one status. What becomes of the session later comes
//! from [`sweep`], slowly. There is no finalizer: a session whose object is gone is found by comparing the two sides.

mod agent;
mod status;
pub mod sweep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, labels};
use croft_proto::v1::{CreateSessionRequest, Session};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::Api;
use kube::runtime::controller::Action;
use tonic::{Code, Status};

use crate::cluster::is_owned;
use crate::context::Context;
use crate::controller::{PassError, Retry};
use crate::token::TenantRef;
use status::Summary;

/// A session that the front has recorded and not placed yet is looked at again soon.
const NOT_PLACED: Duration = Duration::from_millis(500);

/// Why a pass could not do all of its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read namespace {name}")]
    Read { name: String, source: kube::Error },
    #[error("the front does not take the call {call}")]
    Front { call: &'static str, source: Box<Status> },
    #[error("cannot write the status")]
    Status(#[source] kube::Error),
}

impl PassError for Error {
    fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "ReadFailed",
            Self::Front { .. } => "FrontRefused",
            Self::Status(_) => "StatusFailed",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } | Self::Front { .. } | Self::Status(_) => Retry::Backoff,
        }
    }
}

/// Brings one declared session one step closer to its spec. Safe to repeat, safe to interrupt.
pub async fn reconcile(session: Arc<AgentSession>, context: Arc<Context>) -> Result<Action, Error> {
    if session.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let current = status::current(&session, &context);
    if current.phase.is_some_and(SessionPhase::is_final) {
        return Ok(Action::await_change());
    }
    let outcome = step(&session, current.session_id.as_deref(), &context).await;
    let summary = match &outcome {
        Ok(Some(summary)) => summary.clone(),
        Ok(None) => return Ok(Action::await_change()),
        Err(error) => Summary::waiting(error),
    };
    let is_placed = summary.phase != SessionPhase::Pending;
    let reported = status::write(&session, summary, &context).await;
    outcome?;
    reported?;
    Ok(if is_placed { Action::await_change() } else { Action::requeue(NOT_PLACED) })
}

/// What the session is after this step, or `None` if there is nothing to do and nothing new.
async fn step(session: &AgentSession, session_id: Option<&str>, context: &Context) -> Result<Option<Summary>, Error> {
    let Some(tenant) = tenant_of(session, context).await? else {
        let namespace = session.namespace().unwrap_or_default();
        let message = format!("namespace {namespace} is not a tenant's: a session must be declared in one that is");
        return Ok(Some(Summary::failed("NoTenant", message)));
    };
    match (session.spec.terminate, session_id) {
        (true, session_id) => {
            if let Some(session_id) = session_id {
                let ended = context.front.terminate(&tenant, session_id, "spec.terminate is set").await;
                ended.map_err(|status| refused("TerminateSession", status))?;
            }
            // One that was opened by a pass that could not say so is found by the sweep.
            Ok(Some(Summary::terminated("spec.terminate is set")))
        }
        (false, Some(session_id)) if is_pending(session, context) => {
            let found = context.front.get(&tenant, session_id).await.map_err(|status| refused("GetSession", status))?;
            Ok(Some(found.map_or_else(Summary::lost, |found| Summary::of(&found))))
        }
        (false, Some(_)) => Ok(None),
        (false, None) => match context.front.create(&tenant, request(session)).await {
            Ok(created) => Ok(Some(Summary::of(&created))),
            Err(status) if is_final(&status) => {
                Ok(Some(Summary::failed("Refused", format!("the front refuses it: {}", status.message()))))
            }
            Err(status) => Err(refused("CreateSession", status)),
        },
    }
}

fn is_pending(session: &AgentSession, context: &Context) -> bool {
    status::current(session, context).phase == Some(SessionPhase::Pending)
}

fn refused(call: &'static str, source: Status) -> Error {
    Error::Front { call, source: Box::new(source) }
}

/// Whether the same request would be refused again: the agent can't be edited, so there is no use in trying.
fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::NotFound | Code::OutOfRange | Code::Unimplemented)
}

/// The key is the object's UID: however often a pass is repeated, the object has one session.
fn request(session: &AgentSession) -> CreateSessionRequest {
    let uid = session.uid().unwrap_or_default();
    CreateSessionRequest {
        agent: Some(agent::to_proto(&session.spec.agent, &session.name_any())),
        labels: HashMap::from([
            (labels::AGENT_SESSION_UID.to_owned(), uid.clone()),
            (labels::AGENT_SESSION_NAME.to_owned(), session.name_any()),
            (labels::SESSION_SOURCE.to_owned(), labels::SESSION_SOURCE_OBJECT.to_owned()),
        ]),
        idempotency_key: format!("agentsession/{uid}"),
        ..CreateSessionRequest::default()
    }
}

/// The tenant in whose namespace the object is. A namespace may be younger than the copies, so the API server is asked
/// before anyone is told that it is no tenant's.
async fn tenant_of(session: &AgentSession, context: &Context) -> Result<Option<TenantRef>, Error> {
    let name = session.namespace().unwrap_or_default();
    if let Some(tenant) = context.cluster.tenant_in(&name) {
        return Ok(Some(TenantRef::from(&*tenant)));
    }
    let Some(tenant) = name.strip_prefix("tenant-").and_then(|tenant| context.cluster.tenant(tenant)) else {
        return Ok(None);
    };
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found = namespaces.get_opt(&name).await.map_err(|source| Error::Read { name: name.clone(), source })?;
    Ok(found.filter(|found| is_owned(found, &tenant)).map(|_| TenantRef::from(&*tenant)))
}

/// The UID of the AgentSession that a session of the front was made for.
fn object_uid(session: &Session) -> Option<&str> {
    session.labels.get(labels::AGENT_SESSION_UID).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_object_always_asks_for_the_same_session() {
        let object: AgentSession = serde_json::from_value(json!({
            "metadata": { "name": "talk", "namespace": "tenant-heron", "uid": "3b0c" },
            "spec": { "agent": { "model": "scripted-1" } },
        }))
        .unwrap();
        let first = request(&object);
        assert_eq!(first, request(&object));
        assert_eq!(first.idempotency_key, "agentsession/3b0c");
        assert_eq!(first.labels["croft.dev/agentsession-uid"], "3b0c");
        assert_eq!(first.agent.unwrap().name, "talk");
    }

    #[test]
    fn only_what_can_never_be_taken_is_given_up() {
        for code in [Code::InvalidArgument, Code::NotFound] {
            assert!(is_final(&Status::new(code, "")));
        }
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::FailedPrecondition] {
            assert!(!is_final(&Status::new(code, "")));
        }
    }
}
