//! Tells of thresholds, once each, whoever finds them and whatever is away meanwhile.

use std::time::Duration;

use croft_proto::id::TenantId;
use croft_proto::v1::session_event::Kind;
use croft_serve::Tasks;

use super::Keeper;
use crate::budget::alert::Alert;
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, IdempotencyKey, NewEvent};
use crate::session::snapshot;

/// Between two looks for alerts that nobody was told of, and how old those are at least.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const UNTOLD_FOR: Duration = Duration::from_secs(10);
/// Those that one look takes.
const UNTOLD_MAX: u32 = 100;

impl Keeper {
    /// Tells of a threshold unless that was done before.
    pub(super) async fn alert(&self, tenant: TenantId, alert: &Alert) {
        let key = (tenant, alert.key());
        if self.alerted.contains_key(&key) {
            return;
        }
        let outcome = async {
            if self.store.alert(tenant, alert).await? {
                self.metrics.alerts.with_label_values(&[&alert.percent.to_string()]).inc();
                self.tell(tenant, alert).await?;
            }
            Ok::<_, Error>(())
        };
        match outcome.await {
            Ok(()) => self.alerted.insert(key, ()).await,
            Err(error) => tracing::warn!(%tenant, %error, alert = alert.key(), "an alert is told of later"),
        }
    }

    /// Stores the alert's event, once: its name is its idempotency key.
    async fn tell(&self, tenant: TenantId, alert: &Alert) -> Result<(), Error> {
        let key = alert.key();
        let idempotency_key = Some(IdempotencyKey { body_hash: snapshot::canonical_hash(&key.clone().into()), key });
        let told = vec![NewEvent::now(Kind::BudgetAlert(alert.event()))];
        let append = Append { idempotency_key, ..Append::of(tenant, alert.session, Authority::Caller, told) };
        match self.events.append(append).await {
            Ok(Appended::New(events)) => self.hub.publish(tenant, alert.session, events),
            // Whoever tried before us has come so far. Where the session has ended, nobody is left to be told.
            Ok(Appended::Existing { .. }) | Err(Error::SessionTerminated { .. } | Error::SessionNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        self.store.told(tenant, alert).await
    }

    /// Looks for alerts that nobody was told of, until intake stops.
    pub(super) async fn tell_what_is_untold(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Err(error) = self.tell_untold(UNTOLD_FOR).await {
                tracing::warn!(%error, "alerts that nobody was told of are looked for again");
            }
        }
    }

    /// Tells of alerts that whoever found them did not tell of for so long. How many there were. One that can't be told keeps none of the
    /// others from being.
    pub async fn tell_untold(&self, older_than: Duration) -> Result<usize, Error> {
        let untold = self.store.untold(older_than, UNTOLD_MAX).await?;
        for (tenant, alert) in &untold {
            if let Err(error) = self.tell(*tenant, alert).await {
                tracing::warn!(%tenant, %error, alert = alert.key(), "an alert is told of later");
            }
        }
        Ok(untold.len())
    }
}
