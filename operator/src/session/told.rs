//! What the fronts have told of declared sessions, by the UID of the AgentSession.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::known::Known;

/// The newest word on each declared session. Only the replica that writes listens, so only it has any.
#[derive(Default)]
pub struct Told {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_uid: HashMap<String, Known>,
    /// When we last wrote the status.
    written: HashMap<String, Instant>,
    is_whole: bool,
}

impl Told {
    /// The newest word on the session of the object with this UID.
    pub(super) fn of(&self, uid: &str) -> Option<Known> {
        self.inner().by_uid.get(uid).cloned()
    }

    /// Whether a session that nothing is told of is a session that the fronts don't have.
    pub(super) fn is_whole(&self) -> bool {
        self.inner().is_whole
    }

    /// Says whether this is news.
    pub(super) fn tell(&self, uid: &str, known: &Known) -> bool {
        self.inner().by_uid.insert(uid.to_owned(), known.clone()).is_none_or(|before| before != *known)
    }

    /// A picture is complete that named just these.
    pub(super) fn complete(&self, named: &HashSet<String>) {
        let mut inner = self.inner();
        inner.by_uid.retain(|uid, _| named.contains(uid));
        inner.is_whole = true;
    }

    /// Nothing follows for the object with this UID.
    pub(super) fn forget(&self, uid: &str) {
        let mut inner = self.inner();
        inner.by_uid.remove(uid);
        inner.written.remove(uid);
    }

    /// The status has just been written.
    pub(super) fn wrote(&self, uid: &str) {
        self.inner().written.insert(uid.to_owned(), Instant::now());
    }

    /// How long ago the status was written, if we wrote it.
    pub(super) fn written_ago(&self, uid: &str) -> Option<Duration> {
        self.inner().written.get(uid).map(Instant::elapsed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::Session;

    use super::*;

    #[test]
    fn the_same_again_is_no_news_and_a_picture_replaces_what_was() {
        let told = Told::default();
        let known = |last_seq| Known::of(&Session { last_seq, ..Session::default() });
        assert!(told.tell("heron", &known(1)));
        assert!(!told.tell("heron", &known(1)));
        assert!(told.tell("heron", &known(2)));
        assert!(told.tell("egret", &known(1)));
        assert!(!told.is_whole());
        told.complete(&HashSet::from(["egret".to_owned()]));
        assert!(told.is_whole());
        assert_eq!(told.of("heron"), None);
        assert_eq!(told.of("egret"), Some(known(1)));
    }
}
