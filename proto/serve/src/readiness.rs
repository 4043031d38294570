//! Whether the program can do its work now, as a list of named checks that its parts keep current.

mod gauge;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// What stands in the way of a check that nobody has answered yet.
const NOT_YET: &str = "not checked yet";

/// What stands in the way of each check; nothing, where it holds.
type Checks = BTreeMap<&'static str, Option<String>>;

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
        let check = Check { name, checks: Arc::clone(&self.checks) };
        check.not_ready(NOT_YET);
        check
    }

    /// One line per check that isn't ready, `name: why`, in the order of the names. None: the program is ready.
    pub fn problems(&self) -> Vec<String> {
        let checks = self.checks.borrow();
        checks.iter().filter_map(|(name, why)| why.as_ref().map(|why| format!("{name}: {why}"))).collect()
    }

    /// True when no check objects.
    pub fn is_ready(&self) -> bool {
        hold(&self.checks.borrow())
    }

    /// Tells each later change between ready and not ready, beginning with the state now.
    pub fn watch(&self) -> Watch {
        let mut checks = self.checks.subscribe();
        checks.mark_changed();
        Watch { checks, told: None }
    }
}

fn hold(checks: &Checks) -> bool {
    checks.values().all(Option::is_none)
}

/// One thing that must hold for the program to be ready, such as a database that answers.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    checks: Arc<watch::Sender<Checks>>,
}

impl Check {
    /// It holds.
    pub fn ready(&self) {
        self.checks.send_if_modified(|checks| {
            let changed = checks.insert(self.name, None).flatten().is_some();
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
            let changed = checks.get(self.name) != Some(&why);
            if changed {
                tracing::info!(check = self.name, why, "not ready");
                checks.insert(self.name, why);
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
            let ready = hold(&self.checks.borrow_and_update());
            if self.told != Some(ready) {
                self.told = Some(ready);
                return Some(ready);
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

    #[tokio::test]
    async fn a_watch_tells_changes_of_the_whole_only() {
        let readiness = Readiness::new();
        let (routes, postgres) = (readiness.check("routes"), readiness.check("postgres"));
        let mut watch = readiness.watch();
        assert_eq!(watch.next().await, Some(false));
        routes.ready();
        postgres.not_ready("still not");
        postgres.ready();
        assert_eq!(watch.next().await, Some(true));
        routes.not_ready("lost");
        assert_eq!(watch.next().await, Some(false));
        drop((readiness, routes, postgres));
        assert_eq!(watch.next().await, None);
    }
}
