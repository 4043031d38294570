//! What waits to go to the relay. A session's events go in order and together: whatever came up while the last frame
//! was under way is the next frame, so an idle system waits for nothing and a busy one sends few large frames.

use std::collections::{HashMap, VecDeque};
use std::sync::PoisonError;

use croft_proto::id::{SessionId, TenantId};
use tokio::sync::Notify;
use uuid::Uuid;

use super::queue::Sized;
use crate::events::relay::{Envelope, Frame};
use crate::sync::{Mutex, MutexGuard};

pub(super) type Key = (TenantId, SessionId);

/// Of one session. At the bound the oldest previews go, then the oldest durable events: the log has them.
const SESSION_EVENTS_MAX: usize = 1024;
const SESSION_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Of all sessions. At the bound an event that comes goes nowhere.
const EVENTS_MAX: usize = 65_536;
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Of one session; at the bound the oldest goes. A turn has few to expect.
const CONTROLS_MAX: usize = 16;

/// What one push left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shed {
    pub(super) previews: u64,
    pub(super) durables: u64,
}

/// A frame to send. [`Outbox::done`] must follow.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) envelope: Envelope,
}

/// Shared by the hub, which pushes, and the senders, which take.
#[derive(Debug)]
pub(super) struct Outbox {
    origin: Uuid,
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<Key, Pending>,
    /// Sessions that have something to send and no frame under way.
    ready: VecDeque<Key>,
    events: usize,
    bytes: usize,
    closed: bool,
}

#[derive(Debug, Default)]
struct Pending {
    events: VecDeque<Sized>,
    bytes: usize,
    controls: VecDeque<Frame>,
    dropped: u64,
    /// In [`State::ready`].
    in_line: bool,
    /// A frame has been taken and is not done.
    under_way: bool,
}

impl Outbox {
    pub(super) fn new(origin: Uuid) -> Self {
        Self { origin, state: Mutex::default(), wanted: Notify::new() }
    }

    pub(super) fn push(&self, key: Key, events: Vec<Sized>) -> Shed {
        let mut shed = Shed::default();
        let mut state = self.lock();
        for event in events {
            state.push(key, event, &mut shed);
        }
        state.enlist(key);
        drop(state);
        self.wanted.notify_one();
        shed
    }

