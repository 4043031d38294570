//! The sub-agents that a turn calls. Each runs in a session of its own, under a lease and in a log of its own; all that is known of it is
//! in there, so that whoever has the caller's turn next finds it again and takes the same result from it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TurnId;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ContentBlock, SendMessageRequest, SessionEvent, StopReason, SubAgentCall, SubAgentResult, SubAgentStarted, Text,
};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Turns;
use crate::clock::since;
use crate::core::Core;
use crate::error::Error;
use crate::events::replay;
use crate::session::Session;
use crate::session::manager::Manager;

/// Sub-agents of one turn that run at the same time. Further ones wait for their place.
const AT_ONCE_MAX: usize = 8;
/// Between two tries to open a session, or to follow one.
const PAUSE: Duration = Duration::from_millis(100);
/// The key of the one message that a sub-agent gets.
const MESSAGE_KEY: &str = "sub-agent-call";
/// How long that key is known for certain.
const KEY_HOLDS: Duration = Duration::from_hours(23);
/// Why a sub-agent's session was ended, as in its `SessionTerminated`.
const ANSWERED: &str = "ANSWERED";

/// What has become of a call.
pub(super) enum Heard {
    /// It has a session. With whether its caller's log says so already.
    Opened(Box<Opened>),
    Over(SubAgentResult),
}

/// A call that has a session.
pub(super) struct Opened {
    child: Session,
    call: SubAgentCall,
    place: OwnedSemaphorePermit,
    /// The caller's log does not say so yet.
    pub(super) is_news: bool,
}

impl Opened {
    pub(super) fn event(&self) -> Kind {
        Kind::SubAgentStarted(SubAgentStarted {
            tool_call_id: self.call.tool_call_id.clone(),
            agent: self.child.agent.name.clone(),
            session_id: self.child.id.to_string(),
        })
    }
}

/// The calls of one step.
pub(super) struct SubAgents {
    core: Arc<Core>,
    session: Session,
    turn: TurnId,
    /// Who spoke to the caller, and so to whom it calls.
    sender: String,
    /// Calls whose start is in the log.
    told: HashSet<String>,
    places: Arc<Semaphore>,
    running: FuturesUnordered<BoxFuture<'static, Heard>>,
}

impl SubAgents {
    /// `told` are calls of which the log says that they have started.
    pub(super) fn new(core: Arc<Core>, session: Session, (turn, sender): (TurnId, &str), told: Vec<String>) -> Self {
        let (told, places) = (told.into_iter().collect(), Arc::new(Semaphore::new(AT_ONCE_MAX)));
        let sender = sender.to_owned();
        Self { core, session, turn, sender, told, places, running: FuturesUnordered::new() }
    }

    /// Takes a call of the worker's. Its session is opened first; then [`Self::run`] goes on with it.
    pub(super) fn call(&mut self, call: SubAgentCall) {
        let is_news = self.told.insert(call.tool_call_id.clone());
        let (core, caller, turn) = (Arc::clone(&self.core), self.session.clone(), self.turn);
        let places = Arc::clone(&self.places);
        self.running.push(
            async move {
                let opened = match places.acquire_owned().await {
                    Ok(place) => opened(&core, &caller, turn, &call).await.map(|child| (child, place)),
                    Err(error) => Err(Error::internal(error)),
                };
                match opened {
                    Ok((child, place)) => Heard::Opened(Box::new(Opened { child, call, place, is_news })),
                    Err(error) => {
                        tracing::info!(session = %caller.id, reason = error.reason(), "a sub-agent was not started");
                        Heard::Over(failed(call.tool_call_id, format!("The sub-agent could not be started: {error}.")))
                    }
                }
            }
            .boxed(),
        );
    }

