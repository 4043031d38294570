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

use crate::interrupt::{Interrupt, Why};
use crate::refusal::Refusal;

/// For how long the end of a session waits for the end of its step, which is quick unless it hangs.
const END_WAIT: Duration = Duration::from_secs(2);

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
}

#[derive(Clone)]
struct Running {
    /// Tells it from another step of a session that was forgotten and made known again.
    number: u64,
    interrupt: Interrupt,
    ended: CancellationToken,
}

impl Sessions {
    /// Room for `sessions_max`. When it is full, the session that was idle for longest makes room for a new one if it
    /// was idle for `idle_max`: the front has all of its state. Checkpoints are kept up to `checkpoint_bytes_max` in all, see [`Begun::keep`].
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
            let idle = held
                .iter()
                .filter(|(_, held)| held.running.is_none() && now - held.used_at >= self.shared.idle_max)
                .min_by_key(|(_, held)| held.used_at)
                .map(|(session, _)| *session);
            let idle = idle.ok_or(Refusal::WorkerFull { sessions_max: self.shared.sessions_max })?;
            held.remove(&idle);
            tracing::info!(session = %idle, "forgot an idle session to make room");
        }
        let (untold, used_at) = (Untold::default(), now);
        held.insert(session, Held { agent, provider, kept: None, epoch: 0, running: None, used_at, untold });
        self.shared.count(&held);
        Ok(())
    }

    /// Begins a step of a known session; `interrupt` will end it. A step that still runs under this epoch or an older
    /// one is ended first: its front has given it up.
    pub(crate) async fn begin(&self, session: SessionId, epoch: u64, interrupt: Interrupt) -> Result<Begun, Refusal> {
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
                    known.running = Some(Running { number, interrupt, ended: ended.clone() });
                    let (agent, provider) = (known.agent.clone(), known.provider.clone());
                    return Ok(Begun { sessions: self.clone(), session, number, agent, provider, ended });
                }
            };
            older.interrupt.raise(Why::HungUp);
            older.ended.cancelled().await;
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
    pub(crate) async fn terminate(&self, session: SessionId) -> Option<Vec<ModelAttempt>> {
        let running = self.shared.lock().get(&session)?.running.clone();
        if let Some(running) = running {
            running.interrupt.raise(Why::Stop(StopReason::Terminated));
            // One that hangs on a front which hears nothing is not waited for.
            drop(tokio::time::timeout(END_WAIT, running.ended.cancelled()).await);
        }
        let mut held = self.shared.lock();
        let gone = held.remove(&session)?;
        self.shared.count(&held);
        // Another front may have begun one meanwhile.
        if let Some(running) = gone.running {
            running.interrupt.raise(Why::Stop(StopReason::Terminated));
        }
        Some(gone.untold.attempts)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Held>> {
        // No code that holds the lock can leave the map half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn count(&self, held: &HashMap<SessionId, Held>) {
        self.gauge.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
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

    /// Keeps what may not have been heard, for the next step of the turn.
    pub(crate) fn leave_untold(&self, turn_id: String, attempts: Vec<ModelAttempt>) {
        self.with_held(|held| held.untold = Untold { turn_id, attempts });
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
