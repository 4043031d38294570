//! Ends sessions whose time is up, and those of sub-agents that have outlived their call. Every replica looks; whichever is first
//! writes the one event, and the others find the session ended.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use futures::{StreamExt, stream};

use super::Session;
use super::manager::{CALL_ENDED, Manager};
use crate::audit::Action;
use crate::clock::now;
use crate::core::Core;
use crate::error::Error;
use crate::events::log::Authority;
use crate::store::time;

/// Between two looks: a session lives for at most so much longer than it was given.
const EVERY: Duration = Duration::from_secs(1);
/// Sessions that one look finds at most; there is another look at once while there are as many.
const BATCH: u32 = 200;
const CONCURRENCY: usize = 8;

/// Why a session was ended, as in its `SessionTerminated`.
const IDLE_TIMEOUT: &str = "IDLE_TIMEOUT";
const LIFETIME: &str = "LIFETIME";

/// Looks for sessions that are due, and for sub-agents that have outlived their call, until shutdown. Side by side: however many there are
/// of the ones, and however long their workers take to let go of them, the others end in time.
pub async fn watch_for_sessions_due(core: Arc<Core>) {
    let manager = Manager::new(Arc::clone(&core));
    tokio::join!(end_due(&core, &manager), end_orphans(&core, &manager));
}

async fn end_due(core: &Core, manager: &Manager) {
    let stopping = core.tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        while !stopping.is_cancelled() {
            match look(core, manager).await {
                // Where nothing could be ended, another look at once would find the same.
                Ok(Found { sessions, ended }) if sessions == BATCH as usize && ended > 0 => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "sessions that are due not looked for, trying again");
                    break;
                }
            }
        }
    }
}

async fn end_orphans(core: &Core, manager: &Manager) {
    let stopping = core.tasks.stopping();
    let mut orphans = HashSet::new();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match look_for_orphans(core, manager, &orphans).await {
            Ok(found) => orphans = found,
            Err(error) => tracing::warn!(%error, "sub-agents whose call is over not looked for, trying again"),
        }
    }
}

struct Found {
    sessions: usize,
    ended: usize,
}

async fn look(core: &Core, manager: &Manager) -> Result<Found, Error> {
    let due = core.stores.across.due(now(), BATCH).await?;
    let sessions = due.len();
    let ended = stream::iter(due)
        .map(|(tenant, session)| async move {
            end(core, manager, tenant, session).await.unwrap_or_else(|error| {
                tracing::warn!(%tenant, %session, %error, "session that is due not ended, trying again");
                false
            })
        })
        .buffer_unordered(CONCURRENCY)
        .filter(|ended| std::future::ready(*ended))
        .count()
        .await;
    Ok(Found { sessions, ended })
}

/// Whoever ended their calls was lost before it could end these. Only those that the look before has found too: a turn that was broken off
/// is not the session's at hand for a moment, when a message comes before it is gone on with, and its calls are not over. Tells who was
/// found.
async fn look_for_orphans(
    core: &Core,
    manager: &Manager,
    before: &HashSet<(TenantId, SessionId)>,
) -> Result<HashSet<(TenantId, SessionId)>, Error> {
    let found: HashSet<_> = core.stores.across.orphaned(BATCH).await?.into_iter().collect();
    stream::iter(found.intersection(before).copied())
        .for_each_concurrent(CONCURRENCY, |(tenant, id)| async move {
            let ended = match core.stores.sessions.get(tenant, id).await {
                Ok(Some(session)) => manager.end_child(&session, CALL_ENDED).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!(%tenant, session = %id, %error, "a sub-agent whose call is over not ended, trying again");
            }
        })
        .await;
    Ok(found)
}

/// True when it was this replica that ended it.
async fn end(core: &Core, manager: &Manager, tenant: TenantId, id: SessionId) -> Result<bool, Error> {
    let Some(session) = core.stores.sessions.get(tenant, id).await? else { return Ok(false) };
    let as_of = now();
    let reason = reason(&session, &as_of);
    let ended = match manager.end(&session, Authority::Overdue { as_of }, reason).await {
        // It has been heard from meanwhile.
        Err(Error::SessionBusy { .. }) => false,
        outcome => outcome?,
    };
    if ended {
        tracing::info!(%tenant, session = %id, reason, "session ended, its time was up");
        core.metrics.sessions_expired.with_label_values(&[reason]).inc();
        manager.release_worker(&session, reason);
        let (actor, resource) = ("front".to_owned(), format!("sessions/{id}"));
        core.audit
            .record(Action {
                tenant,
                actor,
                action: "session.expire".into(),
                resource,
                outcome: "ok".into(),
                act_micros: None,
            })
            .await;
    }
    Ok(ended)
}

fn reason(session: &Session, as_of: &Timestamp) -> &'static str {
    match &session.expire_time {
        Some(expiry) if time::micros(expiry) <= time::micros(as_of) => LIFETIME,
        _ => IDLE_TIMEOUT,
    }
}
