//! What people answer, to a turn that waits for it or to one that ended with its question open: then the answer begins the next turn.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TurnId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ApprovalResolved, ResolveApprovalRequest, SessionEvent, SessionRunning, SessionState, UserMessage,
};
use tokio::time::Instant;

use super::driver::Driver;
use super::questions::{PAGE, Questions};
use super::store::{Begin, Begun};
use super::{Begins, Turns, turn_event};
use crate::core::Core;
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, IdempotencyKey, NewEvent};
use crate::events::relay::Frame;
use crate::identity::Identity;
use crate::session::{Session, validate};

/// Looks at a question whose turn is over when it is told, or not at hand, as it is being gone on with at another front.
const LOOKS_MAX: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// When a log is looked at whose store did not say whether it took a decision.
const LOOK_AFTER: [Duration; 2] = [Duration::ZERO, Duration::from_millis(200)];
/// What a decision is told with: the opening of the next turn, and itself.
const DECISION_EVENTS: u32 = 3;

impl Turns {
    /// Answers a question. Fails with [`Error::ApprovalNotPending`] where it is not open: the first word counts, and a call that is over
    /// waits for none; and with [`Error::TenantStopped`] or [`Error::TenantSuspended`] where nothing of the tenant's may run.
    pub async fn answer(&self, identity: &Identity, request: ResolveApprovalRequest) -> Result<(), Error> {
        if let Some(why) = self.core.tenants.halted(identity.tenant) {
            return Err(why);
        }
        validate::approval_message(&request.message)?;
        validate::approval_arguments(&request.arguments_json, request.approved)?;
        let pending = || Error::ApprovalNotPending { approval_id: request.approval_id.chars().take(64).collect() };
        for _ in 0..LOOKS_MAX {
            let session = self.manager.get(identity, &request.session_id).await?;
            let questions = Questions::of(&*self.core.stores.events, &session).await?;
            let Some(question) = questions.about(&request.approval_id) else {
                return Err(pending());
            };
            if question.asked.repeat && !request.arguments_json.is_empty() {
                return Err(Error::invalid(
                    "arguments_json",
                    "is given for a call that was begun before, which is repeated as it was or not at all",
                ));
            }
            if let Some(decided) = question.decided {
                // The turn is about to hear of it, or goes on with what it has heard.
                if question.is_waited_for {
                    return Err(pending());
                }
                // It was over before it heard of it, and then its front was lost: only whoever asks again finds that out.
                let goes_on = go_on(&self.core, &session, question.turn, session.input_seq, &question.sender).await;
                return match goes_on {
                    Ok(true)
                        if decided.approved == request.approved && decided.arguments_json == request.arguments_json =>
                    {
                        Ok(())
                    }
                    // Another turn has begun, and closes the question.
                    Ok(_) | Err(Error::IdempotencyKeyReused) => Err(pending()),
                    Err(error) => Err(error),
                };
            }
            let resolved = ApprovalResolved {
                approval_id: request.approval_id.clone(),
                approved: request.approved,
                message: request.message.clone(),
                resolver: identity.actor.clone(),
                arguments_json: request.arguments_json.clone(),
            };
            // Two people may decide at the same time, and one of them may say no: the first word counts.
            let once =
                IdempotencyKey { key: format!("approval/{}", request.approval_id), body_hash: <[u8; 32]>::default() };
            let answered = if question.is_waited_for {
                let told = NewEvent {
                    elapsed_ms: question.elapsed_ms,
                    ..turn_event(question.turn, Kind::ApprovalResolved(resolved.clone()))
                };
                self.tell_the_turn(&session, question.turn, told, once.clone()).await
            } else {
                let (sender, decided, once) = (question.sender, vec![resolved.clone()], once.clone());
                let next = begin_the_next(&self.core, &session, session.input_seq, sender, decided, once).await;
                next.map(|next| next == Next::Begun)
            };
            match answered {
                Ok(true) => return Ok(()),
                // It may be stored all the same, and then it counts.
                Err(error @ Error::Unavailable { .. }) => {
                    return if self.is_stored(&session, &once, &resolved).await { Ok(()) } else { Err(error) };
                }
                Ok(false) | Err(Error::IdempotencyKeyReused) => return Err(pending()),
                // It has ended since we looked, or is not at hand for the moment.
                Err(Error::SessionBusy { .. }) => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => return Err(error),
            }
        }
        Err(Error::SessionBusy { session_id: request.session_id })
    }

