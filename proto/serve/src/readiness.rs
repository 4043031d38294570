//! Whether the program can do its work now, as a list of named checks that its parts keep current.
//!
//! Of some it is only told: the program goes on without what they look at, so that whoever calls is to be sent here all the same. It is
//! *ready* when all checks hold, and *serves* when those do that it can't do without.

mod gauge;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// What stands in the way of a check that nobody has answered yet.
const NOT_YET: &str = "not checked yet";

/// By name.
type Checks = BTreeMap<&'static str, State>;

struct State {
    /// What stands in the way; nothing, where it holds.
    why: Option<String>,
    /// Nobody can be served while it doesn't hold.
    is_needed: bool,
}

/// The checks of one program. Clones share them. Without any check the program is ready.
#[derive(Clone)]
pub struct Readiness {
    checks: Arc<watch::Sender<Checks>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// No checks yet.
    pub fn new() -> Self {
        Self { checks: Arc::new(watch::Sender::new(Checks::new())) }
    }

    /// A new check, not ready until told otherwise, so make it before the work that will answer it. Two checks of one
    /// name are one.
    pub fn check(&self, name: &'static str) -> Check {
        self.made(name, true)
    }

    /// As [`Readiness::check`], of what the program can do without: while it doesn't hold the program is not ready, and serves all the same.
    pub fn tells(&self, name: &'static str) -> Check {
        self.made(name, false)
    }

    fn made(&self, name: &'static str, is_needed: bool) -> Check {
        let check = Check { name, is_needed, checks: Arc::clone(&self.checks) };
        check.not_ready(NOT_YET);
        check
    }

    /// One line per check that isn't ready, `name: why`, in the order of the names. None: the program is ready.
    pub fn problems(&self) -> Vec<String> {
        self.lines(|_| true)
    }

    /// Those of the [`Readiness::problems`] for which nobody can be served. None: the program serves.
    pub fn obstacles(&self) -> Vec<String> {
        self.lines(|state| state.is_needed)
    }

    fn lines(&self, counts: impl Fn(&State) -> bool) -> Vec<String> {
        let checks = self.checks.borrow();
        let counting = checks.iter().filter(|(_, state)| counts(state));
        counting.filter_map(|(name, state)| state.why.as_ref().map(|why| format!("{name}: {why}"))).collect()
    }

    /// True when no check objects.
    pub fn is_ready(&self) -> bool {
        self.checks.borrow().values().all(|state| state.why.is_none())
    }

    /// True when no check objects that the program can't do without.
    pub fn serves(&self) -> bool {
        serve(&self.checks.borrow())
    }

    /// Tells each later change between serving and not serving, beginning with the state now.
    pub fn watch(&self) -> Watch {
        let mut checks = self.checks.subscribe();
        checks.mark_changed();
        Watch { checks, told: None }
    }
}

fn serve(checks: &Checks) -> bool {
    checks.values().all(|state| state.why.is_none() || !state.is_needed)
}

/// One thing that must hold for the program to be ready, such as a database that answers.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    is_needed: bool,
    checks: Arc<watch::Sender<Checks>>,
}

impl Check {
    /// It holds.
    pub fn ready(&self) {
        self.checks.send_if_modified(|checks| {
            let state = State { why: None, is_needed: self.is_needed };
            let changed = checks.insert(self.name, state).is_some_and(|before| before.why.is_some());
            if changed {
                tracing::info!(check = self.name, "ready");
            }
            changed
        });
    }

    /// It doesn't hold; `why` is shown to whoever asks `/readyz`, so it holds no secret.
    pub fn not_ready(&self, why: impl Into<String>) {
        let why = Some(why.into());
        self.checks.send_if_modified(|checks| {
            let changed = checks.get(self.name).is_none_or(|before| before.why != why);
            if changed {
                tracing::info!(check = self.name, why, "not ready");
                checks.insert(self.name, State { why, is_needed: self.is_needed });
            }
            changed
        });
    }
}

/// The changes of a [`Readiness`].
pub struct Watch {
    checks: watch::Receiver<Checks>,
    told: Option<bool>,
}

impl Watch {
    /// The next state that differs from the one told before; `None` when every [`Readiness`] and [`Check`] is gone.
    pub async fn next(&mut self) -> Option<bool> {
        loop {
            self.checks.changed().await.ok()?;
            let serves = serve(&self.checks.borrow_and_update());
            if self.told != Some(serves) {
                self.told = Some(serves);
                return Some(serves);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_objects_until_it_is_answered() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let postgres = readiness.check("postgres");
        assert_eq!(readiness.problems(), ["postgres: not checked yet"]);
        postgres.ready();
        assert!(readiness.is_ready());
    }

    #[test]
    fn each_problem_has_a_line_with_its_latest_reason() {
        let readiness = Readiness::new();
        let (routes, postgres) = (readiness.check("routes"), readiness.check("postgres"));
        routes.not_ready("no snapshot");
        postgres.not_ready("connection refused");
        postgres.not_ready("timed out");
        assert_eq!(readiness.problems(), ["postgres: timed out", "routes: no snapshot"]);
        routes.ready();
        assert_eq!(readiness.problems(), ["postgres: timed out"]);
        assert!(!readiness.is_ready());
    }

    #[test]
    fn what_it_can_do_without_is_told_and_stops_nobody() {
        let readiness = Readiness::new();
        let (redis, postgres) = (readiness.tells("redis"), readiness.check("postgres"));
        assert_eq!(readiness.problems(), ["postgres: not checked yet", "redis: not checked yet"]);
        assert_eq!(readiness.obstacles(), ["postgres: not checked yet"]);
        postgres.ready();
        assert!(readiness.serves() && !readiness.is_ready());
        redis.ready();
        redis.not_ready("connection refused");
        assert_eq!(readiness.problems(), ["redis: connection refused"]);
        assert_eq!(readiness.obstacles(), <[String; 0]>::default());
        redis.ready();
        assert!(readiness.is_ready());
        postgres.not_ready("no answer in time");
        assert!(!readiness.serves());
    }

    #[tokio::test]
    async fn a_watch_tells_changes_of_the_whole_only() {
        let readiness = Readiness::new();
        let (routes, postgres) = (readiness.check("routes"), readiness.check("postgres"));
        let redis = readiness.tells("redis");
        let mut watch = readiness.watch();
        assert_eq!(watch.next().await, Some(false));
        routes.ready();
        postgres.not_ready("still not");
        postgres.ready();
        assert_eq!(watch.next().await, Some(true));
        redis.ready();
        redis.not_ready("away");
        routes.not_ready("lost");
        assert_eq!(watch.next().await, Some(false));
        drop((readiness, routes, postgres, redis));
        assert_eq!(watch.next().await, None);
    }
}
