//! A relay between fronts that share a process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use tokio::sync::mpsc;

use super::{Envelope, FRAMES_MAX, Relay};
use crate::error::Error;

type Receivers = HashMap<(TenantId, SessionId), Vec<mpsc::Sender<Envelope>>>;

/// Clones share the receivers: give one to each front.
#[derive(Clone, Default)]
pub struct MemoryRelay {
    receivers: Arc<Mutex<Receivers>>,
}

#[async_trait]
impl Relay for MemoryRelay {
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<u64, Error> {
        let mut receivers = self.receivers.lock().expect("no holder of the lock panics");
        let mut listeners = 0;
        if let Some(senders) = receivers.get_mut(&(tenant, session)) {
            // A receiver that is full is closed, one that is gone is forgotten.
            senders.retain(|sender| sender.try_send(envelope.clone()).is_ok());
            listeners = senders.len() as u64;
            if senders.is_empty() {
                receivers.remove(&(tenant, session));
            }
        }
        Ok(listeners)
    }

    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Envelope>, Error> {
        let (sender, receiver) = mpsc::channel(FRAMES_MAX);
        let mut receivers = self.receivers.lock().expect("no holder of the lock panics");
        let senders = receivers.entry((tenant, session)).or_default();
        senders.retain(|sender| !sender.is_closed());
        senders.push(sender);
        Ok(receiver)
    }
}
