//! A relay between replicas by the publish and subscribe of Redis, on the channel `croft:<tenant>:<session>`.
//!
//! One connection publishes, another listens to all channels that this replica wants. When either breaks, the next call
//! makes it anew.

mod subscriber;

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use redis::{Client, cmd};
use tokio::sync::{mpsc, oneshot};

use super::{Envelope, Relay, wire};
use crate::error::Error;
use crate::redis_connection::RedisConnection;
use subscriber::{Request, Subscriber};

/// How long Redis may take to answer; longer means that it is down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Subscriptions that may wait to be made. At the bound a caller waits.
const REQUESTS_MAX: usize = 1_024;

/// The relay; cheap to clone.
#[derive(Clone)]
pub struct RedisRelay {
    publisher: RedisConnection,
    requests: mpsc::Sender<Request>,
}

impl RedisRelay {
    /// Starts the relay. It ends with `tasks`, once nobody listens any more. Redis need not be there yet:
    /// [`RedisRelay::check`] tells.
    pub async fn connect(client: Client, tasks: &Tasks) -> Result<Self, Error> {
        let publisher = RedisConnection::lazy(client.clone(), ANSWER_TIMEOUT)?;
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
        self.publisher.ask(|mut redis| async move { cmd("PING").query_async(&mut redis).await }).await
    }
}

#[async_trait]
impl Relay for RedisRelay {
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<u64, Error> {
        let mut publish = cmd("PUBLISH");
        publish.arg(channel(tenant, session)).arg(wire::encode(envelope));
        self.publisher.ask(|mut redis| async move { publish.query_async(&mut redis).await }).await
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
