//! A turn: what follows one user message, driven against a worker in a task of its own. The caller may go away, the turn goes on.

mod answers;
mod approvals;
mod between;
mod charge;
mod driver;
mod exchange;
mod extent;
mod granted;
pub mod held;
mod inbox;
mod leases;
mod purse;
mod questions;
mod recorder;
mod standing;
pub mod store;
mod sub_agents;
mod takeover;
#[cfg(test)]
mod tests;
pub(crate) mod told;
mod words;

use std::sync::Arc;

use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BusyPolicy, SendMessageRequest, SessionEvent, SessionRunning, SessionState, UserMessage};

use tokio::time::Instant;
use tracing::Instrument as _;

use crate::core::Core;
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, NewEvent};
use crate::identity::Identity;
use crate::session::manager::{Manager, idempotency_key};
use crate::session::validate;

pub(crate) use charge::{TOLD_WITHIN_LEASES, charge_behind_end, charge_in_turn};
pub use leases::{keep_leases, leave_turns_behind};
use store::{Begin, Begun};
pub use takeover::watch_for_abandoned_turns;

/// Messages that wait in one session for their turn, of which each is a turn of its own.
const WAITING_MAX: u32 = 100;

/// A message that is stored, and the turn that answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub turn: TurnId,
    /// The number of the user's message: streaming after the number before it shows all of the turn.
    pub seq: u64,
}

/// A message just stored. A turn that it starts begins when this is dropped, so that who wants to see all of the turn can
/// take a place before its first token, and one who has gone away holds nothing up.
#[must_use]
pub struct Sent {
    pub tenant: TenantId,
    pub session: SessionId,
    pub accepted: Accepted,
    is_new: bool,
    begins: Option<Begins>,
}

/// Starts a turn when it is dropped.
struct Begins(Option<driver::Driver>, Arc<Core>);

impl Drop for Begins {
    fn drop(&mut self) {
        if let Some(driver) = self.0.take() {
            // In the trace of the message that begins it, which goes on to the worker and beyond.
            let span = driver.span();
            self.1.tasks.spawn("turn", driver.run().instrument(span));
        }
    }
}

impl Sent {
    /// The message was stored just now, and its turn has not begun: all there is to see of it is yet to come.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Its turn, or one before it, is driven here once it is let begin.
    pub fn begins(&self) -> bool {
        self.begins.is_some()
    }

    /// Lets the turn begin.
    pub fn begin(&mut self) {
        self.begins = None;
    }
}

/// Takes messages and turns them into turns.
#[derive(Clone)]
pub struct Turns {
    core: Arc<Core>,
    manager: Manager,
}

impl Turns {
    pub fn new(core: Arc<Core>) -> Self {
        Self { manager: Manager::new(Arc::clone(&core)), core }
    }

    /// Stores a message, and starts a turn for it or leaves it to the turn at hand, as the busy policy says. `sender` is as in the audit log.
    /// Nothing is stored where nothing of the tenant's may run: fails with [`Error::TenantStopped`] or [`Error::TenantSuspended`].
    pub async fn send(&self, tenant: TenantId, sender: &str, mut request: SendMessageRequest) -> Result<Sent, Error> {
        if let Some(why) = self.core.tenants.halted(tenant) {
            return Err(why);
        }
        let (asked, known) = (Instant::now(), self.core.tenants.get(tenant));
        let limit = known.map_or(0, |tenant| tenant.limits.message_bytes_max as usize);
        // As the caller sent it: by that a repeated request is known, also by another release.
        let body = SendMessageRequest { idempotency_key: String::new(), ..request.clone() };
        validate::message(&mut request.content, if limit > 0 { limit } else { self.core.options.message_bytes_max })?;
        let session = validate::session_id(&request.session_id)?;
        if BusyPolicy::try_from(request.busy_policy).is_err() {
            return Err(Error::invalid("busy_policy", "is none that this release knows"));
        }
        let turn = TurnId::generate();
        let message = UserMessage { content: request.content.clone(), sender: sender.to_owned() };
        let said = Kind::UserMessage(message.clone());
        let idempotency_key = idempotency_key(&request.idempotency_key, &body)?;
        let said = vec![turn_event(turn, said)];
        let append = Append { idempotency_key, ..Append::of(tenant, session, Authority::Caller, said) };
        let mut opening = append.clone();
        opening.events.push(turn_event(turn, Kind::SessionRunning(SessionRunning {})));
        let begin = Begin { message: opening, holder: self.core.replica.clone(), ttl: self.core.options.lease_ttl };
        let interrupts = request.busy_policy() == BusyPolicy::Interrupt;
        match self.core.stores.turns.begin(begin).await? {
            Begun::Busy => self.send_to_busy(turn, append, request.busy_policy()).await,
            Begun::Existing { first_seq } => {
                let accepted = self.attach(tenant, session, first_seq).await?;
                if interrupts {
                    // Its first try may not have come so far.
                    self.make_way(tenant, session, accepted);
                }
                Ok(Sent { tenant, session, accepted, is_new: false, begins: None })
            }
            Begun::New(opened) => {
                let took = asked.elapsed().as_secs_f64();
                self.core.metrics.turn_stages.with_label_values(&["accept"]).observe(took);
                let accepted = Accepted { turn, seq: opened.events.first().map_or(0, |event| event.seq) };
                self.core.hub.publish(tenant, session, opened.events.clone());
                if interrupts && opened.session.state == SessionState::Running {
                    // One was broken off, and is gone on with first.
                    self.make_way(tenant, session, accepted);
                }
                let driver = driver::Driver::opened(Arc::clone(&self.core), *opened, accepted, message);
                let begins = Some(Begins(Some(driver), Arc::clone(&self.core)));
                Ok(Sent { tenant, session, accepted, is_new: true, begins })
            }
        }
    }

