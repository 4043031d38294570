//! The slow summary of a session in its object's status.

use std::time::Duration;

use croft_crds::condition::{self, Verdict};
use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentSessionStatus};
use croft_proto::v1::{Session, SessionState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use tonic::{Code, Status};

use super::known::Known;
use super::told::Declared;
use super::{Error, refusal};
use crate::context::Context;

/// Numbers alone (events, usage, the time of the last one) are not worth a write more often than this.
pub(super) const NUMBERS_EVERY: Duration = Duration::from_mins(1);

const NOT_OPEN: &str = "TenantNotOpen";
const LIMIT_REACHED: &str = "LimitReached";
const WORKERS_LACK: &str = "WorkersLack";
const MODEL_NOT_FOUND: &str = "ModelNotFound";
pub(super) const TENANT_UNKNOWN: &str = "TenantUnknown";

/// What there is to say about a session.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub(super) phase: SessionPhase,
    reason: &'static str,
    message: String,
    /// What the front knows, if it knows the session.
    known: Option<Known>,
}

/// What became of a summary.
#[derive(Debug, PartialEq)]
pub(super) enum Written {
    /// The status says it; this is the status.
    Now(Box<AgentSessionStatus>),
    /// Only numbers are new, which wait for so long.
    Later(Duration),
    /// There is nobody left to tell.
    Gone,
}

impl Summary {
    /// As the front describes it.
    pub(super) fn of(session: &Session) -> Self {
        Self::known(Known::of(session))
    }

    /// As the front has told.
    pub(super) fn known(known: Known) -> Self {
        let (phase, reason, message) = match known.state {
            SessionState::Unspecified | SessionState::Creating => {
                (SessionPhase::Pending, "Creating", "no worker has it yet".to_owned())
            }
            SessionState::Ready => (SessionPhase::Ready, "Ready", "it waits for its first message".to_owned()),
            SessionState::Running => (SessionPhase::Running, "Running", "a turn is running".to_owned()),
            SessionState::Idle => (SessionPhase::Idle, "Idle", "it waits for the next message".to_owned()),
            SessionState::Terminated => {
                (SessionPhase::Terminated, "Terminated", format!("it has ended: {}", known.end_reason))
            }
        };
        Self { phase, reason, message, known: Some(known) }
    }

    /// It has ended, and this is the last that the front said of it.
    pub(super) fn terminated(why: &str, last: Option<&Session>) -> Self {
        let message = format!("it has ended: {why}");
        Self { phase: SessionPhase::Terminated, reason: "Terminated", message, known: last.map(Known::of) }
    }

    pub(super) fn failed(reason: &'static str, message: String) -> Self {
        Self { phase: SessionPhase::Failed, reason, message, known: None }
    }

    /// The front has forgotten a session that it once opened.
    pub(super) fn lost() -> Self {
        Self::failed("Lost", "the front no longer knows the session".to_owned())
    }

    /// Its tenant takes no sessions, which only an edit of the tenant changes.
    pub(super) fn shut_out(why: &str) -> Self {
        let message = format!("the tenant takes no new sessions: {why}");
        Self { phase: SessionPhase::Pending, reason: NOT_OPEN, message, known: None }
    }

    /// It will be tried again. Neither reason nor message must change from one try to the next.
    pub(super) fn waiting(error: &Error) -> Self {
        let (reason, message) = match error {
            Error::Front { source, .. } if source.message().is_empty() => {
                (front_reason(source), format!("the front answers {:?}", source.code()))
            }
            // tonic tells of a front that can't be reached with the text of whatever failed below.
            Error::Front { source, .. } if std::error::Error::source(&**source).is_some() => {
                ("FrontUnavailable", "the front can't be reached".to_owned())
            }
            Error::Front { source, .. } | Error::Full(source) => {
                (front_reason(source), format!("the front answers: {}", source.message()))
            }
            Error::TenantUnknown { .. } => (TENANT_UNKNOWN, error.to_string()),
            Error::Read { .. } | Error::Agent(_) | Error::Status(_) | Error::Delete(_) => {
                ("ClusterUnavailable", error.to_string())
            }
        };
        Self { phase: SessionPhase::Pending, reason, message, known: None }
    }

