//! The talk between front and worker during one step: the worker's events are stored, its grants are answered, and what happens to the
//! session reaches it.

mod breach;
mod cut;
mod gathered;
mod grants;
mod outgoing;
mod storing;

use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    CheckpointTaken, ExecuteStepRequest, ExecuteStepResponse, SessionCheckpoint, StepFinished, StepStart, StopReason,
};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use self::cut::Cut;
use self::gathered::Gathered;
use self::outgoing::Outgoing;
use super::approvals::{Approvals, PAGE};
use super::purse::Told;
use super::recorder::{Recorder, Stage};
use super::sub_agents::{Heard, SubAgents};
use crate::core::Core;
use crate::error::Error;
use crate::events::fanout::Controls;
use crate::events::relay::Frame;
use crate::session::Session;
use crate::worker_client::WorkerClient;

/// Between two looks at a running call: whether it must be cut at a budget. What it spends in between may go beyond.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How an exchange ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// In order. The checkpoint is not stored yet, and neither are the last words: they belong with the turn's end.
    Finished { finished: StepFinished, last_words: Vec<Kind> },
    /// Told to stop, and cut off since it did not in time.
    Cancelled(StopReason),
    /// The worker did not answer at all.
    Unreached(Status),
    /// The worker refused or was lost: another may go on from the last checkpoint.
    WorkerLost(Status),
    /// The worker told more than a turn may have: see [`Extent`](super::extent::Extent).
    Overrun,
}

/// One step at one worker.
pub(super) struct Exchange<'turn> {
    pub(super) core: &'turn Arc<Core>,
    pub(super) session: &'turn Session,
    pub(super) recorder: &'turn mut Recorder,
    /// Interrupt, termination and approvals.
    pub(super) controls: &'turn mut Controls,
    /// The turn takes up the user messages up to this number with its first event.
    pub(super) input_seq: &'turn mut Option<u64>,
    /// The turn ends here, whatever the worker does.
    pub(super) deadline: Instant,
    pub(super) approvals: Approvals,
    /// What is being asked of budgets and rates.
    pub(super) asking: FuturesUnordered<BoxFuture<'static, Told>>,
    pub(super) sub_agents: SubAgents,
    /// A budget is used up: the worker is to be told to stop.
    pub(super) is_out_of_budget: bool,
    /// The worker was told to stop.
    pub(super) cut: Option<Cut>,
}