    /// What waits already is not said twice: each that comes to watch says so, and many of them must not push out what a turn must hear.
    pub(super) fn push_control(&self, key: Key, frame: Frame) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let pending = state.sessions.entry(key).or_default();
        if pending.controls.contains(&frame) {
            return;
        }
        if pending.controls.len() >= CONTROLS_MAX {
            pending.controls.pop_front();
        }
        pending.controls.push_back(frame);
        state.enlist(key);
        drop(state);
        self.wanted.notify_one();
    }

    /// The next frame; `None` once the outbox is closed and empty.
    pub(super) async fn take(&self) -> Option<Job> {
        loop {
            let wanted = self.wanted.notified();
            {
                let mut state = self.lock();
                if let Some(job) = state.take(self.origin) {
                    if !state.ready.is_empty() {
                        self.wanted.notify_one();
                    }
                    return Some(job);
                }
                if state.closed {
                    // The other senders are to see it too.
                    self.wanted.notify_one();
                    return None;
                }
            }
            wanted.await;
        }
    }

    /// The session's frame has arrived, or was lost with so many previews, of which the next frame tells.
    pub(super) fn done(&self, key: Key, lost_previews: u64) {
        let mut state = self.lock();
        if let Some(pending) = state.sessions.get_mut(&key) {
            pending.under_way = false;
            pending.dropped += lost_previews;
        }
        state.enlist(key);
        drop(state);
        self.wanted.notify_one();
    }

    /// Takes nothing in any more; what is here still goes out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wanted.notify_one();
    }

    /// Events that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().events
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, key: Key, event: Sized, shed: &mut Shed) {
        let full = self.events >= EVENTS_MAX || self.bytes + event.bytes > BYTES_MAX;
        if self.closed || full {
            if event.is_preview() {
                shed.previews += 1;
                // A session that has nothing here gets no entry for a loss: that would be a way around the bound.
                if let Some(pending) = self.sessions.get_mut(&key) {
                    pending.dropped += 1;
                }
            } else {
                shed.durables += 1;
            }
            return;
        }
        let pending = self.sessions.entry(key).or_default();
        while !pending.events.is_empty()
            && (pending.events.len() >= SESSION_EVENTS_MAX || pending.bytes + event.bytes > SESSION_BYTES_MAX)
        {
            let oldest = pending.events.iter().position(Sized::is_preview).unwrap_or(0);
            let Some(gone) = pending.events.remove(oldest) else { break };
            pending.bytes -= gone.bytes;
            self.bytes -= gone.bytes;
            self.events -= 1;
            if gone.is_preview() {
                pending.dropped += 1;
                shed.previews += 1;
            } else {
                shed.durables += 1;
            }
        }
        pending.bytes += event.bytes;
        self.bytes += event.bytes;
        self.events += 1;
        pending.events.push_back(event);
    }

    /// Puts the session in line if it has something to send and none under way, and forgets it if it has neither.
    fn enlist(&mut self, key: Key) {
        let Some(pending) = self.sessions.get_mut(&key) else { return };
        if pending.under_way || pending.in_line {
            return;
        }
        if pending.events.is_empty() && pending.controls.is_empty() {
            self.sessions.remove(&key);
        } else {
            pending.in_line = true;
            self.ready.push_back(key);
        }
    }

    fn take(&mut self, origin: Uuid) -> Option<Job> {
        let key = self.ready.pop_front()?;
        let pending = self.sessions.get_mut(&key)?;
        pending.in_line = false;
        pending.under_way = true;
        if let Some(frame) = pending.controls.pop_front() {
            return Some(Job { key, envelope: Envelope { origin, after_seq: 0, dropped_previews: 0, frame } });
        }
        let after_seq = pending.events.front().map_or(0, |event| event.after_seq);
        let dropped_previews = std::mem::take(&mut pending.dropped);
        self.events -= pending.events.len();
        self.bytes -= std::mem::take(&mut pending.bytes);
        let events = pending.events.drain(..).map(Sized::into_event).collect();
        Some(Job { key, envelope: Envelope { origin, after_seq, dropped_previews, frame: Frame::Events(events) } })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use croft_proto::v1::SessionEvent;

    use super::*;

    fn key() -> Key {
        (TenantId::generate(), SessionId::generate())
    }

    fn durable(seq: u64) -> Sized {
        let event = SessionEvent { seq, ..Default::default() };
        Sized { event: Arc::new(event.into()), bytes: 10, after_seq: seq - 1 }
    }

    fn preview(after_seq: u64) -> Sized {
        Sized { event: Arc::default(), bytes: 10, after_seq }
    }

    fn numbers(job: &Job) -> Vec<u64> {
        match &job.envelope.frame {
            Frame::Events(events) => events.iter().map(|event| event.seq).collect(),
            other => panic!("not events: {other:?}"),
        }
    }

    #[tokio::test]
    async fn what_comes_while_a_frame_is_under_way_is_the_next_frame() {
        let (outbox, heron, plover) = (Outbox::new(Uuid::now_v7()), key(), key());
        outbox.push(heron, vec![durable(1)]);
        let first = outbox.take().await.unwrap();
        assert_eq!(numbers(&first), [1]);
        outbox.push(heron, vec![durable(2)]);
        outbox.push(heron, vec![preview(2), durable(3)]);
        outbox.push(plover, vec![durable(7)]);
        assert_eq!(outbox.take().await.unwrap().key, plover, "heron's frame is under way");
        outbox.done(heron, 0);
        let second = outbox.take().await.unwrap();
        assert_eq!((second.key, numbers(&second), second.envelope.after_seq), (heron, vec![2, 0, 3], 1));
    }

    #[tokio::test]
    async fn a_control_overtakes_events() {
        let (outbox, heron) = (Outbox::new(Uuid::now_v7()), key());
        outbox.push(heron, vec![durable(1)]);
        outbox.push_control(heron, Frame::Interrupt { turn: None });
        assert_eq!(outbox.take().await.unwrap().envelope.frame, Frame::Interrupt { turn: None });
        outbox.done(heron, 0);
        assert_eq!(numbers(&outbox.take().await.unwrap()), [1]);
    }

    /// So many viewers came while the relay was slow that a turn never heard of its session's end.
    #[tokio::test]
    async fn however_many_come_to_watch_a_turn_hears_of_its_end() {
        let (outbox, heron) = (Outbox::new(Uuid::now_v7()), key());
        outbox.push_control(heron, Frame::Terminated);
        for _ in 0..=CONTROLS_MAX {
            outbox.push_control(heron, Frame::Listening);
        }
        for frame in [Frame::Terminated, Frame::Listening] {
            assert_eq!(outbox.take().await.unwrap().envelope.frame, frame);
            outbox.done(heron, 0);
        }
        assert!(outbox.lock().sessions.is_empty());
    }

    #[tokio::test]
    async fn a_slow_relay_costs_previews_first_and_the_next_frame_tells_how_many() {
        let (outbox, heron) = (Outbox::new(Uuid::now_v7()), key());
        outbox.push(heron, vec![durable(1)]);
        outbox.take().await.unwrap();
        let shed = outbox.push(heron, vec![preview(1); SESSION_EVENTS_MAX + 5]);
        assert_eq!(shed, Shed { previews: 5, durables: 0 });
        let durables = (2..).take(SESSION_EVENTS_MAX + 1).map(durable).collect();
        let shed = outbox.push(heron, durables);
        assert_eq!(shed, Shed { previews: SESSION_EVENTS_MAX as u64, durables: 1 });
        outbox.done(heron, 3);
        let job = outbox.take().await.unwrap();
        assert_eq!(job.envelope.dropped_previews, SESSION_EVENTS_MAX as u64 + 5 + 3);
        assert_eq!(numbers(&job)[0], 3);
    }

    #[tokio::test]
    async fn a_closed_outbox_empties_and_ends_for_every_sender() {
        let (outbox, heron) = (Arc::new(Outbox::new(Uuid::now_v7())), key());
        outbox.push(heron, vec![durable(1)]);
        outbox.close();
        assert_eq!(outbox.push(heron, vec![durable(2), preview(2)]), Shed { previews: 1, durables: 1 });
        assert_eq!(numbers(&outbox.take().await.unwrap()), [1]);
        let (one, other) = tokio::join!(outbox.take(), outbox.take());
        assert!(one.is_none() && other.is_none());
        outbox.done(heron, 0);
        assert!(outbox.lock().sessions.is_empty());
    }
}
