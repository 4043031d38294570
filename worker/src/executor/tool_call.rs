//! One tool call: what is to be done about it, and doing it.

use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ApprovalRequired, ApprovalResolved, GuardrailStage, ReplayClass, SubAgentCall, ToolCall, ToolResult, ToolUse,
};
use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::changed::Changed;
use super::guarding::{self, tell};
use super::state::{State, error_result};
use crate::guardrails::Guardrails;
use crate::link::Link;
use crate::metrics::Metrics;
use crate::tools::{self, Arguments, Decision, Doubt, Entry, Invocation, Toolbox, text};

const DENIED: &str = "A person denied this call";
const NOT_REPEATED: &str =
    "The call was begun and its outcome is unknown. A person decided that the call is not to be repeated";
const NOT_REPEATED_CHANGED: &str = "The call was begun and its outcome is unknown. A person gave other arguments for it, with which it is another call, so it is not repeated.";
const CHANGED_IN_VAIN: &str = "A person changed the arguments of this call, and it was not made.";

/// A call with the decision what to do about it.
pub(super) struct Plan<'toolbox> {
    pub(super) call: ToolCall,
    /// How often its `ToolCall` event is stored already.
    pub(super) times_begun: u32,
    /// People were asked about it in this turn or the one before, and have decided.
    pub(super) is_decided: bool,
    pub(super) changed: Changed,
    pub(super) todo: Todo<'toolbox>,
}

pub(super) enum Todo<'toolbox> {
    /// Its result is in the journal.
    Known(ToolResult),
    /// It will not be made; the model is told why.
    Refuse(String),
    Make {
        entry: &'toolbox Entry,
        arguments: Map<String, Value>,
        /// Only after a person said yes, who is asked for this reason.
        ask: Option<String>,
    },
    /// It was begun by someone who was lost, and may have taken effect: a person must decide.
    AskWhetherToRepeat,
    /// A person decided that it is made once more.
    Repeat { entry: &'toolbox Entry, arguments: Map<String, Value> },
    /// A person decided that it is not; the model is told so.
    Leave(String),
}

impl Plan<'_> {
    /// A person must say yes before the call is made.
    pub(super) fn asks(&self) -> bool {
        matches!(self.todo, Todo::Make { ask: Some(_), .. })
    }

    /// An agent that the front was asked to run, and may run.
    pub(super) fn is_sub_agent_begun(&self) -> bool {
        self.times_begun > 0 && matches!(&self.todo, Todo::Make { entry, .. } if entry.is_sub_agent)
    }

    /// Its `ToolCall` event is told before anything else is done about it.
    pub(super) fn is_told_at_once(&self) -> bool {
        match &self.todo {
            Todo::Make { ask: None, .. } | Todo::Refuse(_) => self.times_begun == 0,
            Todo::Repeat { .. } => true,
            Todo::Make { ask: Some(_), .. } | Todo::Known(_) | Todo::AskWhetherToRepeat | Todo::Leave(_) => false,
        }
    }

    /// Its result, if it is in the journal.
    pub(super) fn known(&self) -> Option<&ToolResult> {
        match &self.todo {
            Todo::Known(result) => Some(result),
            Todo::Refuse(_) | Todo::Make { .. } | Todo::AskWhetherToRepeat | Todo::Repeat { .. } | Todo::Leave(_) => {
                None
            }
        }
    }

    /// What is asked of people before it is made once more.
    pub(super) fn repeat(&self) -> Question {
        Question::Repeat { times_begun: self.times_begun }
    }
}

/// What became of a call.
pub(super) enum Outcome {
    Done(ToolResult),
    /// Not begun, and no one to begin it: it waits for a person, and the worker is shutting down.
    Held,
}

