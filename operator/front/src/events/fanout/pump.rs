//! Brings what other replicas say about one session here, for as long as someone listens.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outbox::Key;
use super::shared::Shared;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Starts the pump. `asked` turns true once the relay has answered for the first time; `token` ends it.
pub(super) fn spawn(shared: &Arc<Shared>, key: Key, token: CancellationToken, asked: watch::Sender<bool>) {
    let relay = Arc::clone(&shared.relay);
    // The listeners keep the hub; the pump must not, or neither would ever go.
    let hub: Weak<Shared> = Arc::downgrade(shared);
    let pump = async move {
        let (tenant, session) = key;
        let mut first = true;
        let mut retries = retries();
        loop {
            let asked_at = Instant::now();
            let subscribed = relay.subscribe(tenant, session).await;
            let Some(shared) = hub.upgrade() else { return };
            shared.set_relay_up(subscribed.is_ok());
            shared.join(key, subscribed.is_ok());
            // What happened before this moment came by no frame, and only the first listener may have waited for it.
            if !first || asked_at.elapsed() >= shared.options.subscribe_timeout {
                shared.resync(key);
            }
            match &subscribed {
                Ok(_) => retries = self::retries(),
                Err(error) => {
                    tracing::debug!(%tenant, %session, %error, "cannot listen to other replicas");
                    shared.metrics.relay_failures.with_label_values(&["subscribe"]).inc();
                }
            }
            drop(shared);
            first = false;
            asked.send_replace(true);
            if let Ok(mut frames) = subscribed {
                while let Some(envelope) = frames.recv().await {
                    let Some(shared) = hub.upgrade() else { return };
                    shared.receive(key, envelope);
                }
                let Some(shared) = hub.upgrade() else { return };
                shared.join(key, false);
            }
            tokio::time::sleep(retries.next().unwrap_or(RETRY_MAX)).await;
        }
    };
    drop(shared.tasks.spawn("relay-pump", async move { token.run_until_cancelled(pump).await }));
}

fn retries() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(RETRY_FIRST)
        .with_max_delay(RETRY_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}
