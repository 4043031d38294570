//! The slow summary of a session in its object's status.

use croft_crds::condition::{self, Verdict};
use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentSessionStatus};
use croft_proto::v1::{Session, SessionState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::json;

use super::Error;
use crate::context::Context;

/// What there is to say about a session.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub(super) phase: SessionPhase,
    reason: &'static str,
    message: String,
    /// What the front knows, if it knows the session.
    known: Option<Known>,
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    session_id: String,
    worker: String,
    last_seq: u64,
}

impl Summary {
    /// As the front describes it.
    pub(super) fn of(session: &Session) -> Self {
        let (phase, reason, message) = match session.state() {
            SessionState::Unspecified | SessionState::Creating => {
                (SessionPhase::Pending, "Creating", "no worker has it yet".to_owned())
            }
            SessionState::Ready => (SessionPhase::Ready, "Ready", "it waits for its first message".to_owned()),
            SessionState::Running => (SessionPhase::Running, "Running", "a turn is running".to_owned()),
            SessionState::Idle => (SessionPhase::Idle, "Idle", "it waits for the next message".to_owned()),
            SessionState::Terminated => {
                (SessionPhase::Terminated, "Terminated", format!("it has ended: {}", session.terminate_reason))
            }
        };
        let known = Known {
            session_id: session.session_id.clone(),
            worker: session.worker.clone(),
            last_seq: session.last_seq,
        };
        Self { phase, reason, message, known: Some(known) }
    }

    pub(super) fn terminated(why: &str) -> Self {
        let message = format!("it has ended: {why}");
        Self { phase: SessionPhase::Terminated, reason: "Terminated", message, known: None }
    }

    pub(super) fn failed(reason: &'static str, message: String) -> Self {
        Self { phase: SessionPhase::Failed, reason, message, known: None }
    }

    /// The front has forgotten a session that it once opened.
    pub(super) fn lost() -> Self {
        Self::failed("Lost", "the front no longer knows the session".to_owned())
    }

    /// It will be tried again. The message must not change from one try to the next.
    pub(super) fn waiting(error: &Error) -> Self {
        let message = match error {
            Error::Front { source, .. } if source.message().is_empty() => {
                format!("the front answers {:?}", source.code())
            }
            // tonic tells of a front that can't be reached with the text of whatever failed below.
            Error::Front { source, .. } if std::error::Error::source(&**source).is_some() => {
                "the front can't be reached".to_owned()
            }
            Error::Front { source, .. } => format!("the front answers: {}", source.message()),
            Error::Read { .. } | Error::Status(_) => error.to_string(),
        };
        Self { phase: SessionPhase::Pending, reason: "Waiting", message, known: None }
    }

    fn apply_to(self, before: &AgentSessionStatus, generation: Option<i64>, now: &Time) -> AgentSessionStatus {
        let mut status = before.clone();
        status.observed_generation = generation;
        status.phase = Some(self.phase);
        status.message = Some(self.message.clone());
        if let Some(known) = self.known {
            status.session_id = Some(known.session_id);
            status.worker = (!known.worker.is_empty()).then_some(known.worker);
            status.last_seq = i64::try_from(known.last_seq).ok();
        }
        let holds = match self.phase {
            SessionPhase::Ready | SessionPhase::Running | SessionPhase::Idle => true,
            SessionPhase::Pending | SessionPhase::Terminated | SessionPhase::Failed => false,
        };
        let verdict = Verdict { kind: "Ready", holds: Some(holds), reason: self.reason, message: self.message };
        condition::set(&mut status.conditions, verdict, generation, now);
        status
    }
}

/// The status as we last wrote it, if the copy of the object can't have it yet.
pub(super) fn current(session: &AgentSession, context: &Context) -> AgentSessionStatus {
    let version = session.resource_version();
    context
        .session_statuses
        .newer_than(&session.uid().unwrap_or_default(), version.as_deref())
        .unwrap_or_else(|| session.status.clone().unwrap_or_default())
}

/// Writes the summary, if it says anything new.
pub(super) async fn write(session: &AgentSession, summary: Summary, context: &Context) -> Result<(), Error> {
    let before = current(session, context);
    let status = summary.apply_to(&before, session.metadata.generation, &Time(context.timestamp()));
    if status == before {
        return Ok(());
    }
    let AgentSessionStatus {
        observed_generation,
        phase,
        session_id,
        worker,
        last_seq,
        usage,
        last_activity_time,
        finish_time,
        message,
        conditions,
    } = &status;
    // In a merge patch what is left out stays; `null` takes it away.
    let patch = json!({ "status": {
        "observedGeneration": observed_generation,
        "phase": phase,
        "sessionID": session_id,
        "worker": worker,
        "lastSeq": last_seq,
        "usage": usage,
        "lastActivityTime": last_activity_time,
        "finishTime": finish_time,
        "message": message,
        "conditions": conditions,
    } });
    let (namespace, name) = (session.namespace(), session.name_any());
    match context.writer.merge_status::<AgentSession>(namespace.as_deref(), &name, &patch).await {
        Ok(written) => {
            let version = written.resource_version();
            context.session_statuses.remember(session.uid().unwrap_or_default(), version.as_deref(), status);
            Ok(())
        }
        // Deleted meanwhile; there is nobody left to tell.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::Status(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Time {
        Time("2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn session(state: SessionState) -> Session {
        Session {
            session_id: "0190".into(),
            state: state.into(),
            worker: "workers-1".into(),
            last_seq: 4,
            terminate_reason: "its time was up".into(),
            ..Session::default()
        }
    }

    #[test]
    fn a_sessions_state_becomes_its_phase() {
        for (state, phase, ready) in [
            (SessionState::Creating, SessionPhase::Pending, "False"),
            (SessionState::Ready, SessionPhase::Ready, "True"),
            (SessionState::Running, SessionPhase::Running, "True"),
            (SessionState::Idle, SessionPhase::Idle, "True"),
            (SessionState::Terminated, SessionPhase::Terminated, "False"),
        ] {
            let status = Summary::of(&session(state)).apply_to(&AgentSessionStatus::default(), Some(2), &now());
            assert_eq!(status.phase, Some(phase));
            assert_eq!(status.conditions[0].status, ready);
            assert_eq!(status.session_id.as_deref(), Some("0190"));
            assert_eq!((status.worker.as_deref(), status.last_seq), (Some("workers-1"), Some(4)));
        }
    }

    #[test]
    fn what_was_known_stays_known() {
        let ready =
            Summary::of(&session(SessionState::Ready)).apply_to(&AgentSessionStatus::default(), Some(1), &now());
        let ended = Summary::terminated("spec.terminate is set").apply_to(&ready, Some(2), &now());
        assert_eq!(ended.session_id.as_deref(), Some("0190"));
        assert_eq!(ended.message.as_deref(), Some("it has ended: spec.terminate is set"));
    }
}
