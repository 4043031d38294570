//! The sessions that this worker holds: each with its agent, its newest state, and the step that runs, if one does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_proto::id::SessionId;
use croft_proto::v1::{AgentSpec, ModelAttempt, SessionCheckpoint, StopReason};
use prometheus::IntGauge;
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::interrupt::{Interrupt, Why};
use crate::outbox::Outbox;
use crate::refusal::Refusal;

/// For how long the end of a session waits for the end of its step, which is quick unless it hangs.
const END_WAIT: Duration = Duration::from_secs(2);
/// For how long, at least, a full worker keeps a session whose last step was cut off with attempts that nobody else knows of: longer
/// than the lease of a lost front takes to run out and another to go on with the turn here, which asks for them.
const CUT_OFF_KEPT: Duration = Duration::from_mins(1);

/// Clones share the sessions.
#[derive(Clone)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    held: Mutex<HashMap<SessionId, Held>>,
    sessions_max: usize,
    idle_max: Duration,
    checkpoint_bytes_max: usize,
    gauge: IntGauge,
    next_number: AtomicU64,
}

struct Held {
    agent: AgentSpec,
    /// Of the agent's model, as the front's registry says.
    provider: String,
    kept: Option<Kept>,
    /// Of the newest step. An older one is a front's that lost the lease.
    epoch: u64,
    running: Option<Running>,
    used_at: Instant,
    untold: Untold,
    /// Closed, with a token for each that is about to end the session.
    endings: TaskTracker,
}

/// The newest state of a session, for `Checkpoint` alone: a step goes on from what the front sends with it.
struct Kept {
    checkpoint: SessionCheckpoint,
    bytes: usize,
}

/// Attempts at models of the last step that are not known to be stored, with their turn.
#[derive(Default)]
struct Untold {
    turn_id: String,
    attempts: Vec<ModelAttempt>,
    /// Nobody listened any more when the step ended. One that ended in order is heard, though its last word was not acknowledged.
    is_cut_off: bool,
}

#[derive(Clone)]
struct Running {
    /// Tells it from another step of a session that was forgotten and made known again.
    number: u64,
    interrupt: Interrupt,
    /// What it tells, to a front that may hear nothing.
    outbox: Outbox,
    ended: CancellationToken,
}

impl Sessions {
    /// Room for `sessions_max`. When it is full, the session that was idle for longest makes room for a new one if it
    /// was idle for `idle_max`: the front has all of its state, but for attempts of a step that was cut off; a session with such goes after
    /// all others, and no earlier than after [`CUT_OFF_KEPT`]. Checkpoints are kept up to `checkpoint_bytes_max` in all, see [`Begun::keep`].
    pub(crate) fn new(sessions_max: usize, idle_max: Duration, checkpoint_bytes_max: usize, gauge: IntGauge) -> Self {
        Self {
            shared: Arc::new(Shared {
                held: Mutex::default(),
                sessions_max,
                idle_max,
                checkpoint_bytes_max,
                gauge,
                next_number: AtomicU64::new(0),
            }),
        }
    }

    /// Whether there is room for a session: it is known, or nobody has its place, or one that is idle would make way. Changes nothing, so
    /// that [`Self::admit`] has the last word.
    pub(crate) fn has_room_for(&self, session: SessionId) -> Result<(), Refusal> {
        let held = self.shared.lock();
        if held.contains_key(&session) || held.len() < self.shared.sessions_max {
            return Ok(());
        }
        self.shared.idle(&held, Instant::now()).map(drop)
    }

    /// Makes a session known, or renews what is known of it.
    pub(crate) fn admit(&self, session: SessionId, agent: AgentSpec, provider: String) -> Result<(), Refusal> {
        let mut held = self.shared.lock();
        let now = Instant::now();
        if let Some(known) = held.get_mut(&session) {
            known.agent = agent;
            known.provider = provider;
            known.used_at = now;
            return Ok(());
        }
        if held.len() >= self.shared.sessions_max {
            let idle = self.shared.idle(&held, now)?;
            held.remove(&idle);
            tracing::info!(session = %idle, "forgot an idle session to make room");
        }
        let (untold, used_at, endings) = (Untold::default(), now, TaskTracker::new());
        endings.close();
        held.insert(session, Held { agent, provider, kept: None, epoch: 0, running: None, used_at, untold, endings });
        self.shared.count(&held);
        Ok(())
    }

