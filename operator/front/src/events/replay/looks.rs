//! Looks at whether a log has more than its live streams were told: one look for all who follow a session, and few at a time.
//!
//! While the relay is away each open stream wants to know once a second, and the database has more to do than to tell them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::LOOK_EVERY;
use crate::error::Error;
use crate::events::log::EventLog;

/// At a time, of one replica. Whoever is behind them waits.
pub(super) const AT_ONCE_MAX: usize = 4;
/// Of so many looks at a session, one also asks whether it is still there.
pub(super) const LOOKS_FOR_NOTHING: u32 = 12;

type Key = (TenantId, SessionId);

/// Of one replica. Clones share them.
#[derive(Clone)]
pub(crate) struct Looks {
    at_once: Arc<Semaphore>,
    looks: Arc<Mutex<HashMap<Key, Shared>>>,
}

/// By how many a look is shared.
#[derive(Default)]
struct Shared {
    watching: usize,
    look: Arc<Look>,
}

/// A session that somebody here looks at, until that is dropped.
pub(super) struct Watched {
    looks: Looks,
    key: Key,
    look: Arc<Look>,
}

/// What those know who follow a session.
#[derive(Default)]
struct Look {
    seen: Mutex<Seen>,
    /// One at a time.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Seen {
    /// The newest number that a look has found, or somebody had who asked for one.
    newest: u64,
    /// When the last look began that found nothing, and how many doubts there had been.
    at: Option<(Instant, u64)>,
    /// So often what had been seen up to then may have been out of date.
    doubts: u64,
    looks: u32,
}

/// What stands behind a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// By a look that began then, when so many doubts had come up.
    Nothing { at: Instant, doubts: u64 },
    /// This number at least, which others may not know of.
    News { newest: u64 },
    /// This number at least, which was known.
    More { newest: u64 },
    /// The session is not there any more.
    Gone,
}

impl Default for Looks {
    fn default() -> Self {
        Self { at_once: Arc::new(Semaphore::new(AT_ONCE_MAX)), looks: Arc::default() }
    }
}

impl Looks {
    pub(super) fn watch(&self, tenant: TenantId, session: SessionId) -> Watched {
        let key = (tenant, session);
        let mut looks = self.looks();
        let shared = looks.entry(key).or_default();
        shared.watching += 1;
        Watched { looks: self.clone(), key, look: Arc::clone(&shared.look) }
    }

    /// Frames of the session may have been lost up to now: what was seen before says nothing.
    pub(crate) fn doubt(&self, key: Key) {
        let look = self.looks().get(&key).map(|shared| Arc::clone(&shared.look));
        if let Some(look) = look {
            look.seen().doubts += 1;
        }
    }

    fn looks(&self) -> MutexGuard<'_, HashMap<Key, Shared>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// What is known to stand behind this number, by a look that is not older than [`LOOK_EVERY`] or than it was asked for.
    pub(super) fn known(&self, after_seq: u64, asked_at: Instant) -> Option<Looked> {
        self.look.known(after_seq, asked_at)
    }

    /// Asks for a look at what stands behind this number, which comes in its turn. It goes on in a task of its own: a reader that stops in
    /// the middle would keep the others from theirs.
    pub(super) fn ask(&self, after_seq: u64, events: &Arc<dyn EventLog>, tasks: &Tasks) -> Asked {
        let at = Instant::now();
        let (look, at_once) = (Arc::clone(&self.look), Arc::clone(&self.looks.at_once));
        let (events, key) = (Arc::clone(events), self.key);
        let looking = async move {
            let _looking = look.looking.lock().await;
            if let Some(known) = look.known(after_seq, at) {
                return Ok(known);
            }
            let _one_of_few = at_once.acquire().await.map_err(Error::internal)?;
            look.look(&*events, key, after_seq).await
        };
        Asked { at, look: AbortOnDropHandle::new(tasks.spawn("event-look", looking)) }
    }

    /// Frames may have been lost since there were so many doubts: that nothing was there says nothing any more.
    pub(super) fn is_doubted(&self, doubts: u64) -> bool {
        self.look.seen().doubts != doubts
    }
}

