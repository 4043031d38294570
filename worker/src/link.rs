//! The step's side of its talk with the front: what it sends, and the answers it waits for.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_proto::v1::execute_step_request::Message as FromFront;
use croft_proto::v1::execute_step_response::Message as ToFront;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ApprovalRequired, ApprovalResolved, ExecuteStepRequest, Grant, GrantRefused, GrantRequest, ModelAttempt,
    SessionCheckpoint, StepFinished, SubAgentCall, SubAgentResult,
};
use tokio::sync::{Notify, oneshot, watch};

use crate::interrupt::{Interrupt, Why};
use crate::outbox::Outbox;

/// Decisions on approvals that are kept for a turn, each of one of its calls: more than people make in any. At the bound further ones are
/// ignored, and the calls that ask for them wait until the turn's time is over.
const DECISIONS_MAX: usize = 16_384;

/// Grants that nobody waits for any more and that are not told of yet. At the bound further ones are forgotten: the front takes them
/// back with the turn's end.
const UNUSED_MAX: usize = 64;

/// One step's talk with the front.
pub(crate) struct Link {
    turn_id: String,
    outbox: Outbox,
    interrupt: Interrupt,
    grants: Mutex<HashMap<String, oneshot::Sender<Result<Grant, GrantRefused>>>>,
    /// The highest index that is stored. The front stores in order, so all before it are stored too.
    stored: watch::Sender<u64>,
    decisions: watch::Sender<HashMap<String, ApprovalResolved>>,
    /// Approvals whose question is stored already: whoever had the turn before asked.
    asked: HashSet<String>,
    /// Attempts at models that were sent, by the index of their event.
    attempts: Mutex<Vec<(u64, ModelAttempt)>>,
    /// Sub-agents that run, by their call.
    sub_agents: Mutex<HashMap<String, oneshot::Sender<SubAgentResult>>>,
    /// Grants that came after their question was given up.
    unused: Mutex<Vec<Grant>>,
    /// Some came.
    left_over: Notify,
}

impl Link {
    pub(crate) fn new(turn_id: String, outbox: Outbox, interrupt: Interrupt) -> Self {
        Self {
            turn_id,
            outbox,
            interrupt,
            grants: Mutex::default(),
            stored: watch::Sender::new(0),
            decisions: watch::Sender::new(HashMap::new()),
            asked: HashSet::new(),
            attempts: Mutex::default(),
            sub_agents: Mutex::default(),
            unused: Mutex::default(),
            left_over: Notify::new(),
        }
    }

    /// With what people were asked in this turn before, and have decided.
    pub(crate) fn with_approvals(mut self, asked: Vec<String>, decisions: Vec<ApprovalResolved>) -> Self {
        self.asked = asked.into_iter().collect();
        let decisions = decisions.into_iter().map(|decision| (decision.approval_id.clone(), decision));
        self.decisions = watch::Sender::new(decisions.collect());
        self
    }

    /// Takes in what the front says.
    pub(crate) fn hear(&self, request: ExecuteStepRequest) {
        match request.message {
            Some(FromFront::Grant(grant)) => self.granted(grant),
            Some(FromFront::GrantRefused(refused)) => {
                // To nobody, if its question was given up.
                let asked = self.grants().remove(&refused.request_id);
                if let Some(asked) = asked {
                    drop(asked.send(Err(refused)));
                }
            }
            Some(FromFront::EventStored(stored)) => {
                self.stored.send_if_modified(|newest| {
                    let newer = stored.event_index > *newest;
                    *newest = stored.event_index.max(*newest);
                    newer
                });
            }
            Some(FromFront::ApprovalResolved(decision)) => self.decisions.send_modify(|decisions| {
                if decisions.len() < DECISIONS_MAX {
                    decisions.insert(decision.approval_id.clone(), decision);
                }
            }),
            Some(FromFront::SubAgentResult(result)) => {
                // To nobody, if its call was given up.
                let waiting = self.sub_agents().remove(&result.tool_call_id);
                if let Some(waiting) = waiting {
                    drop(waiting.send(result));
                }
            }
            Some(FromFront::Cancel(cancel)) => self.interrupt.raise(Why::Stop(cancel.stop_reason())),
            // A second start means nothing.
            Some(FromFront::Start(_)) | None => tracing::warn!("the front sent a message that means nothing here"),
        }
    }

    fn granted(&self, grant: Grant) {
        let asked = self.grants().remove(&grant.request_id);
        let to_nobody = match asked {
            Some(asked) => asked.send(Ok(grant)).err(),
            None => Some(Ok(grant)),
        };
        if let Some(Ok(grant)) = to_nobody {
            self.leave_over(grant);
        }
    }

    fn leave_over(&self, grant: Grant) {
        let mut unused = self.unused();
        if unused.len() < UNUSED_MAX {
            unused.push(grant);
            self.left_over.notify_one();
        }
    }

    /// A grant that came when nobody waited for it any more, if there is one of which nothing was told.
    pub(crate) fn take_unused(&self) -> Option<Grant> {
        self.unused().pop()
    }

    /// The next such grant.
    pub(crate) async fn next_unused(&self) -> Grant {
        loop {
            if let Some(grant) = self.take_unused() {
                return grant;
            }
            self.left_over.notified().await;
        }
    }

