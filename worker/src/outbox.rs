//! What waits to be sent to the front. Durable messages are never dropped: at their bound the step waits. Previews
//! never wait: at their bound the oldest goes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_proto::v1::execute_step_response::Message;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ExecuteStepResponse, SessionEvent, StepEvent};
use futures::Stream;
use tokio::sync::Notify;
use tonic::Status;

use crate::interrupt::{Interrupt, Why};
use crate::refusal::Refusal;

/// Messages other than previews that may wait. At the bound the step waits for the front.
const DURABLES_MAX: usize = 64;
/// Previews that may wait. At the bound the oldest is dropped: the durable event that follows holds all of it.
const PREVIEWS_MAX: usize = 256;

/// The step's end of the queue. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something was taken out.
    room: Notify,
    /// Something was put in, or the queue was closed.
    news: Notify,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    durables: usize,
    previews: usize,
    dropped_previews: u64,
    /// Of the last durable event.
    event_index: u64,
    /// Nothing comes any more.
    closed: bool,
    /// Nobody takes anything out any more.
    abandoned: bool,
}

enum Item {
    Durable(Result<ExecuteStepResponse, Status>),
    Preview(ExecuteStepResponse),
}

impl Outbox {
    /// The stream that the front reads. When it is dropped, `interrupt` is raised.
    pub(crate) fn stream(
        &self,
        interrupt: Interrupt,
    ) -> impl Stream<Item = Result<ExecuteStepResponse, Status>> + use<> {
        let reader = Reader { shared: Arc::clone(&self.shared), interrupt };
        futures::stream::unfold(reader, |reader| async move {
            let item = reader.next().await?;
            Some((item, reader))
        })
    }

    /// Sends a durable event, and returns its index.
    pub(crate) async fn event(&self, turn_id: &str, kind: Kind) -> u64 {
        let mut queue = self.room_for_durable().await;
        queue.event_index += 1;
        let event_index = queue.event_index;
        let event = SessionEvent { turn_id: turn_id.to_owned(), kind: Some(kind), ..SessionEvent::default() };
        queue.durable(Ok(Message::Event(StepEvent { event_index, event: Some(event) })));
        drop(queue);
        self.shared.news.notify_one();
        event_index
    }

    /// Sends a message that is no event.
    pub(crate) async fn message(&self, message: Message) {
        self.room_for_durable().await.durable(Ok(message));
        self.shared.news.notify_one();
    }

    /// Sends a preview, if need be in place of the oldest one that waits.
    pub(crate) fn preview(&self, turn_id: &str, kind: Kind) {
        let event = SessionEvent { turn_id: turn_id.to_owned(), kind: Some(kind), ..SessionEvent::default() };
        let message = Message::Event(StepEvent { event_index: 0, event: Some(event) });
        self.shared.lock().preview(ExecuteStepResponse { message: Some(message) });
        self.shared.news.notify_one();
    }

    /// Ends the stream with an error, behind what waits.
    pub(crate) fn fail(&self, status: Status) {
        let mut queue = self.shared.lock();
        queue.durables += 1;
        queue.items.push_back(Item::Durable(Err(status)));
        queue.closed = true;
        drop(queue);
        self.shared.news.notify_one();
    }

