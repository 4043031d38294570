//! A relay between replicas by the publish and subscribe of Redis, on the channel `croft:<tenant>:<session>`.
//!
//! One connection publishes, another listens to all channels that this replica wants. When either breaks, the next call
//! makes it anew.

mod subscriber;

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, cmd};
use tokio::sync::{mpsc, oneshot};

use super::{Envelope, Relay, wire};
use crate::error::Error;
use subscriber::{Request, Subscriber};

/// How long Redis may take to answer; longer means that it is down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Subscriptions that may wait to be made. At the bound a caller waits.
const REQUESTS_MAX: usize = 1_024;

/// The relay; cheap to clone.
#[derive(Clone)]
pub struct RedisRelay {
    publisher: ConnectionManager,
    requests: mpsc::Sender<Request>,
}

impl RedisRelay {
    /// Starts the relay. It ends with `tasks`, once nobody listens any more. Redis need not be there yet:
    /// [`RedisRelay::check`] tells.
    pub async fn connect(client: Client, tasks: &Tasks) -> Result<Self, Error> {
        // Without tries of its own: each call of ours is one.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let publisher = client.get_connection_manager_lazy(config).map_err(down)?;
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        tasks.spawn_endless("relay-subscriber", Subscriber::new(client, waiting).run(tasks.stopping()));
        let relay = Self { publisher, requests };
        if let Err(error) = relay.check().await {
            tracing::warn!(%error, "starting without Redis: events reach other replicas by the log, with delay");
        }
        Ok(relay)
    }

    /// Redis answers.
    pub async fn check(&self) -> Result<(), Error> {
        cmd("PING").query_async(&mut self.publisher.clone()).await.map_err(down)
    }
}

#[async_trait]
impl Relay for RedisRelay {
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<u64, Error> {
        let mut publish = cmd("PUBLISH");
        publish.arg(channel(tenant, session)).arg(wire::encode(envelope));
        publish.query_async(&mut self.publisher.clone()).await.map_err(down)
    }

    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Envelope>, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request { channel: channel(tenant, session), reply };
        let stopped = || Error::unavailable("redis", anyhow::anyhow!("the relay has stopped"));
        self.requests.send(request).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn channel(tenant: TenantId, session: SessionId) -> String {
    format!("croft:{tenant}:{session}")
}

fn down(error: impl Into<anyhow::Error>) -> Error {
    Error::unavailable("redis", error)
}
