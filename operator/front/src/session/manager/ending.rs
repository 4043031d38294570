//! The end of a session, whoever wants it: its client, the clock, or the tenant's removal.

use std::time::Duration;

use croft_proto::id::TurnId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, SessionTerminated};

use super::Manager;
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, NewEvent};
use crate::events::relay::Frame;
use crate::session::Session;
use crate::turn;

/// How long a turn waits for a worker to tell what it alone knows before it goes on at another. What comes later is charged for later.
const LEAVE_MAX: Duration = Duration::from_secs(2);
/// When a log is looked at whose store did not say whether it took an end.
const LOOK_AFTER: [Duration; 2] = [Duration::ZERO, Duration::from_millis(200)];

impl Manager {
    /// Ends a session. The event fences the running turn in the same transaction, so nothing follows it, and of all that
    /// want the end one has its way: true for that one, false when the session had ended before.
    ///
    /// Fails with [`Error::SessionBusy`] when `authority` is [`Authority::Overdue`] or [`Authority::AtRest`] and the session isn't.
    pub(crate) async fn end(&self, session: &Session, authority: Authority, reason: &str) -> Result<bool, Error> {
        let end = NewEvent::now(Kind::SessionTerminated(SessionTerminated { reason: reason.to_owned() }));
        let append = Append::of(session.tenant, session.id, authority, vec![end.clone()]);
        let stored = match self.core.stores.events.append(append).await {
            Ok(Appended::New(events)) => events,
            Ok(Appended::Existing { .. }) | Err(Error::SessionTerminated { .. }) => return Ok(false),
            // It may be stored all the same, and then nobody else does what belongs to it.
            Err(error @ Error::Unavailable { .. }) => match self.stored_end(session, &end).await {
                Some(stored) => vec![stored],
                None => return Err(error),
            },
            Err(error) => return Err(error),
        };
        self.tell_of_end(session, stored);
        Ok(true)
    }

    /// The same for a session that has ended: whoever ended it may have been lost before it could say so. All of it may be said twice.
    pub(super) async fn end_once_more(&self, session: &Session) {
        match self.last_event(session).await {
            Ok(last) => self.tell_of_end(session, last.into_iter().collect()),
            Err(error) => {
                tracing::debug!(session = %session.id, %error, "who watches a session that has ended is told later");
                self.tell_of_end(session, Vec::new());
            }
        }
        self.release_worker(session, &session.terminate_reason);
    }

    fn tell_of_end(&self, session: &Session, events: Vec<SessionEvent>) {
        self.core.hub.publish(session.tenant, session.id, events);
        self.core.hub.control(session.tenant, session.id, Frame::Terminated);
        self.end_what_hangs_on(session);
    }

    /// This end, if it is the one that the session has come to.
    async fn stored_end(&self, session: &Session, end: &NewEvent) -> Option<SessionEvent> {
        for pause in LOOK_AFTER {
            tokio::time::sleep(pause).await;
            match self.last_event(session).await {
                // Another's has another time.
                Ok(Some(last)) if last.kind.as_ref() == Some(&end.kind) => {
                    return Some(last).filter(|last| last.create_time == Some(end.create_time));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(session = %session.id, %error, "cannot see whether the session has ended");
                }
            }
        }
        None
    }

    async fn last_event(&self, session: &Session) -> Result<Option<SessionEvent>, Error> {
        let (tenant, id) = (session.tenant, session.id);
        let Some(now) = self.core.stores.sessions.get(tenant, id).await? else { return Ok(None) };
        let last = self.core.stores.events.read(tenant, id, now.last_seq.saturating_sub(1), 1).await?;
        Ok(last.into_iter().next())
    }

    /// Lets the session's worker forget it, in a task of its own: nobody's answer depends on the worker, which may be gone. What it
    /// alone knows to have been used is paid for.
    pub(crate) fn release_worker(&self, session: &Session, reason: &str) {
        let (manager, session, reason) = (self.clone(), session.clone(), reason.to_owned());
        self.core.tasks.spawn("release-worker", async move {
            let Some(tenant) = manager.core.tenants.get(session.tenant) else { return };
            let Ok(placement) = manager.core.router.locate(tenant.id, &session.worker) else { return };
            let untold = manager.forget(&tenant, &placement, session.id, (&reason, 0)).await;
            turn::charge_behind_end(&manager.core, session, untold).await;
        });
    }

    /// The same for a session that goes on without this worker, which may run it yet for a front that is lost: under the lease of this
    /// `epoch`, in a turn on behalf of `sender`. What comes back waits for that, and for no longer than [`LEAVE_MAX`]; dropped or not, the
    /// worker is asked, and what it tells is charged for.
    pub(crate) fn leave_worker(
        &self,
        session: &Session,
        worker: &str,
        epoch: u64,
        (turn, sender): (TurnId, &str),
    ) -> impl Future<Output = ()> + Send + use<> {
        let (manager, session, sender) = (self.clone(), session.clone(), sender.to_owned());
        let placement = self.core.router.locate(session.tenant, worker);
        let leaving = self.core.tasks.spawn("leave-worker", async move {
            let (Some(tenant), Ok(placement)) = (manager.core.tenants.get(session.tenant), placement) else { return };
            let why = ("it goes on elsewhere", epoch);
            let untold = manager.forget(&tenant, &placement, session.id, why).await;
            turn::charge_in_turn(&manager.core, session, (turn, &sender), untold).await;
        });
        async move { drop(tokio::time::timeout(LEAVE_MAX, leaving).await) }
    }
}
