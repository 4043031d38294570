//! A connection to Redis that is made when it is first asked, and made anew when it broke, whatever kept it from being made before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, RedisResult};
use tokio::time::Instant;

use crate::error::Error;

/// Between two managers at least.
const PACE: Duration = Duration::from_secs(1);

/// The connection; clones share it.
///
/// A manager connects anew by itself where a connection broke or could not be opened. One that was made and then refused, as for a password or a
/// database, it keeps for ever as what it has: then another takes its place, at most once a second.
#[derive(Clone)]
pub(crate) struct RedisConnection {
    client: Client,
    config: ConnectionManagerConfig,
    managed: Arc<Mutex<Managed>>,
}

struct Managed {
    manager: ConnectionManager,
    /// When it took the place of another, if it did.
    renewed_at: Option<Instant>,
}

impl RedisConnection {
    /// To be made and to be answered within `answer_timeout` each, without tries of its own: each call is one.
    pub(crate) fn lazy(client: Client, answer_timeout: Duration) -> Result<Self, Error> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(answer_timeout))
            .set_response_timeout(Some(answer_timeout));
        let manager = client.get_connection_manager_lazy(config.clone()).map_err(down)?;
        Ok(Self { client, config, managed: Arc::new(Mutex::new(Managed { manager, renewed_at: None })) })
    }

    /// What Redis answers. Fails with [`Error::Unavailable`].
    pub(crate) async fn ask<T, A>(&self, ask: impl FnOnce(ConnectionManager) -> A) -> Result<T, Error>
    where
        A: Future<Output = RedisResult<T>>,
    {
        let manager = self.managed.lock().unwrap_or_else(PoisonError::into_inner).manager.clone();
        ask(manager).await.map_err(|error| {
            self.renew_after(&error);
            down(error)
        })
    }

    /// Whether what failed was the making of the connection nobody says, so that it goes too where Redis could not do what it was asked.
    fn renew_after(&self, error: &RedisError) {
        if error.is_io_error() {
            return;
        }
        let mut managed = self.managed.lock().unwrap_or_else(PoisonError::into_inner);
        if managed.renewed_at.is_some_and(|at| at.elapsed() < PACE) {
            return;
        }
        match self.client.get_connection_manager_lazy(self.config.clone()) {
            Ok(another) => *managed = Managed { manager: another, renewed_at: Some(Instant::now()) },
            Err(error) => tracing::warn!(%error, "the connection to Redis can't be made anew"),
        }
    }
}

fn down(error: impl Into<anyhow::Error>) -> Error {
    Error::unavailable("redis", error)
}