/// Decides about one open call, by what people have decided so far. Tells nothing, so it may be left at any time.
pub(super) async fn plan<'toolbox>(
    call: &ToolUse,
    toolbox: &'toolbox Toolbox,
    state: &State,
    session: SessionId,
    link: &Link,
) -> Plan<'toolbox> {
    let entry = toolbox.get(&call.name);
    let journalled = state.journalled(&call.tool_call_id);
    let begun = journalled.and_then(|entry| entry.call.clone());
    let times_begun = journalled.map_or(0, |entry| entry.times_begun.max(1));
    let question = if begun.is_some() { Question::Repeat { times_begun } } else { Question::Make };
    let decision = link.decided(&question.id(session, &call.tool_call_id));
    let is_decided = decision.is_some();
    let todo = if let Some(result) = journalled.and_then(|entry| entry.result.clone()) {
        Todo::Known(result)
    } else {
        let begun = begun.as_ref().map(|begun| Begun {
            call: begun,
            is_allowed: is_allowed(begun, call, session, link),
            decision,
        });
        todo(call, toolbox, entry, begun).await
    };
    let changed = Changed::default();
    if let Some(begun) = begun.as_ref().filter(|begun| begun.arguments_json != call.arguments_json) {
        changed.to(begun);
    }
    let replay = entry.map_or(ReplayClass::Unsafe, |entry| entry.replay);
    let fresh = || ToolCall {
        idempotency_key: idempotency_key(session, &call.tool_call_id),
        tool_call_id: call.tool_call_id.clone(),
        name: call.name.clone(),
        arguments_json: call.arguments_json.clone(),
        replay: replay.into(),
    };
    Plan { call: begun.unwrap_or_else(fresh), times_begun, is_decided, changed, todo }
}

/// A call that was begun, and whose outcome nobody knows.
struct Begun<'journal> {
    call: &'journal ToolCall,
    /// A person said before that it may be made.
    is_allowed: bool,
    /// What a person said of making it once more.
    decision: Option<ApprovalResolved>,
}

/// Whether a person said that a begun call may be made. What differs from what the model wanted came of such a word alone.
fn is_allowed(begun: &ToolCall, call: &ToolUse, session: SessionId, link: &Link) -> bool {
    let said = link.decided(&Question::Make.id(session, &call.tool_call_id));
    begun.arguments_json != call.arguments_json
        || said.is_some_and(|said| said.approved || !said.arguments_json.is_empty())
}

async fn todo<'toolbox>(
    call: &ToolUse,
    toolbox: &'toolbox Toolbox,
    entry: Option<&'toolbox Entry>,
    begun: Option<Begun<'_>>,
) -> Todo<'toolbox> {
    let Some(entry) = entry else {
        return Todo::Refuse(format!("There is no tool {:?}.", call.name));
    };
    // A person may have changed them before it was begun.
    let arguments_json = begun.as_ref().map_or(&call.arguments_json, |begun| &begun.call.arguments_json);
    if let Some(guardrail) = guarding::withheld_by(arguments_json) {
        return Todo::Refuse(withheld(&guardrail));
    }
    let arguments = match entry.arguments(arguments_json).await {
        Ok(arguments) => arguments,
        Err(problem) => return Todo::Refuse(problem.to_string()),
    };
    if begun.is_none()
        && let Some(doubt) = arguments.doubt
    {
        return Todo::Refuse(doubt.to_string());
    }
    let ask = match toolbox.decide(entry, &arguments.object) {
        Decision::Allow => None,
        Decision::Ask(reason) => Some(reason),
        Decision::Deny(reason) => return Todo::Refuse(reason),
    };
    let Arguments { object: arguments, doubt } = arguments;
    let Some(begun) = begun else { return Todo::Make { entry, arguments, ask } };
    let may_be_repeated = match begun.call.replay() {
        // A call that is refused is told as one that is made: that it was begun says not that anyone was asked, nor that it fits.
        ReplayClass::Safe | ReplayClass::Idempotent => doubt.is_none() && (ask.is_none() || begun.is_allowed),
        ReplayClass::Unsafe | ReplayClass::Unspecified => false,
    };
    if may_be_repeated {
        return Todo::Make { entry, arguments, ask: None };
    }
    match begun.decision {
        None => Todo::AskWhetherToRepeat,
        Some(decision) if !decision.arguments_json.is_empty() => Todo::Leave(NOT_REPEATED_CHANGED.to_owned()),
        Some(decision) if !decision.approved => Todo::Leave(said(NOT_REPEATED, &decision.message)),
        Some(_) if doubt == Some(Doubt::TooLarge) => Todo::Refuse(format!(
            "The call was begun and its outcome is unknown. It is not repeated: {}",
            Doubt::TooLarge
        )),
        Some(_) => Todo::Repeat { entry, arguments },
    }
}

