//! One story out of two sources: what the log holds, then what happens, without a hole or a double at the seam.
//!
//! The subscription is taken before the log is read, so whatever happens in between is in at least one of the two. From then on the
//! number decides: one that was sent is dropped, the next one is sent, a later one means a hole, and the log fills it. A
//! lost relay costs time, never an event: the log is looked at every now and then anyway.

mod looks;
#[cfg(test)]
mod meanwhile;
mod room;
#[cfg(test)]
mod seam;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{self, SessionEvent};
use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::now;
use crate::error::Error;
use crate::events::fanout::{Hub, Item, SubscribeOptions, Subscription};
use crate::events::log::EventLog;

pub(crate) use self::looks::Looks;
use self::looks::{Asked, Looked, Watched};
pub(crate) use self::room::Room;
use self::room::{Page, Taken};

/// Events that are read at a time. Of a long history the next page is read once half of one is sent, or at once where that is small.
const PAGE: u32 = 1_000;
/// The first page is small: until it is there, nothing can be sent.
const FIRST_PAGE: u32 = 100;
/// Bytes of a page that is small.
const SMALL_BYTES: usize = 128 * 1024;
/// How often what is missing is tried to be read: a stream that was fine does not end with the first failure.
const FILL_TRIES: u32 = 3;
const FILL_AGAIN: Duration = Duration::from_secs(1);
/// How long a quiet subscription waits before it looks at the log: while a turn is running or the relay is down, and
/// otherwise. An open stream of an idle session must cost next to nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_IDLE: Duration = Duration::from_secs(5);

/// The session's events after `after_seq`, first those that have been, then those that come, until the session ends.
///
/// Durable events come in order, each once. Previews come between them as they happen, never after the event that replaces
/// them; with `durable_only` not at all. A reader that can't keep up with what happens gets [`Error::SlowConsumer`] as the
/// last item; while it still reads what has been, or what it missed, it may take its time. One whose session is erased meanwhile gets
/// [`Error::SessionNotFound`]. The caller has checked that the session exists and has the number.
pub async fn follow(
    events: Arc<dyn EventLog>,
    hub: &Hub,
    tenant: TenantId,
    session: SessionId,
    after_seq: u64,
    durable_only: bool,
) -> Result<impl Stream<Item = Result<SessionEvent, Error>> + Send + use<>, Error> {
    let following = place(hub, tenant, session, durable_only).await.follow(events, after_seq).await?;
    if after_seq > 0 {
        hub.metrics().resumes.inc();
    }
    Ok(following)
}

/// A place to watch from: what happens from now on is seen, whenever it is followed.
pub async fn place(hub: &Hub, tenant: TenantId, session: SessionId, durable_only: bool) -> Place {
    let options = SubscribeOptions { previews: !durable_only };
    let subscription = hub.subscribe(tenant, session, options).await;
    Place { hub: hub.clone(), tenant, session, options, subscription }
}

/// See [`place`].
pub struct Place {
    hub: Hub,
    tenant: TenantId,
    session: SessionId,
    options: SubscribeOptions,
    subscription: Subscription,
}

impl Place {
    /// See [`follow`].
    pub async fn follow(
        self,
        events: Arc<dyn EventLog>,
        after_seq: u64,
    ) -> Result<impl Stream<Item = Result<SessionEvent, Error>> + Send + use<>, Error> {
        let mut follower = self.follower(events, after_seq, Phase::History);
        follower.read_first().await?;
        Ok(follower.stream())
    }

    /// As [`Self::follow`], where all that comes after `after_seq` has happened at this replica since the place was taken, or is yet
    /// to happen: the log is not read, unless something turns out to be missing.
    pub fn follow_from_here(
        self,
        events: Arc<dyn EventLog>,
        after_seq: u64,
    ) -> impl Stream<Item = Result<SessionEvent, Error>> + Send + use<> {
        self.follower(events, after_seq, Phase::Live).stream()
    }

    fn follower(self, events: Arc<dyn EventLog>, after_seq: u64, phase: Phase) -> Follower {
        let Self { hub, tenant, session, options, subscription } = self;
        Follower {
            events,
            hub,
            tenant,
            session,
            options,
            subscription,
            ready: VecDeque::new(),
            page: None,
            ahead: None,
            held: None,
            phase,
            last_seq: after_seq,
            replaced_to: after_seq,
            skipped: 0,
            is_running: true,
            has_ended: false,
            watched: None,
            asked: None,
            known_until: None,
            look_at: Instant::now() + LOOK_EVERY,
            bell: Box::pin(sleep_until(Instant::now() + LOOK_EVERY)),
        }
    }
}