    /// Whether this decision is what the log has under this key, as far as can be seen. Then whoever watches is told of it.
    async fn is_stored(&self, session: &Session, once: &IdempotencyKey, decision: &ApprovalResolved) -> bool {
        for pause in LOOK_AFTER {
            tokio::time::sleep(pause).await;
            match self.stored_with(session, once).await {
                Ok(Some(events)) => {
                    let decided = |event: &&SessionEvent| matches!(&event.kind, Some(Kind::ApprovalResolved(stored)) if stored == decision);
                    let Some(seq) = events.iter().find(decided).map(|event| event.seq) else { return false };
                    self.core.hub.publish(session.tenant, session.id, events);
                    self.core.hub.control(session.tenant, session.id, Frame::ApprovalResolved { seq });
                    return true;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(session = %session.id, %error, "cannot see whether a decision is stored");
                }
            }
        }
        false
    }

    /// The first events that were appended with this key, or come behind them: as many as a decision is told with at most.
    async fn stored_with(&self, session: &Session, once: &IdempotencyKey) -> Result<Option<Vec<SessionEvent>>, Error> {
        let (tenant, id, events) = (session.tenant, session.id, &self.core.stores.events);
        match events.find_sent(tenant, id, once).await? {
            Some(seq) => events.read(tenant, id, seq.saturating_sub(1), DECISION_EVENTS).await.map(Some),
            None => Ok(None),
        }
    }

    /// False when somebody has answered before.
    async fn tell_the_turn(
        &self,
        session: &Session,
        turn: TurnId,
        told: NewEvent,
        once: IdempotencyKey,
    ) -> Result<bool, Error> {
        let (tenant, session) = (session.tenant, session.id);
        let append = Append::of(tenant, session, Authority::During { turn }, vec![told]);
        let append = Append { idempotency_key: Some(once), ..append };
        let Appended::New(events) = self.core.stores.events.append(append).await? else { return Ok(false) };
        let seq = events.first().map_or(0, |event| event.seq);
        self.core.hub.publish(tenant, session, events);
        self.core.hub.control(tenant, session, Frame::ApprovalResolved { seq });
        Ok(true)
    }
}

/// What became of a turn that was to begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Begun,
    /// Somebody has begun it before.
    BegunBefore,
    /// Another turn runs, is about to, or has come and gone.
    Busy,
}

/// A turn without words of the user's, for whoever the last one ran, which took up the message of this number. Once another has come it is
/// too late: that one closes what was open.
async fn begin_the_next(
    core: &Arc<Core>,
    session: &Session,
    input_seq: u64,
    sender: String,
    resolved: Vec<ApprovalResolved>,
    once: IdempotencyKey,
) -> Result<Next, Error> {
    let (tenant, session, turn) = (session.tenant, session.id, TurnId::generate());
    let opening =
        [Kind::UserMessage(UserMessage { content: Vec::new(), sender }), Kind::SessionRunning(SessionRunning {})];
    let kinds = opening.into_iter().chain(resolved.into_iter().map(Kind::ApprovalResolved));
    let events = kinds.map(|kind| turn_event(turn, kind)).collect();
    let message = Append::of(tenant, session, Authority::Behind { input_seq }, events);
    let message = Append { idempotency_key: Some(once), ..message };
    let begin = Begin { message, holder: core.replica.clone(), ttl: core.options.lease_ttl };
    let opened = match core.stores.turns.begin(begin).await? {
        Begun::New(opened) => opened,
        Begun::Existing { .. } => return Ok(Next::BegunBefore),
        Begun::Busy => return Ok(Next::Busy),
    };
    core.hub.publish(tenant, session, opened.events.clone());
    // What was decided is in the log, from which the driver goes on.
    let driver = Driver::new(Arc::clone(core), opened.session, opened.epoch);
    drop(Begins(Some(driver), Arc::clone(core)));
    Ok(Next::Begun)
}

