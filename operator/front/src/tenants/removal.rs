//! The removal of a tenant, in order: its sessions end, what is still to be written about them is written, its
//! credentials go, and with [`RemovalPolicy::Erase`] also its sessions, events, budgets and alerts.
//!
//! The operator calls until it is done. Each call looks at what is left and takes up there, so it doesn't matter which front
//! it reaches, or whether an earlier one was broken off.

pub mod store;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_proto::id::TenantId;
use croft_proto::v1::{RemovalPolicy, RemovalStep, SessionState};
use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout};

use crate::audit::{Action, Place};
use crate::clock::now;
use crate::core::Core;
use crate::error::Error;
use crate::events::log::Authority;
use crate::identity::Identity;
use crate::session::Session;
use crate::session::manager::Manager;
use crate::session::store::Filter;
use crate::shares::Shares;
use crate::store::batch::Batch;
use crate::store::time::micros;
use crate::turn;

/// How long one call works; then it tells what is left. A single batch may take it a little further.
const CALL_MAX: Duration = Duration::from_secs(2);
/// How long one call waits until an earlier one of the tenant's is over.
const TURN_MAX: Duration = Duration::from_secs(5);
const SESSIONS_BATCH: u32 = 200;
const CONCURRENCY: usize = 8;
/// How long one call waits for audit records to be written.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How long it may take until a turn which the end of its session cut short has told what its calls used: its front hears of the end within a
/// lease's time, tells the worker to stop, and asks it what nobody was told of. What a worker that says nothing has used is added to the ledger
/// [so many leases](turn::TOLD_WITHIN_LEASES) later. Not waited for are the charges of a ledger that was away, and those in a session
/// at rest, of a turn that another front went on with: the log has them.
const LATE_MAX: Duration = Duration::from_secs(10);
const ROWS_BATCH: u32 = 5_000;
/// What is left is counted so far and no further.
const ROWS_COUNTED_MAX: u32 = 100_000;
/// Refused records that are remembered. At the bound they are forgotten, and set aside once more.
const REFUSED_MAX: usize = 1_000;
/// Why the sessions ended, as in their `SessionTerminated`.
const REASON: &str = "TENANT_REMOVED";

/// Where a removal stands, and how much is left of that step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub step: RemovalStep,
    pub left: u64,
}

/// From the end of a session until all that its last turn used is in the ledger.
fn late_max(lease_ttl: Duration) -> Duration {
    (turn::TOLD_WITHIN_LEASES + 1) * lease_ttl + LATE_MAX
}

/// Removes tenants.
#[derive(Clone)]
pub struct Removal {
    core: Arc<Core>,
    manager: Manager,
    /// One call at a time of each tenant's.
    at_work: Shares,
    /// Whose records were refused, and set aside.
    refused: Arc<Mutex<HashSet<(TenantId, &'static str)>>>,
}

impl Removal {
    pub fn new(core: Arc<Core>) -> Self {
        Self { manager: Manager::new(Arc::clone(&core)), core, at_work: Shares::of(1), refused: Arc::default() }
    }

    /// Goes on with the removal for a while, behind an earlier call whose caller did not wait for it.
    pub async fn go_on(&self, identity: &Identity, policy: RemovalPolicy) -> Result<Progress, Error> {
        let _alone = timeout(TURN_MAX, self.at_work.of_tenant(identity.tenant).acquire_owned())
            .await
            .map_err(|_| Error::unavailable("the tenant's removal", anyhow::anyhow!("an earlier call is at it still")))?
            .map_err(Error::internal)?;
        let (tenant, until) = (identity.tenant, Instant::now() + CALL_MAX);
        let removal = &self.core.stores.removal;
        removal.begin(tenant, &identity.tenant_name).await?;
        self.audit(identity, "tenant.remove").await?;
        let left = self.end_sessions(tenant, until).await?;
        if left > 0 {
            return Ok(Progress { step: RemovalStep::EndingSessions, left });
        }
        // Usage is written with the events that report it, but for that of turns that the end of their session cut short.
        let left = self.core.audit.unwritten(DRAIN_MAX).await;
        if left > 0 {
            return Ok(Progress { step: RemovalStep::Draining, left });
        }
        removal.erase_credentials(tenant).await?;
        if policy == RemovalPolicy::Erase {
            // Nothing can be added to the ledger for a session that is gone.
            let left = removal.count_cut_short(tenant, late_max(self.core.options.lease_ttl)).await?;
            if left > 0 {
                return Ok(Progress { step: RemovalStep::Draining, left });
            }
            let left = self.erase(identity, until).await?;
            if left > 0 {
                return Ok(Progress { step: RemovalStep::Erasing, left });
            }
        }
        Ok(Progress { step: RemovalStep::Done, left: 0 })
    }

