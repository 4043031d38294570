//! Drives a session's turns under one lease, one after the other, until no message waits.

mod panicked;
mod step;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::Timestamp;
use croft_proto::conversation;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ContentBlock, SessionCheckpoint, SessionError, SessionEvent, SessionIdle, SessionRunning, SessionState, StopReason,
    UserMessage,
};
use futures::future::{Either, select};
use prometheus::IntGauge;
use prost::Message as _;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::Span;

use super::Accepted;
use super::answers;
use super::held::{Hold, Loss};
use super::recorder::Recorder;
use super::standing::{Folding, Standing};
use super::store::Opened;
use super::sub_agents;
use crate::clock::since;
use crate::core::Core;
use crate::error::Error;
use crate::events::fanout::Controls;
use crate::events::log::{StoredCheckpoint, is_last_page};
use crate::events::relay::Frame;
use crate::metrics::Metrics;
use crate::session::Session;
use crate::session::manager::Manager;
use panicked::{Driven, Panicked};
use step::{Course, Leaving, Origin, Step, pause, told_to_stop};

/// Events that are read at a time while looking for messages and for what is stored of a turn.
const PAGE: u32 = 500;
/// Workers that one turn may lose before it ends. After each loss it goes on from what is stored.
const WORKERS_MAX: u32 = 3;
/// How long a step may go on in a tenant that has been stopped. The exchange tells the worker at once and needs a little less.
const STOP_GRACE: Duration = Duration::from_millis(900);

/// How long it may take to see whether a session has ended whose lease is lost; and then, if it has, its turn to say what it used. The
/// exchange needs a little less.
const ENDED_GRACE: Duration = Duration::from_millis(1_500);

/// Holds a lease and does what it is for.
pub(super) struct Driver {
    core: Arc<Core>,
    /// As it was before the turn that runs.
    session: Session,
    epoch: u64,
    /// The turn that the lease was taken for, if nothing comes before it.
    first: Option<First>,
    /// The turn that it drives, or drove last.
    driven: Driven,
    /// Whoever had the lease before panicked.
    panicked: Option<Panicked>,
}

/// What a driver hears while it drives the turns of a lease.
struct Listening {
    controls: Controls,
    /// Of the worker that was asked last what was left there.
    leaving: Option<Leaving>,
}

/// A turn that has just begun: there is nothing about it that the store knows better.
struct First {
    input: Input,
    checkpoint: Option<StoredCheckpoint>,
}

/// A user's message that no turn has answered.
struct Input {
    turn: TurnId,
    /// The session says that it runs this turn.
    has_begun: bool,
    seq: u64,
    /// When it was stored, where it waited for a turn.
    waits_since: Option<Timestamp>,
    content: Vec<ContentBlock>,
    /// Who said it.
    sender: String,
}

impl Driver {
    pub(super) fn new(core: Arc<Core>, session: Session, epoch: u64) -> Self {
        Self { core, session, epoch, first: None, driven: Driven::default(), panicked: None }
    }

    /// For a turn that was begun with this message.
    pub(super) fn opened(core: Arc<Core>, opened: Opened, accepted: Accepted, message: UserMessage) -> Self {
        let UserMessage { content, sender } = message;
        let Accepted { turn, seq } = accepted;
        let input = Input { turn, has_begun: true, seq, waits_since: None, content, sender };
        let is_next = opened.is_next();
        let Opened { epoch, session, checkpoint, .. } = opened;
        let first = is_next.then_some(First { input, checkpoint });
        Self { first, ..Self::new(core, session, epoch) }
    }

    /// A span for all of that, under the current one: <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/>.
    pub(super) fn span(&self) -> Span {
        let Session { id, tenant, agent, .. } = &self.session;
        tracing::info_span!(
            "invoke_agent",
            otel.name = format!("invoke_agent {}", agent.name),
            gen_ai.operation.name = "invoke_agent",
            gen_ai.agent.name = %agent.name,
            gen_ai.conversation.id = %id,
            tenant = %tenant,
            session = %id,
        )
    }

