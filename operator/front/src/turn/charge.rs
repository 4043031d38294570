//! What attempts used in a session that has ended meanwhile, or in a turn whose front can store nothing any more. No event tells of them;
//! their providers charge all the same, and so does the ledger.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ModelAttempt, SessionEvent};
use tokio::time::Instant;

use super::purse::Purse;
use super::recorder::Recorder;
use crate::core::Core;
use crate::error::Error;
use crate::events::log::{Append, NewEvent};
use crate::session::Session;

/// How long attempts that could not be added to the ledger are tried again, and how often. There are as many at a time as turns that ended
/// meanwhile.
const PATIENCE: Duration = Duration::from_mins(5);
const TRY_EVERY: Duration = Duration::from_secs(1);
/// So many lease times has whoever goes on with a turn to be told of its attempts: one until the lease has run out, and one to reach the
/// worker, and as much again for whoever goes on where they are lost too: what is told is exact, and what is reckoned here is not. As much again
/// behind each try that finds the ledger away, as then nobody can go on with the turn either.
pub(crate) const TOLD_WITHIN_LEASES: u32 = 6;

/// Accounts for attempts of which a worker tells when its session has ended: the front that they were made for may have been lost
/// before it heard of them. One that is stored already counts once, since it has the same id. What is reserved for them goes by itself.
pub(crate) async fn charge_behind_end(core: &Arc<Core>, session: Session, attempts: Vec<ModelAttempt>) {
    if attempts.is_empty() {
        return;
    }
    // Of no event, so any turn will do for one that nobody knows.
    let turn = session.turn_id.parse().unwrap_or_else(|_| TurnId::generate());
    let sender = last_sender(core, &session).await;
    charge_in_turn(core, session, (turn, &sender), attempts).await;
}

/// The same for attempts in a turn that goes on, on behalf of this sender.
pub(crate) async fn charge_in_turn(
    core: &Arc<Core>,
    session: Session,
    turn: (TurnId, &str),
    attempts: Vec<ModelAttempt>,
) {
    let mut recorder = Recorder::new(Arc::clone(core), session, 0, turn, false);
    recorder.charge_behind_end(attempts.into_iter().map(Kind::ModelAttempt).collect()).await;
}

/// Who sent the message that the session took up last. Empty where that can't be told: what was used is charged all the same.
async fn last_sender(core: &Core, session: &Session) -> String {
    let Some(before) = session.input_seq.checked_sub(1) else { return String::new() };
    match core.stores.events.read(session.tenant, session.id, before, 1).await.as_deref() {
        Ok([SessionEvent { kind: Some(Kind::UserMessage(message)), .. }]) => message.sender.clone(),
        Ok(_) => String::new(),
        Err(error) => {
            let (tenant, session) = (session.tenant, session.id);
            tracing::warn!(%tenant, %session, %error, "what a session used is charged without its sender");
            String::new()
        }
    }
}

/// The attempts among events that are to be stored.
pub(super) struct Charge {
    core: Arc<Core>,
    tenant: TenantId,
    session: SessionId,
    purse: Purse,
    events: Vec<NewEvent>,
}

impl Charge {
    /// `None` when there are no attempts.
    pub(super) fn of(append: &Append, core: &Arc<Core>, purse: &Purse) -> Option<Self> {
        let is_attempt = |event: &&NewEvent| matches!(event.kind, Kind::ModelAttempt(_));
        let events: Vec<_> = append.events.iter().filter(is_attempt).cloned().collect();
        let (tenant, session) = (append.tenant, append.session);
        (!events.is_empty()).then(|| Self { core: Arc::clone(core), tenant, session, purse: purse.clone(), events })
    }

    /// Passes on how the storing went. Where the session's end stood in its way, the attempts are accounted for first.
    pub(super) async fn unless_stored<T>(charge: Option<Self>, outcome: Result<T, Error>) -> Result<T, Error> {
        if let (Some(charge), Err(Error::SessionTerminated { .. })) = (charge, &outcome) {
            // Seldom, and larger than all that comes before it.
            Box::pin(charge.make()).await;
        }
        outcome
    }

    /// Adds the attempts to the ledger, and settles their reservations. Where the ledger is away, in a task of its own, for a while.
    pub(super) async fn make(self) {
        if let Err(error @ Error::Unavailable { .. }) = self.add().await {
            let (tenant, session, attempts) = (self.tenant, self.session, self.attempts());
            // Should this front be lost before they are added, they are to be found here.
            tracing::warn!(%tenant, %session, %error, ?attempts, "what a session used is added to the ledger later");
            let core = Arc::clone(&self.core);
            drop(core.tasks.spawn("charge", self.make_later(TRY_EVERY, error)));
        }
    }

    /// The same in a task of its own, once whoever goes on with the turn has had the time to hear of the attempts from their worker: what
    /// comes first counts, and these are reckoned. A front that is to stop does it at once.
    pub(super) fn make_unless_told(self) {
        let (tenant, session, attempts) = (self.tenant, self.session, self.attempts());
        tracing::info!(%tenant, %session, ?attempts, "what a turn used is added to the ledger unless its worker tells of it");
        let (core, not_yet) = (Arc::clone(&self.core), Error::internal(anyhow::anyhow!("this front ends before that")));
        let every = TOLD_WITHIN_LEASES * core.options.lease_ttl;
        drop(core.tasks.spawn("charge", self.make_later(every, not_yet)));
    }

    /// Tries for a while, with a pause before each try: a short one once the front is to stop, as nobody tries behind it. `error` is why it has
    /// not been done yet.
    async fn make_later(self, every: Duration, mut error: Error) {
        let (stopping, ending) = (self.core.tasks.stopping(), self.core.tasks.ending());
        let until = Instant::now() + every + PATIENCE;
        loop {
            let tried = async {
                if stopping.is_cancelled() {
                    tokio::time::sleep(TRY_EVERY).await;
                } else {
                    stopping.run_until_cancelled(tokio::time::sleep(every)).await;
                }
                self.add().await
            };
            match ending.run_until_cancelled(tried).await {
                Some(Err(again @ Error::Unavailable { .. })) if Instant::now() < until => error = again,
                Some(Err(error)) => return self.give_up(error),
                Some(Ok(())) => return,
                None => return self.give_up(error),
            }
        }
    }

    /// Twice does no harm. What fails for good is told here.
    async fn add(&self) -> Result<(), Error> {
        let Self { core, tenant, session, purse, events } = self;
        match core.stores.usage.add_behind_end(*tenant, *session, events).await {
            Ok(unpriced) => {
                core.metrics.unpriced_attempts.inc_by(unpriced);
                purse.settle(&self.attempts()).await;
            }
            Err(error @ Error::Unavailable { .. }) => return Err(error),
            Err(error) => self.give_up(error),
        }
        Ok(())
    }

    fn give_up(&self, error: Error) {
        let (tenant, session, attempts) = (self.tenant, self.session, self.attempts());
        let error = format!("{:#}", anyhow::Error::from(error));
        tracing::error!(%tenant, %session, error, ?attempts, "what a session used is not in the ledger");
    }

    fn attempts(&self) -> Vec<ModelAttempt> {
        self.events.iter().cloned().filter_map(as_attempt).collect()
    }
}

fn as_attempt(event: NewEvent) -> Option<ModelAttempt> {
    match event.kind {
        Kind::ModelAttempt(attempt) => Some(attempt),
        _ => None,
    }
}
