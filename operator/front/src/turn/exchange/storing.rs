//! What a worker told is stored, while what need not wait for that goes on.

use std::pin::pin;

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{EventStored, ExecuteStepResponse, SessionCheckpoint};
use futures::StreamExt;
use tonic::Streaming;

use super::Exchange;
use super::gathered::{Gathered, Waiting};
use super::outgoing::Outgoing;
use crate::error::Error;
use crate::events::log::Appended;
use crate::turn::purse::Told;

impl Exchange<'_> {
    /// Stores what was gathered. A message of the worker's that came meanwhile and must wait for it is handed back.
    pub(super) async fn flush(
        &mut self,
        gathered: &mut Gathered,
        incoming: &mut Streaming<ExecuteStepResponse>,
        outgoing: &mut Outgoing,
    ) -> Result<Option<ExecuteStepResponse>, Error> {
        let may_be_overtaken = self.may_be_overtaken(gathered);
        let Waiting { mut kinds, checkpoint } = gathered.take();
        if may_be_overtaken {
            // Of a worker that does not read nothing more is taken.
            let incoming = Some(incoming).filter(|_| !outgoing.is_behind());
            return self.store(kinds, None, incoming, outgoing).await;
        }
        let mut behind = Vec::new();
        let checkpoint = checkpoint.map(|(checkpoint, stands_for)| {
            behind = kinds.split_off(stands_for);
            checkpoint
        });
        // A checkpoint stands for what came before it and for nothing after it, so its transaction ends with it.
        self.store(kinds, checkpoint, None, outgoing).await?;
        self.store(behind, None, None, outgoing).await
    }

    async fn store(
        &mut self,
        kinds: Vec<(Option<u64>, Kind)>,
        checkpoint: Option<SessionCheckpoint>,
        incoming: Option<&mut Streaming<ExecuteStepResponse>>,
        outgoing: &mut Outgoing,
    ) -> Result<Option<ExecuteStepResponse>, Error> {
        if kinds.is_empty() {
            return Ok(None);
        }
        let (indexes, kinds): (Vec<_>, Vec<_>) = kinds.into_iter().unzip();
        self.approvals.note(&kinds);
        self.recorder.granted.settle(&kinds);
        let storing = self.recorder.storing(kinds, checkpoint, self.input_seq.take());
        let Meanwhile { appended, told, held } = self.meanwhile(storing, incoming, outgoing).await?;
        let numbers = self.recorder.stored(appended).await?;
        self.is_out_of_budget |= self.recorder.purse().has_ended();
        for (event_index, seq) in indexes.into_iter().zip(numbers) {
            if let Some(event_index) = event_index {
                outgoing.tell(ToWorker::EventStored(EventStored { event_index, seq }));
            }
        }
        for told in told {
            self.answer(told, outgoing).await?;
        }
        Ok(held)
    }

    /// While events are being stored, passes grants on, which stand for no event; and, with `incoming`, previews, up to the next
    /// message that is none.
    async fn meanwhile(
        &mut self,
        storing: impl Future<Output = Result<Appended, Error>>,
        mut incoming: Option<&mut Streaming<ExecuteStepResponse>>,
        outgoing: &mut Outgoing,
    ) -> Result<Meanwhile, Error> {
        let (mut told, mut held) = (Vec::new(), None);
        let mut storing = pin!(storing);
        loop {
            tokio::select! {
                // What is stored by now comes first.
                biased;
                appended = &mut storing => return Ok(Meanwhile { appended: appended?, told, held }),
                // Where there is room: what is being stored must not wait for a worker that does not read.
                Some(answer) = self.asking.next() => match answer {
                    Told::Granted { request, routed: None, grant } if outgoing.has_room() => {
                        self.recorder.granted.give(&request, grant.clone());
                        outgoing.tell(ToWorker::Grant(grant));
                    }
                    other => told.push(other),
                },
                message = next_of(&mut incoming) => match message {
                    Some(response) if self.breach(&response).is_some() => {
                        held = Some(response);
                        incoming = None;
                    }
                    Some(ExecuteStepResponse { message: Some(FromWorker::GrantRequest(request)) })
                        if outgoing.has_room() =>
                    {
                        self.grant(request, outgoing);
                    }
                    Some(ExecuteStepResponse { message: Some(FromWorker::Event(step_event)) })
                        if step_event.event_index == 0 =>
                    {
                        if let Some(kind) = step_event.event.and_then(|event| event.kind) {
                            self.show(kind);
                        }
                    }
                    message => {
                        held = message;
                        incoming = None;
                    }
                },
            }
        }
    }
}

/// What happened while events were being stored.
struct Meanwhile {
    appended: Appended,
    /// What budgets and rates have said, of which an event must be stored first.
    told: Vec<Told>,
    /// Of the worker, to be handled next.
    held: Option<ExecuteStepResponse>,
}

/// The next message of a stream that is to be read from. An end or an error shows again at the next read.
async fn next_of(incoming: &mut Option<&mut Streaming<ExecuteStepResponse>>) -> Option<ExecuteStepResponse> {
    match incoming {
        Some(incoming) => incoming.message().await.ok().flatten(),
        None => std::future::pending().await,
    }
}
