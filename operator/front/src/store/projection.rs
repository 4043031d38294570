//! What events do to the session they belong to: the one place that knows, for every store.

use croft_proto::Timestamp;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ModelAttempt, ProviderMode, SessionEvent, SessionState, StopReason, TokenUsage, UsageEvent, UsageTotals,
};

use super::time;
use crate::error::Error;
use crate::events::log::NewEvent;
use crate::plain::plain;
use crate::session::Session;
use crate::session::store::NewSession;

/// How a run of events changes its session. A field that is `None` stays as it was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub state: Option<SessionState>,
    pub worker: Option<String>,
    pub turn_id: Option<String>,
    pub stop_reason: Option<StopReason>,
    pub terminate_reason: Option<String>,
    /// The place of the last user's message among the events, from 1.
    pub newest_input: Option<u64>,
    pub update_time: Timestamp,
}

impl Change {
    /// Fails when there are no events, one that is not durable, or one after the session's end: callers owe better.
    pub(crate) fn of(events: &[NewEvent]) -> Result<Self, Error> {
        let last = events.last().ok_or_else(|| Error::internal(anyhow::anyhow!("an append without events")))?;
        let mut change = Self {
            state: None,
            worker: None,
            turn_id: None,
            stop_reason: None,
            terminate_reason: None,
            newest_input: None,
            update_time: time::stored(&last.create_time),
        };
        for (place, event) in (1..).zip(events) {
            kind_name(&event.kind)?;
            if change.terminates() {
                return Err(Error::internal(anyhow::anyhow!("an append of an event after its session's end")));
            }
            change.add(place, event);
        }
        Ok(change)
    }

    fn add(&mut self, place: u64, event: &NewEvent) {
        match &event.kind {
            Kind::SessionCreated(_) => self.state = Some(SessionState::Creating),
            Kind::SessionReady(ready) => {
                self.state = Some(SessionState::Ready);
                self.worker = Some(ready.worker.clone());
            }
            Kind::SessionRunning(_) => {
                self.state = Some(SessionState::Running);
                self.turn_id = event.turn.map(|turn| turn.to_string()).or(self.turn_id.take());
            }
            Kind::SessionIdle(idle) => {
                self.state = Some(SessionState::Idle);
                self.stop_reason = Some(idle.stop_reason());
            }
            Kind::SessionTerminated(terminated) => {
                self.state = Some(SessionState::Terminated);
                self.terminate_reason = Some(terminated.reason.clone());
            }
            Kind::UserMessage(_) => self.newest_input = Some(place),
            Kind::StepStarted(started) => self.worker = Some(plain(started.worker.clone())),
            _ => {}
        }
    }

    /// The session ends with these events.
    pub(crate) fn terminates(&self) -> bool {
        self.state == Some(SessionState::Terminated)
    }

    /// To a session whose `last_seq` is still that before the events.
    pub(crate) fn apply(self, session: &mut Session) {
        let Self { state, worker, turn_id, stop_reason, terminate_reason, newest_input, update_time } = self;
        if let Some(place) = newest_input {
            session.newest_input_seq = session.last_seq + place;
        }
        if state == Some(SessionState::Terminated) && session.state != SessionState::Terminated {
            session.terminate_time = Some(update_time);
        }
        session.state = state.unwrap_or(session.state);
        session.last_stop_reason = stop_reason.unwrap_or(session.last_stop_reason);
        session.update_time = update_time;
        for (field, value) in [
            (&mut session.worker, worker),
            (&mut session.turn_id, turn_id),
            (&mut session.terminate_reason, terminate_reason),
        ] {
            if let Some(value) = value {
                *field = value;
            }
        }
    }
}

/// The session as its first events leave it, but for what its attempts at models used.
pub(crate) fn begin(new: &NewSession) -> Result<Session, Error> {
    let change = Change::of(&new.events)?;
    let create_time = new.events.first().map_or(change.update_time, |event| time::stored(&event.create_time));
    let mut session = Session {
        id: new.id,
        tenant: new.tenant,
        tenant_name: new.tenant_name.clone(),
        state: SessionState::Creating,
        agent: new.agent.clone(),
        config_hash: new.config_hash.clone(),
        labels: new.labels.clone(),
        create_time,
        update_time: create_time,
        idle_timeout_ms: new.idle_timeout_ms,
        expire_time: new.expire_time.as_ref().map(time::stored),
        terminate_time: None,
        last_seq: 0,
        input_seq: 0,
        newest_input_seq: 0,
        turn_id: String::new(),
        worker: String::new(),
        terminate_reason: String::new(),
        last_stop_reason: StopReason::Unspecified,
        usage: UsageTotals { tokens: Some(TokenUsage::default()), ..UsageTotals::default() },
        parent: new.parent.clone(),
    };
    change.apply(&mut session);
    session.last_seq = new.events.len() as u64;
    Ok(session)
}

/// When a session that has just come into its state is to be ended; `None` is never. In the database, the trigger
/// `sessions_turn` says the same.
pub(crate) fn due_time(session: &Session) -> Option<Timestamp> {
    let idle = match session.state {
        SessionState::Terminated => return None,
        SessionState::Running => None,
        _ if session.idle_timeout_ms == 0 => None,
        _ => Some(time::micros(&session.update_time).saturating_add(session.idle_timeout_ms.saturating_mul(1_000))),
    };
    let expiry = session.expire_time.as_ref().map(time::micros);
    idle.into_iter().chain(expiry).min().map(time::timestamp)
}

