//! Reconciles [`AgentSession`]: turns the wish for a session into a call to the front, once.
//!
//! A session costs the API server two writes, the object's own and one status, and for each try to open it a read of its agent,
//! which no copy has. What becomes of the session later is told by the fronts, slowly; see [`follow`]. There is no finalizer: a
//! session whose object is gone is found by comparing the two sides.

pub(crate) mod admission;
pub mod agent;
pub(crate) mod endings;
pub(crate) mod follow;
mod known;
mod refusal;
mod retire;
mod status;
mod told;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentSessionStatus, labels};
use croft_proto::v1::{CreateSessionRequest, Session};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::Api;
use tonic::{Code, Status};

use crate::cluster::is_owned;
use crate::context::Context;
use crate::controller::{Action, PassError, Retry};
use crate::mirror::is_in_part;
use crate::token::TenantRef;
pub use endings::Bereaved;
pub(crate) use endings::Ending;
use endings::Why;
use known::Known;
use status::{Summary, Written};
pub(crate) use status::{WorkersHelp, workers_help};
use told::Declared;
pub use told::Told;

/// A session that the front has recorded and not placed yet is looked at again soon.
const NOT_PLACED: Duration = Duration::from_millis(500);

/// Before a session is tried again whose tenant's workers lack something, or whose model is not registered. Each try counts against the
/// tenant's rates.
const STILL_LACKING: Duration = Duration::from_mins(5);

