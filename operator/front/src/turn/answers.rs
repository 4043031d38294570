//! What people answer, to a turn that waits for it or to one that ended with its question open: then the answer begins the next turn.

use std::sync::Arc;

use croft_proto::id::TurnId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ApprovalResolved, ResolveApprovalRequest, SessionEvent, SessionRunning, SessionState, StopReason, UserMessage,
};

use super::driver::Driver;
use super::store::{Begin, Begun};
use super::{Begins, Turns, turn_event};
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, IdempotencyKey};
use crate::events::relay::Frame;
use crate::identity::Identity;
use crate::session::Session;

/// Events that are read at a time while looking for a question.
const PAGE: u32 = 500;

/// A question that is open.
struct Question {
    /// Of the turn that asked.
    turn: TurnId,
    tool_call_id: String,
    /// The turn waits for the answer; otherwise it is over.
    is_waited_for: bool,
    /// On whose behalf the turn runs.
    sender: String,
}

impl Turns {
    /// Answers a question. Fails with [`Error::ApprovalNotPending`] where it is not open: the first word counts, and a call that is over
    /// waits for none.
    pub async fn answer(&self, identity: &Identity, request: ResolveApprovalRequest) -> Result<(), Error> {
        if self.core.tenants.is_stopped(identity.tenant) {
            return Err(Error::TenantStopped);
        }
        let session = self.manager.get(identity, &request.session_id).await?;
        let pending = || Error::ApprovalNotPending { approval_id: request.approval_id.chars().take(64).collect() };
        let Some(question) = self.open_question(&session, &request.approval_id).await? else { return Err(pending()) };
        let resolved = ApprovalResolved {
            approval_id: request.approval_id.clone(),
            approved: request.approved,
            message: request.message.clone(),
        };
        let append = Append {
            tenant: session.tenant,
            session: session.id,
            authority: Authority::Caller,
            events: vec![turn_event(question.turn, Kind::ApprovalResolved(resolved.clone()))],
            checkpoint: None,
            // Two people may decide at the same time, and one of them may say no: the first word counts.
            idempotency_key: Some(IdempotencyKey {
                key: format!("approval/{}", request.approval_id),
                body_hash: <[u8; 32]>::default(),
            }),
            input_seq: None,
        };
        let answered = if question.is_waited_for {
            self.tell_the_turn(append).await
        } else {
            self.begin_the_next(append, question.sender, resolved).await
        };
        match answered {
            Ok(true) => Ok(()),
            Ok(false) | Err(Error::IdempotencyKeyReused) => Err(pending()),
            Err(error) => Err(error),
        }
    }

    async fn open_question(&self, session: &Session, approval_id: &str) -> Result<Option<Question>, Error> {
        if session.state == SessionState::Terminated || session.input_seq == 0 {
            return Ok(None);
        }
        let (mut after, mut sender, mut open) = (session.input_seq - 1, String::new(), None);
        loop {
            let events = self.core.stores.events.read(session.tenant, session.id, after, PAGE).await?;
            let Some(last) = events.last() else { return Ok(open) };
            after = last.seq;
            for SessionEvent { turn_id, kind, .. } in events {
                match kind {
                    Some(Kind::UserMessage(message)) if sender.is_empty() => sender = message.sender,
                    Some(Kind::ApprovalRequired(asked)) if asked.approval_id == approval_id => {
                        open = turn_id.parse().ok().map(|turn| Question {
                            turn,
                            tool_call_id: asked.tool_call_id,
                            is_waited_for: true,
                            sender: sender.clone(),
                        });
                    }
                    // The call is over, with or without an answer: a turn that was interrupted waits for none.
                    Some(Kind::ToolResult(result)) if is_about(open.as_ref(), &result.tool_call_id) => open = None,
                    Some(Kind::ApprovalResolved(resolved)) if resolved.approval_id == approval_id => open = None,
                    Some(Kind::SessionIdle(idle)) => match &mut open {
                        Some(question) if idle.stop_reason() == StopReason::RequiresAction => {
                            question.is_waited_for = false;
                        }
                        _ => open = None,
                    },
                    // Whoever went on with another message closed what was open.
                    Some(Kind::UserMessage(_)) if open.as_ref().is_some_and(|open| !open.is_waited_for) => open = None,
                    _ => {}
                }
            }
        }
    }

    /// False when somebody has answered before.
    async fn tell_the_turn(&self, append: Append) -> Result<bool, Error> {
        let (tenant, session) = (append.tenant, append.session);
        let Appended::New(events) = self.core.stores.events.append(append).await? else { return Ok(false) };
        let seq = events.first().map_or(0, |event| event.seq);
        self.core.hub.publish(tenant, session, events);
        self.core.hub.control(tenant, session, Frame::ApprovalResolved { seq });
        Ok(true)
    }

    /// A turn without words of the user's, for whoever the last one ran. False when somebody has answered before, or another turn runs.
    async fn begin_the_next(&self, answer: Append, sender: String, resolved: ApprovalResolved) -> Result<bool, Error> {
        let (tenant, session, turn) = (answer.tenant, answer.session, TurnId::generate());
        let kinds = [
            Kind::UserMessage(UserMessage { content: Vec::new(), sender }),
            Kind::SessionRunning(SessionRunning {}),
            Kind::ApprovalResolved(resolved),
        ];
        let message = Append { events: kinds.map(|kind| turn_event(turn, kind)).into(), ..answer };
        let begin = Begin { message, holder: self.core.replica.clone(), ttl: self.core.options.lease_ttl };
        let Begun::New(opened) = self.core.stores.turns.begin(begin).await? else { return Ok(false) };
        self.core.hub.publish(tenant, session, opened.events.clone());
        // What was decided is in the log, from which the driver goes on.
        let driver = Driver::new(Arc::clone(&self.core), opened.session, opened.epoch);
        drop(Begins(Some(driver), Arc::clone(&self.core)));
        Ok(true)
    }
}

fn is_about(question: Option<&Question>, tool_call_id: &str) -> bool {
    question.is_some_and(|question| question.tool_call_id == tool_call_id)
}