    /// Lets a call begin whose start is told.
    pub(super) fn run(&mut self, opened: Opened) {
        let (core, sender) = (Arc::clone(&self.core), self.sender.clone());
        let Opened { child, call, place, is_news: _ } = opened;
        self.running.push(
            async move {
                let result = answer(&core, &child, &sender, &call).await;
                drop(place);
                Heard::Over(result)
            }
            .boxed(),
        );
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    /// What is heard next; pending while nothing runs.
    pub(super) async fn next(&mut self) -> Heard {
        match self.running.next().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }
}

/// Opens the session of a call. In a task of its own: what has been begun must not be dropped half done with the step of its caller, as
/// then nobody would record it, and no worker would be told to forget it.
async fn opened(core: &Arc<Core>, caller: &Session, turn: TurnId, call: &SubAgentCall) -> Result<Session, Error> {
    let given_up = CancellationToken::new();
    let _waits = given_up.clone().drop_guard();
    let opening = open(Arc::clone(core), caller.clone(), turn, call.clone(), given_up).in_current_span();
    core.tasks.spawn("open-sub-agent", opening).await.map_err(Error::internal)?
}

/// Tries for as long as a turn would look for a worker: what keeps a session from being opened is often over by then. Once it is given up no
/// session is begun any more. One that was begun by then is found by the next step; where there is none, it is ended as one that has
/// outlived its call.
async fn open(
    core: Arc<Core>,
    caller: Session,
    turn: TurnId,
    call: SubAgentCall,
    given_up: CancellationToken,
) -> Result<Session, Error> {
    let manager = Manager::new(Arc::clone(&core));
    let until = Instant::now() + core.options.placement_timeout;
    let mut may_be_open = false;
    let opened = loop {
        match manager.open_child(&caller, turn, &call.tool_call_id, &call.name, &mut may_be_open).await {
            Err(
                Error::NoWorker { .. }
                | Error::WorkersFull { .. }
                | Error::WorkerLost { .. }
                | Error::Unavailable { .. }
                | Error::RateLimited { .. },
                // Where there may be one that nobody has heard of, the next try tells.
            ) if Instant::now() < until && (may_be_open || !given_up.is_cancelled()) => {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => break outcome,
        }
    };
    // Why it can't be opened, the next step is told again, and records.
    if opened.is_ok() || !given_up.is_cancelled() {
        manager.record_child(&caller, &opened).await;
    }
    opened.map(|opened| opened.session)
}

/// Says to the sub-agent what it is called with, once however often this is asked, waits for its answer, and ends its session.
pub(super) async fn answer(core: &Arc<Core>, child: &Session, sender: &str, call: &SubAgentCall) -> SubAgentResult {
    // Somebody else may have spoken to it first. By its key our message is known for a day.
    let may_be_said = child.newest_input_seq == 0 || since(child.create_time) < KEY_HOLDS;
    let said = if may_be_said { say(core, child, sender, call).await.map(Some) } else { Ok(None) };
    let turn = match said {
        Ok(turn) => turn,
        // Whoever ended it says why in its log. Another release may have said it in other words.
        Err(Error::SessionTerminated { .. } | Error::IdempotencyKeyReused) => None,
        // It was told before, and is at work: that it can't be told once more is no reason to end it.
        Err(error) if child.newest_input_seq > 0 => {
            tracing::info!(session = %child.id, %error, "a sub-agent is followed without being told again");
            None
        }
        Err(error) => {
            let result =
                failed(call.tool_call_id.clone(), format!("The sub-agent could not be told what to do: {error}."));
            end(core, child).await;
            return result;
        }
    };
    let answer = follow(core, child, turn).await;
    end(core, child).await;
    answer.result(call.tool_call_id.clone())
}

async fn end(core: &Arc<Core>, child: &Session) {
    if let Err(error) = Manager::new(Arc::clone(core)).end_child(child, ANSWERED).await {
        // It ends with its caller's turn.
        tracing::warn!(session = %child.id, %error, "the session of a sub-agent that has answered was not ended");
    }
}

/// Tells the turn of the call. In a task of its own: a turn that has begun must not be dropped half begun with the step of its caller.
async fn say(core: &Arc<Core>, child: &Session, sender: &str, call: &SubAgentCall) -> Result<TurnId, Error> {
    let until = Instant::now() + core.options.placement_timeout;
    let request = SendMessageRequest {
        session_id: child.id.to_string(),
        content: vec![text(message(&call.arguments_json))],
        idempotency_key: MESSAGE_KEY.to_owned(),
        ..SendMessageRequest::default()
    };
    loop {
        let (turns, tenant, request) = (Turns::new(Arc::clone(core)), child.tenant, request.clone());
        let sender = sender.to_owned();
        let saying = async move { turns.send(tenant, &sender, request).await.map(|sent| sent.accepted.turn) };
        // Its turn is in the trace of its caller's.
        let sent = core.tasks.spawn("sub-agent", saying.in_current_span());
        match sent.await.map_err(Error::internal)? {
            Err(Error::Unavailable { .. } | Error::RateLimited { .. }) if Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            // Someone says something else to it at this moment; what we say is known by its key, and comes next.
            Err(Error::SessionBusy { .. }) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// What a sub-agent is told: the text of `message`, if that is all there is, and otherwise the arguments as they are.
fn message(arguments_json: &str) -> String {
    let arguments: serde_json::Value = serde_json::from_str(arguments_json).unwrap_or_default();
    let alone = arguments.as_object().filter(|arguments| arguments.len() == 1);
    match alone.and_then(|arguments| arguments.get("message")).and_then(serde_json::Value::as_str) {
        Some(message) => message.to_owned(),
        None => arguments_json.to_owned(),
    }
}

/// What a sub-agent's log says of its turn.
#[derive(Debug, Default)]
struct Answer {
    turn: String,
    /// The last words of that turn.
    said: Vec<ContentBlock>,
    /// What went wrong, as its log says.
    trouble: String,
    end: Option<End>,
}

#[derive(Debug)]
enum End {
    Stopped(StopReason),
    Terminated(String),
}

async fn follow(core: &Arc<Core>, child: &Session, turn: Option<TurnId>) -> Answer {
    let mut answer = Answer { turn: turn.map(|turn| turn.to_string()).unwrap_or_default(), ..Answer::default() };
    let mut after_seq = 0;
    loop {
        let log = Arc::clone(&core.stores.events);
        match replay::follow(log, &core.hub, child.tenant, child.id, after_seq, true).await {
            Ok(events) => {
                let mut events = std::pin::pin!(events);
                while let Some(event) = events.next().await {
                    match event {
                        Ok(event) => {
                            after_seq = event.seq.max(after_seq);
                            answer.take(event);
                        }
                        // Also one that is erased has ended.
                        Err(Error::SessionNotFound { .. }) => answer.end = Some(End::Terminated("ERASED".to_owned())),
                        Err(error) => tracing::debug!(session = %child.id, %error, "a sub-agent is followed anew"),
                    }
                    if answer.end.is_some() {
                        return answer;
                    }
                }
            }
            Err(Error::SessionNotFound { .. }) => answer.end = Some(End::Terminated("ERASED".to_owned())),
            Err(error) => tracing::debug!(session = %child.id, %error, "a sub-agent is followed anew"),
        }
        if answer.end.is_some() {
            return answer;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Answer {
    fn take(&mut self, event: SessionEvent) {
        match event.kind {
            Some(Kind::SessionTerminated(terminated)) => self.end = Some(End::Terminated(terminated.reason)),
            // Where nobody can say, the first turn is the call's.
            Some(Kind::UserMessage(_)) if self.turn.is_empty() => self.turn = event.turn_id,
            _ if event.turn_id.is_empty() || event.turn_id != self.turn => {}
            Some(Kind::AgentMessage(message)) => {
                let is_told = |block: &ContentBlock| matches!(block.block, Some(Block::Text(_) | Block::Image(_)));
                self.said = message.content.into_iter().filter(is_told).collect();
            }
            Some(Kind::Error(error)) => self.trouble = error.message,
            Some(Kind::BudgetReached(reached)) => self.trouble = reached.message,
            Some(Kind::SessionIdle(idle)) => self.end = Some(End::Stopped(idle.stop_reason())),
            _ => {}
        }
    }

    /// What the caller's model is told.
    fn result(self, tool_call_id: String) -> SubAgentResult {
        let why = match self.end {
            Some(End::Stopped(StopReason::EndTurn)) if !self.said.is_empty() => {
                return SubAgentResult { tool_call_id, content: self.said, is_error: false };
            }
            Some(End::Stopped(StopReason::EndTurn)) => "ended without a word".to_owned(),
            Some(End::Stopped(stop_reason)) => ended(stop_reason).to_owned(),
            Some(End::Terminated(reason)) => format!("did not answer: its session was ended ({reason})"),
            None => "did not answer".to_owned(),
        };
        let trouble = if self.trouble.is_empty() { String::new() } else { format!(" ({})", self.trouble) };
        let mut content = vec![text(format!("The sub-agent {why}{trouble}."))];
        if !self.said.is_empty() {
            content.push(text("Until then it had said:".to_owned()));
            content.extend(self.said);
        }
        SubAgentResult { tool_call_id, content, is_error: true }
    }
}

/// Continues the sentence that "The sub-agent" begins.
fn ended(stop_reason: StopReason) -> &'static str {
    match stop_reason {
        StopReason::EndTurn => "has answered",
        StopReason::MaxTokens => "was cut off at the most that it may say",
        StopReason::LoopLimit => "was stopped: it asked its model too often",
        StopReason::ToolLimit => "was stopped: it called too many tools",
        StopReason::TimeLimit => "was stopped: it took too long",
        StopReason::Refusal => "refused to answer",
        StopReason::ContextFull => "was stopped: its conversation no longer fits its model",
        StopReason::Interrupted => "was interrupted",
        StopReason::Terminated => "was ended",
        StopReason::Budget => "was stopped at a budget",
        StopReason::RequiresAction => "was stopped: a person must decide first",
        StopReason::WorkerLost => "was lost with its worker",
        StopReason::Guardrail => "was stopped by a guardrail",
        StopReason::Error | StopReason::HandedBack | StopReason::Unspecified => "failed",
    }
}

fn failed(tool_call_id: String, why: String) -> SubAgentResult {
    SubAgentResult { tool_call_id, content: vec![text(why)], is_error: true }
}

fn text(text: String) -> ContentBlock {
    ContentBlock { block: Some(Block::Text(Text { text })) }
}

/// Ends the sub-agents whose call the turn no longer waits for.
pub(super) async fn end_all(core: &Arc<Core>, session: &Session) -> Result<(), Error> {
    Manager::new(Arc::clone(core)).end_children(session).await
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{AgentMessage, SessionError, SessionIdle, SessionTerminated, UserMessage};

    use super::*;

    const TURN: &str = "the turn";

    fn told(kinds: Vec<Kind>) -> SubAgentResult {
        let mut answer = Answer { turn: TURN.to_owned(), ..Answer::default() };
        for kind in kinds {
            let turn_id = TURN.to_owned();
            answer.take(SessionEvent { turn_id, kind: Some(kind), ..SessionEvent::default() });
        }
        answer.result("call".to_owned())
    }

    fn said(words: &str) -> Kind {
        Kind::AgentMessage(AgentMessage { content: vec![text(words.to_owned())], model: "m".into() })
    }

    fn idle(stop_reason: StopReason) -> Kind {
        Kind::SessionIdle(SessionIdle { stop_reason: stop_reason.into() })
    }

    fn words(result: &SubAgentResult) -> String {
        let text = |block: &ContentBlock| match &block.block {
            Some(Block::Text(text)) => text.text.clone(),
            other => panic!("{other:?}"),
        };
        result.content.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_last_words_of_the_calls_turn_are_the_answer() {
        let user = Kind::UserMessage(UserMessage::default());
        let result = told(vec![user, said("let me see"), said("it is 42"), idle(StopReason::EndTurn)]);
        assert_eq!((words(&result).as_str(), result.is_error), ("it is 42", false));
    }

    #[test]
    fn whatever_else_ends_it_is_an_error_with_a_sentence() {
        let user = || Kind::UserMessage(UserMessage::default());
        let trouble = Kind::Error(SessionError { message: "no worker".into(), ..SessionError::default() });
        let ended = Kind::SessionTerminated(SessionTerminated { reason: "LIFETIME".into() });
        for (kinds, expected) in [
            (vec![user(), idle(StopReason::EndTurn)], "The sub-agent ended without a word."),
            (
                vec![user(), said("so far"), idle(StopReason::Budget)],
                "The sub-agent was stopped at a budget. Until then it had said: so far",
            ),
            (
                vec![user(), trouble, idle(StopReason::WorkerLost)],
                "The sub-agent was lost with its worker (no worker).",
            ),
            (vec![user(), ended], "The sub-agent did not answer: its session was ended (LIFETIME)."),
        ] {
            let result = told(kinds);
            assert_eq!((words(&result).as_str(), result.is_error), (expected, true));
        }
    }

    #[test]
    fn a_message_is_said_as_it_is_and_other_arguments_as_json() {
        assert_eq!(message(r#"{"message":"find it"}"#), "find it");
        let both = r#"{"message":"find it","where":"here"}"#;
        assert_eq!((message(both).as_str(), message("{}").as_str()), (both, "{}"));
    }
}