    /// Begins a step of a known session that tells its front of itself by `outbox`; `interrupt` will end it. A step that still runs under
    /// this epoch or an older one is ended first, and what it has not told yet is dropped: its front has given it up. Fails with
    /// [`Refusal::FrontGone`] where `interrupt` is raised before that step is over.
    ///
    /// Under a newer lease than the last step's, whoever is about to end the session is let do so first, for at most [`END_WAIT`], since
    /// this step would drop what they ask for; it is then [`Refusal::SessionUnknown`], and the front makes it known again.
    pub(crate) async fn begin(
        &self,
        session: SessionId,
        epoch: u64,
        interrupt: &Interrupt,
        outbox: &Outbox,
    ) -> Result<Begun, Refusal> {
        if let Some((endings, running)) = self.shared.endings_before(session, epoch) {
            if let Some(running) = running {
                running.hang_up();
            }
            let over = tokio::time::timeout(END_WAIT, endings.wait());
            // Whoever is not through by then hangs, and finds that a newer step has begun.
            drop(interrupt.or(over).await.map_err(|_| Refusal::FrontGone)?);
        }
        loop {
            let older = {
                let mut held = self.shared.lock();
                let known = held.get_mut(&session).ok_or(Refusal::SessionUnknown)?;
                if epoch < known.epoch {
                    return Err(Refusal::EpochStale { newest: known.epoch });
                }
                known.epoch = epoch;
                known.used_at = Instant::now();
                if let Some(running) = &known.running {
                    running.clone()
                } else {
                    let ended = CancellationToken::new();
                    let number = self.shared.next_number.fetch_add(1, Ordering::Relaxed);
                    let (interrupt, outbox) = (interrupt.clone(), outbox.clone());
                    known.running = Some(Running { number, interrupt, outbox, ended: ended.clone() });
                    let (agent, provider) = (known.agent.clone(), known.provider.clone());
                    return Ok(Begun { sessions: self.clone(), session, number, agent, provider, ended });
                }
            };
            older.hang_up();
            interrupt.or(older.ended.cancelled()).await.map_err(|_| Refusal::FrontGone)?;
        }
    }

    /// The newest state of a session; `None` if there is none yet, or if it is not kept any more.
    pub(crate) fn checkpoint(&self, session: SessionId) -> Result<Option<SessionCheckpoint>, Refusal> {
        let held = self.shared.lock();
        let known = held.get(&session).ok_or(Refusal::SessionUnknown)?;
        Ok(known.kept.as_ref().map(|kept| kept.checkpoint.clone()))
    }

