//! The end that a worker is told to come to.

use std::time::Duration;

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::{StepCancel, StopReason};
use tokio::time::Instant;
use tonic::Status;

use super::outgoing::Outgoing;
use super::{Exchange, Outcome};

/// How long a worker may take to stop when told to; then its stream is cut.
const CANCEL_GRACE: Duration = Duration::from_millis(800);

/// A worker was told to stop.
#[derive(Debug, Clone, Copy)]
pub(in crate::turn) struct Cut {
    pub(super) reason: StopReason,
    /// When its stream is cut.
    pub(super) at: Instant,
}

impl Exchange<'_> {
    /// Tells the worker to stop. What it was told first is why the step ends, and when, whether it reads that or not.
    pub(super) fn stop(&mut self, reason: StopReason, outgoing: &mut Outgoing) {
        self.cut.get_or_insert(Cut { reason, at: Instant::now() + CANCEL_GRACE });
        outgoing.tell(ToWorker::Cancel(StepCancel { stop_reason: reason.into() }));
    }

    /// What the step has come to when the worker's stream ends before the worker has said that it is done.
    pub(super) fn ended_early(&self, status: Status) -> Outcome {
        match self.cut {
            Some(cut) => Outcome::Cancelled(cut.reason),
            None => Outcome::WorkerLost(status),
        }
    }
}
