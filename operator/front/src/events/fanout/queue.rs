//! The queue of one subscriber: bounded in events and bytes, drop-oldest for previews, and closed rather than broken
//! for durable events.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use croft_proto::v1::SessionEvent;

use super::Item;
use super::crowd::Held;
use crate::sync::{Mutex, MutexGuard};

/// An event on its way to many, with its size on the wire.
#[derive(Debug, Clone)]
pub(super) struct Sized {
    pub(super) event: Arc<Told>,
    pub(super) bytes: usize,
    /// For previews: the newest durable number that the sender knew of.
    pub(super) after_seq: u64,
}

impl Sized {
    pub(super) fn is_preview(&self) -> bool {
        self.event.seq == 0
    }

    /// Without a copy, if nobody else has it.
    pub(super) fn into_event(self) -> SessionEvent {
        Arc::try_unwrap(self.event).map_or_else(|shared| shared.event.clone(), |told| told.event)
    }

    /// It lies in one more queue; in the first it is counted.
    fn enter(&self, held: &Held) {
        if self.event.queues.fetch_add(1, Ordering::Relaxed) == 0 {
            held.add(self.bytes);
        }
    }

    fn leave(&self, held: &Held) {
        if self.event.queues.fetch_sub(1, Ordering::Relaxed) == 1 {
            held.subtract(self.bytes);
        }
    }
}

/// An event that is told to several.
#[derive(Debug, Default)]
pub(super) struct Told {
    event: SessionEvent,
    /// In so many it lies.
    queues: AtomicUsize,
}

impl From<SessionEvent> for Told {
    fn from(event: SessionEvent) -> Self {
        Self { event, queues: AtomicUsize::new(0) }
    }
}

impl Deref for Told {
    type Target = SessionEvent;

    fn deref(&self) -> &SessionEvent {
        &self.event
    }
}

/// What a push did beyond taking the event in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    Kept,
    /// So many previews were dropped.
    Dropped(u64),
    /// The queue overflowed with durable events, and has ended.
    Overflowed,
}

/// Where the hub pushes and one subscriber pops. Neither waits for the other.
#[derive(Debug)]
pub(super) struct Queue {
    events_max: usize,
    bytes_max: usize,
    held: Held,
    state: Mutex<State>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.lock().clear(&self.held);
    }
}

#[derive(Debug, Default)]
struct State {
    /// Each with its place in the order of all, so that the oldest preview is found without looking through what stands before it.
    durables: VecDeque<(u64, Sized)>,
    previews: VecDeque<(u64, Sized)>,
    next_place: u64,
    bytes: usize,
    /// Previews dropped since the last gap notice.
    dropped: u64,
    /// Frames may be missing: the subscriber looks at the log.
    resync: bool,
    lagged: bool,
    /// The newest durable number that was popped.
    last_seq: u64,
    /// So many sweeps have found something durable here since the reader asked.
    sweeps: u32,
    waker: Option<Waker>,
}

impl Queue {
    /// At either bound the oldest previews go first; without any left, the queue ends. Of bytes, only what a publish finds counts,
    /// but for the oldest event: so an event always fits, whatever its size, and so does all that one publish brings to a
    /// reader that had taken what was there.
    pub(super) fn new(events_max: usize, bytes_max: usize, held: Held) -> Self {
        Self { events_max, bytes_max, held, state: Mutex::default() }
    }

    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// Takes in what is published together.
    pub(super) fn push_all(&self, events: impl IntoIterator<Item = Sized>) -> Pushed {
        let mut state = self.lock();
        if state.lagged {
            state.dropped += events.into_iter().filter(Sized::is_preview).count() as u64;
            return Pushed::Kept;
        }
        let (first_place, mut found_bytes, mut dropped) = (state.next_place, state.bytes, 0);
        for event in events {
            let mut fits = true;
            while fits && self.is_full(&state, found_bytes) {
                if let Some((place, gone)) = state.previews.pop_front() {
                    gone.leave(&self.held);
                    state.bytes -= gone.bytes;
                    found_bytes -= if place < first_place { gone.bytes } else { 0 };
                    dropped += 1;
                } else {
                    fits = false;
                }
            }
            if fits {
                event.enter(&self.held);
                state.push(event);
            } else if event.is_preview() {
                dropped += 1;
            } else {
                // Nothing that is queued may be skipped: better no memory held than half a story.
                state.dropped += dropped;
                state.end(&self.held);
                return Pushed::Overflowed;
            }
        }
        state.dropped += dropped;
        state.wake();
        if dropped > 0 { Pushed::Dropped(dropped) } else { Pushed::Kept }
    }