/// Does as [`go_on`] in a task of its own, for as long as a lease is good, as the turn has come to its end, or nobody knows whether its end was
/// stored. Where it was not, whoever has the turn next hears of what was decided.
pub(super) fn go_on_behind(core: &Arc<Core>, session: &Session, turn: TurnId, input_seq: u64, sender: &str) {
    let (core, session, sender) = (Arc::clone(core), session.clone(), sender.to_owned());
    let until = Instant::now() + core.options.lease_ttl;
    drop(core.tasks.clone().spawn("go-on", async move {
        loop {
            let tried = match core.stores.sessions.get(session.tenant, session.id).await {
                Ok(Some(now)) if now.state == SessionState::Idle => {
                    go_on(&core, &session, turn, input_seq, &sender).await.map(drop)
                }
                // Its end is being stored yet; or was not, and whoever has it next hears of what was decided.
                Ok(Some(now)) if now.state == SessionState::Running && now.turn_id == turn.to_string() => {
                    if Instant::now() >= until {
                        return;
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                // Another runs, and closes what was open.
                Ok(_) => return,
                Err(error) => Err(error),
            };
            match tried {
                Err(Error::Unavailable { .. }) if Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => {
                    let (tenant, session) = (session.tenant, session.id);
                    tracing::warn!(%tenant, %session, %error, "what was decided as a turn ended waits until it is said again");
                    return;
                }
                Ok(()) => return,
            }
        }
    }));
}

/// Goes on with what people have decided while a turn came to its end that left it to them: they were told that it counts, and the turn
/// has not heard of it. Who says something after that end begins the next turn by themselves. False where nothing goes on with it:
/// another turn runs, and closes what was open.
async fn go_on(core: &Arc<Core>, session: &Session, turn: TurnId, input_seq: u64, sender: &str) -> Result<bool, Error> {
    let unheard = unheard(core, session, turn, input_seq).await?;
    if unheard.is_empty() {
        return Ok(false);
    }
    // The turn's own front may do so, and whoever answers again at another.
    let once = IdempotencyKey { key: format!("unheard/{turn}"), body_hash: <[u8; 32]>::default() };
    Ok(begin_the_next(core, session, input_seq, sender.to_owned(), unheard, once).await? != Next::Busy)
}

/// Decisions about calls of this turn that were made, and came to nothing.
async fn unheard(core: &Core, session: &Session, turn: TurnId, input_seq: u64) -> Result<Vec<ApprovalResolved>, Error> {
    let turn = turn.to_string();
    let mut after = input_seq;
    // By call, its newest question and the answer.
    let mut questions: Vec<(String, String, Option<ApprovalResolved>)> = Vec::new();
    loop {
        let events = core.stores.events.read(session.tenant, session.id, after, PAGE).await?;
        let Some(last) = events.last() else { break };
        after = last.seq;
        for event in events.into_iter().filter(|event| event.turn_id == turn) {
            match event.kind {
                Some(Kind::ApprovalRequired(asked)) => {
                    questions.retain(|(call, ..)| *call != asked.tool_call_id);
                    questions.push((asked.tool_call_id, asked.approval_id, None));
                }
                Some(Kind::ApprovalResolved(resolved)) => {
                    if let Some((.., answer)) = questions.iter_mut().find(|(_, id, _)| *id == resolved.approval_id) {
                        *answer = Some(resolved);
                    }
                }
                // It was heard of.
                Some(Kind::ToolCall(called)) => {
                    questions.retain(|(call, _, answer)| *call != called.tool_call_id || answer.is_none());
                }
                Some(Kind::ToolResult(result)) => questions.retain(|(call, ..)| *call != result.tool_call_id),
                _ => {}
            }
        }
    }
    Ok(questions.into_iter().filter_map(|(.., answer)| answer).collect())
}
