//! The breakers of one worker.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Breaker, Outcome, Pass, Policy, State};
use crate::error::{Class, Error};
use crate::provider::Provider;

/// Breakers that are kept. At the bound those that have nothing to tell are forgotten, and if all of them do, the one
/// that was asked longest ago.
const BREAKERS_MAX: usize = 256;

/// What a breaker stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub provider: &'static str,
    pub model: String,
    /// Tells keys of one provider apart, and is none.
    pub account: u64,
}

/// Clones share the breakers.
#[derive(Clone, Default)]
pub struct Breakers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    policy: Policy,
    held: Mutex<All>,
}

#[derive(Default)]
struct All {
    by_key: HashMap<Key, Held>,
    /// How often one of a provider's opened, those included that are forgotten since.
    opened: BTreeMap<&'static str, u64>,
}

struct Held {
    breaker: Breaker,
    asked_at: Instant,
}

impl Breakers {
    pub fn new(policy: Policy) -> Self {
        Self { shared: Arc::new(Shared { policy, held: Mutex::default() }) }
    }

    /// Asks leave for a call of `model`. The refusal is an error as the provider would give it if it were asked, with the
    /// time to wait.
    pub fn admit(&self, provider: &dyn Provider, model: &str) -> Result<Permit, Error> {
        let key = Key { provider: provider.name(), model: model.to_owned(), account: provider.account() };
        if provider.fails_together() {
            self.admit_key(key)
        } else {
            Ok(Permit { shared: Arc::clone(&self.shared), key, pass: None, outcome: Outcome::Unknown })
        }
    }

    fn admit_key(&self, key: Key) -> Result<Permit, Error> {
        let now = Instant::now();
        let mut all = self.shared.lock();
        let held = &mut all.by_key;
        if held.len() >= BREAKERS_MAX && !held.contains_key(&key) {
            make_room(held);
        }
        let entry = held
            .entry(key.clone())
            .or_insert_with(|| Held { breaker: Breaker::new(self.shared.policy), asked_at: now });
        entry.asked_at = now;
        match entry.breaker.admit(now) {
            Ok(pass) => {
                Ok(Permit { shared: Arc::clone(&self.shared), key, pass: Some(pass), outcome: Outcome::Unknown })
            }
            Err(wait) => Err(refusal(&key, wait)),
        }
    }

    /// The state of each breaker that is not closed.
    pub fn troubled(&self) -> Vec<(Key, State)> {
        let now = Instant::now();
        let all = self.shared.lock();
        let states = all.by_key.iter().map(|(key, held)| (key.clone(), held.breaker.state(now)));
        states.filter(|(_, state)| *state != State::Closed).collect()
    }

    /// Whether a breaker of the provider is open, so that no call of its model goes through. One that lets a trial through is not.
    pub fn is_open(&self, provider: &str) -> bool {
        self.troubled().iter().any(|(key, state)| key.provider == provider && *state == State::Open)
    }

    /// How often a breaker of the provider opened, be it since calls failed or since a trial did.
    pub fn opened(&self, provider: &str) -> u64 {
        self.shared.lock().opened.get(provider).copied().unwrap_or_default()
    }
}

fn refusal(key: &Key, wait: Duration) -> Error {
    let message = format!("is left alone for a while: too many calls of {} failed", key.model);
    Error::new(key.provider, Class::Overload, message).asked_to_wait(Some(wait)).without_a_call()
}