/// Where the reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Reads what has been before it came.
    History,
    /// Has read all of that, and has not looked at the subscription yet.
    Seam,
    /// Takes what the subscription brings.
    Live,
    /// Something is missing, and the log has it.
    Filling,
    /// Has read all of that, and has not looked at the subscription since.
    Filled,
    /// Nothing is known to be missing; the log may know better.
    Looking,
}

struct Follower {
    events: Arc<dyn EventLog>,
    hub: Hub,
    tenant: TenantId,
    session: SessionId,
    options: SubscribeOptions,
    subscription: Subscription,
    /// To be sent next.
    ready: VecDeque<SessionEvent>,
    /// Read from the log, to be sent behind those.
    page: Option<Arc<Page>>,
    /// The page of history behind that one, as far as it has come.
    ahead: Option<AbortOnDropHandle<Result<Arc<Page>, Error>>>,
    /// A preview that came before an event it follows.
    held: Option<(SessionEvent, u64)>,
    phase: Phase,
    /// The last number sent.
    last_seq: u64,
    /// The last number sent that replaces previews: those that happened before it are out of date.
    replaced_to: u64,
    /// Previews left out and not yet told of.
    skipped: u64,
    /// By the events sent so far.
    is_running: bool,
    has_ended: bool,
    /// Since the first look at the log, which most streams never take.
    watched: Option<Watched>,
    /// The look that it waits for.
    asked: Option<Asked>,
    /// The last look, which may have been another's, said until then that there is nothing.
    known_until: Option<Instant>,
    /// When the log is to be looked at, unless something comes before.
    look_at: Instant,
    /// Rings then, or before. One timer for all that comes: to set one for each event would cost more than to pass it on.
    bell: Pin<Box<Sleep>>,
}

impl Follower {
    fn stream(self) -> impl Stream<Item = Result<SessionEvent, Error>> + Send + use<> {
        // Boxed, as it is moved with each event.
        let follower = Box::new(self);
        stream::unfold(follower, |mut follower| async move { follower.next().await.map(|next| (next, follower)) })
    }

    /// The first page, and with it the event that the caller has already: it may be the one that ended the session.
    async fn read_first(&mut self) -> Result<(), Error> {
        let after_seq = self.last_seq.saturating_sub(1);
        loop {
            let page = self.read_page(after_seq, FIRST_PAGE + 1).await?;
            if page.len == 0 {
                return Err(self.erased());
            }
            match page.known(self.last_seq) {
                Taken::Event(event, _) => {
                    if let Some(kind) = event.kind {
                        self.has_ended = matches!(kind, Kind::SessionTerminated(_));
                        // An alert mostly comes behind a turn's end, and whatever else a turn says puts it right.
                        self.is_running = !is_rest(&kind) && !is_of_a_budget(&kind);
                    }
                }
                Taken::Empty => {}
                // Whoever asked for it has not come back for long.
                Taken::Away => continue,
            }
            self.take_page(page);
            return Ok(());
        }
    }