impl Exchange<'_> {
    /// Runs the step to its end. An error is one of the front's own: the store is away, the lease is lost, or the session
    /// has ended.
    pub(super) async fn run(mut self, worker: WorkerClient, start: StepStart) -> Result<Outcome, Error> {
        let outcome = self.talk(worker, start).await;
        if let Err(Error::SessionTerminated { .. }) = &outcome {
            // What was refused then is accounted for.
            self.recorder.granted.stored();
            // Nobody listens any more to what came of the calls that are running.
            let lost = self.recorder.granted.lost();
            self.recorder.charge_behind_end(lost).await;
            self.recorder.granted.stored();
        }
        let outcome = outcome?;
        if let Outcome::Finished { last_words, .. } = &outcome {
            self.recorder.granted.finish(last_words);
            return Ok(outcome);
        }
        let lost = self.recorder.granted.lost();
        if !lost.is_empty() {
            self.recorder.store(lost, None, self.input_seq.take()).await?;
        }
        Ok(outcome)
    }

    async fn talk(&mut self, worker: WorkerClient, start: StepStart) -> Result<Outcome, Error> {
        let (mut outgoing, requests) = Outgoing::new();
        outgoing.tell(ToWorker::Start(start));
        let (core, tenant) = (self.core, self.session.tenant);
        let mut stopped = pin!(core.tenants.stopped(tenant));
        let mut incoming = match self.open(worker, requests, stopped.as_mut(), &mut outgoing).await? {
            ControlFlow::Continue(incoming) => incoming,
            ControlFlow::Break(outcome) => return Ok(outcome),
        };
        // Set anew only when the moment moves: a timer of its own for each token would cost more than the token.
        let mut cut_off = pin!(tokio::time::sleep_until(self.deadline));
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.is_out_of_budget && self.cut.is_none() {
                self.stop(StopReason::Budget, &mut outgoing);
            }
            let cut_off_at = self.cut.map_or(self.deadline, |cut| cut.at);
            if cut_off.deadline() != cut_off_at {
                cut_off.as_mut().reset(cut_off_at);
            }
            let next_look = self.approvals.next_look();
            // What comes of it would wait as well.
            let is_behind = outgoing.is_behind();
            tokio::select! {
                message = incoming.message(), if !is_behind => match message {
                    Ok(Some(message)) => {
                        if let Some(finished) = self.take(message, &mut incoming, &mut outgoing).await? {
                            return Ok(finished);
                        }
                    }
                    Ok(None) => return Ok(self.ended_early(Status::unavailable("the stream ended early"))),
                    Err(status) => return Ok(self.ended_early(status)),
                },
                told = outgoing.pass_on() => if let Err(status) = told {
                    return Ok(self.ended_early(status));
                },
                heard = self.sub_agents.next(), if !is_behind => self.hear(heard, &mut outgoing).await?,
                Some(told) = self.asking.next() => self.answer(told, &mut outgoing).await?,
                _ = look.tick(), if self.cut.is_none() && self.recorder.purse().is_open() => {
                    let purse = self.recorder.purse().clone();
                    self.asking.push(purse.hold().boxed());
                }
                Some(frame) = self.controls.recv() => self.control(frame, &mut outgoing).await?,
                () = &mut stopped, if self.cut.is_none() => self.stop(StopReason::Interrupted, &mut outgoing),
                () = tokio::time::sleep_until(next_look.unwrap_or(cut_off_at)), if next_look.is_some() && !is_behind => {
                    self.look_for_decisions(&mut outgoing).await?;
                }
                () = &mut cut_off => match self.cut {
                    Some(cut) => return Ok(Outcome::Cancelled(cut.reason)),
                    None => self.stop(StopReason::TimeLimit, &mut outgoing),
                },
            }
        }
    }

    /// Opens the worker's stream; or tells what the step has come to where it has none.
    async fn open(
        &mut self,
        mut worker: WorkerClient,
        requests: mpsc::Receiver<ExecuteStepRequest>,
        mut stopped: Pin<&mut impl Future<Output = ()>>,
        outgoing: &mut Outgoing,
    ) -> Result<ControlFlow<Outcome, Streaming<ExecuteStepResponse>>, Error> {
        let opening = tokio::time::timeout_at(self.deadline, worker.execute_step(ReceiverStream::new(requests)));
        let mut opening = pin!(opening);
        // A worker that was lost a moment ago is not found out at once.
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                () = &mut stopped => return Ok(ControlFlow::Break(Outcome::Cancelled(StopReason::Interrupted))),
                Some(frame) = self.controls.recv() => {
                    self.control(frame, outgoing).await?;
                    if let Some(cut) = self.cut {
                        return Ok(ControlFlow::Break(Outcome::Cancelled(cut.reason)));
                    }
                }
            }
        };
        Ok(match opened {
            Ok(Ok(response)) => ControlFlow::Continue(response.into_inner()),
            Ok(Err(status)) => ControlFlow::Break(Outcome::Unreached(status)),
            Err(_) => ControlFlow::Break(Outcome::Cancelled(StopReason::TimeLimit)),
        })
    }

    /// Handles a message and whatever has arrived behind it: one transaction for all durable events that are there,
    /// so that a busy worker is stored in groups and an idle one waits for nothing.
    async fn take(
        &mut self,
        first: ExecuteStepResponse,
        incoming: &mut Streaming<ExecuteStepResponse>,
        outgoing: &mut Outgoing,
    ) -> Result<Option<Outcome>, Error> {
        let mut gathered = Gathered::default();
        let mut next = Some(first);
        self.recorder.reach(Stage::Ready);
        while let Some(response) = next.take() {
            let told = response.encoded_len();
            gathered.count(told);
            if let Some(why) = self.breach(&response) {
                tracing::warn!(tenant = %self.session.tenant, session = %self.session.id, why, "a worker is broken off");
                self.flush(&mut gathered, incoming, outgoing).await?;
                return Ok(Some(Outcome::WorkerLost(Status::internal(why))));
            }
            if !self.recorder.extent().take(response.message.as_ref(), told) {
                tracing::warn!(tenant = %self.session.tenant, session = %self.session.id, "a worker tells too much of a turn");
                self.flush(&mut gathered, incoming, outgoing).await?;
                return Ok(Some(Outcome::Overrun));
            }
            match response.message {
                Some(FromWorker::Event(step_event)) => {
                    match step_event.event.and_then(|event| event.kind) {
                        Some(kind) if step_event.event_index != 0 => gathered.event(step_event.event_index, kind),
                        Some(preview) if self.may_be_overtaken(&gathered) => {
                            self.show(preview);
                            next = self.flush(&mut gathered, incoming, outgoing).await?;
                        }
                        Some(preview) => {
                            // A preview must not overtake what came before it.
                            next = self.flush(&mut gathered, incoming, outgoing).await?;
                            self.show(preview);
                        }
                        None => {}
                    }
                }
                // A newer one may be behind it already, and then stands for all.
                Some(FromWorker::Checkpoint(checkpoint)) => gathered.checkpoint(checkpoint),
                Some(FromWorker::GrantRequest(request)) => {
                    // A grant stands for no event, so the call may begin while what came before is being stored.
                    self.grant(request, outgoing);
                }
                Some(FromWorker::SubAgentCall(call)) => self.sub_agents.call(call),
                Some(FromWorker::Finished(finished)) => {
                    // The end's checkpoint stands for all of it, and takes the place of one that waits here.
                    let last_words = gathered.take().kinds.into_iter().map(|(_, kind)| kind).collect();
                    return Ok(Some(Outcome::Finished { finished, last_words }));
                }
                None => {}
            }
            if next.is_some() {
                continue;
            }
            next = self.next(&gathered, incoming, outgoing).await?;
            if next.is_none() {
                next = self.flush(&mut gathered, incoming, outgoing).await?;
            }
        }
        Ok(None)
    }

    /// What the worker told first is that the step has begun, and nothing of the turn was shown: then what it tells next need not
    /// wait for that to be stored. Where something was, whoever watches must know that what follows begins anew.
    fn may_be_overtaken(&self, gathered: &Gathered) -> bool {
        gathered.is_beginning() && self.recorder.is_fresh()
    }

    fn show(&mut self, preview: Kind) {
        self.recorder.granted.shown(&preview);
        self.recorder.purse().shown(&preview);
        self.recorder.preview(preview);
    }

    /// Goes on with a sub-agent that has a session, once people can see that it has; or tells what came of it.
    async fn hear(&mut self, heard: Heard, outgoing: &mut Outgoing) -> Result<(), Error> {
        match heard {
            Heard::Opened(opened) => {
                if opened.is_news {
                    let input_seq = self.input_seq.take();
                    self.recorder.store(vec![opened.event()], None, input_seq).await?;
                }
                self.sub_agents.run(*opened);
            }
            Heard::Over(result) => outgoing.tell(ToWorker::SubAgentResult(result)),
        }
        Ok(())
    }

    /// Passes on what people have decided, should no word of it have come. Where the store is away, the next look does: a person may
    /// take longer than that.
    async fn look_for_decisions(&mut self, outgoing: &mut Outgoing) -> Result<(), Error> {
        let (tenant, session) = (self.session.tenant, self.session.id);
        let page = match self.core.stores.events.read(tenant, session, self.approvals.seen, PAGE).await {
            Err(error @ Error::Unavailable { .. }) => {
                tracing::debug!(%tenant, %session, %error, "cannot look for decisions, trying again");
                self.approvals.look_later();
                return Ok(());
            }
            page => page?,
        };
        for resolved in self.approvals.found(page) {
            outgoing.tell(ToWorker::ApprovalResolved(resolved));
        }
        Ok(())
    }

    /// Stops the worker when it is told to, or passes on what a person has decided.
    async fn control(&mut self, frame: Frame, outgoing: &mut Outgoing) -> Result<(), Error> {
        match frame {
            Frame::Interrupt { turn } if turn.is_none_or(|turn| turn == self.recorder.turn()) => {
                self.stop(StopReason::Interrupted, outgoing);
            }
            Frame::Terminated => self.stop(StopReason::Terminated, outgoing),
            Frame::ApprovalResolved { seq } => {
                let (tenant, session) = (self.session.tenant, self.session.id);
                let events = match self.core.stores.events.read(tenant, session, seq.saturating_sub(1), 1).await {
                    // The next look finds it.
                    Err(Error::Unavailable { .. }) => return Ok(()),
                    events => events?,
                };
                if let Some(resolved) = events.into_iter().next().and_then(|event| self.approvals.decided(event)) {
                    outgoing.tell(ToWorker::ApprovalResolved(resolved));
                }
            }
            // An interrupt of a turn that has ended is none of this one's.
            Frame::Interrupt { .. } | Frame::Events(_) | Frame::Listening => {}
        }
        Ok(())
    }
}

/// The event that tells of a checkpoint.
pub(super) fn checkpoint_taken(checkpoint: &SessionCheckpoint) -> CheckpointTaken {
    CheckpointTaken {
        checkpoint_id: checkpoint.checkpoint_id.clone(),
        superstep: checkpoint.superstep,
        size_bytes: i64::try_from(checkpoint.encoded_len()).unwrap_or(i64::MAX),
    }
}