/// Why a pass could not do all of its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read namespace {name}")]
    Read { name: String, source: kube::Error },
    #[error("the tenant of namespace {name} is not known yet")]
    TenantUnknown { name: String },
    #[error("cannot read the agent")]
    Agent(#[source] kube::Error),
    #[error("the front does not take the call {call}")]
    Front { call: &'static str, source: Box<Status> },
    #[error("the tenant has as many sessions as it may have")]
    Full(#[source] Box<Status>),
    #[error("cannot write the status")]
    Status(#[source] kube::Error),
    #[error("cannot delete an AgentSession whose time is over")]
    Delete(#[source] kube::Error),
}

impl PassError for Error {
    fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Agent(_) => "ReadFailed",
            Self::TenantUnknown { .. } => status::TENANT_UNKNOWN,
            // Its tenant's workers are full, or there are none: the tenant's to mend, where a front that is away is the platform's.
            Self::Front { source, .. } if refusal::is_without_worker(source) => "NoWorker",
            Self::Front { source, .. } | Self::Full(source) => status::front_reason(source),
            Self::Status(_) => "StatusFailed",
            Self::Delete(_) => "DeleteFailed",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Front { source, .. } if refusal::lacks_something(source) => Retry::After(STILL_LACKING),
            Self::Full(_) => Retry::BackoffTo(admission::STILL_FULL),
            Self::Read { .. }
            | Self::TenantUnknown { .. }
            | Self::Agent(_)
            | Self::Front { .. }
            | Self::Status(_)
            | Self::Delete(_) => Retry::Backoff,
        }
    }
}

/// Brings one declared session one step closer to its spec. Safe to repeat, safe to interrupt.
pub async fn reconcile(session: Arc<AgentSession>, context: Arc<Context>) -> Result<Action, Error> {
    if session.metadata.deletion_timestamp.is_some() || is_in_part(&*session) {
        return Ok(Action::await_change());
    }
    let current = status::current(&session, &context);
    if current.phase.is_some_and(SessionPhase::is_final) {
        return retire::retire(&session, &current, &context).await;
    }
    let lacked_room = status::lacks_room(&session, &context);
    let lacked_worker = !lacked_room && current.session_id.is_none() && current.phase == Some(SessionPhase::Pending);
    let pass = async {
        let Some(tenant) = tenant_of(&session, &current, &context).await? else {
            let namespace = session.namespace().unwrap_or_default();
            let message = format!("namespace {namespace} is not a tenant's: a session must be declared in one that is");
            return Ok((None, Some(Summary::failed("NoTenant", message))));
        };
        let summary = step(&session, &tenant, &current, &context).await?;
        Ok((Some(tenant), summary))
    };
    let (tenant, summary) = match pass.await {
        Ok((_, None)) => {
            // Its object may have gone since a worker was kept for it.
            if lacked_worker {
                admission::pass_worker_on(&session, &context);
            }
            return Ok(Action::await_change());
        }
        Ok((tenant, Some(summary))) => (tenant, summary),
        Err(error) => {
            // An open session is no less open because a call about it has failed.
            if current.session_id.is_none() {
                status::write(&session, Summary::waiting(&error), &context).await?;
            }
            if lacked_room && matches!(&error, Error::Front { source, .. } if refusal::lacks_something(source)) {
                admission::pass_on(&session, &context);
            }
            context.cluster.session_index.put_back(&session);
            return Err(error);
        }
    };
    let open_session = summary.open_session().map(str::to_owned);
    let is_refused = summary.phase == SessionPhase::Failed;
    let written = status::write(&session, summary, &context).await?;
    if lacked_room && is_refused {
        admission::pass_on(&session, &context);
    }
    if lacked_worker && (is_refused || open_session.is_some()) {
        admission::pass_worker_on(&session, &context);
    }
    match written {
        Written::Now(status) if status.phase.is_some_and(SessionPhase::is_final) => {
            retire::retire(&session, &status, &context).await
        }
        Written::Now(status) if status.phase == Some(SessionPhase::Pending) && status.session_id.is_some() => {
            Ok(Action::requeue(NOT_PLACED))
        }
        // One whose tenant takes none waits for a change of the tenant.
        Written::Now(_) => Ok(Action::await_change()),
        Written::Later(pause) => Ok(Action::requeue(pause)),
        Written::Gone => {
            // The watch told of the object's end before there was a session to end.
            if let (Some(tenant), Some(session_id)) = (tenant, open_session) {
                context.endings.mark(Ending { tenant, session_id, why: Why::Deleted });
            }
            Ok(Action::await_change())
        }
    }
}

/// What the session is after this step, or `None` if there is nothing to do and nothing new.
async fn step(
    session: &AgentSession,
    tenant: &TenantRef,
    current: &AgentSessionStatus,
    context: &Context,
) -> Result<Option<Summary>, Error> {
    let known = context.told.of(&Declared::is(session)).filter(|known| !is_older(known, current));
    let session_id = current.session_id.as_deref().or(known.as_ref().map(|known| known.session_id.as_str()));
    match (session.spec.terminate, session_id) {
        (true, session_id) => {
            let why = Why::Terminate.sentence();
            let last = match session_id {
                Some(session_id) => context
                    .front
                    .terminate(tenant, session_id, why)
                    .await
                    .map_err(|status| refused("TerminateSession", status))?,
                // One that was opened by a pass that could not say so is ended when the front tells of it.
                None => None,
            };
            Ok(Some(Summary::terminated(why, last.as_ref())))
        }
        (false, Some(session_id)) => match known {
            Some(known) => Ok(Some(Summary::known(known))),
            None if current.phase == Some(SessionPhase::Pending) || context.told.is_whole() => {
                let found = context.front.get(tenant, session_id).await;
                match found.map_err(|status| refused("GetSession", status))? {
                    // Somebody has written the session of an older object of this name here.
                    Some(found) if is_anothers(&found, session) => open(session, tenant, context).await,
                    Some(found) => Ok(Some(Summary::of(&found))),
                    None => Ok(Some(Summary::lost())),
                }
            }
            None => Ok(None),
        },
        (false, None) => open(session, tenant, context).await,
    }
}

/// `None` if there is no object any more to open a session for.
async fn open(session: &AgentSession, tenant: &TenantRef, context: &Context) -> Result<Option<Summary>, Error> {
    let live = context.cluster.tenant(&tenant.name);
    if let Some(why) = live.as_deref().and_then(admission::closed) {
        return Ok(Some(Summary::shut_out(why)));
    }
    let Some(whole) = whole(session, context).await? else { return Ok(None) };
    match context.front.create(tenant, request(&whole)).await {
        Ok(created) => Ok(Some(Summary::of(&created))),
        Err(status) if refusal::is_final(&status) => {
            Ok(Some(Summary::failed("AgentRefused", format!("the front refuses it: {}", status.message()))))
        }
        Err(status) => Err(not_opened(status, live.and_then(|live| admission::room(&live, context)))),
    }
}

/// The object with its agent, which the copy has not; `None` if it is gone or going.
async fn whole(session: &AgentSession, context: &Context) -> Result<Option<AgentSession>, Error> {
    let objects: Api<AgentSession> = Api::namespaced(context.client.clone(), &session.namespace().unwrap_or_default());
    let found = objects.get_opt(&session.name_any()).await.map_err(Error::Agent)?;
    Ok(found.filter(|found| found.metadata.uid == session.metadata.uid && found.metadata.deletion_timestamp.is_none()))
}

/// What it means that the front does not open a session now, of a tenant with this [`admission::room`]. One that has all its sessions may
/// be told of its rates instead, and waits for room all the same. Where there is room by what we know, the front may not have heard yet
/// that the limit was raised; where nothing is known, nobody may tell that there is some again.
fn not_opened(status: Status, room: Option<usize>) -> Error {
    match room {
        Some(0) if status.code() == Code::ResourceExhausted && !refusal::is_without_worker(&status) => {
            Error::Full(Box::new(status))
        }
        _ => refused("CreateSession", status),
    }
}

/// Whether the session was opened for another object.
fn is_anothers(found: &Session, session: &AgentSession) -> bool {
    found.labels.get(labels::AGENT_SESSION_UID).is_some_and(|uid| session.metadata.uid.as_ref() != Some(uid))
}

/// Whether the status already says more than this, or speaks of another session.
fn is_older(known: &Known, current: &AgentSessionStatus) -> bool {
    let last_seq = current.last_seq.and_then(|seq| u64::try_from(seq).ok()).unwrap_or(0);
    known.last_seq < last_seq || current.session_id.as_ref().is_some_and(|id| *id != known.session_id)
}

fn refused(call: &'static str, source: Status) -> Error {
    Error::Front { call, source: Box::new(source) }
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
        idle_timeout_ms: milliseconds(session.spec.idle_timeout_seconds),
        lifetime_ms: milliseconds(session.spec.lifetime_seconds),
    }
}

/// The front takes 0 for the tenant's own time.
fn milliseconds(seconds: Option<u32>) -> i64 {
    i64::from(seconds.unwrap_or(0)) * 1_000
}

/// The tenant in whose namespace the object is; `None` if that is no tenant's. The copies may be behind, those of tenants far more than
/// those of sessions, so the API server is asked before anyone is told so, and where the namespace says that it is a tenant's nobody is.
async fn tenant_of(
    session: &AgentSession,
    current: &AgentSessionStatus,
    context: &Context,
) -> Result<Option<TenantRef>, Error> {
    let name = session.namespace().unwrap_or_default();
    if let Some(tenant) = context.cluster.tenant_in(&name) {
        return Ok(Some(TenantRef::from(&*tenant)));
    }
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found = namespaces.get_opt(&name).await.map_err(|source| Error::Read { name: name.clone(), source })?;
    let owner = context.cluster.tenant_called_by(&name);
    if let Some(tenant) = owner.filter(|tenant| found.as_ref().is_some_and(|found| is_owned(found, tenant))) {
        return Ok(Some(TenantRef::from(&*tenant)));
    }
    if may_be_a_tenants(found.as_ref(), current) { Err(Error::TenantUnknown { name }) } else { Ok(None) }
}

/// Whether there is a tenant, or was one when the session was opened, although the copies have none.
fn may_be_a_tenants(namespace: Option<&Namespace>, current: &AgentSessionStatus) -> bool {
    current.session_id.is_some() || namespace.is_some_and(|namespace| namespace.labels().contains_key(labels::TENANT))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_object_always_asks_for_the_same_session() {
        let object: AgentSession = serde_json::from_value(json!({
            "metadata": { "name": "talk", "namespace": "tenant-heron", "uid": "3b0c" },
            "spec": { "agent": { "model": "scripted-1" }, "idleTimeoutSeconds": 90, "lifetimeSeconds": 3600 },
        }))
        .unwrap();
        let first = request(&object);
        assert_eq!(first, request(&object));
        assert_eq!(first.idempotency_key, "agentsession/3b0c");
        assert_eq!(first.labels["croft.dev/agentsession-uid"], "3b0c");
        assert_eq!((first.idle_timeout_ms, first.lifetime_ms), (90_000, 3_600_000));
        assert_eq!(first.agent.unwrap().name, "talk");
    }

    #[test]
    fn whatever_limit_is_told_a_session_waits_for_room_only_where_there_is_known_to_be_none() {
        let retry = |code, reason, room| not_opened(refusal::tests::by_front(code, reason), room).retry();
        let for_room = Retry::BackoffTo(admission::STILL_FULL);
        for reason in ["SESSION_LIMIT", "RATE_LIMITED"] {
            assert_eq!(retry(Code::ResourceExhausted, reason, Some(0)), for_room, "{reason}");
            assert_eq!(retry(Code::ResourceExhausted, reason, Some(1)), Retry::Backoff, "{reason}");
            assert_eq!(retry(Code::ResourceExhausted, reason, None), Retry::Backoff, "{reason}");
        }
        assert_eq!(retry(Code::Unavailable, "NO_WORKER", Some(0)), Retry::Backoff);
        assert_eq!(retry(Code::ResourceExhausted, "WORKERS_FULL", Some(0)), Retry::Backoff);
    }

    #[test]
    fn a_session_of_an_older_object_of_the_name_is_not_this_ones() {
        let object: AgentSession = serde_json::from_value(json!({
            "metadata": { "name": "talk", "uid": "3b0c" }, "spec": { "agent": { "model": "scripted-1" } },
        }))
        .unwrap();
        let made_for = |uid: &str| {
            let labels = HashMap::from([(labels::AGENT_SESSION_UID.to_owned(), uid.to_owned())]);
            Session { labels, ..Session::default() }
        };
        assert!(is_anothers(&made_for("17aa"), &object));
        assert!(!is_anothers(&made_for("3b0c"), &object) && !is_anothers(&Session::default(), &object));
    }

    #[test]
    fn only_a_namespace_without_the_label_is_for_good_no_tenants_and_never_that_of_an_open_session() {
        let namespace = |labels: serde_json::Value| -> Namespace {
            serde_json::from_value(json!({ "metadata": { "name": "tenant-heron", "labels": labels } })).unwrap()
        };
        let (new, open) = (
            AgentSessionStatus::default(),
            AgentSessionStatus { session_id: Some("0190".to_owned()), ..AgentSessionStatus::default() },
        );
        let labelled = namespace(json!({ "croft.dev/tenant": "heron" }));
        assert!(may_be_a_tenants(Some(&labelled), &new) && may_be_a_tenants(Some(&labelled), &open));
        for other in [Some(namespace(json!({ "team": "heron" }))), None] {
            assert!(!may_be_a_tenants(other.as_ref(), &new));
            assert!(may_be_a_tenants(other.as_ref(), &open));
        }
        assert_eq!(Error::TenantUnknown { name: "tenant-heron".to_owned() }.retry(), Retry::Backoff);
    }

    #[test]
    fn what_a_tenant_must_mend_is_counted_apart_from_fronts_that_refuse_the_operator() {
        let reason = |status: Status| refused("CreateSession", status).reason();
        assert_eq!(reason(Status::resource_exhausted("")), "LimitReached");
        assert_eq!(not_opened(Status::resource_exhausted(""), Some(0)).reason(), "LimitReached");
        assert_eq!(reason(refusal::tests::by_front(Code::FailedPrecondition, "TENANT_CLOSED")), "TenantNotOpen");
        assert_eq!(reason(Status::permission_denied("")), "OperatorRefused");
        assert_eq!(reason(Status::unavailable("")), "FrontUnavailable");
        assert_eq!(reason(Status::internal("")), "FrontFailed");
    }

    #[test]
    fn old_news_does_not_turn_a_status_back() {
        let known = |session_id: &str, last_seq| {
            Known::of(&Session { session_id: session_id.into(), last_seq, ..Session::default() })
        };
        let current =
            AgentSessionStatus { session_id: Some("0190".into()), last_seq: Some(7), ..AgentSessionStatus::default() };
        assert!(!is_older(&known("0190", 7), &current));
        assert!(is_older(&known("0190", 6), &current));
        assert!(is_older(&known("0191", 9), &current));
    }
}