/// Where one call runs.
pub(super) struct Bench<'step> {
    pub(super) link: &'step Link,
    pub(super) metrics: &'step Metrics,
    pub(super) toolbox: &'step Toolbox,
    pub(super) guardrails: &'step Guardrails,
    pub(super) draining: &'step CancellationToken,
    pub(super) session: SessionId,
}

impl Bench<'_> {
    /// Does what the plan says. The call's event is stored before the tool hears of it.
    ///
    /// `journalled_as` is the index of the call's own event, where it is under way to the store.
    pub(super) async fn carry_out(&self, plan: Plan<'_>, mut journalled_as: Option<u64>) -> Outcome {
        let Plan { mut call, todo, changed, times_begun: _, is_decided: _ } = plan;
        let (entry, mut arguments, ask) = match todo {
            Todo::Known(result) => return Outcome::Done(result),
            Todo::Refuse(problem) => {
                self.metrics.tool_call("refused");
                return Outcome::Done(error_result(&call.tool_call_id, &problem));
            }
            Todo::Leave(problem) => {
                self.metrics.tool_call("denied");
                return Outcome::Done(error_result(&call.tool_call_id, &(changed.note() + &problem)));
            }
            // It is left out of those that are carried out.
            Todo::AskWhetherToRepeat => return Outcome::Held,
            Todo::Repeat { entry, arguments } => (entry, arguments, None),
            Todo::Make { entry, arguments, ask } => (entry, arguments, ask),
        };
        if let Some(reason) = ask {
            let approval = Question::Make.about(self.session, &call, &reason);
            let approval_id = approval.approval_id.clone();
            self.link.ask(approval).await;
            let decision = tokio::select! {
                biased;
                decision = self.link.decision(&approval_id) => decision,
                () = self.draining.cancelled() => return Outcome::Held,
            };
            let is_changed = !decision.arguments_json.is_empty();
            if !decision.approved && !is_changed {
                self.metrics.tool_call("denied");
                return Outcome::Done(error_result(&call.tool_call_id, &said(DENIED, &decision.message)));
            }
            if is_changed {
                let given = self.given(entry, &call.tool_call_id, decision.arguments_json).await;
                (call.arguments_json, arguments) = match given {
                    Ok(given) => given,
                    Err(problem) => {
                        self.metrics.tool_call("refused");
                        let told = format!("{CHANGED_IN_VAIN} {problem}");
                        return Outcome::Done(error_result(&call.tool_call_id, &told));
                    }
                };
                changed.to(&call);
            }
            journalled_as = Some(self.link.event(Kind::ToolCall(call.clone())).await);
        }
        if let Some(index) = journalled_as {
            self.link.stored(index).await;
        }
        let mut result = self.make(entry, arguments, call).await;
        let note = changed.note();
        if !note.is_empty() {
            result.content.splice(..0, text(note));
        }
        Outcome::Done(result)
    }

    /// The arguments that a person gives a call, as text and as they are understood. They are held to what the model's own are: guardrails,
    /// the tool's schema, and rules, of which one that asks has been answered. Fails with what the model is told.
    async fn given(
        &self,
        entry: &Entry,
        tool_call_id: &str,
        mut arguments_json: String,
    ) -> Result<(String, Map<String, Value>), String> {
        let review = self.guardrails.review_arguments(&mut arguments_json).await;
        tell(self.link, self.metrics, tool_call_id, &review.violations).await;
        if let Some(guardrail) = review.blocked_by {
            return Err(withheld(&guardrail));
        }
        let arguments = entry.arguments(&arguments_json).await.and_then(Arguments::of_new_call);
        let arguments = arguments.map_err(|problem| problem.to_string())?;
        match self.toolbox.decide(entry, &arguments) {
            Decision::Allow | Decision::Ask(_) => Ok((arguments_json, arguments)),
            Decision::Deny(reason) => Err(reason),
        }
    }

    async fn make(&self, entry: &Entry, arguments: Map<String, Value>, call: ToolCall) -> ToolResult {
        let began = Instant::now();
        let (mut content, mut is_error) = if entry.is_sub_agent {
            let ToolCall { tool_call_id, name, arguments_json, .. } = call.clone();
            let result = self.link.sub_agent(SubAgentCall { tool_call_id, name, arguments_json }).await;
            (tools::within_bounds(result.content), result.is_error)
        } else {
            let invocation = Invocation { arguments, idempotency_key: call.idempotency_key };
            match entry.call(&call.tool_call_id, invocation).await {
                Ok(content) => (content, false),
                Err(problem) => (tools::within_bounds(text(problem.to_string())), true),
            }
        };
        // A tool's error is its own words too.
        let review = guarding::review(self.guardrails, GuardrailStage::ToolResult, &mut content).await;
        if let Some(guardrail) = &review.blocked_by {
            content = text(format!("The call was made, and guardrail {guardrail:?} withholds its result."));
            is_error = true;
        }
        tell(self.link, self.metrics, &call.tool_call_id, &review.violations).await;
        self.metrics.tool_call(if is_error { "error" } else { "ok" });
        let duration_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
        ToolResult { tool_call_id: call.tool_call_id, content, is_error, duration_ms }
    }
}