/// Gives events their numbers, from `first_seq` on.
pub(crate) fn number(session: SessionId, first_seq: u64, events: Vec<NewEvent>) -> Vec<SessionEvent> {
    (first_seq..)
        .zip(events)
        .map(|(seq, NewEvent { kind, turn, elapsed_ms, create_time })| SessionEvent {
            session_id: session.to_string(),
            seq,
            create_time: Some(create_time),
            elapsed_ms,
            turn_id: turn.map(|turn| turn.to_string()).unwrap_or_default(),
            kind: Some(kind),
        })
        .collect()
}

/// The usage rows that these events ask for, but for the agent, which the store knows. A worker's negative counts are taken for 0: they
/// would pay for others. Its texts are stored plainly, or one that the database does not take would be a way to use models for nothing.
pub(crate) fn usage_rows(session: SessionId, events: &[NewEvent]) -> Vec<UsageEvent> {
    events
        .iter()
        .filter_map(|event| match &event.kind {
            Kind::ModelAttempt(attempt) => Some(usage_row(session, attempt, &event.create_time)),
            _ => None,
        })
        .collect()
}

fn usage_row(session: SessionId, attempt: &ModelAttempt, create_time: &Timestamp) -> UsageEvent {
    let tokens = attempt.usage.unwrap_or_default();
    UsageEvent {
        attempt_id: plain(attempt.attempt_id.clone()),
        session_id: session.to_string(),
        agent: String::new(),
        provider: plain(attempt.provider.clone()),
        model: plain(attempt.model.clone()),
        tokens: Some(TokenUsage {
            input_uncached_tokens: tokens.input_uncached_tokens.max(0),
            cache_read_tokens: tokens.cache_read_tokens.max(0),
            cache_write_5m_tokens: tokens.cache_write_5m_tokens.max(0),
            cache_write_1h_tokens: tokens.cache_write_1h_tokens.max(0),
            output_tokens: tokens.output_tokens.max(0),
            reasoning_tokens: tokens.reasoning_tokens.max(0),
        }),
        cost_nano_usd: attempt.cost_nano_usd.map(|cost| cost.max(0)),
        latency_ms: attempt.latency_ms.max(0),
        finish_reason: plain(attempt.finish_reason.clone()),
        error_class: plain(attempt.error_class.clone()),
        create_time: Some(time::stored(create_time)),
        usage_estimated: attempt.usage_estimated,
        mode: match attempt.mode() {
            ProviderMode::Unspecified => ProviderMode::Platform.into(),
            known => known.into(),
        },
        service_tier: plain(attempt.service_tier.clone()),
        sender: plain(attempt.sender.clone()),
    }
}

/// Adds one row to totals.
pub(crate) fn add_usage(totals: &mut UsageTotals, row: &UsageEvent) {
    let (sum, row_tokens) = (totals.tokens.get_or_insert_default(), row.tokens.unwrap_or_default());
    sum.input_uncached_tokens += row_tokens.input_uncached_tokens;
    sum.cache_read_tokens += row_tokens.cache_read_tokens;
    sum.cache_write_5m_tokens += row_tokens.cache_write_5m_tokens;
    sum.cache_write_1h_tokens += row_tokens.cache_write_1h_tokens;
    sum.output_tokens += row_tokens.output_tokens;
    sum.reasoning_tokens += row_tokens.reasoning_tokens;
    totals.attempts += 1;
    match row.cost_nano_usd {
        Some(cost) => totals.cost_nano_usd += cost,
        None => totals.unpriced_attempts += 1,
    }
}

/// The name of a durable event's field in [`SessionEvent`]. Fails for previews and notices, which are stored nowhere.
pub(crate) fn kind_name(kind: &Kind) -> Result<&'static str, Error> {
    Ok(match kind {
        Kind::SessionCreated(_) => "session_created",
        Kind::SessionReady(_) => "session_ready",
        Kind::SessionRunning(_) => "session_running",
        Kind::SessionIdle(_) => "session_idle",
        Kind::SessionTerminated(_) => "session_terminated",
        Kind::UserMessage(_) => "user_message",
        Kind::AgentMessage(_) => "agent_message",
        Kind::ToolCall(_) => "tool_call",
        Kind::ToolResult(_) => "tool_result",
        Kind::ApprovalRequired(_) => "approval_required",
        Kind::ApprovalResolved(_) => "approval_resolved",
        Kind::GuardrailViolation(_) => "guardrail_violation",
        Kind::ModelAttempt(_) => "model_attempt",
        Kind::ModelRouted(_) => "model_routed",
        Kind::CheckpointTaken(_) => "checkpoint_taken",
        Kind::BudgetAlert(_) => "budget_alert",
        Kind::BudgetReached(_) => "budget_reached",
        Kind::Error(_) => "error",
        Kind::StepStarted(_) => "step_started",
        Kind::StepCompleted(_) => "step_completed",
        Kind::SubAgentStarted(_) => "sub_agent_started",
        Kind::TextDelta(_) | Kind::ThinkingDelta(_) | Kind::ToolArgumentDelta(_) | Kind::Progress(_) | Kind::Gap(_) => {
            return Err(Error::internal(anyhow::anyhow!("an append of an event that is not durable")));
        }
    })
}
