//! All that one front reaches goes through its gate: stores and relay. A front that is dead gets no answer any more, which is
//! what a process that is killed gets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::events::relay::{Envelope, Relay};
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chaos::{Chaos, Fate};
use crate::doubles::{Call, Hook, Made, away, hooked};

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
        Stores {
            sessions: hooked(Arc::clone(&behind.sessions), self.clone()),
            events: hooked(Arc::clone(&behind.events), self.clone()),
            leases: hooked(Arc::clone(&behind.leases), self.clone()),
            turns: hooked(Arc::clone(&behind.turns), self.clone()),
            ..behind.clone()
        }
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
}

#[async_trait]
impl Hook for Gate {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        // Every front takes this look again and again: it has no part in a history.
        if matches!(call, Call::Abandoned) {
            self.alive().await;
            return made.await;
        }
        let before = self.moment().await;
        if before == Some(Fate::Refused) {
            return Err(away());
        }
        let outcome = made.await;
        let after = self.moment().await;
        if before.or(after).is_some() { Err(away()) } else { outcome }
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