/// A look that somebody waits for. Nobody waits any more once it is dropped.
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) look: AbortOnDropHandle<Result<Looked, Error>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut looks = self.looks.looks();
        let Some(shared) = looks.get_mut(&self.key) else { return };
        shared.watching -= 1;
        if shared.watching == 0 {
            looks.remove(&self.key);
        }
    }
}

impl Look {
    /// By a look that is young enough, or that began later than it was asked for, however long it took.
    fn known(&self, after_seq: u64, asked_at: Instant) -> Option<Looked> {
        let seen = self.seen();
        if seen.newest > after_seq {
            return Some(Looked::More { newest: seen.newest });
        }
        let is_young = |at: Instant| at.elapsed() < LOOK_EVERY || at > asked_at;
        let seen_at = seen.at.filter(|(at, doubts)| is_young(*at) && *doubts == seen.doubts);
        seen_at.map(|(at, doubts)| Looked::Nothing { at, doubts })
    }

    async fn look(&self, events: &dyn EventLog, (tenant, session): Key, after_seq: u64) -> Result<Looked, Error> {
        let began = Instant::now();
        let (asks_for_it, doubts) = {
            let mut seen = self.seen();
            // Whoever asks has that one, so that others who have not need no look of their own.
            seen.newest = seen.newest.max(after_seq);
            seen.looks = (seen.looks + 1) % LOOKS_FOR_NOTHING;
            (seen.looks == 0, seen.doubts)
        };
        let (from, limit) = if asks_for_it { (after_seq.saturating_sub(1), 2) } else { (after_seq, 1) };
        let found = events.read(tenant, session, from, limit).await?;
        Ok(match found.last() {
            Some(last) if last.seq > after_seq => {
                let mut seen = self.seen();
                seen.newest = seen.newest.max(last.seq);
                // What stands behind it nobody has looked for.
                seen.at = None;
                Looked::News { newest: last.seq }
            }
            None if asks_for_it => Looked::Gone,
            Some(_) | None => {
                self.seen().at = Some((began, doubts));
                Looked::Nothing { at: began, doubts }
            }
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::testing::{Scene, user_message};

    async fn behind(watched: &Watched, after_seq: u64, scene: &Scene) -> Looked {
        let log: Arc<dyn EventLog> = scene.log.clone();
        match watched.known(after_seq, Instant::now()) {
            Some(known) => known,
            None => watched.ask(after_seq, &log, &scene.tasks).look.await.unwrap().unwrap(),
        }
    }

    /// Each would wait for its own turn to look while the other's look hides that there is more.
    #[tokio::test(start_paused = true)]
    async fn whoever_is_behind_another_is_told_that_there_is_more() {
        let (scene, looks) = (Scene::new().await, Looks::default());
        let [slow, quick] = [(); 2].map(|()| looks.watch(scene.tenant, scene.session));
        for _ in 2..=3 {
            scene.append(user_message()).await;
        }
        assert_eq!(behind(&slow, 1, &scene).await, Looked::News { newest: 2 });
        // By now another event was stored, and the quick one has read it, too.
        let nothing = behind(&quick, 3, &scene).await;
        assert!(matches!(nothing, Looked::Nothing { .. }), "{nothing:?}");
        assert_eq!(behind(&slow, 2, &scene).await, Looked::More { newest: 3 });

        scene.append(user_message()).await;
        tokio::time::sleep(LOOK_EVERY).await;
        assert_eq!(behind(&slow, 3, &scene).await, Looked::News { newest: 4 });
        scene.append(user_message()).await;
        assert_eq!(behind(&quick, 4, &scene).await, Looked::News { newest: 5 }, "nobody has looked behind it");
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_session_that_nobody_follows() {
        let (scene, looks) = (Scene::new().await, Looks::default());
        let [one, other] = [(); 2].map(|()| looks.watch(scene.tenant, scene.session));
        // As a look has that is still under way.
        let under_way = Arc::clone(&one.look);
        drop(one);
        assert_eq!(looks.looks().len(), 1);
        drop(other);
        assert_eq!(looks.looks().len(), 0);
        drop(under_way);
    }
}