fn make_room(held: &mut HashMap<Key, Held>) {
    held.retain(|_, held| !held.breaker.is_idle());
    if held.len() >= BREAKERS_MAX
        && let Some(oldest) = held.iter().min_by_key(|(_, held)| held.asked_at).map(|(key, _)| key.clone())
    {
        held.remove(&oldest);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, All> {
        // No code that holds the lock can leave the maps half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn ended(&mut self, key: &Key, pass: Pass, outcome: Outcome, now: Instant) {
        let Some(Held { breaker, .. }) = self.by_key.get_mut(key) else { return };
        let before = breaker.state(now);
        breaker.ended(pass, outcome, now);
        if before != State::Open && breaker.state(now) == State::Open {
            *self.opened.entry(key.provider).or_default() += 1;
        }
    }
}

/// Leave for one call. Dropped without a word it tells that nobody knows how the call went.
#[must_use = "what became of the call must be told"]
pub struct Permit {
    shared: Arc<Shared>,
    key: Key,
    /// None where no breaker stands.
    pass: Option<Pass>,
    outcome: Outcome,
}

impl Permit {
    /// Tells that the provider took the call, though it may not have begun to answer. To say so again changes nothing.
    pub fn began(&mut self) {
        let Some(pass) = self.pass.as_mut().filter(|pass| !pass.has_begun) else { return };
        if let Some(Held { breaker, .. }) = self.shared.lock().by_key.get_mut(&self.key) {
            breaker.began(pass);
        }
    }

    /// Tells how the call went.
    pub fn ended(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pass) = self.pass {
            self.shared.lock().ended(&self.key, pass, self.outcome, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str, account: u64) -> Key {
        Key { provider: "test", model: model.to_owned(), account }
    }

    fn fail(breakers: &Breakers, key: &Key) {
        breakers.admit_key(key.clone()).unwrap().ended(Outcome::Failed { retry_after: None });
    }

    #[tokio::test(start_paused = true)]
    async fn each_model_and_each_key_has_its_own() {
        let breakers = Breakers::default();
        for _ in 0..5 {
            fail(&breakers, &key("rose", 1));
        }
        let refused = breakers.admit_key(key("rose", 1)).err().unwrap();
        assert_eq!((refused.class, refused.retry_after), (Class::Overload, Some(Policy::default().open)));
        assert!(refused.was_not_made);
        assert!(breakers.admit_key(key("rose", 2)).is_ok() && breakers.admit_key(key("leek", 1)).is_ok());
        assert_eq!(breakers.troubled(), [(key("rose", 1), State::Open)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_that_is_dropped_lets_the_next_trial_through() {
        let breakers = Breakers::default();
        for _ in 0..5 {
            fail(&breakers, &key("rose", 1));
        }
        tokio::time::advance(Policy::default().open).await;
        let trial = breakers.admit_key(key("rose", 1)).unwrap();
        assert!(breakers.admit_key(key("rose", 1)).is_err());
        drop(trial);
        assert!(breakers.admit_key(key("rose", 1)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn each_time_that_one_opens_counts_for_its_provider_also_when_it_is_forgotten() {
        let breakers = Breakers::default();
        assert_eq!((breakers.is_open("test"), breakers.opened("test")), (false, 0));
        for model in ["rose", "leek"] {
            for _ in 0..5 {
                fail(&breakers, &key(model, 1));
            }
        }
        assert_eq!((breakers.is_open("test"), breakers.opened("test")), (true, 2));
        assert_eq!((breakers.is_open("another"), breakers.opened("another")), (false, 0));
        tokio::time::advance(Policy::default().open).await;
        assert!(!breakers.is_open("test"), "a trial may go through");
        fail(&breakers, &key("rose", 1));
        assert_eq!((breakers.is_open("test"), breakers.opened("test")), (true, 3));
        breakers.shared.lock().by_key.clear();
        assert_eq!((breakers.is_open("test"), breakers.opened("test")), (false, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn their_number_is_bounded_and_trouble_is_remembered_longest() {
        let breakers = Breakers::default();
        for _ in 0..5 {
            fail(&breakers, &key("rose", 0));
        }
        for number in 0..2 * BREAKERS_MAX as u64 {
            drop(breakers.admit_key(key("leek", number)));
        }
        assert!(breakers.shared.lock().by_key.len() <= BREAKERS_MAX);
        assert!(breakers.admit_key(key("rose", 0)).is_err());
    }
}
