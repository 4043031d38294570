//! The end of a session, whoever wants it: its client, the clock, or the tenant's removal.

use croft_proto::v1::SessionTerminated;
use croft_proto::v1::session_event::Kind;

use super::{Manager, event};
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority};
use crate::events::relay::Frame;
use crate::session::Session;
use crate::turn;

impl Manager {
    /// Ends a session. The event fences the running turn in the same transaction, so nothing follows it, and of all that
    /// want the end one has its way: true for that one, false when the session had ended before.
    ///
    /// Fails with [`Error::SessionBusy`] when `authority` is [`Authority::Overdue`] or [`Authority::AtRest`] and the session isn't.
    pub(crate) async fn end(&self, session: &Session, authority: Authority, reason: &str) -> Result<bool, Error> {
        let append = Append {
            tenant: session.tenant,
            session: session.id,
            authority,
            events: vec![event(Kind::SessionTerminated(SessionTerminated { reason: reason.to_owned() }))],
            checkpoint: None,
            idempotency_key: None,
            input_seq: None,
        };
        match self.core.stores.events.append(append).await {
            Ok(Appended::New(events)) => {
                self.core.hub.publish(session.tenant, session.id, events);
                self.core.hub.control(session.tenant, session.id, Frame::Terminated);
                self.end_what_hangs_on(session);
                Ok(true)
            }
            Ok(Appended::Existing { .. }) | Err(Error::SessionTerminated { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets the session's worker forget it, in a task of its own: nobody's answer depends on the worker, which may be gone. What it
    /// alone knows to have been used is paid for.
    pub(crate) fn release_worker(&self, session: &Session, reason: &str) {
        let (manager, session, reason) = (self.clone(), session.clone(), reason.to_owned());
        self.core.tasks.spawn("release-worker", async move {
            let Some(tenant) = manager.core.tenants.get(session.tenant) else { return };
            let Ok(placement) = manager.core.router.locate(tenant.id, &session.worker) else { return };
            let untold = manager.forget(&tenant, &placement, session.id, &reason).await;
            turn::charge_behind_end(&manager.core, session, untold).await;
        });
    }
}
