//! What a worker is told in a step. Telling it never waits for the worker: one that does not read holds nobody up, and is lost.

use std::collections::VecDeque;
use std::time::Duration;

use croft_proto::v1::ExecuteStepRequest;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

/// Messages that are on their way to a worker. What is beyond waits: the worker has stopped reading.
const UNDER_WAY_MAX: usize = 64;
/// How long a worker may take nothing of what waits. Then it is lost.
const READS_WITHIN: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Outgoing {
    requests: mpsc::Sender<ExecuteStepRequest>,
    /// Found no room there. While there is any, nothing more is taken of the worker's: so it is no more than the answers to what was gathered
    /// at a time, the grants that are being asked for, and what people have decided.
    waiting: VecDeque<ExecuteStepRequest>,
    /// When the worker is lost, if it takes nothing of that before.
    lost_at: Instant,
}

impl Outgoing {
    /// With what the worker is to read.
    pub(super) fn new() -> (Self, mpsc::Receiver<ExecuteStepRequest>) {
        let (requests, to_be_read) = mpsc::channel(UNDER_WAY_MAX);
        (Self { requests, waiting: VecDeque::new(), lost_at: Instant::now() + READS_WITHIN }, to_be_read)
    }

    /// Tells the worker, once it has read what it was told before.
    pub(super) fn tell(&mut self, message: ToWorker) {
        let request = ExecuteStepRequest { message: Some(message) };
        if self.is_behind() {
            return self.waiting.push_back(request);
        }
        match self.requests.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(request)) => {
                self.lost_at = Instant::now() + READS_WITHIN;
                self.waiting.push_back(request);
            }
            // A worker that no longer listens shows in what we read from it.
            Err(TrySendError::Closed(_)) => tracing::debug!("the worker has closed its side of the step"),
        }
    }

    /// Something waits for the worker to read.
    pub(super) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What the worker is told next need not wait.
    pub(super) fn has_room(&self) -> bool {
        !self.is_behind() && self.requests.capacity() > 0
    }

    /// Passes a message on that waits, once the worker has read another; pending while none waits. Fails where the worker has read nothing
    /// for [`READS_WITHIN`]. Dropped in between, it loses none.
    pub(super) async fn pass_on(&mut self) -> Result<(), Status> {
        if !self.is_behind() {
            return std::future::pending().await;
        }
        match timeout_at(self.lost_at, self.requests.reserve()).await {
            Ok(Ok(room)) => {
                if let Some(request) = self.waiting.pop_front() {
                    room.send(request);
                }
                self.lost_at = Instant::now() + READS_WITHIN;
                Ok(())
            }
            Ok(Err(_)) => {
                tracing::debug!("the worker has closed its side of the step");
                self.waiting.clear();
                Ok(())
            }
            Err(_) => Err(Status::unavailable("the worker does not read what it is told")),
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::EventStored;
    use tonic::Code;

    use super::*;

    const MORE: usize = 3;

    /// The worker has been told so much more than is under way.
    fn behind() -> (Outgoing, mpsc::Receiver<ExecuteStepRequest>) {
        let (mut outgoing, to_be_read) = Outgoing::new();
        for event_index in (1..).take(UNDER_WAY_MAX + MORE) {
            outgoing.tell(ToWorker::EventStored(EventStored { event_index, seq: 0 }));
        }
        assert!(outgoing.is_behind() && !outgoing.has_room());
        (outgoing, to_be_read)
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_told_in_its_order_as_the_worker_reads() {
        let (mut outgoing, mut to_be_read) = behind();
        let mut read = Vec::new();
        while outgoing.is_behind() {
            // Slow, but not lost.
            tokio::time::sleep(READS_WITHIN / 2).await;
            read.push(to_be_read.try_recv().unwrap());
            outgoing.pass_on().await.unwrap();
        }
        outgoing.tell(ToWorker::EventStored(EventStored { event_index: u64::MAX, seq: 0 }));
        assert!(outgoing.is_behind(), "all that is under way is unread");
        read.push(to_be_read.try_recv().unwrap());
        outgoing.pass_on().await.unwrap();
        while let Ok(request) = to_be_read.try_recv() {
            read.push(request);
        }
        let index = |request: &ExecuteStepRequest| match request.message {
            Some(ToWorker::EventStored(stored)) => usize::try_from(stored.event_index).unwrap(),
            ref other => panic!("{other:?}"),
        };
        let indexes: Vec<_> = read.iter().map(index).collect();
        let told: Vec<_> = (1..=UNDER_WAY_MAX + MORE).chain([usize::MAX]).collect();
        assert_eq!(indexes, told);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_reads_nothing_is_lost() {
        let (mut outgoing, _to_be_read) = behind();
        let told = Instant::now();
        let status = outgoing.pass_on().await.unwrap_err();
        assert_eq!((status.code(), told.elapsed().as_secs()), (Code::Unavailable, READS_WITHIN.as_secs()));
    }

    /// Of one that is gone, what is read from it tells.
    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_a_worker_that_has_hung_up() {
        let (mut outgoing, to_be_read) = behind();
        drop(to_be_read);
        outgoing.pass_on().await.unwrap();
        assert!(!outgoing.is_behind());
    }
}