    fn unused(&self) -> MutexGuard<'_, Vec<Grant>> {
        // As with `grants`.
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a durable event, and returns its index.
    pub(crate) async fn event(&self, kind: Kind) -> u64 {
        self.outbox.event(&self.turn_id, kind).await
    }

    /// Asks people for an approval, unless they were asked before in this turn, or have decided: then an older one asked.
    pub(crate) async fn ask(&self, approval: ApprovalRequired) {
        if !self.asked.contains(&approval.approval_id) && self.decided(&approval.approval_id).is_none() {
            self.event(Kind::ApprovalRequired(approval)).await;
        }
    }

    /// Tells what an attempt at a model came to.
    pub(crate) async fn attempted(&self, attempt: ModelAttempt) {
        let index = self.event(Kind::ModelAttempt(attempt.clone())).await;
        self.attempts().push((index, attempt));
    }

    /// The attempts that are not known to be stored: whoever heard of them may have been lost.
    pub(crate) fn untold(&self) -> Vec<ModelAttempt> {
        let stored = *self.stored.borrow();
        let attempts = std::mem::take(&mut *self.attempts());
        attempts.into_iter().filter(|(index, _)| *index > stored).map(|(_, attempt)| attempt).collect()
    }

    fn attempts(&self) -> MutexGuard<'_, Vec<(u64, ModelAttempt)>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a preview, which may be dropped.
    pub(crate) fn preview(&self, kind: Kind) {
        self.outbox.preview(&self.turn_id, kind);
    }

    pub(crate) async fn checkpoint(&self, checkpoint: SessionCheckpoint) {
        self.outbox.message(ToFront::Checkpoint(checkpoint)).await;
    }

    /// The last message of a step that ended in order.
    pub(crate) async fn finished(&self, finished: StepFinished) {
        self.outbox.message(ToFront::Finished(finished)).await;
    }

    /// Resolves when the event with that index is stored.
    pub(crate) async fn stored(&self, event_index: u64) {
        let mut stored = self.stored.subscribe();
        // The sender lives as long as `self`.
        let _ = stored.wait_for(|newest| *newest >= event_index).await;
    }

    /// Asks for the grant of a model call. Dropping the future withdraws the question.
    pub(crate) async fn grant(&self, request: GrantRequest) -> Result<Grant, GrantRefused> {
        let (answer, answered) = oneshot::channel();
        let mut question = Question { link: self, request_id: request.request_id.clone(), answered };
        self.grants().insert(request.request_id.clone(), answer);
        self.outbox.message(ToFront::GrantRequest(request)).await;
        // The sender is dropped only by the question itself.
        (&mut question.answered).await.unwrap_or_else(|_| Err(GrantRefused::default()))
    }

    /// Has the front run a sub-agent, and waits for what comes of it. Dropping the future gives it up here; the front ends it with
    /// the turn.
    pub(crate) async fn sub_agent(&self, call: SubAgentCall) -> SubAgentResult {
        let (answer, answered) = oneshot::channel();
        self.sub_agents().insert(call.tool_call_id.clone(), answer);
        self.outbox.message(ToFront::SubAgentCall(call)).await;
        // The sender is dropped only with the step.
        answered.await.unwrap_or_default()
    }

    fn sub_agents(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<SubAgentResult>>> {
        self.sub_agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The decision of a person; it may have come before the question.
    pub(crate) async fn decision(&self, approval_id: &str) -> ApprovalResolved {
        let mut decisions = self.decisions.subscribe();
        let decided = decisions.wait_for(|decisions| decisions.contains_key(approval_id)).await;
        decided.ok().and_then(|decisions| decisions.get(approval_id).cloned()).unwrap_or_default()
    }

    /// The decision of a person, if it came already.
    pub(crate) fn decided(&self, approval_id: &str) -> Option<ApprovalResolved> {
        self.decisions.borrow().get(approval_id).cloned()
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Result<Grant, GrantRefused>>>> {
        // No code that holds the lock can leave the map half changed.
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that is open as long as this lives.
struct Question<'link> {
    link: &'link Link,
    request_id: String,
    answered: oneshot::Receiver<Result<Grant, GrantRefused>>,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.link.grants().remove(&self.request_id);
        // A grant may have come that nobody has looked at; what comes from now on, its sender finds out about.
        self.answered.close();
        if let Ok(Ok(grant)) = self.answered.try_recv() {
            self.link.leave_over(grant);
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::execute_step_request::Message;
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_grant_that_comes_as_its_question_is_given_up_is_left_over() {
        let link = Link::new("turn".into(), Outbox::default(), Interrupt::default());
        let asked = || GrantRequest { request_id: "a question".into(), ..GrantRequest::default() };
        let grant = Grant { request_id: "a question".into(), grant_id: "a grant".into(), ..Grant::default() };
        let granted = || ExecuteStepRequest { message: Some(Message::Grant(grant.clone())) };

        let mut question = Box::pin(link.grant(asked()));
        assert!((&mut question).now_or_never().is_none());
        link.hear(granted());
        drop(question);
        assert_eq!(link.take_unused().as_ref(), Some(&grant), "it came, and was not looked at");

        let mut question = Box::pin(link.grant(asked()));
        assert!((&mut question).now_or_never().is_none());
        link.hear(granted());
        assert_eq!(question.await.as_ref(), Ok(&grant));
        assert_eq!(link.take_unused(), None, "it was taken");
    }
}