    fn is_full(&self, state: &State, found_bytes: usize) -> bool {
        state.len() >= self.events_max || found_bytes.saturating_sub(state.oldest_bytes()) > self.bytes_max
    }

    /// Previews were lost before they came here.
    pub(super) fn note_dropped(&self, previews: u64) {
        self.lock().dropped += previews;
    }

    /// Frames may have been lost before they came here.
    pub(super) fn resync(&self) {
        let mut state = self.lock();
        state.resync = true;
        state.wake();
    }

    pub(super) fn poll_pop(&self, context: &mut Context<'_>) -> Poll<Item> {
        let mut state = self.lock();
        // Who asks is not stuck, whatever there is to take: with many streams on one connection, the next turn may be a while off.
        state.sweeps = 0;
        if state.lagged {
            return Poll::Ready(Item::Lagged { last_seq: state.last_seq });
        }
        if std::mem::take(&mut state.resync) {
            return Poll::Ready(Item::Resync);
        }
        if state.dropped > 0 && state.len() > 0 {
            return Poll::Ready(Item::Gap { dropped_previews: std::mem::take(&mut state.dropped) });
        }
        let Some(next) = state.pop() else {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        next.leave(&self.held);
        state.bytes -= next.bytes;
        let after_seq = next.after_seq;
        if next.is_preview() {
            return Poll::Ready(Item::Preview { event: next.into_event(), after_seq });
        }
        state.last_seq = next.event.seq;
        Poll::Ready(Item::Durable(next.into_event()))
    }

    /// If it has ended by overflow: the previews that were dropped since the last gap notice.
    pub(super) fn lagged(&self) -> Option<u64> {
        let state = self.lock();
        state.lagged.then_some(state.dropped)
    }

    /// Bytes that lie here and have not just come.
    pub(super) fn weight(&self) -> usize {
        self.lock().weight()
    }

    /// Drops the previews, to make room: so many.
    pub(super) fn shed(&self) -> u64 {
        let mut state = self.lock();
        let previews = std::mem::take(&mut state.previews);
        for (_, gone) in &previews {
            gone.leave(&self.held);
            state.bytes -= gone.bytes;
        }
        state.dropped += previews.len() as u64;
        previews.len() as u64
    }

    /// Ends it where something durable lies and it still weighs so much, to make room. False if it was not so.
    pub(super) fn end(&self, bytes_min: usize) -> bool {
        let mut state = self.lock();
        let ends = !state.durables.is_empty() && state.weight() >= bytes_min;
        if ends {
            state.end(&self.held);
        }
        ends
    }

    /// Ends it when something durable was here so many sweeps ago and the reader has not asked since. False if it goes on, or had ended.
    pub(super) fn sweep(&self, sweeps_max: u32) -> bool {
        let mut state = self.lock();
        state.sweeps = if state.durables.is_empty() { 0 } else { state.sweeps.saturating_add(1) };
        let ends = state.sweeps > sweeps_max;
        if ends {
            state.end(&self.held);
        }
        ends
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn push(&self, event: Sized) -> Pushed {
        self.push_all([event])
    }
}

impl State {
    fn push(&mut self, event: Sized) {
        self.bytes += event.bytes;
        let place = self.next_place;
        self.next_place += 1;
        if event.is_preview() {
            self.previews.push_back((place, event));
        } else {
            self.durables.push_back((place, event));
        }
    }

    /// Keeps nothing, and takes nothing from now on.
    fn end(&mut self, held: &Held) {
        self.dropped += self.previews.len() as u64;
        self.clear(held);
        self.lagged = true;
        self.wake();
    }

    fn clear(&mut self, held: &Held) {
        let (durables, previews) = (std::mem::take(&mut self.durables), std::mem::take(&mut self.previews));
        durables.iter().chain(&previews).for_each(|(_, event)| event.leave(held));
        self.bytes = 0;
        self.sweeps = 0;
    }

    /// See [`Queue::weight`]. Until a second look finds something durable here still, the oldest event may have just come.
    fn weight(&self) -> usize {
        let has_lain = self.sweeps > 1;
        if has_lain { self.bytes } else { self.bytes - self.oldest_bytes() }
    }

    /// Of the event that is popped next; 0 for none.
    fn oldest_bytes(&self) -> usize {
        let fronts = self.durables.front().into_iter().chain(self.previews.front());
        fronts.min_by_key(|(place, _)| *place).map_or(0, |(_, event)| event.bytes)
    }

    fn len(&self) -> usize {
        self.durables.len() + self.previews.len()
    }

    /// The oldest of all.
    fn pop(&mut self) -> Option<Sized> {
        let (durable, preview) = (self.durables.front(), self.previews.front());
        let is_durable = match (durable, preview) {
            (Some((durable, _)), Some((preview, _))) => durable < preview,
            (durable, _) => durable.is_some(),
        };
        let queue = if is_durable { &mut self.durables } else { &mut self.previews };
        queue.pop_front().map(|(_, event)| event)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable(seq: u64) -> Sized {
        let event = SessionEvent { seq, ..Default::default() };
        Sized { event: Arc::new(event.into()), bytes: 10, after_seq: 0 }
    }

    fn preview(after_seq: u64) -> Sized {
        Sized { event: Arc::default(), bytes: 10, after_seq }
    }

    fn pop(queue: &Queue) -> Option<Item> {
        match queue.poll_pop(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(item) => Some(item),
            Poll::Pending => None,
        }
    }

    fn is_durable(item: Option<Item>, seq: u64) -> bool {
        matches!(item, Some(Item::Durable(event)) if event.seq == seq)
    }

    #[test]
    fn the_oldest_previews_go_first_and_the_gap_is_told_before_the_next_event() {
        let queue = Queue::new(3, 1_000, Held::unbounded());
        assert_eq!(queue.push(preview(1)), Pushed::Kept);
        assert_eq!(queue.push(preview(2)), Pushed::Kept);
        assert_eq!(queue.push(durable(3)), Pushed::Kept);
        assert_eq!(queue.push(durable(4)), Pushed::Dropped(1));
        assert_eq!(queue.push(preview(4)), Pushed::Dropped(1));
        assert_eq!(pop(&queue), Some(Item::Gap { dropped_previews: 2 }));
        assert!(is_durable(pop(&queue), 3));
        assert!(is_durable(pop(&queue), 4));
        assert!(matches!(pop(&queue), Some(Item::Preview { after_seq: 4, .. })));
        assert_eq!(pop(&queue), None);
    }

    #[test]
    fn a_preview_that_finds_only_durable_events_is_the_one_that_goes() {
        let queue = Queue::new(2, 1_000, Held::unbounded());
        queue.push(durable(1));
        queue.push(durable(2));
        assert_eq!(queue.push(preview(2)), Pushed::Dropped(1));
        assert_eq!(pop(&queue), Some(Item::Gap { dropped_previews: 1 }));
        assert!(is_durable(pop(&queue), 1));
    }

    #[test]
    fn too_many_durable_events_end_the_queue_with_the_last_number_that_was_popped() {
        let queue = Queue::new(2, 1_000, Held::unbounded());
        queue.push(durable(1));
        assert!(is_durable(pop(&queue), 1));
        queue.push(durable(2));
        queue.push(durable(3));
        assert_eq!(queue.push(durable(4)), Pushed::Overflowed);
        assert_eq!(queue.push(durable(5)), Pushed::Kept);
        assert_eq!(pop(&queue), Some(Item::Lagged { last_seq: 1 }));
        assert_eq!(pop(&queue), Some(Item::Lagged { last_seq: 1 }));
    }

    #[test]
    fn bytes_are_bounded_but_one_event_always_fits() {
        let queue = Queue::new(100, 25, Held::unbounded());
        assert_eq!(queue.push(Sized { bytes: 1_000, ..durable(1) }), Pushed::Kept);
        assert_eq!(queue.push(durable(2)), Pushed::Kept, "the first may be under way to a reader");
        assert!(is_durable(pop(&queue), 1));
        assert!(is_durable(pop(&queue), 2));
        for _ in 0..4 {
            queue.push(preview(2));
        }
        assert_eq!(queue.push(durable(3)), Pushed::Dropped(1));
        queue.push(durable(4));
        assert_eq!(queue.push(durable(5)), Pushed::Dropped(1));
        queue.push(durable(6));
        assert_eq!(queue.push(durable(7)), Pushed::Overflowed, "behind a reader that takes nothing");
    }

    /// A connection with many streams took half a minute for a round: the first of them to have two events was ended.
    #[test]
    fn a_reader_that_asks_is_not_stuck_whatever_it_takes() {
        let queue = Queue::new(100, 1_000, Held::unbounded());
        queue.push_all([preview(0), preview(0), durable(1), durable(2)]);
        for _ in 0..2 {
            assert!((0..5).all(|_| !queue.sweep(5)));
            assert!(matches!(pop(&queue), Some(Item::Preview { .. })));
        }
        assert!((0..5).all(|_| !queue.sweep(5)));
        queue.resync();
        assert_eq!(pop(&queue), Some(Item::Resync));
        assert!((0..5).all(|_| !queue.sweep(5)));
        assert!(queue.sweep(5), "it has not asked for longer");
        assert_eq!(pop(&queue), Some(Item::Lagged { last_seq: 0 }));
    }

    #[test]
    fn what_has_just_come_weighs_nothing_until_it_has_lain() {
        let queue = Queue::new(100, 1_000, Held::unbounded());
        queue.push_all([durable(1), durable(2)]);
        assert_eq!(queue.weight(), 10);
        queue.sweep(5);
        assert_eq!(queue.weight(), 10, "it may have come just before");
        queue.sweep(5);
        assert_eq!(queue.weight(), 20);
        assert!(is_durable(pop(&queue), 1));
        assert_eq!(queue.weight(), 0, "its reader reads");
        assert!(!queue.end(1));
        queue.push(durable(3));
        assert!(queue.end(10));
        assert!(!queue.end(0), "it has ended");
    }

    /// A message of 5 MiB and the word that its turn runs: all who watched were thrown out.
    #[test]
    fn what_is_published_together_fits_where_nothing_lay() {
        let queue = Queue::new(100, 25, Held::unbounded());
        let large = |seq| Sized { bytes: 40, ..durable(seq) };
        assert_eq!(queue.push_all([large(1), durable(2), large(3)]), Pushed::Kept);
        assert_eq!(queue.push(durable(4)), Pushed::Overflowed, "behind a reader that takes nothing");

        let queue = Queue::new(100, 25, Held::unbounded());
        queue.push_all([durable(1), durable(2)]);
        assert_eq!(queue.push_all([large(3), large(4)]), Pushed::Kept, "it had nearly taken what was there");
        assert_eq!(queue.push_all([preview(4), preview(4)]), Pushed::Dropped(2));
        assert_eq!(pop(&queue), Some(Item::Gap { dropped_previews: 2 }));
        assert!((1..=4).all(|seq| is_durable(pop(&queue), seq)));
    }
}
