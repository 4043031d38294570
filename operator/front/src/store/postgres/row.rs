//! Rows and the words in them.

use std::collections::BTreeMap;

use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::{AgentSpec, ProviderMode, SessionState, StopReason, TokenUsage, UsageEvent, UsageTotals};
use prost::Message;
use sqlx::Row;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::time::Time;
use crate::session::Session;
use crate::session::family::Parent;

const STATE_PREFIX: &str = "SESSION_STATE_";
const STOP_REASON_PREFIX: &str = "STOP_REASON_";
const MODE_PREFIX: &str = "PROVIDER_MODE_";

/// Selects what [`session`] reads, of sessions `s`.
macro_rules! select_session {
    () => {
        "
    select s.tenant_id, s.session_id, t.name as tenant_name, s.state, s.agent, s.config_hash, s.labels::text as labels,
        s.create_time, s.update_time, s.last_seq, s.input_seq, s.newest_input_seq, s.turn_id, s.worker,
        s.terminate_reason, s.last_stop_reason, s.attempts, s.unpriced_attempts, s.input_uncached_tokens,
        s.cache_read_tokens, s.cache_write_5m_tokens, s.cache_write_1h_tokens, s.output_tokens, s.reasoning_tokens,
        s.cost_nano_usd, s.idle_timeout_ms, s.expire_time, s.terminate_time, s.parent_id, s.parent_turn, s.parent_call,
        s.lineage::text as lineage
    from sessions s
    join tenants t on t.tenant_id = s.tenant_id
"
    };
}
pub(super) use select_session;

/// See [`select_session`].
pub(super) const SELECT_SESSION: &str = select_session!();

pub(super) fn session(row: &PgRow) -> Result<Session, sqlx::Error> {
    let agent: &[u8] = row.try_get("agent")?;
    let labels: BTreeMap<String, String> = serde_json::from_str(row.try_get("labels")?).map_err(unreadable)?;
    let state: &str = row.try_get("state")?;
    let stop_reason: &str = row.try_get("last_stop_reason")?;
    Ok(Session {
        id: SessionId(row.try_get("session_id")?),
        tenant: TenantId(row.try_get("tenant_id")?),
        tenant_name: row.try_get("tenant_name")?,
        state: SessionState::from_str_name(&name(STATE_PREFIX, state)).ok_or_else(|| unreadable(state))?,
        agent: AgentSpec::decode(agent).map_err(unreadable)?,
        config_hash: row.try_get("config_hash")?,
        labels,
        create_time: row.try_get::<Time, _>("create_time")?.0,
        update_time: row.try_get::<Time, _>("update_time")?.0,
        idle_timeout_ms: row.try_get("idle_timeout_ms")?,
        expire_time: row.try_get::<Option<Time>, _>("expire_time")?.map(|time| time.0),
        terminate_time: row.try_get::<Option<Time>, _>("terminate_time")?.map(|time| time.0),
        last_seq: row.try_get::<i64, _>("last_seq")?.cast_unsigned(),
        input_seq: row.try_get::<i64, _>("input_seq")?.cast_unsigned(),
        newest_input_seq: row.try_get::<i64, _>("newest_input_seq")?.cast_unsigned(),
        turn_id: row.try_get("turn_id")?,
        worker: row.try_get("worker")?,
        terminate_reason: row.try_get("terminate_reason")?,
        // Another release's word makes no session one that nobody can go on with. An append leaves it as it is.
        last_stop_reason: StopReason::from_str_name(&name(STOP_REASON_PREFIX, stop_reason)).unwrap_or_default(),
        usage: totals(row)?,
        parent: parent(row)?,
    })
}

fn parent(row: &PgRow) -> Result<Option<Parent>, sqlx::Error> {
    let Some(session) = row.try_get::<Option<Uuid>, _>("parent_id")? else { return Ok(None) };
    Ok(Some(Parent {
        session: SessionId(session),
        turn: TurnId(row.try_get("parent_turn")?),
        tool_call_id: row.try_get("parent_call")?,
        lineage: serde_json::from_str(row.try_get("lineage")?).map_err(unreadable)?,
    }))
}

/// Columns named as those of the session's totals.
pub(super) fn totals(row: &PgRow) -> Result<UsageTotals, sqlx::Error> {
    Ok(UsageTotals {
        attempts: row.try_get("attempts")?,
        tokens: Some(tokens(row)?),
        cost_nano_usd: row.try_get("cost_nano_usd")?,
        unpriced_attempts: row.try_get("unpriced_attempts")?,
    })
}

/// A whole row of `llm_usage_events`.
pub(super) fn usage_event(row: &PgRow) -> Result<UsageEvent, sqlx::Error> {
    Ok(UsageEvent {
        attempt_id: row.try_get("attempt_id")?,
        session_id: SessionId(row.try_get("session_id")?).to_string(),
        agent: row.try_get("agent")?,
        provider: row.try_get("provider")?,
        model: row.try_get("model")?,
        tokens: Some(tokens(row)?),
        cost_nano_usd: row.try_get("cost_nano_usd")?,
        latency_ms: row.try_get("latency_ms")?,
        finish_reason: row.try_get("finish_reason")?,
        error_class: row.try_get("error_class")?,
        create_time: Some(row.try_get::<Time, _>("create_time")?.0),
        usage_estimated: row.try_get("usage_estimated")?,
        mode: ProviderMode::from_str_name(&name(MODE_PREFIX, row.try_get("mode")?)).unwrap_or_default().into(),
        service_tier: row.try_get("service_tier")?,
        sender: row.try_get("sender")?,
    })
}

fn tokens(row: &PgRow) -> Result<TokenUsage, sqlx::Error> {
    Ok(TokenUsage {
        input_uncached_tokens: row.try_get("input_uncached_tokens")?,
        cache_read_tokens: row.try_get("cache_read_tokens")?,
        cache_write_5m_tokens: row.try_get("cache_write_5m_tokens")?,
        cache_write_1h_tokens: row.try_get("cache_write_1h_tokens")?,
        output_tokens: row.try_get("output_tokens")?,
        reasoning_tokens: row.try_get("reasoning_tokens")?,
    })
}

/// The word for a state: `running`.
pub(super) fn state_word(state: SessionState) -> String {
    word(STATE_PREFIX, state.as_str_name())
}

/// The word for a stop reason: `end_turn`.
pub(super) fn stop_reason_word(reason: StopReason) -> String {
    word(STOP_REASON_PREFIX, reason.as_str_name())
}

/// The word for whose account answered: `tenant_key`.
pub(super) fn mode_word(mode: ProviderMode) -> String {
    word(MODE_PREFIX, mode.as_str_name())
}

fn word(prefix: &str, name: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}

fn name(prefix: &str, word: &str) -> String {
    format!("{prefix}{}", word.to_ascii_uppercase())
}

/// A value that this program did not write, or wrote under another schema.
pub(super) fn unreadable(error: impl Into<BoxDynError>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_reason_has_a_word() {
        for state in (0..10).filter_map(|number| SessionState::try_from(number).ok()) {
            assert_eq!(SessionState::from_str_name(&name(STATE_PREFIX, &state_word(state))), Some(state));
        }
        for reason in (0..100).filter_map(|number| StopReason::try_from(number).ok()) {
            let name = name(STOP_REASON_PREFIX, &stop_reason_word(reason));
            assert_eq!(StopReason::from_str_name(&name), Some(reason));
        }
        assert_eq!(stop_reason_word(StopReason::EndTurn), "end_turn");
    }
}