    /// The session that is open at the front, as far as this says.
    pub(super) fn open_session(&self) -> Option<&str> {
        self.known.as_ref().filter(|known| known.is_open()).map(|known| known.session_id.as_str())
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
            status.usage = known.usage.or(status.usage);
            status.last_activity_time = known.last_activity.or(status.last_activity_time);
        }
        status.finish_time = match (self.phase.is_final(), status.finish_time) {
            (true, Some(finished)) => Some(finished),
            (true, None) => Some(now.clone()),
            (false, _) => None,
        };
        let holds = match self.phase {
            SessionPhase::Ready | SessionPhase::Running | SessionPhase::Idle => true,
            SessionPhase::Pending | SessionPhase::Terminated | SessionPhase::Failed => false,
        };
        let verdict = Verdict { kind: "Ready", holds: Some(holds), reason: self.reason, message: self.message };
        condition::set(&mut status.conditions, verdict, generation, now);
        status
    }
}

/// The fixed word for what stands between the object and its session.
pub(super) fn front_reason(status: &Status) -> &'static str {
    match status.code() {
        // Another worker may help.
        _ if refusal::is_without_worker(status) => "FrontUnavailable",
        Code::ResourceExhausted => LIMIT_REACHED,
        _ if refusal::is_lack(status) => WORKERS_LACK,
        _ if refusal::is_model_missing(status) => MODEL_NOT_FOUND,
        _ if refusal::is_closed(status) => NOT_OPEN,
        Code::Unauthenticated | Code::PermissionDenied => "OperatorRefused",
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => "FrontUnavailable",
        _ => "FrontFailed",
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

/// Whether it was refused for a limit when it was last tried.
pub(super) fn lacks_room(session: &AgentSession, context: &Context) -> bool {
    let current = current(session, context);
    current.session_id.is_none() && is_limited(&current)
}

/// Whom a worker that becomes ready may help.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkersHelp {
    Any,
    /// Only one that has what the others lacked.
    Other,
    /// A limit or a missing model keeps it waiting.
    None,
}

/// Whether another worker may help the object to its session, by what its status says.
pub(crate) fn workers_help(status: Option<&AgentSessionStatus>) -> WorkersHelp {
    let says = |reason: &str| status.is_some_and(|status| status.conditions.iter().any(|one| one.reason == reason));
    if says(LIMIT_REACHED) || says(MODEL_NOT_FOUND) {
        WorkersHelp::None
    } else if says(WORKERS_LACK) {
        WorkersHelp::Other
    } else {
        WorkersHelp::Any
    }
}

/// Whether it says that a limit stands between the object and its session.
fn is_limited(status: &AgentSessionStatus) -> bool {
    status.conditions.iter().any(|condition| condition.reason == LIMIT_REACHED)
}

/// Whether the object has a session of which nothing final is said yet.
pub(super) fn awaits_word(session: &AgentSession, context: &Context) -> bool {
    let current = current(session, context);
    current.session_id.is_some() && !current.phase.is_some_and(SessionPhase::is_final)
}

/// Whether the status would read differently with what the front has told.
pub(super) fn would_change(session: &AgentSession, known: &Known, context: &Context) -> bool {
    let before = current(session, context);
    if before.phase.is_some_and(SessionPhase::is_final) {
        return false;
    }
    let now = Time(context.timestamp());
    Summary::known(known.clone()).apply_to(&before, session.metadata.generation, &now) != before
}

/// Writes the summary, if it says anything new that is worth a write now.
pub(super) async fn write(session: &AgentSession, summary: Summary, context: &Context) -> Result<Written, Error> {
    let before = current(session, context);
    let status = summary.apply_to(&before, session.metadata.generation, &Time(context.timestamp()));
    if status == before {
        return Ok(Written::Now(Box::new(status)));
    }
    let (uid, declared) = (session.uid().unwrap_or_default(), Declared::is(session));
    if differ_in_numbers(&status, &before)
        && let Some(ago) = context.told.written_ago(&declared)
        && let Some(left) = NUMBERS_EVERY.checked_sub(ago)
    {
        return Ok(Written::Later(left));
    }
    let (namespace, name) = (session.namespace(), session.name_any());
    let written = context.writer.replace_status::<AgentSession>(namespace.as_deref(), &name, &uid, &status).await;
    let Some(written) = written.map_err(Error::Status)? else { return Ok(Written::Gone) };
    context.session_statuses.remember(uid, written.resource_version.as_deref(), status.clone());
    context.told.wrote(&declared);
    Ok(Written::Now(Box::new(status)))
}

