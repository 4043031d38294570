//! What a worker tells together, to be stored in one transaction.

use std::pin::pin;
use std::time::Duration;

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ExecuteStepResponse, SessionCheckpoint};
use futures::FutureExt;
use tonic::Streaming;

use super::outgoing::Outgoing;
use super::{Exchange, checkpoint_taken};
use crate::error::Error;
use crate::turn::standing::HEDGED;

/// Worker messages that are taken together at most, and their bytes: what is beyond waits for the next transaction. The second half of
/// something that belongs together does not, up to twice as many.
const GATHER_MAX: usize = 256;
const GATHER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the second half of something that belongs together may be under way. Then the first is stored by itself.
const SECOND_HALF_MAX: Duration = Duration::from_secs(1);

/// What came from the worker and is not stored yet.
#[derive(Default)]
pub(super) struct Gathered {
    waiting: Waiting,
    /// Of all that were taken together, also of those that wait no longer.
    messages: usize,
    bytes: usize,
}

/// In the order in which it came.
#[derive(Default)]
pub(super) struct Waiting {
    /// With the worker's own number, if it has one.
    pub(super) kinds: Vec<(Option<u64>, Kind)>,
    /// The newest, and how many of `kinds` it stands for.
    pub(super) checkpoint: Option<(SessionCheckpoint, usize)>,
}

impl Gathered {
    /// A further message was taken, of so many bytes.
    pub(super) fn count(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    pub(super) fn event(&mut self, event_index: u64, kind: Kind) {
        self.waiting.kinds.push((Some(event_index), kind));
    }

    pub(super) fn checkpoint(&mut self, checkpoint: SessionCheckpoint) {
        let Waiting { kinds, checkpoint: newest } = &mut self.waiting;
        kinds.push((None, Kind::CheckpointTaken(checkpoint_taken(&checkpoint))));
        *newest = Some((checkpoint, kinds.len()));
    }

    /// All that waits is that the step has begun.
    pub(super) fn is_beginning(&self) -> bool {
        matches!(self.waiting.kinds.as_slice(), [(_, Kind::StepStarted(_))])
    }

    /// What waits, to be stored.
    pub(super) fn take(&mut self) -> Waiting {
        std::mem::take(&mut self.waiting)
    }

    fn is_full(&self, times: usize) -> bool {
        self.messages >= times * GATHER_MAX || self.bytes >= times * GATHER_BYTES_MAX
    }

    /// The worker says two things at once of which we have one. Stored alone, an answer would be paid for and lost with us,
    /// and an error would be told and the turn go on. A call that was overtaken by its hedge has no answer of its own.
    fn is_half(&self) -> bool {
        match self.waiting.kinds.last() {
            Some((_, Kind::ModelAttempt(attempt))) => attempt.error_class.is_empty() && attempt.finish_reason != HEDGED,
            Some((_, Kind::Error(_))) => true,
            _ => false,
        }
    }
}

impl Exchange<'_> {
    /// The worker's next message, where it is to be taken together with what was gathered.
    pub(super) async fn next(
        &mut self,
        gathered: &Gathered,
        incoming: &mut Streaming<ExecuteStepResponse>,
        outgoing: &mut Outgoing,
    ) -> Result<Option<ExecuteStepResponse>, Error> {
        if gathered.is_half() && !gathered.is_full(2) {
            return self.second_half(incoming, outgoing).await;
        }
        // Beyond, whoever else has something to say in the step comes before what the worker says next.
        Ok(if gathered.is_full(1) { None } else { at_hand(incoming) })
    }

    /// What the worker says within [`SECOND_HALF_MAX`]. Who stops the turn meanwhile is heard at once.
    async fn second_half(
        &mut self,
        incoming: &mut Streaming<ExecuteStepResponse>,
        outgoing: &mut Outgoing,
    ) -> Result<Option<ExecuteStepResponse>, Error> {
        let mut late = pin!(tokio::time::sleep(SECOND_HALF_MAX));
        loop {
            tokio::select! {
                biased;
                message = incoming.message() => return Ok(message.ok().flatten()),
                () = &mut late => return Ok(None),
                Some(frame) = self.controls.recv() => self.control(frame, outgoing).await?,
            }
        }
    }
}

/// Only what is there already. An end or an error shows again at the next read.
fn at_hand(incoming: &mut Streaming<ExecuteStepResponse>) -> Option<ExecuteStepResponse> {
    incoming.message().now_or_never().and_then(Result::ok).flatten()
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{ModelAttempt, SessionError};

    use super::*;

    fn is_half(kind: Kind) -> bool {
        let mut gathered = Gathered::default();
        gathered.event(1, kind);
        gathered.is_half()
    }

    #[test]
    fn an_answer_comes_behind_its_attempt_and_none_behind_one_that_failed_or_was_overtaken() {
        let attempt = |finish_reason: &str, error_class: &str| {
            let (finish_reason, error_class) = (finish_reason.into(), error_class.into());
            Kind::ModelAttempt(ModelAttempt { finish_reason, error_class, ..ModelAttempt::default() })
        };
        assert!(is_half(attempt("end_turn", "")));
        assert!(!is_half(attempt("error", "overload")));
        assert!(!is_half(attempt("hedged", "")));
        assert!(is_half(Kind::Error(SessionError::default())));
    }
}
