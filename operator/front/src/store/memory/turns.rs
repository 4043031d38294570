//! The first and the last word of turns, in memory.

use async_trait::async_trait;
use croft_proto::v1::SessionState;
use tokio::time::Instant;

use super::{Memory, Scope};
use crate::error::Error;
use crate::events::log::{Append, Appended};
use crate::store::projection::Change;
use crate::turn::store::{Begin, Begun, Ended, Opened, TurnStore};

#[async_trait]
impl TurnStore for Memory {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        let Begin { message, ttl, .. } = begin;
        let (tenant, session, now) = (message.tenant, message.session, Instant::now());
        Change::of(&message.events)?;
        let mut state = self.lock();
        state.record(tenant, session)?;
        if let Some(key) = &message.idempotency_key
            && let Some(used) = state.used(tenant, Scope::Send(session), key)?
        {
            return Ok(Begun::Existing { first_seq: used.first_seq });
        }
        let record = state.record(tenant, session)?;
        if !record.lease.is_free(now) && record.session.state != SessionState::Terminated {
            return Ok(Begun::Busy);
        }
        let (before, checkpoint) = (record.session.clone(), record.checkpoint.clone());
        match state.append(message) {
            Err(Error::SessionBusy { .. }) => Ok(Begun::Busy),
            Err(error) => Err(error),
            Ok(Appended::Existing { first_seq }) => Ok(Begun::Existing { first_seq }),
            Ok(Appended::New(events)) => {
                let record = state.record(tenant, session)?;
                if before.state == SessionState::Running {
                    // The turn that was broken off comes first.
                    record.session.turn_id.clone_from(&before.turn_id);
                }
                let epoch = record.lease.take(now + ttl);
                Ok(Begun::New(Box::new(Opened { epoch, events, session: before, checkpoint })))
            }
        }
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        let (tenant, session) = (last.tenant, last.session);
        let mut state = self.lock();
        let events = match state.append(last)? {
            Appended::New(events) => events,
            Appended::Existing { .. } => return Err(Error::internal(anyhow::anyhow!("the end of a turn has a key"))),
        };
        let record = state.record(tenant, session)?;
        let released = record.session.newest_input_seq <= record.session.input_seq;
        if released {
            record.lease.expiry = None;
        }
        Ok(Ended { events, released })
    }
}
