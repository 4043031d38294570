//! Erases sessions that ended long ago. Every replica looks; those that look at the same time take different sessions.
//!
//! A session goes out of everybody's sight as a whole, and is from then on as one that never was; its events go in slices, so that
//! one of very many takes no longer than another. Its usage and its audit records stay.

pub mod store;

use std::sync::Arc;
use std::time::Duration;

use croft_proto::Timestamp;
use croft_proto::id::TenantId;

use self::store::Erased;
use crate::clock::now;
use crate::core::Core;
use crate::error::Error;
use crate::store::batch::Batch;
use crate::store::time;

/// Sessions of one transaction at most.
const SESSIONS_BATCH: u32 = 20;
/// Their events. Where even these take the store longer than a statement may, it is half as many.
const EVENTS_BATCH: u32 = 10_000;

/// Of tenants that are served no more, in one look; more of them wait for the next.
const TENANTS_MAX: u32 = 100;

/// Looks for sessions to erase until shutdown. Without a retention time only those are whose erasure has begun; and of tenants that are
/// archived.
pub async fn watch_for_sessions_to_erase(core: Arc<Core>) {
    let stopping = core.tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(core.options.retention_look_every) => {}
        }
        for tenant in core.tenants.list() {
            let before = core.options.retention.map_or_else(Timestamp::default, kept_since);
            erase_or_warn(&core, tenant.id, before).await;
        }
        match core.stores.across.erasing(TENANTS_MAX).await {
            // Those that are archived meanwhile, whose sessions are kept for ever but for these.
            Ok(erasing) => {
                for tenant in erasing.into_iter().filter(|id| core.tenants.get(*id).is_none()) {
                    erase_or_warn(&core, tenant, Timestamp::default()).await;
                }
            }
            Err(error) => tracing::warn!(%error, "tenants with half erased sessions not looked for, trying again"),
        }
    }
}

async fn erase_or_warn(core: &Core, tenant: TenantId, before: Timestamp) {
    if core.tasks.stopping().is_cancelled() {
        return;
    }
    if let Err(error) = erase(core, tenant, before).await {
        tracing::warn!(%tenant, %error, "ended sessions not erased, trying again");
    }
}

/// All of a tenant's that ended before then, in batches.
async fn erase(core: &Core, tenant: TenantId, before: Timestamp) -> Result<(), Error> {
    let (mut erased, mut batch) = (0, Batch::of(EVENTS_BATCH));
    let outcome = loop {
        let (sessions_max, events_max) = (SESSIONS_BATCH.min(batch.size()), batch.size());
        match core.stores.retention.erase_ended(tenant, before, sessions_max, events_max).await {
            Ok(Erased { sessions: 0, events: 0 }) => break Ok(()),
            Ok(Erased { sessions, .. }) => {
                erased += sessions;
                batch.fitted();
            }
            Err(error) if batch.halves_for(&error) => {}
            // Somebody has been at the tenant's audit log, and has to hear of it.
            Err(error @ Error::Invalid { .. }) => {
                core.metrics.audit_refused.inc();
                break Err(error);
            }
            Err(error) => break Err(error),
        }
        if core.tasks.stopping().is_cancelled() {
            break Ok(());
        }
    };
    if erased > 0 {
        tracing::info!(%tenant, erased, "ended sessions erased, they were kept for long enough");
        core.metrics.sessions_erased.inc_by(erased);
    }
    outcome
}

/// What ended before then has been kept for so long.
fn kept_since(retention: Duration) -> Timestamp {
    let kept = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    time::timestamp(time::micros(&now()).saturating_sub(kept))
}