    /// While a turn is running. A repeated request has attached before it comes here, unless its twin was stored just now. The policy is
    /// part of its body: with another one it is another request, and refused.
    async fn send_to_busy(&self, turn: TurnId, message: Append, policy: BusyPolicy) -> Result<Sent, Error> {
        let (tenant, session) = (message.tenant, message.session);
        if matches!(policy, BusyPolicy::Unspecified | BusyPolicy::Reject) {
            return Err(Error::SessionBusy { session_id: session.to_string() });
        }
        if self.core.stores.events.waiting(tenant, session, WAITING_MAX).await? >= WAITING_MAX {
            return Err(Error::MessageLimit { session_id: session.to_string(), max: WAITING_MAX });
        }
        let accepted = match self.core.stores.events.append(message).await? {
            Appended::New(events) => {
                let accepted = Accepted { turn, seq: events.first().map_or(0, |event| event.seq) };
                self.core.hub.publish(tenant, session, events);
                accepted
            }
            Appended::Existing { first_seq } => self.attach(tenant, session, first_seq).await?,
        };
        if policy == BusyPolicy::Interrupt {
            self.make_way(tenant, session, accepted);
        }
        let begins = self.left_over(tenant, session).await?;
        Ok(Sent { tenant, session, accepted, is_new: false, begins })
    }

    /// The turn at hand may have ended between our look and our append, without seeing the message.
    async fn left_over(&self, tenant: TenantId, session: SessionId) -> Result<Option<Begins>, Error> {
        let (ttl, stores) = (self.core.options.lease_ttl, &self.core.stores);
        let Some(epoch) = stores.leases.acquire(tenant, session, &self.core.replica, ttl).await? else {
            return Ok(None);
        };
        let Some(found) = stores.sessions.get(tenant, session).await? else {
            return Err(Error::SessionNotFound { session_id: session.to_string() });
        };
        Ok(Some(Begins(Some(driver::Driver::new(Arc::clone(&self.core), found, epoch)), Arc::clone(&self.core))))
    }

    async fn attach(&self, tenant: TenantId, session: SessionId, first_seq: u64) -> Result<Accepted, Error> {
        let events = self.core.stores.events.read(tenant, session, first_seq - 1, 1).await?;
        let turn = events.first().and_then(|event| event.turn_id.parse().ok());
        let turn = turn.ok_or_else(|| Error::internal(anyhow::anyhow!("event {first_seq} names no turn")))?;
        Ok(Accepted { turn, seq: first_seq })
    }

    /// Tells the turn at hand to stop, wherever it runs. Whether there was one.
    pub async fn interrupt(&self, identity: &Identity, session_id: &str) -> Result<bool, Error> {
        let session = self.manager.get(identity, session_id).await?;
        match session.state {
            SessionState::Running => {
                let turn = session.turn_id.parse().map_err(Error::internal)?;
                self.stop(session.tenant, session.id, turn);
                Ok(true)
            }
            SessionState::Terminated => Err(Error::SessionTerminated { session_id: session_id.to_owned() }),
            _ => Ok(false),
        }
    }
}

/// Whether a turn's stream is over with this event.
pub fn ends_turn(event: &SessionEvent, turn: TurnId) -> bool {
    match &event.kind {
        Some(Kind::SessionIdle(_)) => event.turn_id == turn.to_string(),
        Some(Kind::SessionTerminated(_)) => true,
        _ => false,
    }
}

fn turn_event(turn: TurnId, kind: Kind) -> NewEvent {
    NewEvent::now(kind).of_turn(turn)
}