    /// Ends the stream, behind what waits.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.news.notify_one();
    }

    /// Nobody reads it any more: what waits is dropped, with all that is still sent, and whoever waits for room goes on.
    pub(crate) fn abandon(&self) {
        self.shared.abandon();
    }

    /// Nobody takes anything out any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.shared.lock().abandoned
    }

    /// Ends the stream with an error as what comes back is dropped, should nothing have ended it before: the front would wait for it as
    /// long as for a turn.
    pub(crate) fn ends_with_step(&self) -> EndsWithStep {
        EndsWithStep(self.clone())
    }

    /// Previews that the front was too slow for.
    pub(crate) fn dropped_previews(&self) -> u64 {
        self.shared.lock().dropped_previews
    }

    async fn room_for_durable(&self) -> MutexGuard<'_, Queue> {
        loop {
            // Before the look, so that room made right after it is noticed.
            let room = self.shared.room.notified();
            {
                let queue = self.shared.lock();
                if queue.durables < DURABLES_MAX || queue.abandoned {
                    return queue;
                }
            }
            room.await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code that holds the lock can leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Outbox::abandon`].
    fn abandon(&self) {
        let mut queue = self.lock();
        queue.abandoned = true;
        queue.items.clear();
        (queue.durables, queue.previews) = (0, 0);
        drop(queue);
        self.room.notify_waiters();
        self.room.notify_one();
    }
}

impl Queue {
    fn durable(&mut self, message: Result<Message, Status>) {
        if !self.abandoned {
            self.durables += 1;
            self.items.push_back(Item::Durable(message.map(|message| ExecuteStepResponse { message: Some(message) })));
        }
    }

    fn preview(&mut self, response: ExecuteStepResponse) {
        if self.abandoned {
            return;
        }
        if self.previews >= PREVIEWS_MAX
            && let Some(oldest) = self.items.iter().position(|item| matches!(item, Item::Preview(_)))
        {
            self.items.remove(oldest);
            self.previews -= 1;
            self.dropped_previews += 1;
        }
        self.previews += 1;
        self.items.push_back(Item::Preview(response));
    }

    fn take(&mut self) -> Option<Result<ExecuteStepResponse, Status>> {
        match self.items.pop_front()? {
            Item::Durable(message) => {
                self.durables -= 1;
                Some(message)
            }
            Item::Preview(response) => {
                self.previews -= 1;
                Some(Ok(response))
            }
        }
    }
}

/// See [`Outbox::ends_with_step`].
pub(crate) struct EndsWithStep(Outbox);

impl Drop for EndsWithStep {
    fn drop(&mut self) {
        let is_open = !self.0.shared.lock().closed;
        if is_open {
            self.0.fail(Refusal::BrokenOff.into());
        }
    }
}

/// The front's end of the queue.
struct Reader {
    shared: Arc<Shared>,
    interrupt: Interrupt,
}

impl Reader {
    async fn next(&self) -> Option<Result<ExecuteStepResponse, Status>> {
        loop {
            let news = self.shared.news.notified();
            {
                let mut queue = self.shared.lock();
                if let Some(item) = queue.take() {
                    drop(queue);
                    self.shared.room.notify_one();
                    return Some(item);
                }
                if queue.closed {
                    return None;
                }
            }
            news.await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.interrupt.raise(Why::HungUp);
        self.shared.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_proto::v1::{Progress, SessionRunning, TextDelta};
    use futures::{FutureExt as _, StreamExt as _};

    fn preview(outbox: &Outbox, text: usize) {
        outbox.preview("t", Kind::TextDelta(TextDelta { text: text.to_string() }));
    }

    fn durable(outbox: &Outbox) -> impl Future<Output = u64> + '_ {
        outbox.event("t", Kind::SessionRunning(SessionRunning {}))
    }

    #[tokio::test]
    async fn the_oldest_previews_go_first_and_no_durable_event_ever() {
        let outbox = Outbox::default();
        let stream = outbox.stream(Interrupt::default());
        assert_eq!(durable(&outbox).await, 1);
        for text in 0..PREVIEWS_MAX + 10 {
            preview(&outbox, text);
        }
        assert_eq!(durable(&outbox).await, 2);
        assert_eq!(outbox.dropped_previews(), 10);
        outbox.close();
        let events: Vec<_> = stream
            .map(|item| match item.unwrap().message {
                Some(Message::Event(event)) => event,
                other => panic!("{other:?}"),
            })
            .collect()
            .await;
        assert_eq!(events.iter().filter(|event| event.event_index > 0).count(), 2);
        let first = events[1].event.as_ref().unwrap().kind.as_ref().unwrap();
        assert_eq!(*first, Kind::TextDelta(TextDelta { text: "10".into() }));
    }

    #[tokio::test]
    async fn a_durable_event_waits_for_room() {
        let outbox = Outbox::default();
        let mut stream = std::pin::pin!(outbox.stream(Interrupt::default()));
        for _ in 0..DURABLES_MAX {
            durable(&outbox).await;
        }
        let mut waiting = Box::pin(durable(&outbox));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        stream.next().await.unwrap().unwrap();
        assert_eq!(waiting.await, DURABLES_MAX as u64 + 1);
    }

    #[tokio::test]
    async fn a_reader_that_leaves_rings_the_bell_and_frees_whoever_waits() {
        let (outbox, interrupt) = (Outbox::default(), Interrupt::default());
        let stream = outbox.stream(interrupt.clone());
        for _ in 0..DURABLES_MAX {
            durable(&outbox).await;
        }
        let waiting = durable(&outbox);
        drop(stream);
        assert_eq!(interrupt.raised(), Some(Why::HungUp));
        waiting.await;
        outbox.preview("t", Kind::Progress(Progress::default()));
    }

    /// Its front is frozen: it hears of that, should it read on, as the step ends.
    #[tokio::test]
    async fn one_that_is_abandoned_frees_whoever_waits_and_keeps_nothing_but_how_it_ends() {
        let outbox = Outbox::default();
        let stream = outbox.stream(Interrupt::default());
        for _ in 0..DURABLES_MAX {
            durable(&outbox).await;
        }
        preview(&outbox, 7);
        let mut waiting = Box::pin(durable(&outbox));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        outbox.abandon();
        waiting.await;
        durable(&outbox).await;
        outbox.fail(Refusal::FrontGone.into());
        let told: Vec<_> = stream.collect().await;
        assert!(matches!(&told[..], [Err(_)]), "{told:?}");
    }
}