    /// Runs until no message waits, then gives the lease up. At any error of the store, or when the lease is lost,
    /// it stops without a word: whoever has the lease next goes on from what is stored.
    pub(super) async fn run(mut self) {
        let (tenant, session) = (self.session.tenant, self.session.id);
        let running = Running::new(&self.core.metrics);
        let outcome = loop {
            match self.under_lease().await {
                Ok(Some(epoch)) => self.epoch = epoch,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(running);
        match outcome {
            Ok(()) => {}
            Err(Error::LeaseLost { epoch }) => {
                self.core.metrics.lease_losses.inc();
                tracing::info!(%tenant, %session, epoch, "lease lost, the turn is someone else's");
            }
            Err(Error::SessionTerminated { .. }) => tracing::debug!(%tenant, %session, "session ended in mid turn"),
            Err(error) => {
                croft_serve::trace::failed();
                tracing::error!(%tenant, %session, error = format!("{:#}", anyhow::Error::from(error)), "turn stopped");
            }
        }
    }

    /// Runs turns while the lease is renewed beside them. The epoch of a new lease, if a message came as this one was given up.
    async fn under_lease(&mut self) -> Result<Option<u64>, Error> {
        let Session { tenant, id, .. } = self.session;
        // Dropped behind the hold, as who comes next has one of the same lease.
        let _watch = panicked::Watch::over(self);
        let hold = self.core.held.hold(tenant, id, self.epoch, self.core.options.lease_ttl);
        let (first, epoch, core) = (self.first.take(), self.epoch, Arc::clone(&self.core));
        let mut turns = pin!(self.turns(first, &hold));
        tokio::select! {
            outcome = &mut turns => outcome,
            loss = hold.lost() => {
                // A store that renews nothing can't be asked either, and a turn that stands still holds on to what others need.
                let look = async { if loss == Loss::Told { ended(&core, tenant, id).await } else { None } };
                let (session, turns) = match timeout(ENDED_GRACE, select(turns, pin!(look))).await {
                    Ok(Either::Left((outcome, _))) => return outcome,
                    Ok(Either::Right((Some(session), turns))) => (session, turns),
                    Ok(Either::Right((None, _))) | Err(_) => return Err(Error::LeaseLost { epoch }),
                };
                // Nobody has told the turn, or it has not come to its end yet: what its calls used is the worker's to tell.
                core.hub.control(tenant, id, Frame::Terminated);
                let outcome = timeout(ENDED_GRACE, turns).await;
                Manager::new(core).release_worker(&session, &session.terminate_reason);
                outcome.unwrap_or_else(|_| Err(Error::SessionTerminated { session_id: id.to_string() }))
            }
        }
    }

    async fn turns(&mut self, first: Option<First>, hold: &Hold) -> Result<Option<u64>, Error> {
        let (tenant, id) = (self.session.tenant, self.session.id);
        let mut listening = Listening { controls: self.core.hub.controls(tenant, id).await, leaving: None };
        if let Some(First { input, checkpoint }) = first
            && self.turn(input, Origin::Beginning(checkpoint), &mut listening, hold).await?
        {
            return Ok(None);
        }
        while let Some((input, session)) = self.next_input().await? {
            // What the turn before has used is in it.
            self.session = session;
            let from = if input.has_begun {
                Origin::Store
            } else {
                // Nothing of it is stored, and what is behind its message is of those that wait as it did.
                Origin::Beginning(self.core.stores.events.checkpoint(tenant, id).await?)
            };
            if self.turn(input, from, &mut listening, hold).await? {
                return Ok(None);
            }
            self.panicked = None;
        }
        self.panicked = None;
        hold.gives_up();
        self.core.stores.leases.release(tenant, id, self.epoch).await?;
        // A message may have come after our last look and before the release, and its sender has seen the lease taken.
        let now = self.core.stores.sessions.get(tenant, id).await?;
        if now.is_none_or(|now| !now.has_waiting_input()) {
            return Ok(None);
        }
        self.core.stores.leases.acquire(tenant, id, &self.core.replica, self.core.options.lease_ttl).await
    }

    /// The oldest message that no turn has finished with, one that waits or the one whose turn was broken off, and the session as it is by
    /// now.
    async fn next_input(&self) -> Result<Option<(Input, Session)>, Error> {
        let (tenant, id) = (self.session.tenant, self.session.id);
        let Some(session) = self.core.stores.sessions.get(tenant, id).await? else { return Ok(None) };
        let broken_off = session.state == SessionState::Running && session.input_seq > 0;
        let after = match session.state {
            SessionState::Terminated => return Ok(None),
            // `input_seq` is the message of the turn that was broken off, unless that turn had not begun.
            _ if broken_off && self.unfinished(&session).await? => session.input_seq - 1,
            _ if session.newest_input_seq > session.input_seq => session.input_seq,
            _ => return Ok(None),
        };
        let mut after = after;
        loop {
            let events = self.core.stores.events.read(tenant, id, after, PAGE).await?;
            let Some(last) = events.last() else { return Ok(None) };
            after = last.seq;
            if let Some(input) = events.into_iter().find_map(as_input) {
                let has_begun = session.state == SessionState::Running && session.turn_id == input.turn.to_string();
                return Ok(Some((Input { has_begun, ..input }, session)));
            }
        }
    }

    /// Whether the turn of the message taken up last has no SessionIdle behind it.
    async fn unfinished(&self, session: &Session) -> Result<bool, Error> {
        let mut after = session.input_seq - 1;
        let mut turn = None;
        loop {
            let events = self.core.stores.events.read(session.tenant, session.id, after, PAGE).await?;
            let Some(last) = events.last() else { return Ok(true) };
            after = last.seq;
            for event in events {
                match &event.kind {
                    Some(Kind::UserMessage(_)) if turn.is_none() => turn = Some(event.turn_id.clone()),
                    Some(Kind::SessionIdle(_)) if turn.as_ref() == Some(&event.turn_id) => return Ok(false),
                    _ => {}
                }
            }
        }
    }

    /// Runs one turn to its end, and tells whether the lease went with it, since no message waits.
    async fn turn(&self, input: Input, from: Origin, listening: &mut Listening, hold: &Hold) -> Result<bool, Error> {
        let Listening { controls, leaving } = listening;
        self.driven.set(input.turn);
        let is_fresh = matches!(from, Origin::Beginning(_));
        let (core, session, turn) = (Arc::clone(&self.core), self.session.clone(), (input.turn, &*input.sender));
        let mut recorder = Recorder::new(core, session, self.epoch, turn, is_fresh);
        if !input.has_begun {
            // A message that waited came without it. From here on the turn can be interrupted, and is taken over if we are lost.
            recorder.store(vec![Kind::SessionRunning(SessionRunning {})], None, None).await?;
            if let Some(stored) = input.waits_since {
                self.core.metrics.message_waits.observe(since(stored).as_secs_f64());
            }
        } else if !is_fresh {
            recorder.has_run_for(self.ran_for(&input).await?);
        }
        let limit = self.session.agent.limits.map_or(0, |limits| limits.turn_timeout_ms);
        let limit = u64::try_from(limit)
            .ok()
            .filter(|ms| *ms > 0)
            .map_or(self.core.options.turn_timeout, Duration::from_millis);
        // The worker keeps the agent's limit; ours is for a worker that doesn't, and for a turn that goes on at another front.
        let deadline = Instant::now() + (limit + Duration::from_secs(2)).saturating_sub(recorder.elapsed());
        let worker = self.session.worker.clone();
        let left_at = (!is_fresh).then(|| worker.clone());
        let (input_seq, unable, refusal) = (Some(input.seq), Vec::new(), None);
        let mut course = Course { worker, left_at, leaving, unable, refusal, from, input_seq, deadline };
        let mut lost = 0;
        let mut unreached_since = None;
        let end = loop {
            if self.panicked.is_some_and(|panicked| panicked.turn == Some(input.turn)) {
                let error = Error::internal(anyhow::anyhow!("the turn's driver panicked"));
                break End::failed(StopReason::Error, session_error(&error));
            }
            // A worker of a suspended tenant has time to end what it is at: only what it hands back goes no further.
            if let Some(why) = self.core.tenants.halted(self.session.tenant) {
                break End::failed(StopReason::Interrupted, session_error(&why));
            }
            let storing = recorder.under_way();
            let step = tokio::select! {
                step = self.step(&input, &mut course, &mut recorder, controls) => step?,
                // The step has not come to tell what its calls used.
                () = self.stopped_for(STOP_GRACE, &storing) => {
                    Step::Done(End { last_words: recorder.granted.lost(), ..End::of(StopReason::Interrupted) })
                }
            };
            match step {
                Step::Done(end) => break end,
                Step::Again => unreached_since = None,
                Step::Lost(error) => {
                    self.core.metrics.workers_lost.inc();
                    (lost, unreached_since) = (lost + 1, None);
                    if lost >= WORKERS_MAX {
                        break End::failed(StopReason::WorkerLost, error);
                    }
                }
                Step::Unreached(error) => {
                    // The only worker may be starting again where it was, which takes as long as to find another.
                    let since = *unreached_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.core.options.placement_timeout {
                        break End::failed(StopReason::WorkerLost, error);
                    }
                    if let Some(stop_reason) = pause(input.turn, controls).await {
                        break End::of(stop_reason);
                    }
                }
            }
        };
        if let Some(left_at) = course.left_at.take()
            && !matches!(self.see_lease().await, Err(Error::LeaseLost { .. }))
        {
            let left = course.leaving.insert(self.leave(left_at, &input));
            // Whoever stops the turn waits for no worker.
            if !matches!(end.stop_reason, StopReason::Interrupted | StopReason::Terminated) {
                tokio::select! {
                    () = left.heard() => {}
                    _ = told_to_stop(input.turn, controls) => {}
                }
            }
        }
        // A step that was cut off may have said that it takes the message up without having done so.
        self.end(&mut recorder, self.explained(end), &input, hold).await
    }

    /// Fails with [`Error::LeaseLost`] where another driver has the turn by now, of which a renewal has yet to tell.
    async fn see_lease(&self) -> Result<(), Error> {
        let Session { tenant, id, .. } = self.session;
        self.core.stores.leases.renew(tenant, id, self.epoch, self.core.options.lease_ttl).await
    }

    async fn has_ended(&self) -> bool {
        ended(&self.core, self.session.tenant, self.session.id).await.is_some()
    }

    /// Waits until the tenant has been stopped for so long, and until what is being stored is: the end's checkpoint stands for that as well.
    async fn stopped_for(&self, grace: Duration, storing: &Mutex<()>) {
        self.core.tenants.stopped(self.session.tenant).await;
        tokio::time::sleep(grace).await;
        drop(storing.lock().await);
    }

    /// Says so where an emergency stopped the turn, and not the user.
    fn explained(&self, end: End) -> End {
        let unexplained = end.stop_reason == StopReason::Interrupted && end.error.is_none();
        if unexplained && self.core.tenants.is_stopped(self.session.tenant) {
            return End { error: Some(session_error(&Error::TenantStopped)), ..end };
        }
        end
    }

    /// What is stored of the turn, and behind it what the worker told last, which is not stored yet.
    async fn standing(&self, input: &Input, last_words: &[Kind], recorder: &mut Recorder) -> Result<Standing, Error> {
        let (tenant, id) = (self.session.tenant, self.session.id);
        let stored = self.core.stores.events.checkpoint(tenant, id).await?;
        let mut folding = Folding::new(stored, input.turn, &input.content);
        let mut after = input.seq;
        loop {
            let page = self.core.stores.events.read(tenant, id, after, PAGE).await?;
            let is_last = is_last_page(&page, PAGE);
            after = page.last().map_or(after, |event| event.seq);
            for event in page {
                folding.take(event);
            }
            if is_last {
                break;
            }
        }
        for kind in last_words {
            let (turn_id, kind) = (input.turn.to_string(), Some(kind.clone()));
            folding.take(SessionEvent { seq: u64::MAX, turn_id, kind, ..SessionEvent::default() });
        }
        let standing = folding.done();
        recorder.has_run_for(Duration::from_millis(standing.elapsed_ms.try_into().unwrap_or_default()));
        Ok(standing)
    }

    /// How long the turn has run by the clocks of the fronts: whoever drove it before may have been another. One that took the lease of a turn
    /// that was broken off is told to run with its message, and once more when that one is over: only then it does.
    async fn ran_for(&self, input: &Input) -> Result<Duration, Error> {
        let (tenant, id) = (self.session.tenant, self.session.id);
        let (turn, mut after, mut begun) = (input.turn.to_string(), input.seq, None);
        loop {
            let page = self.core.stores.events.read(tenant, id, after, PAGE).await?;
            let begins =
                |event: &&SessionEvent| event.turn_id == turn && matches!(event.kind, Some(Kind::SessionRunning(_)));
            begun = page.iter().rfind(begins).and_then(|event| event.create_time).or(begun);
            if is_last_page(&page, PAGE) {
                return Ok(begun.map_or(Duration::ZERO, since));
            }
            after = page.last().map_or(after, |event| event.seq);
        }
    }

    async fn end(&self, recorder: &mut Recorder, end: End, input: &Input, hold: &Hold) -> Result<bool, Error> {
        let End { stop_reason, error, checkpoint, last_words } = end;
        if !self.session.agent.sub_agents.is_empty() {
            match self.see_lease().await {
                // What the turn has used is paid for, as its last word is refused.
                Err(Error::LeaseLost { .. }) if self.has_ended().await => {}
                // They are another driver's to wait for, if the turn is.
                seen => seen?,
            }
        }
        // Before the last word: should this front be lost meanwhile, whoever takes the turn over ends them.
        sub_agents::end_all(&self.core, &self.session).await?;
        // What was said is remembered, also when no worker is left to say so.
        let (closed, checkpoint) = if checkpoint.is_some() {
            (Vec::new(), checkpoint)
        } else {
            let standing = self.standing(input, &last_words, recorder).await?;
            // Where people are asked, calls stay open for them.
            let (closed, left) = standing.left(stop_reason != StopReason::RequiresAction);
            // What can't go on grows no further by each message that is refused: the conversation stays as it was.
            (closed, left.filter(|left| conversation::too_large(left.encoded_len()).is_none()))
        };
        let mut kinds = last_words;
        kinds.extend(closed.into_iter().map(Kind::ToolResult));
        kinds.extend(error.map(Kind::Error));
        kinds.push(Kind::SessionIdle(SessionIdle { stop_reason: stop_reason.into() }));
        hold.gives_up();
        let released = recorder.end(kinds, checkpoint, input.seq).await;
        let may_be_over = matches!(released, Ok(true) | Err(Error::Unavailable { .. }));
        if may_be_over && stop_reason == StopReason::RequiresAction {
            answers::go_on_behind(&self.core, &self.session, input.turn, input.seq, &input.sender);
        }
        let released = released?;
        if !released {
            hold.keeps();
        }
        self.core.metrics.turns.with_label_values(&[stop_reason.as_str_name()]).inc();
        Ok(released)
    }
}

/// The session, if it has ended. One that can't be looked at is somebody else's to end.
async fn ended(core: &Core, tenant: TenantId, id: SessionId) -> Option<Session> {
    let now = core.stores.sessions.get(tenant, id).await.ok().flatten();
    now.filter(|now| now.state == SessionState::Terminated)
}

/// A driver that runs, among those that are counted.
struct Running(IntGauge);

impl Running {
    fn new(metrics: &Metrics) -> Self {
        metrics.turns_running.inc();
        Self(metrics.turns_running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How a turn ends, and the state that it leaves for the next one.
struct End {
    stop_reason: StopReason,
    error: Option<SessionError>,
    checkpoint: Option<SessionCheckpoint>,
    /// Of the worker, not stored yet.
    last_words: Vec<Kind>,
}

impl End {
    fn of(stop_reason: StopReason) -> Self {
        Self { stop_reason, error: None, checkpoint: None, last_words: Vec::new() }
    }

    fn failed(stop_reason: StopReason, error: SessionError) -> Self {
        Self { error: Some(error), ..Self::of(stop_reason) }
    }
}

fn as_input(event: SessionEvent) -> Option<Input> {
    let turn = event.turn_id.parse().ok()?;
    match event.kind {
        Some(Kind::UserMessage(message)) => {
            let UserMessage { content, sender } = message;
            Some(Input { turn, has_begun: false, seq: event.seq, waits_since: event.create_time, content, sender })
        }
        _ => None,
    }
}

fn session_error(error: &Error) -> SessionError {
    SessionError {
        reason: error.reason().to_owned(),
        message: error.to_string(),
        retryable: matches!(error, Error::WorkerLost { .. } | Error::NoWorker { .. } | Error::WorkersFull { .. }),
    }
}
