//! Connections to workers: one to each, kept while it is of use.
//!
//! A worker is dialled by its pod address under its tenant's name, so a pod of another tenant that came to have the
//! address fails the handshake.

mod calls;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use croft_proto::id::TenantId;
use croft_serve::Tasks;
use croft_serve::tls::TlsFiles;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

pub use self::calls::WorkerClient;
use crate::error::Error;
use crate::routing::Placement;
use crate::tenants::{Tenant, Tenants};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Together with the timeout: a pod that died without a word is noticed within 5 s, also in mid turn.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// At the bound the connection that was used longest ago leaves the pool; calls that run on it go on.
const CHANNELS_MAX: usize = 4096;
const IDLE_MAX: Duration = Duration::from_mins(5);
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// What a connection is made of.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Wire for T {}

/// A way to a worker by its address, in place of TCP: for fronts and workers that share a process.
pub type Dial = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Box<dyn Wire>>> + Send + Sync>;

type Key = (TenantId, String);

/// Hands out clients of workers. Clones share the connections.
#[derive(Clone)]
pub struct WorkerPool {
    shared: Arc<Shared>,
}

struct Shared {
    tenants: Tenants,
    tls: Option<TlsFiles>,
    channels: Mutex<HashMap<Key, Pooled>>,
    dial: OnceLock<Dial>,
}

struct Pooled {
    channel: Channel,
    used_at: Instant,
}

impl WorkerPool {
    /// Without certificates it speaks plaintext, for tests in one process.
    pub fn new(tenants: Tenants, tls: Option<TlsFiles>, tasks: &Tasks) -> Self {
        let shared = Arc::new(Shared { tenants, tls, channels: Mutex::default(), dial: OnceLock::new() });
        let swept = Arc::downgrade(&shared);
        let stopping = tasks.stopping();
        let sweep = async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(shared) = swept.upgrade() else { return };
                shared.sweep();
            }
        };
        tasks.spawn_endless("worker-pool", async move { stopping.run_until_cancelled(sweep).await });
        Self { shared }
    }

    /// Reaches workers by `dial` from now on. The first one stands.
    pub fn dial_by(&self, dial: Dial) {
        drop(self.shared.dial.set(dial));
    }

    /// A client of the worker that the placement names. It connects at its first call, which fails with `UNAVAILABLE`
    /// when the worker can't be reached; a connection that broke is made anew at the next call.
    pub fn client(&self, tenant: &Tenant, placement: &Placement) -> Result<WorkerClient, Error> {
        Ok(WorkerClient::new(self.shared.channel(tenant, placement.address())?))
    }
}

impl Shared {
    fn channel(&self, tenant: &Tenant, address: &str) -> Result<Channel, Error> {
        let key = (tenant.id, address.to_owned());
        let now = Instant::now();
        let mut channels = self.lock();
        if let Some(pooled) = channels.get_mut(&key) {
            pooled.used_at = now;
            return Ok(pooled.channel.clone());
        }
        let channel = self.dial(tenant, address)?;
        if channels.len() >= CHANNELS_MAX
            && let Some(oldest) = channels.iter().min_by_key(|(_, pooled)| pooled.used_at).map(|(key, _)| key.clone())
        {
            channels.remove(&oldest);
        }
        channels.insert(key, Pooled { channel: channel.clone(), used_at: now });
        Ok(channel)
    }

    fn dial(&self, tenant: &Tenant, address: &str) -> Result<Channel, Error> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(Error::internal)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if let Some(tls) = &self.tls {
            let server_name = format!("workers.tenant-{}.svc", tenant.name);
            endpoint = endpoint.tls_config(tls.client(&server_name)).map_err(Error::internal)?;
        }
        let Some(dial) = self.dial.get().cloned() else { return Ok(endpoint.connect_lazy()) };
        let address = address.to_owned();
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let dialled = dial(address.clone());
            async move { dialled.await.map(TokioIo::new) }
        })))
    }

    /// Lets go of connections to workers that have no route any more, and of those that nobody used for long.
    fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|(tenant, address), pooled| {
            let routed = self
                .tenants
                .get(*tenant)
                .is_some_and(|tenant| tenant.workers.iter().any(|worker| worker.address == *address));
            routed && now.duration_since(pooled.used_at) < IDLE_MAX
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Pooled>> {
        // No code that holds the lock can leave the map half changed.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::id::SessionId;
    use croft_proto::v1::watch_routes_response::Change;
    use croft_proto::v1::{RouteSnapshot, TenantRoute, WatchRoutesResponse, WorkerRoute};

    use super::*;
    use crate::routing::Router;

    fn tell(tenants: &Tenants, tenant: TenantId, workers: usize) {
        let worker = |number| WorkerRoute {
            name: format!("worker-{number}"),
            address: format!("10.9.8.{number}:50052"),
            ready: true,
            sessions_max: 0,
        };
        let workers = (0..workers).map(worker).collect();
        let route = TenantRoute { tenant_id: tenant.to_string(), name: "heron".into(), workers, ..Default::default() };
        let change = Some(Change::Snapshot(RouteSnapshot { tenants: vec![route] }));
        tenants.apply(WatchRoutesResponse { version: 1, change });
    }

    #[tokio::test(start_paused = true)]
    async fn connections_go_with_their_route_and_when_nobody_uses_them() {
        let (tenants, heron, tasks) = (Tenants::new(), TenantId::generate(), Tasks::new());
        let pool = WorkerPool::new(tenants.clone(), None, &tasks);
        let router = Router::new(tenants.clone());
        tell(&tenants, heron, 2);
        let tenant = tenants.get(heron).unwrap();
        let placements = [(); 2].map(|()| router.place(heron, SessionId::generate(), None).unwrap());
        let call = |placement: &Placement| drop(pool.client(&tenant, placement).unwrap());
        placements.iter().for_each(call);
        call(&placements[0]);
        assert_eq!(pool.shared.lock().len(), 2, "one to each");

        tell(&tenants, heron, 1);
        tokio::time::sleep(SWEEP_EVERY * 2).await;
        assert_eq!(pool.shared.lock().len(), 1, "the other has no route");
        tokio::time::sleep(IDLE_MAX).await;
        assert_eq!(pool.shared.lock().len(), 0);
        drop(pool);
        assert_eq!(tasks.shutdown(SWEEP_EVERY).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pool_has_a_bound_at_which_the_oldest_connection_goes() {
        let (tenants, heron, tasks) = (Tenants::new(), TenantId::generate(), Tasks::new());
        let pool = WorkerPool::new(tenants.clone(), None, &tasks);
        tell(&tenants, heron, 0);
        let tenant = tenants.get(heron).unwrap();
        for port in 1..=CHANNELS_MAX + 1 {
            pool.shared.channel(&tenant, &format!("10.9.8.7:{port}")).unwrap();
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let channels = pool.shared.lock();
        assert_eq!(channels.len(), CHANNELS_MAX);
        assert!(!channels.contains_key(&(heron, "10.9.8.7:1".to_owned())));
    }
}
