//! What we have just written, for as long as the watches may not have told us of it.
//!
//! A pass that trusts the cache right after its own write would write again, or judge by an old status.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::freshness::ANSWER_MAX;
use crate::mirror::{PAUSE_MAX, SILENCE_MAX};

/// A watch that is later than this has lost the event, so the cache is right again. At most that long is a pass misled
/// by a note about an object that has meanwhile been deleted.
const TRUST: Duration = Duration::from_secs(90);

// No watch is later whose connection the network has dropped unheard, and whose next request is not answered either.
const _: () = assert!(TRUST.as_secs() > SILENCE_MAX.as_secs() + ANSWER_MAX.as_secs() + PAUSE_MAX.as_secs());

/// Notes about our own writes by key, dropped as they age.
pub struct Recent<T> {
    notes: Mutex<HashMap<String, Note<T>>>,
}

struct Note<T> {
    version: u64,
    at: Instant,
    /// `None` of what was deleted.
    content: Option<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { notes: Mutex::default() }
    }
}

impl<T: Clone> Recent<T> {
    /// Remembers `content` as what the write that gave `resource_version` left under `key`, unless something later is known: the answers
    /// to two writes come in any order, and that to a creation may come after the watch has told of the deletion.
    pub fn remember(&self, key: String, resource_version: Option<&str>, content: T) {
        if let Some(version) = parse(resource_version) {
            self.put(key, version, Some(content));
        }
    }

    /// What we wrote under `key`, if the cache, which is at `cached_version`, can't know of it yet.
    pub fn newer_than(&self, key: &str, cached_version: Option<&str>) -> Option<T> {
        let notes = self.notes();
        let note = notes.get(key)?;
        let cached = parse(cached_version).unwrap_or(0);
        if note.version > cached && note.at.elapsed() < TRUST { note.content.clone() } else { None }
    }

    /// What we wrote under `key`, if that is what the cache, which is at `cached_version`, has or can't know of yet.
    pub fn not_older_than(&self, key: &str, cached_version: Option<&str>) -> Option<T> {
        let notes = self.notes();
        let note = notes.get(key)?;
        let cached = parse(cached_version).unwrap_or(0);
        let holds = note.version == cached || note.version > cached && note.at.elapsed() < TRUST;
        if holds { note.content.clone() } else { None }
    }

    /// Whether what the watch tells under `key` is just what we wrote, and passes have known of it ever since: one after [`TRUST`] may have
    /// judged by a cache that did not.
    pub fn is_echo(&self, key: &str, version: Option<&str>) -> bool {
        let notes = self.notes();
        let is_it = |note: &Note<T>| {
            note.content.is_some() && parse(version) == Some(note.version) && note.at.elapsed() < TRUST
        };
        notes.get(key).is_some_and(is_it)
    }

    /// Forgets what was under `key`: it has been deleted, with the version that its deletion gave if it is known.
    pub fn forget(&self, key: &str, resource_version: Option<&str>) {
        match parse(resource_version) {
            Some(version) => self.put(key.to_owned(), version, None),
            None => drop(self.notes().remove(key)),
        }
    }

    fn put(&self, key: String, version: u64, content: Option<T>) {
        let now = Instant::now();
        let mut notes = self.notes();
        // A server that was restored from an old copy counts on from there.
        if notes.get(&key).is_some_and(|note| note.version > version && now.duration_since(note.at) < TRUST) {
            return;
        }
        // Old notes go whenever the map has doubled since, so it stays in proportion to what is written in TRUST.
        if notes.len() == notes.capacity() {
            notes.retain(|_, note| now.duration_since(note.at) < TRUST);
        }
        notes.insert(key, Note { version, at: now, content });
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<String, Note<T>>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resource versions of one kind can be compared as numbers since Kubernetes 1.35, and always could in etcd:
/// <https://github.com/kubernetes/enhancements/issues/5504>. One that is no number makes us trust the cache.
fn parse(resource_version: Option<&str>) -> Option<u64> {
    resource_version?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_note_holds_until_the_cache_has_caught_up() {
        let recent = Recent::default();
        recent.remember("fence".into(), Some("12"), "hash");
        assert_eq!(recent.newer_than("fence", None), Some("hash"));
        assert_eq!(recent.newer_than("fence", Some("9")), Some("hash"));
        assert_eq!(recent.newer_than("fence", Some("12")), None);
        assert_eq!(recent.newer_than("quota", None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_about_what_the_cache_has_holds_for_as_long_as_it_is_kept() {
        let recent = Recent::default();
        recent.remember("fence".into(), Some("12"), "hash");
        assert_eq!(recent.not_older_than("fence", Some("9")), Some("hash"));
        tokio::time::advance(TRUST).await;
        assert_eq!(recent.not_older_than("fence", Some("12")), Some("hash"));
        assert_eq!(recent.not_older_than("fence", Some("9")), None, "the watch has lost it");
        assert_eq!(recent.not_older_than("fence", Some("13")), None, "someone has written since");
    }

    #[tokio::test(start_paused = true)]
    async fn an_echo_is_the_very_version_that_we_wrote() {
        let recent = Recent::default();
        recent.remember("fence".into(), Some("12"), "hash");
        assert!(recent.is_echo("fence", Some("12")));
        assert!(!recent.is_echo("fence", Some("13")), "someone has written since");
        assert!(!recent.is_echo("quota", Some("12")));
    }

    /// Once, what a pass had not known of for want of its word woke none when it came at last.
    #[tokio::test(start_paused = true)]
    async fn a_late_word_of_what_we_wrote_is_news() {
        let recent = Recent::default();
        recent.remember("fence".into(), Some("12"), "hash");
        tokio::time::advance(TRUST.saturating_sub(Duration::from_millis(1))).await;
        assert!(recent.newer_than("fence", None).is_some() && recent.is_echo("fence", Some("12")));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(recent.newer_than("fence", None).is_none() && !recent.is_echo("fence", Some("12")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_a_creation_that_comes_after_the_deletion_leaves_no_note() {
        let recent = Recent::default();
        recent.forget("fence", Some("13"));
        recent.remember("fence".into(), Some("12"), "hash");
        assert_eq!(recent.not_older_than("fence", None), None);
        assert!(!recent.is_echo("fence", Some("12")) && !recent.is_echo("fence", Some("13")));
        recent.remember("fence".into(), Some("14"), "again");
        assert_eq!(recent.not_older_than("fence", None), Some("again"));
        recent.forget("fence", Some("13"));
        assert_eq!(recent.not_older_than("fence", None), Some("again"), "it was made anew since");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_writes_the_later_counts_in_whichever_order_they_are_answered() {
        let recent = Recent::default();
        recent.remember("fence".into(), Some("12"), "open");
        recent.remember("fence".into(), Some("11"), "shut");
        assert_eq!(recent.newer_than("fence", Some("10")), Some("open"));
        tokio::time::advance(TRUST).await;
        recent.remember("fence".into(), Some("5"), "restored");
        assert_eq!(recent.newer_than("fence", Some("4")), Some("restored"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_about_what_is_gone_is_no_obstacle() {
        let recent = Recent::default();
        recent.remember("fence".into(), Some("12"), "hash");
        recent.forget("fence", None);
        assert_eq!(recent.newer_than("fence", None), None);
        recent.remember("fence".into(), Some("12"), "hash");
        tokio::time::advance(TRUST).await;
        assert_eq!(recent.newer_than("fence", None), None);
    }
}