/// Whether everything else is the same.
fn differ_in_numbers(status: &AgentSessionStatus, before: &AgentSessionStatus) -> bool {
    let AgentSessionStatus { last_seq, usage, last_activity_time, .. } = before.clone();
    AgentSessionStatus { last_seq, usage, last_activity_time, ..status.clone() } == *before
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::UsageTotals;

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
            update_time: Some(croft_proto::Timestamp { seconds: 1_767_225_600, nanos: 7 }),
            usage: Some(UsageTotals { attempts: 2, ..UsageTotals::default() }),
            ..Session::default()
        }
    }

    fn status(state: SessionState) -> AgentSessionStatus {
        Summary::of(&session(state)).apply_to(&AgentSessionStatus::default(), Some(2), &now())
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
            let status = status(state);
            assert_eq!(status.phase, Some(phase));
            assert_eq!(status.conditions[0].status, ready);
            assert_eq!(status.session_id.as_deref(), Some("0190"));
            assert_eq!((status.worker.as_deref(), status.last_seq), (Some("workers-1"), Some(4)));
            assert_eq!(status.last_activity_time, Some(now()));
            assert_eq!(status.usage.unwrap().attempts, 2);
            assert_eq!(status.finish_time, (phase == SessionPhase::Terminated).then(now));
        }
    }

    #[test]
    fn what_was_known_stays_known() {
        let ready = status(SessionState::Ready);
        let ended = Summary::terminated("spec.terminate is set", None).apply_to(&ready, Some(2), &now());
        assert_eq!(ended.session_id.as_deref(), Some("0190"));
        assert_eq!(ended.message.as_deref(), Some("it has ended: spec.terminate is set"));
        let later = Time("2026-01-01T01:00:00Z".parse().unwrap());
        assert_eq!(Summary::terminated("spec.terminate is set", None).apply_to(&ended, Some(2), &later), ended);
    }

    #[test]
    fn more_events_are_numbers_and_another_state_is_not() {
        let idle = status(SessionState::Idle);
        let mut more = session(SessionState::Idle);
        more.last_seq = 9;
        more.usage = Some(UsageTotals { attempts: 3, ..UsageTotals::default() });
        let more = Summary::of(&more).apply_to(&idle, Some(2), &now());
        assert_ne!(more, idle);
        assert!(differ_in_numbers(&more, &idle));
        assert!(!differ_in_numbers(&status(SessionState::Running), &idle));
    }

    #[test]
    fn every_obstacle_has_its_entry_in_the_runbook() {
        let runbook = include_str!("../../../docs/runbook.md");
        let codes = (0..17).map(|code| front_reason(&Status::new(Code::from(code), "")));
        let others =
            [WORKERS_LACK, MODEL_NOT_FOUND, "ClusterUnavailable", "AgentRefused", "NoTenant", TENANT_UNKNOWN, "Lost"];
        for reason in codes.chain(others) {
            assert!(runbook.lines().any(|line| line == format!("### {reason}")), "{reason}");
        }
    }

    #[test]
    fn every_obstacle_has_its_word() {
        let refused =
            |code, message: &str| Error::Front { call: "CreateSession", source: Box::new(Status::new(code, message)) };
        for (error, reason, message) in [
            (refused(Code::Unavailable, "no worker"), "FrontUnavailable", "the front answers: no worker"),
            (refused(Code::ResourceExhausted, "full"), "LimitReached", "the front answers: full"),
            (refused(Code::FailedPrecondition, "it is cordoned"), "TenantNotOpen", "the front answers: it is cordoned"),
            (
                Error::Front { call: "CreateSession", source: Box::new(refusal::tests::by_worker("PROVIDER_MISSING")) },
                "WorkersLack",
                "the front answers: refused",
            ),
            (
                Error::Front {
                    call: "CreateSession",
                    source: Box::new(refusal::tests::by_front(Code::InvalidArgument, "MODEL_NOT_FOUND")),
                },
                "ModelNotFound",
                "the front answers: refused",
            ),
            (refused(Code::PermissionDenied, ""), "OperatorRefused", "the front answers PermissionDenied"),
        ] {
            let summary = Summary::waiting(&error);
            assert_eq!((summary.reason, summary.message.as_str()), (reason, message));
            assert_eq!(summary.phase, SessionPhase::Pending);
        }
    }
}
