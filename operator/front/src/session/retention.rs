//! Erases sessions that ended long ago. Every replica looks; those that look at the same time take different sessions.
//!
//! A session is erased as a whole, and is from then on as one that never was. Its usage and its audit records stay.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;

use crate::audit::Action;
use crate::core::Core;
use crate::error::Error;
use crate::store::batch::Batch;
use crate::store::time;
use crate::tenants::Tenant;
use crate::turn::now;

/// Sessions that are erased in one transaction at most. Each may have many thousands of events.
const BATCH: u32 = 20;

/// What a store can erase of a tenant that stays.
#[async_trait]
pub trait RetentionStore: Send + Sync {
    /// Erases sessions that ended before then, longest ended first, each with its events, checkpoint, lease and idempotency
    /// keys, all of it or nothing. At most `sessions_max`; tells how many. What ended within the hour is left alone.
    async fn erase_ended(&self, tenant: TenantId, before: Timestamp, sessions_max: u32) -> Result<u64, Error>;
}

/// Looks for sessions to erase until shutdown. Without a retention time there are none.
pub async fn watch_for_sessions_to_erase(core: Arc<Core>) {
    let Some(retention) = core.options.retention else { return };
    let stopping = core.tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(core.options.retention_look_every) => {}
        }
        for tenant in core.tenants.list() {
            if stopping.is_cancelled() {
                return;
            }
            if let Err(error) = erase(&core, &tenant, retention).await {
                tracing::warn!(tenant = tenant.name, %error, "ended sessions not erased, trying again");
            }
        }
    }
}

/// All that a tenant's time is up for, in batches.
async fn erase(core: &Core, tenant: &Tenant, retention: Duration) -> Result<(), Error> {
    let kept = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    let before = time::timestamp(time::micros(&now()).saturating_sub(kept));
    let (mut erased, mut batch) = (0, Batch::of(BATCH));
    let outcome = loop {
        match core.stores.retention.erase_ended(tenant.id, before, batch.size()).await {
            Ok(0) => break Ok(()),
            Ok(sessions) => erased += sessions,
            Err(error) if batch.halves_for(&error) => {}
            Err(error) => break Err(error),
        }
        if core.tasks.stopping().is_cancelled() {
            break Ok(());
        }
    };
    if erased > 0 {
        tracing::info!(tenant = tenant.name, erased, "ended sessions erased, they were kept for long enough");
        core.metrics.sessions_erased.inc_by(erased);
        let (actor, resource) = ("front".to_owned(), format!("sessions:{erased}"));
        core.audit
            .record(Action { tenant: tenant.id, actor, action: "session.erase".into(), resource, outcome: "ok".into() })
            .await;
    }
    outcome
}
