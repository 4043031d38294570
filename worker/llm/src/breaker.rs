//! A circuit breaker: a model that keeps failing is left alone for a while, and then tried by one call at a time.
//!
//! One [`Breaker`] stands for one model of one provider under one key, since each of the three may be what fails; a worker's
//! [`Breakers`] hold them. It knows no clock: whoever asks says what time it is.

mod set;

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Class;
pub use set::{Breakers, Key, Permit};

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Outcomes that are looked back on, at most [`WINDOW_MAX`].
    pub window: u32,
    /// With fewer outcomes than this nothing is concluded.
    pub outcomes_min: u32,
    /// Of the outcomes looked back on, it opens when this share failed, in percent.
    pub failures_percent: u32,
    /// For how long it opens at first. Each time that the trial fails too it is twice as long.
    pub open: Duration,
    /// For how long it opens at most, whatever the provider asks for. A trial that gives no sign of life for so long keeps no other back
    /// any more.
    pub open_max: Duration,
    /// Trials that must go well, one after another, before all calls are let through again.
    pub trials: u32,
}

/// As many outcomes as a breaker can look back on.
pub const WINDOW_MAX: u32 = 64;

impl Default for Policy {
    fn default() -> Self {
        Self {
            window: 20,
            outcomes_min: 5,
            failures_percent: 60,
            open: Duration::from_secs(5),
            open_max: Duration::from_mins(2),
            trials: 2,
        }
    }
}

/// How a call that was let through went, as far as the breaker cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The provider answered, be it with a refusal of this very request.
    Answered,
    /// It did not, or broke off, and asks to be left alone for so long if it does.
    Failed { retry_after: Option<Duration> },
    /// The caller went away before it was known.
    Unknown,
}

impl Outcome {
    /// What an error says of the health of who gave it, whether it came as a status or in mid stream.
    pub fn of(class: Class, retry_after: Option<Duration>) -> Self {
        match class {
            Class::Rate | Class::Overload | Class::Timeout | Class::Network | Class::Truncated => {
                Self::Failed { retry_after }
            }
            // The next request may be another, and the next key too.
            Class::Quota | Class::Auth | Class::Invalid | Class::Context | Class::Content => Self::Answered,
        }
    }
}

/// The state of a breaker, for people and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// All calls go through.
    Closed,
    /// None does.
    Open,
    /// One at a time does, until the provider takes it.
    HalfOpen,
}

#[derive(Debug, Clone, PartialEq)]
enum Inner {
    Closed,
    Open {
        until: Instant,
    },
    /// With when the trial was let through that keeps all others back, if one does.
    HalfOpen {
        trial: Option<Instant>,
        went_well: u32,
    },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Breaker {
    policy: Policy,
    inner: Inner,
    /// The last outcomes, the newest in the lowest bit: 1 is a failure.
    outcomes: u64,
    /// How many of them count.
    known: u32,
    /// How often it opened since it was last closed.
    opened: u32,
    /// Grows with each change of state, so that a call which began before one says nothing of what came after.
    generation: u64,
}

/// Leave for one call. That the provider took it goes back to [`Breaker::began`], what became of it to [`Breaker::ended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    generation: u64,
    admitted_at: Instant,
    has_begun: bool,
}

impl Breaker {
    /// A closed one.
    pub fn new(policy: Policy) -> Self {
        let policy = Policy { window: policy.window.clamp(1, WINDOW_MAX), trials: policy.trials.max(1), ..policy };
        Self { policy, inner: Inner::Closed, outcomes: 0, known: 0, opened: 0, generation: 0 }
    }

    /// What it does with a call that comes now.
    pub fn state(&self, now: Instant) -> State {
        match self.inner {
            Inner::Closed => State::Closed,
            Inner::Open { until } if now < until => State::Open,
            Inner::Open { .. } | Inner::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether it is as good as a new one.
    pub fn is_idle(&self) -> bool {
        self.inner == Inner::Closed && self.outcomes == 0
    }

    /// Asks leave for a call. Refused with the time to wait before it is worth asking again.
    pub fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        match &mut self.inner {
            Inner::Closed => {}
            Inner::Open { until } if now < *until => return Err(*until - now),
            Inner::Open { .. } => self.turn(Inner::HalfOpen { trial: Some(now), went_well: 0 }),
            // Its provider may be silent for long before it takes the call, and the rest need not wait for all of it at once.
            Inner::HalfOpen { trial: Some(since), .. } if now < *since + self.policy.open_max => {
                return Err(self.policy.open.min(*since + self.policy.open_max - now));
            }
            Inner::HalfOpen { trial, .. } => *trial = Some(now),
        }
        Ok(Pass { generation: self.generation, admitted_at: now, has_begun: false })
    }

    /// Takes in that the provider took a call. Behind a trial it is another's turn then, since a thought or an answer may take
    /// minutes. How the trial went only its end tells.
    pub fn began(&mut self, pass: &mut Pass) {
        if pass.generation == self.generation {
            self.make_way(*pass);
        }
        pass.has_begun = true;
    }

    /// Takes in how a call went.
    pub fn ended(&mut self, pass: Pass, outcome: Outcome, now: Instant) {
        if pass.generation != self.generation {
            return;
        }
        match (&mut self.inner, outcome) {
            (Inner::Closed, Outcome::Answered) => self.remember(false),
            (Inner::Closed, Outcome::Failed { retry_after }) => {
                self.remember(true);
                if self.is_failing() {
                    self.open(retry_after, now);
                }
            }
            (Inner::HalfOpen { .. }, Outcome::Unknown) => self.make_way(pass),
            (Inner::HalfOpen { .. }, Outcome::Answered) => {
                self.make_way(pass);
                self.went_well();
            }
            (Inner::HalfOpen { .. }, Outcome::Failed { retry_after }) => self.open(retry_after, now),
            (Inner::Closed, Outcome::Unknown) | (Inner::Open { .. }, _) => {}
        }
    }

    /// Lets the next trial through, unless this one had made way already: then the next may run.
    fn make_way(&mut self, pass: Pass) {
        if let Inner::HalfOpen { trial, .. } = &mut self.inner
            && !pass.has_begun
            && *trial == Some(pass.admitted_at)
        {
            *trial = None;
        }
    }

    fn went_well(&mut self) {
        let Inner::HalfOpen { went_well, .. } = &mut self.inner else { return };
        *went_well += 1;
        if *went_well >= self.policy.trials {
            (self.outcomes, self.known, self.opened) = (0, 0, 0);
            self.turn(Inner::Closed);
        }
    }

    fn remember(&mut self, failed: bool) {
        let mask = u64::MAX >> (u64::BITS - self.policy.window);
        self.outcomes = ((self.outcomes << 1) | u64::from(failed)) & mask;
        self.known = (self.known + 1).min(self.policy.window);
    }

    fn is_failing(&self) -> bool {
        let enough = self.known >= self.policy.outcomes_min.min(self.policy.window);
        enough && self.outcomes.count_ones() * 100 >= self.policy.failures_percent * self.known
    }

    fn open(&mut self, retry_after: Option<Duration>, now: Instant) {
        let doubled = self.policy.open.saturating_mul(2_u32.saturating_pow(self.opened));
        let wait = doubled.max(retry_after.unwrap_or_default()).min(self.policy.open_max);
        self.opened = self.opened.saturating_add(1);
        self.turn(Inner::Open { until: now + wait });
    }

    fn turn(&mut self, inner: Inner) {
        self.inner = inner;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests;
