//! Answers that their callers have not taken yet: how much of them is held, and for how long.
//!
//! HTTP/2 asks for the next part of an answer as soon as the caller has room for a byte of the one before, and keeps it whole until there is
//! room for all of it, which may be never: its peer's kernel acknowledges everything, and its own window is what stays shut
//! (<https://datatracker.ietf.org/doc/html/rfc9113#section-5.2>). So what has been given away counts until it is sent, an answer goes in pieces, so
//! that a slow caller is told from one that takes nothing, and who takes nothing is cut off.

mod account;
mod answer;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use croft_proto::id::TenantId;
use croft_serve::Tasks;
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tower::util::MapResponseLayer;

pub(crate) use self::account::Kept;
use self::account::{Account, Accounts};
use self::answer::Answer;

/// All answers are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Those that wait for room are told at once that there is some, but not more often than that: they may be thousands.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// And so many, those that wait for longest first: most would find that others were quicker.
const TOLD_AT_A_TIME: usize = 64;

/// What may be held, of bytes that callers have not taken.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of all tenants. Beyond, only those that have nothing here get something.
    pub held_bytes_max: usize,
    /// Of one tenant. Beyond, what it is told next waits.
    pub tenant_bytes_max: usize,
    /// An answer of which nothing is taken for so long is cut off.
    pub unread_max: Duration,
    /// As that, where a bound on bytes is reached: the longest first, and none that is not needed.
    pub pressed_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            held_bytes_max: 64 * 1024 * 1024,
            tenant_bytes_max: 16 * 1024 * 1024,
            unread_max: Duration::from_mins(2),
            pressed_max: Duration::from_secs(5),
        }
    }
}

/// In the extensions of an answer: whom it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) tenant: TenantId,
    /// It goes on: each of its frames waits for room, and not only the first.
    pub(crate) is_stream: bool,
}

/// The answers of a replica. Clones share them.
#[derive(Clone)]
pub struct Unread {
    shared: Arc<Shared>,
}

struct Shared {
    accounts: Arc<Accounts>,
    since: Instant,
    state: Mutex<State>,
    cut: IntCounter,
}

#[derive(Default)]
struct State {
    answers: Vec<Weak<Answer>>,
    waiting: Vec<Weak<Answer>>,
}

impl Unread {
    /// Starts the task that looks at all answers.
    pub fn start(options: Options, tasks: &Tasks, registry: &Registry) -> Result<Self, prometheus::Error> {
        let held = IntGauge::new("croft_unread_bytes", "Of answers that their callers have not taken yet")?;
        let cut = IntCounter::new("croft_unread_cut_total", "Answers cut off, as their callers took nothing of them")?;
        registry.register(Box::new(held.clone()))?;
        registry.register(Box::new(cut.clone()))?;
        let accounts = Accounts::new(options, tasks.stopping(), held);
        let shared = Arc::new(Shared { accounts, since: Instant::now(), state: Mutex::default(), cut });
        let (looked_at, ending) = (Arc::clone(&shared), tasks.ending());
        let looks = async move {
            let mut looks = interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = looks.tick() => looked_at.look(),
                    () = looked_at.accounts.freed() => {}
                    // Some were told, and there may be room for more.
                    () = sleep(TELL_EVERY), if looked_at.accounts.is_waited_for() => {}
                }
                looked_at.tell();
                sleep(TELL_EVERY).await;
            }
        };
        tasks.spawn_last("unread", async move {
            ending.run_until_cancelled(looks).await;
        });
        Ok(Self { shared })
    }

    /// Whether what a tenant is told next would have to wait.
    pub(crate) fn is_full(&self, tenant: TenantId) -> bool {
        self.shared.accounts.find(tenant).is_some_and(|own| own.has_no_room())
    }

    /// Room for what is written to a tenant beside any answer, until it is dropped. `None` while there is none.
    pub(crate) fn hold(&self, tenant: TenantId, bytes: usize) -> Option<Kept> {
        let own = self.shared.accounts.of(Some(tenant));
        (!own.has_no_room()).then(|| Kept::of(bytes, own))
    }

    /// The same answers, each watched until its caller has all of it.
    pub(crate) fn layered(&self, routes: Router) -> Router {
        let shared = Arc::clone(&self.shared);
        routes.layer(MapResponseLayer::new(move |answer: Response| {
            let asker = answer.extensions().get::<Asker>().copied();
            answer.map(|inner| Answer::watched(inner, asker, &shared))
        }))
    }
}

impl Shared {
    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Cuts off what was not taken for too long.
    fn look(&self) {
        self.accounts.forget_unused();
        let mut all = std::mem::take(&mut self.lock().answers);
        all.retain(|answer| answer.strong_count() > 0);
        let (answers, now): (Vec<_>, _) = (all.iter().filter_map(Weak::upgrade).collect(), self.now());
        let mut stuck: Vec<_> = answers
            .iter()
            .filter(|answer| answer.holds() || answer.holds_up_its_making())
            .map(|it| (it.unread(now), it))
            .collect();
        stuck.sort_by_key(|(unread, _)| Reverse(*unread));
        // What is cut off lets go of its bytes a moment later.
        let (mut freed, mut freed_of_own) = (0, HashMap::<*const Account, usize>::new());
        for (unread, answer) in stuck {
            let of_own = freed_of_own.entry(Arc::as_ptr(answer.own())).or_default();
            if answer.cut(unread, self.accounts.is_over(freed) || answer.own().is_over(*of_own)) {
                let bytes = answer.bytes();
                (freed, *of_own) = (freed + bytes, *of_own + bytes);
            }
        }
        self.lock().answers.append(&mut all);
    }

    /// Those that wait and would find room ask again.
    fn tell(&self) {
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        let mut left = TOLD_AT_A_TIME;
        state.waiting = waiting
            .into_iter()
            .filter(|answer| {
                let Some(answer) = answer.upgrade() else { return false };
                let is_told = left > 0 && answer.told();
                left -= usize::from(is_told);
                !is_told
            })
            .collect();
        self.accounts.wait(!state.waiting.is_empty());
    }

    /// It asks again once there is room.
    fn wait(&self, answer: &Arc<Answer>) {
        self.lock().waiting.push(Arc::downgrade(answer));
        self.accounts.wait(true);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
