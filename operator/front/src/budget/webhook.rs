//! Posts alerts to the platform's webhook: signed, again until it is taken, and for ever to none. Alerts are the queue: see
//! [`BudgetStore::claim_hooks`].

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use croft_serve::Tasks;
use futures::{StreamExt, stream};
use prometheus::{IntCounterVec, Opts, Registry};
use reqwest::{Client, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::BudgetStore;
use super::alert::Alert;
use crate::clock::now;
use crate::error::Error;

/// How long the webhook may take to answer. One that hangs holds up nothing but its own queue.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Alerts that are posted at a time, and so taken at a time.
const CONCURRENCY: usize = 8;
/// Nobody else posts an alert within this time of its being taken.
const LEASE: Duration = Duration::from_mins(1);
/// Between two looks for alerts, when the last found none.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The first pause after a failure; each is twice the one before, up to the longest.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_mins(10);
/// After so many tries, within two hours, the alert stays in the table as `dead`, and is posted no more.
const TRIES_MAX: u32 = 20;

/// Where to, and the key that both sides know.
#[derive(Debug, Clone)]
pub struct Hook {
    pub url: String,
    pub secret: SecretString,
}

/// An alert whose turn it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    pub tenant: TenantId,
    pub tenant_name: String,
    pub alert: Alert,
    pub create_time: Timestamp,
    /// This one included.
    pub tries: u32,
}

/// How a try went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookEnd {
    Taken,
    /// It is given up.
    Dead,
    /// It is tried again after this.
    Again(Duration),
}

/// What is posted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'alert> {
    r#type: &'static str,
    /// The same at each try.
    id: String,
    tenant: &'alert str,
    tenant_id: String,
    scope: &'static str,
    subject: &'alert str,
    period: &'alert str,
    unit: &'static str,
    limit: i64,
    percent: u32,
    spent: i64,
    session_id: String,
    /// Seconds since 1970.
    create_time: i64,
}

/// Posts alerts.
pub struct Poster {
    store: Arc<dyn BudgetStore>,
    client: Client,
    hook: Hook,
    /// By outcome.
    posted: IntCounterVec,
    pause: Duration,
}

impl Poster {
    /// Fails if its instrument is registered already, or TLS can't be had.
    pub fn new(store: Arc<dyn BudgetStore>, hook: Hook, registry: &Registry) -> anyhow::Result<Self> {
        let client = Client::builder().timeout(ANSWER_TIMEOUT).redirect(redirect::Policy::none()).build()?;
        let posted = Opts::new("croft_alert_hooks_total", "Posts of alerts to the webhook, by how they went");
        let posted = IntCounterVec::new(posted, &["outcome"])?;
        registry.register(Box::new(posted.clone()))?;
        Ok(Self { store, client, hook, posted, pause: PAUSE })
    }

    /// With another first pause after a failure, for tests.
    #[must_use]
    pub fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Posts until shutdown.
    pub async fn run(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        loop {
            let found = tokio::select! {
                () = stopping.cancelled() => return,
                found = self.post_what_is_due() => found,
            };
            if let Ok(1..) = found {
                continue;
            }
            if let Err(error) = found {
                tracing::warn!(%error, "alerts for the webhook are looked for again");
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Posts the alerts whose time has come, a few at most, and tells how many there were.
    pub async fn post_what_is_due(&self) -> Result<usize, Error> {
        let claimed = self.store.claim_hooks(CONCURRENCY, LEASE).await?;
        let count = claimed.len();
        let ended = stream::iter(claimed).map(|claimed| async move {
            let end = self.post(&claimed).await;
            self.store.hook_ended(claimed.tenant, &claimed.alert, end).await
        });
        let ended: Vec<_> = ended.buffer_unordered(CONCURRENCY).collect().await;
        ended.into_iter().collect::<Result<(), _>>()?;
        Ok(count)
    }

    async fn post(&self, claimed: &Claimed) -> HookEnd {
        let failure = match self.send(claimed).await {
            Ok(status) if status.is_success() => {
                self.posted.with_label_values(&["taken"]).inc();
                return HookEnd::Taken;
            }
            Ok(status) => status.to_string(),
            // Without the URL, which may hold a secret of the receiver's.
            Err(error) => error.without_url().to_string(),
        };
        let Claimed { tenant, tries, .. } = claimed;
        if *tries >= TRIES_MAX {
            self.posted.with_label_values(&["dead"]).inc();
            tracing::error!(%tenant, alert = claimed.alert.key(), failure, "an alert is given up: the webhook never took it");
            return HookEnd::Dead;
        }
        self.posted.with_label_values(&["failed"]).inc();
        tracing::warn!(%tenant, tries, failure, "an alert is posted again");
        HookEnd::Again((self.pause * 2_u32.saturating_pow(tries.saturating_sub(1).min(16))).min(PAUSE_MAX))
    }

    async fn send(&self, claimed: &Claimed) -> Result<reqwest::StatusCode, reqwest::Error> {
        let Claimed { tenant, tenant_name, alert, create_time, .. } = claimed;
        let id = format!("{tenant}/{}", alert.key());
        let body = Body {
            r#type: "budget.alert",
            id: id.clone(),
            tenant: tenant_name,
            tenant_id: tenant.to_string(),
            scope: alert.account.scope.as_str(),
            subject: &alert.account.subject,
            period: &alert.account.period,
            unit: alert.unit.as_str(),
            limit: alert.limit,
            percent: alert.percent,
            spent: alert.spent,
            session_id: alert.session.to_string(),
            create_time: create_time.seconds,
        };
        // Numbers and texts: there is nothing that could not be written.
        let body = serde_json::to_string(&body).unwrap_or_default();
        let signature = signature(&self.hook.secret, now().seconds, &body);
        let request = self.client.post(&self.hook.url).header("content-type", "application/json");
        let request = request.header("croft-delivery", id).header("croft-signature", signature);
        Ok(request.body(body).send().await?.status())
    }
}

/// `t=<seconds since 1970>,v1=<hex of the HMAC-SHA256 of "<t>.<body>">`. Who checks it should refuse an old `t`: then nothing can be
/// replayed to it later.
pub fn signature(secret: &SecretString, seconds: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    format!("t={seconds},v1={}", hex::encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_that_others_reckon() {
        // `printf '1700000000.{}' | openssl dgst -sha256 -hmac secret`
        let signature = signature(&SecretString::from("secret"), 1_700_000_000, "{}");
        assert_eq!(signature, "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163");
    }
}