    /// Reads on, where it is not known that there is nothing. Until its turn to look has come, it takes what happens here.
    async fn look(&mut self) -> Result<(), Error> {
        let watched = self.watched.get_or_insert_with(|| self.hub.looks().watch(self.tenant, self.session));
        let asked_at = self.asked.as_ref().map_or_else(Instant::now, |asked| asked.at);
        let looked = if let Some(known) = watched.known(self.last_seq, asked_at) {
            known
        } else {
            let ask = || watched.ask(self.last_seq, &self.events, self.hub.tasks());
            let asked = self.asked.get_or_insert_with(ask);
            tokio::select! {
                biased;
                Some(item) = self.subscription.next() => return self.take(item),
                looked = &mut asked.look => {
                    self.asked = None;
                    looked.map_err(Error::internal)??
                }
            }
        };
        match looked {
            Looked::Nothing { doubts, .. } if watched.is_doubted(doubts) => return Ok(()),
            Looked::Nothing { at, .. } => {
                self.phase = Phase::Live;
                self.known_until = Some(at + LOOK_EVERY);
                return Ok(());
            }
            Looked::Gone => return Err(self.erased()),
            // It has come meanwhile. Where nothing more is likely to come, what stands behind it is asked for at once.
            Looked::News { newest } | Looked::More { newest } if newest <= self.last_seq => {
                if self.is_running {
                    self.phase = Phase::Live;
                }
                return Ok(());
            }
            // So that they need not wait for their own turn to look.
            Looked::News { .. } => self.hub.look_again(self.tenant, self.session),
            Looked::More { .. } => {}
        }
        self.read().await?;
        if self.phase == Phase::Looking {
            // It was more than one page.
            self.phase = Phase::Filling;
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), Error> {
        let ahead = match self.ahead.take() {
            // What could not be read while nobody waited for it may be now.
            Some(ahead) => ahead.await.map_err(Error::internal)?.ok().filter(|page| !page.is_away()),
            None => None,
        };
        let page = match ahead {
            Some(page) => page,
            None => self.read_page(self.last_seq, PAGE).await?,
        };
        if self.is_doubtful(&page) && !self.is_there().await? {
            return Err(self.erased());
        }
        self.take_page(page);
        Ok(())
    }

    /// Whether there is nothing behind the last number, though there was to be, since the session may be gone. A live stream hears of its
    /// session's end, unless its reader was so slow, and the relay so long away, that it is erased by now.
    fn is_doubtful(&self, page: &Page) -> bool {
        page.len == 0 && matches!(self.phase, Phase::History | Phase::Looking)
    }

    async fn fill(&mut self) -> Result<(), Error> {
        let mut tries = 1;
        loop {
            match self.read().await {
                Err(Error::Unavailable { .. }) if tries < FILL_TRIES => tries += 1,
                read => return read,
            }
            sleep(FILL_AGAIN).await;
        }
    }

    async fn read_page(&self, after_seq: u64, limit: u32) -> Result<Arc<Page>, Error> {
        self.reading(after_seq, limit).await.map_err(Error::internal)?
    }

    /// In a task of its own, that goes on when this stream is not asked for more: see [`Room`].
    fn reading(&self, after_seq: u64, limit: u32) -> AbortOnDropHandle<Result<Arc<Page>, Error>> {
        let (events, room) = (Arc::clone(&self.events), self.hub.replays().clone());
        let (tenant, session) = (self.tenant, self.session);
        let read = async move { room.read(&*events, tenant, session, after_seq, limit).await };
        AbortOnDropHandle::new(self.hub.tasks().spawn("replay-page", read))
    }

    /// Whether the session still has the event that was sent last. It has, unless the session was erased: a session that ends is
    /// kept for longer than its watchers need to hear of it, but not for longer than someone may take over its history.
    async fn is_there(&self) -> Result<bool, Error> {
        let after = self.last_seq.saturating_sub(1);
        Ok(!self.events.read(self.tenant, self.session, after, 1).await?.is_empty())
    }

    fn erased(&self) -> Error {
        Error::SessionNotFound { session_id: self.session.to_string() }
    }

    fn take_page(&mut self, page: Arc<Page>) {
        if self.phase != Phase::History {
            self.hub.metrics().filled.inc_by(page.len as u64);
        }
        self.phase = match (page.is_last, self.phase) {
            (false, phase) => phase,
            (true, Phase::History) => Phase::Seam,
            (true, Phase::Filling | Phase::Looking) => Phase::Filled,
            (true, Phase::Seam | Phase::Filled | Phase::Live) => Phase::Live,
        };
        self.page = Some(page);
    }

    /// The next event of the page.
    fn turn_page(&mut self) -> Option<SessionEvent> {
        let page = self.page.as_ref()?;
        match page.take() {
            Taken::Event(event, left) => {
                if self.phase == Phase::History
                    && self.ahead.is_none()
                    && (page.bytes <= SMALL_BYTES || left * 2 <= page.len)
                {
                    self.ahead = Some(self.reading(page.last_seq, PAGE));
                }
                if left == 0 {
                    self.page = None;
                }
                return Some(*event);
            }
            Taken::Empty => {}
            // As if it had not been read yet.
            Taken::Away => {
                self.ahead = None;
                self.phase = match self.phase {
                    Phase::History | Phase::Seam => Phase::History,
                    Phase::Live | Phase::Filling | Phase::Filled | Phase::Looking => Phase::Filling,
                };
            }
        }
        self.page = None;
        None
    }

    async fn next(&mut self) -> Option<Result<SessionEvent, Error>> {
        loop {
            if let Some(event) = self.ready.pop_front().or_else(|| self.turn_page()) {
                return Some(Ok(self.send(event)));
            }
            if self.has_ended {
                return None;
            }
            if self.phase != Phase::Looking {
                self.asked = None;
            }
            let step = match self.phase {
                Phase::History => self.read().await,
                Phase::Filling => self.fill().await,
                Phase::Seam => self.cross(Phase::History).await,
                Phase::Filled => self.cross(Phase::Filling).await,
                Phase::Live => self.live().await,
                Phase::Looking => match self.look().await {
                    Ok(()) => Ok(()),
                    Err(end @ (Error::SessionNotFound { .. } | Error::SlowConsumer { .. })) => Err(end),
                    Err(error) => {
                        // What comes live needs no log, so the stream goes on.
                        tracing::debug!(tenant = %self.tenant, session = %self.session, %error, "cannot look at the log");
                        self.phase = Phase::Live;
                        Ok(())
                    }
                },
            };
            if let Err(error) = step {
                self.has_ended = true;
                return Some(Err(error));
            }
        }
    }

    /// A reader of a long history, or of much that it missed, may have let its subscription overflow, which is no fault: it takes a new
    /// one, and reads on.
    async fn cross(&mut self, reading: Phase) -> Result<(), Error> {
        self.phase = match self.subscription.lagged() {
            Some(dropped_previews) => {
                self.skipped += dropped_previews;
                self.subscription = self.hub.subscribe(self.tenant, self.session, self.options).await;
                reading
            }
            None => Phase::Live,
        };
        Ok(())
    }

    async fn live(&mut self) -> Result<(), Error> {
        if let Some((event, after_seq)) = self.held.take() {
            self.preview(event, after_seq.min(self.last_seq));
            return Ok(());
        }
        if let Some(item) = self.hear().await {
            return self.take(item);
        }
        self.phase = Phase::Looking;
        Ok(())
    }

    fn take(&mut self, item: Item) -> Result<(), Error> {
        match item {
            Item::Durable(event) if event.seq <= self.last_seq => {}
            Item::Durable(event) if event.seq == self.last_seq + 1 => self.ready.push_back(event),
            Item::Durable(_) => self.phase = Phase::Filling,
            Item::Preview { event, after_seq } if after_seq > self.last_seq => {
                self.held = Some((event, after_seq));
                self.phase = Phase::Filling;
            }
            Item::Preview { event, after_seq } => self.preview(event, after_seq),
            Item::Gap { dropped_previews } => {
                self.skipped += dropped_previews;
                self.tell_gap();
            }
            Item::Lagged { .. } => return Err(Error::SlowConsumer { resume_after: self.last_seq }),
            Item::Resync => self.phase = Phase::Looking,
        }
        Ok(())
    }

    /// What the subscription brings; `None` when it has brought nothing for so long that the log is to be looked at.
    async fn hear(&mut self) -> Option<Item> {
        let is_quiet = !self.is_running && self.hub.relay_is_up();
        let now = Instant::now();
        self.look_at = now + if is_quiet { LOOK_EVERY_IDLE } else { LOOK_EVERY };
        // A log that is slow to tell is given its time.
        if let Some(known_until) = self.known_until.take().filter(|until| !is_quiet && *until > now) {
            self.look_at = self.look_at.min(known_until);
        }
        // It may ring too early, and never too late.
        if self.bell.deadline() > self.look_at {
            self.bell.as_mut().reset(self.look_at);
        }
        loop {
            tokio::select! {
                biased;
                item = self.subscription.next() => return item,
                () = &mut self.bell => {}
            }
            if Instant::now() >= self.look_at {
                return None;
            }
            self.bell.as_mut().reset(self.look_at);
        }
    }

    fn preview(&mut self, event: SessionEvent, after_seq: u64) {
        if after_seq < self.replaced_to {
            self.skipped += 1;
            self.hub.metrics().stale_previews.inc();
            return;
        }
        self.tell_gap();
        self.ready.push_back(event);
    }

    /// Says that previews are missing, if any are.
    fn tell_gap(&mut self) {
        if self.skipped == 0 {
            return;
        }
        let gap = v1::Gap { dropped_previews: std::mem::take(&mut self.skipped), last_seq: self.last_seq };
        self.hub.metrics().gaps.inc();
        self.ready.push_back(SessionEvent {
            session_id: self.session.to_string(),
            create_time: Some(now()),
            kind: Some(Kind::Gap(gap)),
            ..Default::default()
        });
    }

    fn send(&mut self, event: SessionEvent) -> SessionEvent {
        let Some(kind) = event.kind.as_ref().filter(|_| event.seq > 0) else {
            self.last_seq = self.last_seq.max(event.seq);
            return event;
        };
        self.last_seq = event.seq;
        if !is_of_a_budget(kind) {
            self.is_running = !is_rest(kind);
        }
        self.has_ended = matches!(kind, Kind::SessionTerminated(_));
        if is_of_the_turn(kind) {
            self.replaced_to = event.seq;
        }
        if matches!(kind, Kind::AgentMessage(_)) {
            // It holds what the previews that were left out held.
            self.skipped = 0;
        }
        event
    }
}

/// After it the session waits for someone to say something.
fn is_rest(kind: &Kind) -> bool {
    matches!(kind, Kind::SessionCreated(_) | Kind::SessionReady(_) | Kind::SessionIdle(_) | Kind::SessionTerminated(_))
}

/// Says nothing of whether a turn runs: it may come behind the turn's end as well.
fn is_of_a_budget(kind: &Kind) -> bool {
    matches!(kind, Kind::BudgetAlert(_) | Kind::BudgetReached(_))
}

/// Written by the turn itself, so that the previews which happened before it are out of date. The others may come from
/// anyone in mid sentence.
fn is_of_the_turn(kind: &Kind) -> bool {
    !matches!(kind, Kind::UserMessage(_) | Kind::ApprovalResolved(_) | Kind::BudgetAlert(_) | Kind::BudgetReached(_))
}