    /// Ends what runs and forgets the session. `None` if it was not known; otherwise its attempts at models that are not known to be
    /// stored, among them those of a step that ends within [`END_WAIT`].
    ///
    /// An `epoch` other than 0 is of the lease under which the session goes on at another worker. A step that runs here has lost its front
    /// then, and waits for it no longer. Where a step of that lease runs here, or one of a newer lease has begun, nothing is ended and
    /// forgotten, and `None` is returned. A step that comes meanwhile under a newer lease than the last one's begins
    /// behind this, see [`Self::begin`].
    pub(crate) async fn terminate(&self, session: SessionId, epoch: u64) -> Option<Vec<ModelAttempt>> {
        let (running, is_the_askers, _ending) = {
            let held = self.shared.lock();
            let known = held.get(&session).filter(|known| epoch == 0 || known.epoch <= epoch)?;
            (known.running.clone(), epoch != 0 && known.epoch == epoch, known.endings.token())
        };
        if let Some(running) = running {
            // One of the asker's own may be over, and not know of it yet.
            if !is_the_askers {
                running.give_up(epoch);
            }
            // One that hangs on a front which hears nothing is not waited for.
            drop(tokio::time::timeout(END_WAIT, running.ended.cancelled()).await);
        }
        let mut held = self.shared.lock();
        // Another front may have begun one meanwhile.
        held.get(&session).filter(|known| !known.outlasts(epoch))?;
        let gone = held.remove(&session)?;
        self.shared.count(&held);
        if let Some(running) = gone.running {
            running.give_up(epoch);
        }
        Some(gone.untold.attempts)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Held>> {
        // No code that holds the lock can leave the map half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who are about to end the session while a step of a newer lease than its last step's would begin, with the step that runs.
    fn endings_before(&self, session: SessionId, epoch: u64) -> Option<(TaskTracker, Option<Running>)> {
        let held = self.lock();
        let known = held.get(&session).filter(|known| epoch > known.epoch && !known.endings.is_empty())?;
        Some((known.endings.clone(), known.running.clone()))
    }

    /// Lets go of checkpoints until the rest is within the bound: of the session that was idle for longest first, of those that run a
    /// step last. The sessions stay.
    fn let_go(&self, held: &mut HashMap<SessionId, Held>) {
        let mut bytes: usize = held.values().filter_map(|held| held.kept.as_ref()).map(|kept| kept.bytes).sum();
        while bytes > self.checkpoint_bytes_max {
            let keeps = held.values_mut().filter(|held| held.kept.is_some());
            let first = keeps.min_by_key(|held| (held.running.is_some(), held.used_at));
            let Some(kept) = first.and_then(|held| held.kept.take()) else { break };
            bytes -= kept.bytes;
        }
    }

    /// The session that makes room for another at a worker that is full.
    fn idle(&self, held: &HashMap<SessionId, Held>, now: Instant) -> Result<SessionId, Refusal> {
        held.iter()
            .filter(|(_, held)| held.running.is_none() && now - held.used_at >= self.idle_max_of(held))
            .min_by_key(|(_, held)| (held.untold.are_here_alone(), held.used_at))
            .map(|(session, _)| *session)
            .ok_or(Refusal::WorkerFull { sessions_max: self.sessions_max })
    }

    /// For how long a session must have been idle to make room for another.
    fn idle_max_of(&self, held: &Held) -> Duration {
        if held.untold.are_here_alone() { self.idle_max.max(CUT_OFF_KEPT) } else { self.idle_max }
    }

    fn count(&self, held: &HashMap<SessionId, Held>) {
        self.gauge.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
    }
}

impl Held {
    /// Whether the session stays here though it goes on at another worker under the lease of this epoch: that was said too late. Of an
    /// idle one all that it knows may be told.
    fn outlasts(&self, epoch: u64) -> bool {
        epoch != 0 && (self.epoch > epoch || (self.epoch == epoch && self.running.is_some()))
    }
}

impl Running {
    /// Ends the step, with its session or since that goes on elsewhere under the lease of this epoch, other than 0.
    fn give_up(&self, epoch: u64) {
        if epoch == 0 {
            self.interrupt.raise(Why::Stop(StopReason::Terminated));
        } else {
            self.hang_up();
        }
    }

    /// Ends a step whose front has given it up.
    fn hang_up(&self) {
        self.interrupt.raise(Why::HungUp);
        // It may wait for room there, and its front be a frozen one.
        self.outbox.abandon();
    }
}

impl Untold {
    /// No front may have heard of them.
    fn are_here_alone(&self) -> bool {
        self.is_cut_off && !self.attempts.is_empty()
    }
}

/// A step that runs. Dropping it ends it.
pub(crate) struct Begun {
    sessions: Sessions,
    session: SessionId,
    number: u64,
    /// As `InitWorkerSession` told it.
    pub(crate) agent: AgentSpec,
    pub(crate) provider: String,
    ended: CancellationToken,
}

impl Begun {
    /// Keeps the newest state, for `Checkpoint`. Beyond the bound on all that are kept, those of other sessions are let go of, and
    /// this one if it is more by itself.
    pub(crate) fn keep(&self, checkpoint: &SessionCheckpoint) {
        let kept = Kept { bytes: checkpoint.encoded_len(), checkpoint: checkpoint.clone() };
        self.with_held(|held| held.kept = Some(kept));
        let shared = &self.sessions.shared;
        shared.let_go(&mut shared.lock());
    }

    /// What the step before told of this turn and nobody is known to have stored. Of another turn it is forgotten: that one has
    /// gone on elsewhere.
    pub(crate) fn take_untold(&mut self, turn_id: &str) -> Vec<ModelAttempt> {
        let mut untold = Untold::default();
        self.with_held(|held| untold = std::mem::take(&mut held.untold));
        if untold.turn_id == turn_id { untold.attempts } else { Vec::new() }
    }

    /// Keeps what may not have been heard, for the next step of the turn. `is_cut_off` says that nobody listens to this one any more.
    pub(crate) fn leave_untold(&self, turn_id: String, attempts: Vec<ModelAttempt>, is_cut_off: bool) {
        self.with_held(|held| held.untold = Untold { turn_id, attempts, is_cut_off });
    }

    fn with_held(&self, change: impl FnOnce(&mut Held)) {
        if let Some(held) = self.sessions.shared.lock().get_mut(&self.session)
            && held.running.as_ref().is_some_and(|running| running.number == self.number)
        {
            change(held);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.with_held(|held| {
            held.running = None;
            held.used_at = Instant::now();
        });
        self.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use croft_proto::v1::SessionRunning;
    use croft_proto::v1::session_event::Kind;
    use futures::FutureExt as _;
    use tokio::time::{advance, timeout};

    use super::*;

    fn sessions(sessions_max: usize) -> Sessions {
        Sessions::new(sessions_max, Duration::ZERO, 1024, IntGauge::new("sessions", "Sessions").unwrap())
    }

    fn admit(sessions: &Sessions, session: SessionId) -> Result<(), Refusal> {
        sessions.admit(session, AgentSpec::default(), String::new())
    }

    async fn begin(sessions: &Sessions, session: SessionId) -> Begun {
        sessions.begin(session, 1, &Interrupt::default(), &Outbox::default()).await.unwrap()
    }

    /// A step that leaves an attempt of which no acknowledgement came.
    async fn stepped(sessions: &Sessions, session: SessionId, is_cut_off: bool) {
        let begun = begin(sessions, session).await;
        begun.leave_untold("turn".into(), vec![ModelAttempt::default()], is_cut_off);
    }

    /// An attempt that was in no ledger, and was forgotten so that another session had a place.
    #[tokio::test(start_paused = true)]
    async fn a_session_with_attempts_that_nobody_else_knows_of_goes_last_and_no_sooner_than_a_minute() {
        let sessions = sessions(2);
        let [cut_off, in_order, third, fourth] = std::array::from_fn(|_| SessionId::generate());
        admit(&sessions, cut_off).unwrap();
        stepped(&sessions, cut_off, true).await;
        advance(Duration::from_secs(1)).await;
        admit(&sessions, in_order).unwrap();
        stepped(&sessions, in_order, false).await;
        admit(&sessions, third).expect("one whose step ended in order goes, though it was used later");
        assert_eq!(sessions.checkpoint(in_order), Err(Refusal::SessionUnknown));

        let running = begin(&sessions, third).await;
        let full = Err(Refusal::WorkerFull { sessions_max: 2 });
        assert_eq!(admit(&sessions, fourth), full, "the other is the only one that knows of its attempt");
        advance(CUT_OFF_KEPT.checked_sub(Duration::from_secs(2)).unwrap()).await;
        assert_eq!(admit(&sessions, fourth), full);
        advance(Duration::from_secs(1)).await;
        admit(&sessions, fourth).expect("nobody has asked for it in a minute");
        assert_eq!(sessions.checkpoint(cut_off), Err(Refusal::SessionUnknown));
        drop(running);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_whose_attempts_were_taken_makes_room_again() {
        let sessions = sessions(1);
        let [session, another] = std::array::from_fn(|_| SessionId::generate());
        admit(&sessions, session).unwrap();
        stepped(&sessions, session, true).await;
        assert_eq!(admit(&sessions, another), Err(Refusal::WorkerFull { sessions_max: 1 }));
        let mut begun = begin(&sessions, session).await;
        assert_eq!(begun.take_untold("turn").len(), 1);
        drop(begun);
        admit(&sessions, another).unwrap();
    }

    /// Its front is frozen: nothing is read, and nothing is hung up.
    #[tokio::test(start_paused = true)]
    async fn a_step_that_waits_for_room_makes_way_for_a_newer_one() {
        let (sessions, session) = (sessions(1), SessionId::generate());
        admit(&sessions, session).unwrap();
        let (interrupt, outbox) = (Interrupt::default(), Outbox::default());
        let _unread = outbox.stream(interrupt.clone());
        let begun = sessions.begin(session, 1, &interrupt, &outbox).await.unwrap();
        let older = async {
            while interrupt.raised().is_none() {
                outbox.event("turn", Kind::SessionRunning(SessionRunning {})).await;
            }
            drop(begun);
        };
        let (interrupt, outbox) = (Interrupt::default(), Outbox::default());
        let newer = sessions.begin(session, 2, &interrupt, &outbox);
        let both = async { tokio::join!(older, newer).1 };
        assert!(timeout(Duration::from_secs(1), both).await.expect("neither waits for the front").is_ok());
    }

    /// A front that stood still wakes up, and asks for what another one has at work here by now.
    #[tokio::test(start_paused = true)]
    async fn what_a_newer_lease_runs_is_not_ended_by_who_goes_on_elsewhere_under_an_older_one() {
        let (sessions, session) = (sessions(1), SessionId::generate());
        admit(&sessions, session).unwrap();
        let [first, newer] = [Interrupt::default(), Interrupt::default()];
        let outbox = Outbox::default();
        let begun = sessions.begin(session, 1, &first, &outbox).await.unwrap();
        let mut leaving = pin!(sessions.terminate(session, 2));
        assert_eq!(leaving.as_mut().now_or_never(), None, "a step runs under a lease that is lost");
        assert_eq!(first.raised(), Some(Why::HungUp));
        let mut beginning = pin!(sessions.begin(session, 3, &newer, &outbox));
        assert!(beginning.as_mut().now_or_never().is_none());
        drop(begun);
        assert_eq!(leaving.await, Some(Vec::new()), "none of the newer lease runs yet");
        assert_eq!(beginning.await.err(), Some(Refusal::SessionUnknown));
        admit(&sessions, session).unwrap();
        let begun = sessions.begin(session, 3, &newer, &outbox).await.unwrap();
        for epoch in [2, 3] {
            assert_eq!(sessions.terminate(session, epoch).await, None);
        }
        assert_eq!(newer.raised(), None, "it runs on");
        assert!(sessions.checkpoint(session).is_ok());

        begun.leave_untold("turn".into(), vec![ModelAttempt::default()], false);
        drop(begun);
        assert_eq!(sessions.terminate(session, 2).await, None);
        let told = sessions.terminate(session, 3).await;
        assert_eq!(told, Some(vec![ModelAttempt::default()]), "its own lease asks, and nothing runs");
        assert_eq!(sessions.checkpoint(session), Err(Refusal::SessionUnknown));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_began_while_its_own_lease_asks_for_what_the_one_before_knows_goes_on() {
        let (sessions, session) = (sessions(1), SessionId::generate());
        admit(&sessions, session).unwrap();
        let begun = begin(&sessions, session).await;
        let mut asks = pin!(sessions.terminate(session, 1));
        assert_eq!(asks.as_mut().now_or_never(), None, "the step may be over soon");
        let next = Interrupt::default();
        let outbox = Outbox::default();
        let mut beginning = pin!(sessions.begin(session, 1, &next, &outbox));
        assert!(beginning.as_mut().now_or_never().is_none());
        drop(begun);
        let begun = beginning.await.unwrap();
        assert_eq!(asks.await, None, "a newer one came meanwhile");
        assert_eq!(next.raised(), None, "it runs on");
        drop(begun);
    }

    /// It threw away what was asked for, and whoever asked was told that there was nothing.
    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_next_turn_begins_behind_whoever_asks_for_what_the_last_one_left() {
        let outbox = Outbox::default();
        for epoch in [2, 0] {
            let (sessions, session) = (sessions(1), SessionId::generate());
            admit(&sessions, session).unwrap();
            let (first, next) = (Interrupt::default(), Interrupt::default());
            let begun = sessions.begin(session, 1, &first, &outbox).await.unwrap();
            let mut asks = pin!(sessions.terminate(session, epoch));
            assert_eq!(asks.as_mut().now_or_never(), None);
            let mut beginning = pin!(sessions.begin(session, 3, &next, &outbox));
            assert!(beginning.as_mut().now_or_never().is_none());
            begun.leave_untold("turn".into(), vec![ModelAttempt::default()], true);
            drop(begun);
            let (beginning, told) = tokio::join!(beginning, asks);
            assert_eq!(told, Some(vec![ModelAttempt::default()]));
            assert_eq!(beginning.err(), Some(Refusal::SessionUnknown), "its front tells of the session once more");
            admit(&sessions, session).unwrap();
            assert!(sessions.begin(session, 3, &next, &outbox).await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_what_a_step_knows_and_goes_away_holds_up_no_other() {
        let (sessions, session) = (sessions(1), SessionId::generate());
        admit(&sessions, session).unwrap();
        let begun = begin(&sessions, session).await;
        let mut asks = Box::pin(sessions.terminate(session, 2));
        assert_eq!(asks.as_mut().now_or_never(), None);
        let (next, outbox) = (Interrupt::default(), Outbox::default());
        let mut beginning = pin!(sessions.begin(session, 3, &next, &outbox));
        assert!(beginning.as_mut().now_or_never().is_none());
        drop(begun);
        drop(asks);
        assert!(timeout(END_WAIT / 2, beginning).await.expect("nobody asks any more").is_ok());
    }

    /// Its front is frozen, and another goes on elsewhere.
    #[tokio::test(start_paused = true)]
    async fn a_step_that_waits_for_room_tells_who_goes_on_elsewhere_what_it_knows() {
        let (sessions, session) = (sessions(1), SessionId::generate());
        admit(&sessions, session).unwrap();
        let (interrupt, outbox) = (Interrupt::default(), Outbox::default());
        let _unread = outbox.stream(interrupt.clone());
        let begun = sessions.begin(session, 1, &interrupt, &outbox).await.unwrap();
        let step = async {
            while interrupt.raised().is_none() {
                outbox.event("turn", Kind::SessionRunning(SessionRunning {})).await;
            }
            begun.leave_untold("turn".into(), vec![ModelAttempt::default()], true);
            drop(begun);
        };
        let both = async { tokio::join!(step, sessions.terminate(session, 2)).1 };
        let told = timeout(Duration::from_secs(1), both).await.expect("neither waits for the front");
        assert_eq!(told, Some(vec![ModelAttempt::default()]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_whose_own_front_leaves_waits_no_longer_for_an_older_one() {
        let (sessions, session) = (sessions(1), SessionId::generate());
        admit(&sessions, session).unwrap();
        let hangs = begin(&sessions, session).await;
        let (interrupt, outbox) = (Interrupt::default(), Outbox::default());
        let leaves = async { interrupt.raise(Why::HungUp) };
        let newer = sessions.begin(session, 2, &interrupt, &outbox);
        let both = async { tokio::join!(newer, leaves).0 };
        let told = timeout(Duration::from_secs(1), both).await.expect("it does not wait");
        assert_eq!(told.err(), Some(Refusal::FrontGone));
        drop(hangs);
    }
}