/// What a person is asked about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Before it is made.
    Make,
    /// After it was begun so many times and nobody knows what came of the last. Not the same question: a yes to the other is none to
    /// this, and one to the second time none to the third.
    Repeat { times_begun: u32 },
}

impl Question {
    /// The same whoever asks, so that an answer is good after a restart.
    pub(super) fn id(self, session: SessionId, tool_call_id: &str) -> String {
        let about = match self {
            Self::Make => "approval".to_owned(),
            Self::Repeat { times_begun: 0 | 1 } => "repeat".to_owned(),
            Self::Repeat { times_begun } => format!("repeat-{times_begun}"),
        };
        Uuid::new_v5(&session.0, format!("{about}/{tool_call_id}").as_bytes()).to_string()
    }

    pub(super) fn about(self, session: SessionId, call: &ToolCall, reason: &str) -> ApprovalRequired {
        ApprovalRequired {
            approval_id: self.id(session, &call.tool_call_id),
            tool_call_id: call.tool_call_id.clone(),
            tool_name: call.name.clone(),
            arguments_json: call.arguments_json.clone(),
            reason: reason.to_owned(),
            repeat: matches!(self, Self::Repeat { .. }),
        }
    }
}

fn idempotency_key(session: SessionId, tool_call_id: &str) -> String {
    Uuid::new_v5(&session.0, format!("call/{tool_call_id}").as_bytes()).to_string()
}

/// What the model is told of a call whose arguments a guardrail refused.
fn withheld(guardrail: &str) -> String {
    format!("The call was not made: guardrail {guardrail:?} refused its arguments.")
}

/// What a person decided, and the reason that they gave, if any.
fn said(decision: &str, message: &str) -> String {
    if message.is_empty() { format!("{decision}.") } else { format!("{decision}: {message}") }
}
