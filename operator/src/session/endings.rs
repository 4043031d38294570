//! Ends sessions at the front whose object no longer wants them: it was deleted, or it says so.
//!
//! There is no finalizer, so that an operator that is away holds no object back. What is missed meanwhile is found when
//! the front's picture is compared with the objects.

use std::sync::Arc;
use std::time::Duration;

use croft_crds::AgentSession;
use croft_serve::log::chain;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::api::Api;
use tokio_util::sync::CancellationToken;

use super::told::Declared;
use super::{Error, refused};
use crate::context::Context;
use crate::controller::Backoff;
use crate::token::TenantRef;

/// Calls at a time; more wait.
const AT_A_TIME: usize = 8;
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long one call may take, with the look at the API server before it: one that is never answered must not keep its place for ever. The
/// front gives an answer within ten seconds or none.
const END_MAX: Duration = Duration::from_secs(13);

/// A session that shall end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ending {
    pub(super) tenant: TenantRef,
    pub(super) session_id: String,
    pub(super) why: Why,
}

/// Why it shall end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// `spec.terminate` is set.
    Terminate,
    /// We saw its object go.
    Deleted,
    /// We know of no such object. The copies may be behind another operator that has just made this session, so the API
    /// server has the last word.
    Orphan { name: String, uid: String },
}

impl Why {
    pub(super) fn sentence(&self) -> &'static str {
        match self {
            Self::Terminate => "spec.terminate is set",
            Self::Deleted | Self::Orphan { .. } => "its AgentSession has been deleted",
        }
    }
}

/// An AgentSession that has been deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bereaved {
    pub namespace: String,
    pub uid: String,
    /// As its status had it.
    pub session_id: Option<String>,
    /// Whether its status said that the session has ended.
    pub is_over: bool,
}

/// Ends what is to be ended until `stopping`. What fails is tried again later and later, and holds up nothing else.
pub(crate) async fn run(context: Arc<Context>, stopping: CancellationToken) {
    let pauses = Backoff::new(PAUSE_MAX);
    let mut calls = FuturesUnordered::new();
    let mut later = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            bereaved = context.cluster.changes.bereaved.next() => take_bereaved(bereaved, &context),
            ending = context.endings.next(), if calls.len() < AT_A_TIME => {
                calls.push(async {
                    let outcome = match tokio::time::timeout(END_MAX, end(&ending, &context)).await {
                        Ok(outcome) => outcome.map_err(|error| chain(&error)),
                        Err(_) => Err(format!("there is no answer within {} s", END_MAX.as_secs())),
                    };
                    (ending, outcome)
                });
            }
            Some((ending, outcome)) = calls.next() => match outcome {
                Ok(()) => pauses.succeeded(&ending),
                Err(error) => {
                    let (tenant, session) = (&ending.tenant.name, &ending.session_id);
                    tracing::warn!(tenant, session, error, "cannot end a session");
                    let pause = pauses.failed(ending.clone());
                    later.push(async move {
                        tokio::time::sleep(pause).await;
                        ending
                    });
                }
            },
            Some(ending) = later.next() => context.endings.mark(ending),
        }
    }
}

fn take_bereaved(bereaved: Bereaved, context: &Context) {
    let Bereaved { namespace, uid, session_id, is_over } = bereaved;
    let declared = Declared { namespace: namespace.clone(), uid };
    let known = context.told.of(&declared);
    context.told.forget(&declared);
    // What ended long ago no front tells of any more, so the status has the word.
    if is_over || known.as_ref().is_some_and(|known| !known.is_open()) {
        return;
    }
    // A session that is just being opened for it is ended by the pass that opens it.
    let Some(session_id) = session_id.or(known.map(|known| known.session_id)) else { return };
    // A tenant that is gone too has had all of its sessions ended.
    let Some(tenant) = context.cluster.tenant_called_by(&namespace) else { return };
    context.endings.mark(Ending { tenant: TenantRef::from(&*tenant), session_id, why: Why::Deleted });
}

async fn end(ending: &Ending, context: &Context) -> Result<(), Error> {
    let Ending { tenant, session_id, why } = ending;
    // A tenant that is gone has had all of its sessions ended, and the fronts know of none of that name.
    if context.cluster.tenant(&tenant.name).is_none_or(|there| TenantRef::from(&*there) != *tenant) {
        return Ok(());
    }
    if let Why::Orphan { name, uid } = why
        && !is_gone(&tenant.name, name, uid, context).await?
    {
        return Ok(());
    }
    tracing::info!(tenant = tenant.name, session = session_id, why = why.sentence(), "ending a session");
    let ended = context.front.terminate(tenant, session_id, why.sentence()).await;
    ended.map(drop).map_err(|status| refused("TerminateSession", status))
}

async fn is_gone(tenant: &str, name: &str, uid: &str, context: &Context) -> Result<bool, Error> {
    let namespace = croft_crds::labels::tenant_namespace(tenant);
    let objects: Api<AgentSession> = Api::namespaced(context.client.clone(), &namespace);
    // Also of one that this release can't read.
    let found = objects.get_metadata_opt(name).await.map_err(|source| Error::Read { name: namespace, source })?;
    Ok(found.is_none_or(|found| found.metadata.uid.as_deref() != Some(uid)))
}
