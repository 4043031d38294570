//! All that one front reaches goes through its gate: stores and relay. A front that is dead gets no answer any more, which is
//! what a process that is killed gets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::log::{Append, Appended, EventLog, IdempotencyKey, StoredCheckpoint};
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::events::relay::{Envelope, Relay};
use croft_front::lease::{Abandoned, LeaseStore};
use croft_front::session::Session;
use croft_front::session::store::{Filter, Inserted, NewSession, Page, SessionStore};
use croft_front::store::Stores;
use croft_front::turn::store::{Begin, Begun, Ended, TurnStore};
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use croft_serve::Tasks;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chaos::{Chaos, Fate};

#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) chaos: Arc<Chaos>,
    pub(crate) dead: CancellationToken,
    stands_still_until: Arc<Mutex<Instant>>,
}

impl Gate {
    pub(crate) fn new(chaos: Arc<Chaos>) -> Self {
        Self { chaos, dead: CancellationToken::new(), stands_still_until: Arc::new(Mutex::new(Instant::now())) }
    }

    /// The stores behind this gate.
    pub(crate) fn stores(&self, behind: &Stores) -> Stores {
        let sessions = Arc::new(Gated { gate: self.clone(), behind: Arc::clone(&behind.sessions) });
        let events = Arc::new(Gated { gate: self.clone(), behind: Arc::clone(&behind.events) });
        let leases = Arc::new(Gated { gate: self.clone(), behind: Arc::clone(&behind.leases) });
        let turns = Arc::new(Gated { gate: self.clone(), behind: Arc::clone(&behind.turns) });
        Stores { sessions, events, leases, turns, ..behind.clone() }
    }

    /// Waits while the front stands still, and for ever if it is dead.
    async fn alive(&self) {
        loop {
            if self.dead.is_cancelled() {
                std::future::pending::<()>().await;
            }
            let until = *self.stands_still_until.lock().unwrap();
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// A moment before or after a call. Whether it fails here.
    async fn moment(&self) -> Option<Fate> {
        match self.chaos.roll(8) {
            0 => tokio::time::sleep(Duration::from_millis(1 + self.chaos.roll(12))).await,
            yields => {
                for _ in 0..yields % 3 {
                    tokio::task::yield_now().await;
                }
            }
        }
        self.alive().await;
        let fate = self.chaos.moment();
        match fate {
            Fate::Fine => None,
            Fate::Refused | Fate::Unanswered => Some(fate),
            Fate::KillFront => {
                self.dead.cancel();
                std::future::pending().await
            }
            Fate::PauseFront(pause) => {
                *self.stands_still_until.lock().unwrap() = Instant::now() + pause;
                self.alive().await;
                None
            }
        }
    }

    async fn pass<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let before = self.moment().await;
        if before == Some(Fate::Refused) {
            return Err(away());
        }
        let outcome = call.await;
        let after = self.moment().await;
        if before.or(after).is_some() { Err(away()) } else { outcome }
    }
}

fn away() -> Error {
    Error::unavailable("postgres", anyhow::anyhow!("the connection was cut"))
}

struct Gated<S: ?Sized> {
    gate: Gate,
    behind: Arc<S>,
}

#[async_trait]
impl SessionStore for Gated<dyn SessionStore> {
    async fn insert(&self, new: NewSession) -> Result<Inserted, Error> {
        self.gate.pass(self.behind.insert(new)).await
    }

    async fn get(&self, tenant: TenantId, id: SessionId) -> Result<Option<Session>, Error> {
        self.gate.pass(self.behind.get(tenant, id)).await
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &Filter,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Page, Error> {
        self.gate.pass(self.behind.list(tenant, filter, after, limit)).await
    }

    async fn count_open(&self, tenant: TenantId) -> Result<u32, Error> {
        self.gate.pass(self.behind.count_open(tenant)).await
    }

    async fn child(&self, tenant: TenantId, parent: SessionId, tool_call_id: &str) -> Result<Option<Session>, Error> {
        self.gate.pass(self.behind.child(tenant, parent, tool_call_id)).await
    }

    async fn find_created(&self, tenant: TenantId, key: &IdempotencyKey) -> Result<Option<Session>, Error> {
        self.gate.pass(self.behind.find_created(tenant, key)).await
    }
}

#[async_trait]
impl EventLog for Gated<dyn EventLog> {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.gate.pass(self.behind.append(append)).await
    }

    async fn find_sent(&self, tenant: TenantId, id: SessionId, key: &IdempotencyKey) -> Result<Option<u64>, Error> {
        self.gate.pass(self.behind.find_sent(tenant, id, key)).await
    }

    async fn read(&self, tenant: TenantId, id: SessionId, after: u64, limit: u32) -> Result<Vec<SessionEvent>, Error> {
        self.gate.pass(self.behind.read(tenant, id, after, limit)).await
    }

    async fn checkpoint(&self, tenant: TenantId, id: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.gate.pass(self.behind.checkpoint(tenant, id)).await
    }
}

#[async_trait]
impl TurnStore for Gated<dyn TurnStore> {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        self.gate.pass(self.behind.begin(begin)).await
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        self.gate.pass(self.behind.end(last)).await
    }
}

#[async_trait]
impl LeaseStore for Gated<dyn LeaseStore> {
    async fn acquire(
        &self,
        tenant: TenantId,
        session: SessionId,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<u64>, Error> {
        self.gate.pass(self.behind.acquire(tenant, session, holder, ttl)).await
    }

    async fn renew_all(
        &self,
        tenant: TenantId,
        leases: &[(SessionId, u64)],
        ttl: Duration,
    ) -> Result<Vec<SessionId>, Error> {
        self.gate.pass(self.behind.renew_all(tenant, leases, ttl)).await
    }

    async fn release(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        self.gate.pass(self.behind.release(tenant, session, epoch)).await
    }

    async fn abandon(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        self.gate.pass(self.behind.abandon(tenant, session, epoch)).await
    }

    async fn abandoned(&self, limit: u32) -> Result<Vec<Abandoned>, Error> {
        self.gate.alive().await;
        self.behind.abandoned(limit).await
    }
}

/// The relay behind a gate, which loses what is under way when it is cut.
pub(crate) struct GatedRelay {
    pub(crate) gate: Gate,
    pub(crate) behind: MemoryRelay,
    pub(crate) tasks: Tasks,
}

impl GatedRelay {
    async fn reach(&self) -> Result<(), Error> {
        self.gate.alive().await;
        if self.gate.chaos.relay_is_away() {
            return Err(Error::unavailable("redis", anyhow::anyhow!("the connection was cut")));
        }
        Ok(())
    }
}

#[async_trait]
impl Relay for GatedRelay {
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<u64, Error> {
        self.reach().await?;
        self.behind.publish(tenant, session, envelope).await
    }

    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Envelope>, Error> {
        self.reach().await?;
        let mut frames = self.behind.subscribe(tenant, session).await?;
        let (sender, receiver) = mpsc::channel(1_024);
        let (lost, gate) = (self.gate.chaos.relay_lost(), self.gate.clone());
        let forward = async move {
            while let Some(frame) = frames.recv().await {
                gate.alive().await;
                if sender.try_send(frame).is_err() {
                    return;
                }
            }
        };
        drop(self.tasks.spawn("relay-link", lost.run_until_cancelled_owned(forward)));
        Ok(receiver)
    }
}