    /// Tells how many are still open. They are gone through once: nobody opens one any more, and those that can't be read, as in a state of a
    /// newer release, stay.
    async fn end_sessions(&self, tenant: TenantId, until: Instant) -> Result<u64, Error> {
        let sessions = &self.core.stores.sessions;
        let (filter, mut after) = (Filter::open(), None);
        loop {
            let open = sessions.count_open(tenant).await?;
            if open == 0 || Instant::now() >= until {
                return Ok(open.into());
            }
            let page = sessions.list(tenant, &filter, after, SESSIONS_BATCH).await?;
            after = page.next();
            // None is left half ended for another that fails.
            let ended: Vec<_> = stream::iter(page.sessions)
                .map(|session| async move { self.end(&session).await })
                .buffer_unordered(CONCURRENCY)
                .collect()
                .await;
            ended.into_iter().collect::<Result<Vec<_>, _>>()?;
            if after.is_none() {
                let left = sessions.count_open(tenant).await?;
                if left > 0 {
                    tracing::warn!(%tenant, left, "sessions that can't be read hold up the removal of their tenant");
                }
                return Ok(left.into());
            }
        }
    }

    /// Workers go too, and one that runs nothing for the session need not be told.
    async fn end(&self, session: &Session) -> Result<(), Error> {
        let ended = self.manager.end(session, Authority::Fence, REASON).await?;
        if ended && session.state == SessionState::Running {
            self.manager.release_worker(session, REASON);
        }
        Ok(())
    }

    /// Tells how many rows are left.
    async fn erase(&self, identity: &Identity, until: Instant) -> Result<u64, Error> {
        let (removal, mut batch) = (&self.core.stores.removal, Batch::of(ROWS_BATCH));
        loop {
            let erased = match removal.erase_rows(identity.tenant, batch.size()).await {
                Ok(erased) => erased,
                Err(error) if batch.halves_for(&error) => continue,
                Err(error) => return Err(error),
            };
            let left = if erased == 0 {
                0
            } else if Instant::now() >= until {
                removal.count_rows(identity.tenant, ROWS_COUNTED_MAX).await?
            } else {
                continue;
            };
            if left == 0 {
                self.audit(identity, "tenant.erase").await?;
            }
            return Ok(left);
        }
    }

    /// In each call, until one has heard that it is stored: whoever did the work may have been lost before it could say so. A log that takes
    /// no record, as its end was set back, keeps no tenant's sessions running and its keys good: then the record is set aside, by each front once.
    async fn audit(&self, identity: &Identity, action: &'static str) -> Result<(), Error> {
        let (tenant, actor) = (identity.tenant, identity.actor.clone());
        let (resource, act_micros) = (format!("tenants/{}", identity.tenant_name), Some(micros(&now())));
        let act = Action { tenant, actor, action: action.into(), resource, outcome: "ok".into(), act_micros };
        match self.core.stores.audit.append(Place::once(tenant, action), vec![act.clone().plain()]).await {
            Err(Error::Invalid { .. }) => {
                if self.is_first_refused(tenant, action) {
                    self.core.audit.record(act).await;
                }
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    fn is_first_refused(&self, tenant: TenantId, action: &'static str) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REFUSED_MAX {
            refused.clear();
        }
        refused.insert((tenant, action))
    }
}
