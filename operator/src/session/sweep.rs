//! Compares declared sessions with the front's, every few seconds: mirrors what became of them, and ends those whose
//! object is gone.
//!
//! One list call a tenant tells all of it, however many sessions there are. A tenant without declared sessions is asked
//! seldom: only deletions that happened while no operator ran could have left something there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, labels};
use croft_proto::v1::Session;
use kube::ResourceExt as _;
use kube::api::Api;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::status::{self, Summary};
use super::{Error, object_uid, refused};
use crate::context::Context;
use crate::token::TenantRef;

/// How often every tenant is asked.
const FULL_EVERY: Duration = Duration::from_mins(10);

/// Sweeps every `period`, and a tenant at once in which an object has been deleted, until `stopping`.
pub async fn run(context: Arc<Context>, period: Duration, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut full_at = Instant::now();
    // Namespaces whose last sweep failed: something may still have to be ended there.
    let mut again = BTreeSet::new();
    loop {
        let due = tokio::select! {
            () = stopping.cancelled() => return,
            namespace = context.cluster.changes.bereaved.next() => BTreeSet::from([namespace]),
            _ = ticks.tick() => {
                let mut due = std::mem::take(&mut again);
                due.extend(declared(&context).into_keys());
                if Instant::now() >= full_at {
                    full_at = Instant::now() + FULL_EVERY;
                    due.extend(context.cluster.tenants.state().iter().map(|tenant| tenant.namespace_name()));
                }
                due
            }
        };
        let mut declared = declared(&context);
        for namespace in due {
            let objects = declared.remove(&namespace).unwrap_or_default();
            if let Err(error) = tenant(&namespace, &objects, &context).await {
                tracing::warn!(namespace, error = crate::controller::chain(&error), "cannot sweep sessions");
                again.insert(namespace);
            }
            if stopping.is_cancelled() {
                return;
            }
        }
    }
}

/// Declared sessions that may still change, or may still have something to end, by namespace.
fn declared(context: &Context) -> BTreeMap<String, Vec<Arc<AgentSession>>> {
    let mut by_namespace: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for session in context.cluster.sessions.state() {
        by_namespace.entry(session.namespace().unwrap_or_default()).or_default().push(session);
    }
    by_namespace
}

async fn tenant(namespace: &str, objects: &[Arc<AgentSession>], context: &Context) -> Result<(), Error> {
    let Some(tenant) = context.cluster.tenant_in(namespace) else { return Ok(()) };
    let tenant = TenantRef::from(&*tenant);
    let filter = HashMap::from([(labels::SESSION_SOURCE.to_owned(), labels::SESSION_SOURCE_OBJECT.to_owned())]);
    let open = context.front.open_sessions(&tenant, filter).await;
    let open = open.map_err(|status| refused("ListSessions", status))?;
    let by_uid: HashMap<_, _> = objects.iter().map(|object| (object.uid().unwrap_or_default(), object)).collect();
    for session in &open {
        let ended_because = match object_uid(session).and_then(|uid| by_uid.get(uid)) {
            Some(object) => object.spec.terminate.then_some("spec.terminate is set"),
            None => is_gone(namespace, session, context).await?.then_some("its AgentSession has been deleted"),
        };
        if let Some(why) = ended_because {
            tracing::info!(tenant = tenant.name, session = session.session_id, why, "ending a session");
            let ended = context.front.terminate(&tenant, &session.session_id, why).await;
            ended.map_err(|status| refused("TerminateSession", status))?;
        }
    }
    let open: HashMap<_, _> = open.iter().map(|session| (session.session_id.as_str(), session)).collect();
    for object in objects {
        mirror(object, &open, &tenant, context).await?;
    }
    Ok(())
}

/// Whether the object that a session was made for is really gone. The copies may be behind another operator that has
/// just made this session, so the API server has the last word.
async fn is_gone(namespace: &str, session: &Session, context: &Context) -> Result<bool, Error> {
    let Some(name) = session.labels.get(labels::AGENT_SESSION_NAME) else { return Ok(false) };
    let objects: Api<AgentSession> = Api::namespaced(context.client.clone(), namespace);
    let found = objects.get_opt(name).await;
    let found = found.map_err(|source| Error::Read { name: namespace.to_owned(), source })?;
    Ok(found.is_none_or(|found| found.metadata.uid.as_deref() != object_uid(session)))
}

/// Says in the status what the front says. An object without a session is its own pass's business.
async fn mirror(
    object: &AgentSession,
    open: &HashMap<&str, &Session>,
    tenant: &TenantRef,
    context: &Context,
) -> Result<(), Error> {
    let current = status::current(object, context);
    if object.spec.terminate || current.phase.is_some_and(SessionPhase::is_final) {
        return Ok(());
    }
    let Some(session_id) = current.session_id else { return Ok(()) };
    let summary = match open.get(session_id.as_str()) {
        Some(session) => Summary::of(session),
        // It has ended, or was opened after the list was made.
        None => match context.front.get(tenant, &session_id).await.map_err(|status| refused("GetSession", status))? {
            Some(session) => Summary::of(&session),
            None => Summary::lost(),
        },
    };
    status::write(object, summary, context).await
}
