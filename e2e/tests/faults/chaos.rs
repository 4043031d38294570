//! When what goes wrong: decided by the seed, and brought about at the calls and bytes at which it is due.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The front at which it is due dies, as by `kill -9`; another takes its place.
    KillFront,
    /// The front at which it is due stands still, and goes on later as if nothing had been.
    PauseFront { milliseconds: u64 },
    /// A worker dies. Its pod is replaced by one of another name, or restarted under its own.
    KillWorker { restarts: bool },
    /// A connection between front and worker breaks.
    CutStream,
    /// The store refuses one call.
    Refuse,
    /// The store carries one call out, and its answer is lost.
    NoAnswer,
    /// The store is away.
    Outage { milliseconds: u64 },
    /// The relay is away, and loses what it has.
    CutRelay { milliseconds: u64 },
    /// Readers lose their connection, and come back at any front.
    DropReaders,
}

/// When it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// At so many moments before and after calls of the store, by all fronts together.
    Moment(u64),
    /// At so many bytes from workers to fronts.
    Byte(u64),
}

/// How long a history is without faults: faults come within it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Length {
    pub(crate) moments: u64,
    pub(crate) bytes: u64,
}

/// What will go wrong in a history.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan(pub(crate) Vec<(Due, Fault)>);

impl Plan {
    pub(crate) fn of(dice: &mut Dice, length: Length) -> Self {
        let count = 1 + dice.below(4);
        Self((0..count).map(|_| planned(dice, length)).collect())
    }

    /// Either no front or no worker is lost. A front that lives knows, whatever becomes of the store meanwhile.
    pub(crate) fn leaves_someone_who_knows(&self) -> bool {
        let loses_a_worker = |fault: &Fault| matches!(fault, Fault::KillWorker { .. } | Fault::CutStream);
        let loses_a_front = |fault: &Fault| matches!(fault, Fault::KillFront);
        let has = |loses: &dyn Fn(&Fault) -> bool| self.0.iter().any(|(_, fault)| loses(fault));
        !(has(&loses_a_worker) && has(&loses_a_front))
    }

    /// How often a turn may lose its worker by it.
    pub(crate) fn losses(&self) -> usize {
        let loses = |fault: &Fault| matches!(fault, Fault::KillWorker { .. } | Fault::CutStream);
        self.0.iter().filter(|(_, fault)| loses(fault)).count()
    }
}

fn planned(dice: &mut Dice, length: Length) -> (Due, Fault) {
    if dice.chance(40) {
        let fault = match dice.below(4) {
            0 => Fault::KillFront,
            1 | 2 => Fault::KillWorker { restarts: dice.chance(50) },
            _ => Fault::CutStream,
        };
        return (Due::Byte(dice.below(length.bytes.max(1))), fault);
    }
    let milliseconds = dice.one_of(&[50, 900, 4_000, 25_000]);
    let fault = match dice.below(12) {
        0..=2 => Fault::KillFront,
        3 => Fault::PauseFront { milliseconds: milliseconds.max(4_000) },
        4 => Fault::KillWorker { restarts: dice.chance(50) },
        5 => Fault::Refuse,
        6 | 7 => Fault::NoAnswer,
        8 => Fault::Outage { milliseconds },
        9 => Fault::CutRelay { milliseconds },
        10 => Fault::CutStream,
        _ => Fault::DropReaders,
    };
    (Due::Moment(dice.below(length.moments.max(1))), fault)
}

/// Shared by all that can fail.
pub(crate) struct Chaos {
    state: Mutex<State>,
    /// Faults that are the world's to bring about.
    world: mpsc::UnboundedSender<Fault>,
}

struct State {
    dice: Dice,
    plan: Vec<(Due, Fault)>,
    length: Length,
    store_away_until: Instant,
    relay_away_until: Instant,
    /// Cancelled when the relay loses what it has.
    relay: CancellationToken,
    readers: CancellationToken,
}

/// What becomes of one call of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Fine,
    Refused,
    Unanswered,
    KillFront,
    PauseFront(Duration),
}

impl Chaos {
    pub(crate) fn new(dice: Dice, plan: Plan) -> (Arc<Self>, mpsc::UnboundedReceiver<Fault>) {
        let (world, faults) = mpsc::unbounded_channel();
        let now = Instant::now();
        let state = State {
            dice,
            plan: plan.0,
            length: Length::default(),
            store_away_until: now,
            relay_away_until: now,
            relay: CancellationToken::new(),
            readers: CancellationToken::new(),
        };
        (Arc::new(Self { state: Mutex::new(state), world }), faults)
    }

    pub(crate) fn dice(&self) -> Dice {
        Dice::new(self.state.lock().unwrap().dice.roll())
    }

    pub(crate) fn roll(&self, end: u64) -> u64 {
        self.state.lock().unwrap().dice.below(end)
    }

    pub(crate) fn length(&self) -> Length {
        self.state.lock().unwrap().length
    }

    /// One moment at the store: before a call, or after it.
    pub(crate) fn moment(&self) -> Fate {
        let mut state = self.state.lock().unwrap();
        state.length.moments += 1;
        let due = Due::Moment(state.length.moments);
        let mut fate = Fate::Fine;
        for fault in state.take(|when| *when == due) {
            match fault {
                Fault::KillFront => fate = Fate::KillFront,
                Fault::PauseFront { milliseconds } => fate = Fate::PauseFront(Duration::from_millis(milliseconds)),
                Fault::Refuse => fate = Fate::Refused,
                Fault::NoAnswer => fate = Fate::Unanswered,
                other => self.bring(&mut state, other),
            }
        }
        if fate == Fate::Fine && Instant::now() < state.store_away_until { Fate::Refused } else { fate }
    }

    /// So many bytes came from a worker. What becomes of the connection is the caller's to do.
    pub(crate) fn bytes(&self, count: usize) -> Vec<Fault> {
        let mut state = self.state.lock().unwrap();
        state.length.bytes += count as u64;
        let now = state.length.bytes;
        let due = state.take(|when| matches!(when, Due::Byte(byte) if *byte <= now));
        let (ours, others): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|fault| matches!(fault, Fault::KillFront | Fault::CutStream));
        for fault in others {
            self.bring(&mut state, fault);
        }
        ours
    }

    fn bring(&self, state: &mut State, fault: Fault) {
        let until = |milliseconds| Instant::now() + Duration::from_millis(milliseconds);
        match fault {
            Fault::Outage { milliseconds } => state.store_away_until = until(milliseconds),
            Fault::CutRelay { milliseconds } => {
                state.relay_away_until = until(milliseconds);
                std::mem::take(&mut state.relay).cancel();
            }
            Fault::DropReaders => std::mem::take(&mut state.readers).cancel(),
            // The world may be over.
            other => drop(self.world.send(other)),
        }
    }

    pub(crate) fn relay_is_away(&self) -> bool {
        Instant::now() < self.state.lock().unwrap().relay_away_until
    }

    /// Cancelled when the relay loses its receivers.
    pub(crate) fn relay_lost(&self) -> CancellationToken {
        self.state.lock().unwrap().relay.clone()
    }

    /// Cancelled when readers lose their connection.
    pub(crate) fn readers_lost(&self) -> CancellationToken {
        self.state.lock().unwrap().readers.clone()
    }
}

impl State {
    fn take(&mut self, is_due: impl Fn(&Due) -> bool) -> Vec<Fault> {
        let (due, later): (Vec<_>, Vec<_>) = self.plan.drain(..).partition(|(when, _)| is_due(when));
        self.plan = later;
        due.into_iter().map(|(_, fault)| fault).collect()
    }
}
