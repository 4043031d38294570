//! One step of a turn: a worker is found and told what it needs, and the talk with it is had to its end.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::conversation;
use croft_proto::id::TurnId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{InitWorkerSessionRequest, SessionError, StepStart, StopReason};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use futures::stream::FuturesUnordered;
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::{Driver, End, Input, session_error};
use crate::error::Error;
use crate::events::fanout::Controls;
use crate::events::log::StoredCheckpoint;
use crate::events::relay::Frame;
use crate::routing::Placement;
use crate::session::manager::{INIT_TIMEOUT, Manager};
use crate::tenants::Tenant;
use crate::turn::approvals::Approvals;
use crate::turn::exchange::{Exchange, Outcome, checkpoint_taken};
use crate::turn::extent;
use crate::turn::recorder::{Recorder, Stage};
use crate::turn::standing::Standing;
use crate::turn::sub_agents::SubAgents;
use crate::worker_client::WorkerClient;
use crate::worker_error;

/// Between two tries to find a worker.
const PLACEMENT_PAUSE: Duration = Duration::from_millis(100);

/// Where a step goes on from.
pub(super) enum Origin {
    /// The turn has just begun: from the newest checkpoint there was, with nothing journalled since.
    Beginning(Option<StoredCheckpoint>),
    /// From whatever is stored by now.
    Store,
}

/// What one step of a turn leaves to the next.
pub(super) struct Course<'lease> {
    pub(super) worker: String,
    /// Where whoever had the turn before may have left it running, until that worker has had it again, to its end, or was asked.
    pub(super) left_at: Option<String>,
    /// The asking of such a worker, in this turn or one before it under the same lease.
    pub(super) leaving: &'lease mut Option<Leaving>,
    /// Workers that are unable to run the session, of those that have a route.
    pub(super) unable: Vec<String>,
    /// What the last of them said, where none has begun a step since.
    pub(super) refusal: Option<SessionError>,
    pub(super) from: Origin,
    /// Not taken up yet.
    pub(super) input_seq: Option<u64>,
    pub(super) deadline: Instant,
}

/// A worker that is asked what was left there.
pub(super) struct Leaving {
    worker: String,
    heard: Shared<BoxFuture<'static, ()>>,
}

impl Leaving {
    /// Until it has told, or for no longer than a turn waits for it.
    pub(super) fn heard(&self) -> Shared<BoxFuture<'static, ()>> {
        self.heard.clone()
    }
}

impl Driver {
    /// A step to its end. An error is one of the front's own: the store is away, the lease is lost, or the session has ended.
    pub(super) async fn step(
        &self,
        input: &Input,
        course: &mut Course<'_>,
        recorder: &mut Recorder,
        controls: &mut Controls,
    ) -> Result<Step, Error> {
        let standing = match std::mem::replace(&mut course.from, Origin::Store) {
            Origin::Beginning(newest) => Standing::of(newest, input.turn, &input.content, []),
            Origin::Store => self.standing(input, &[], recorder).await?,
        };
        if let Some(stop_reason) = standing.over {
            return Ok(Step::Done(End::of(stop_reason)));
        }
        let (tenant, placement) = match self.place(course, input.turn, controls).await {
            Ok(placed) => placed,
            Err(unplaced) => return Ok(Step::Done(unplaced.end())),
        };
        let client = match self.core.workers.client(&tenant, &placement) {
            Ok(client) => client,
            Err(error) => return Ok(Step::Lost(session_error(&error))),
        };
        // Where it has the turn again, it tells in the step.
        if let Some(left_at) = course.left_at.take_if(|left_at| *left_at != placement.worker()) {
            self.see_lease().await?;
            let heard = course.leaving.insert(self.leave(left_at, input)).heard();
            tokio::select! {
                () = heard => {}
                stop_reason = told_to_stop(input.turn, controls) => return Ok(Step::Done(End::of(stop_reason))),
            }
        }
        // A step there under the same lease would have it forget what it is asked.
        if let Some(leaving) = course.leaving.as_ref().filter(|leaving| leaving.worker == placement.worker()) {
            tokio::select! {
                () = leaving.heard() => {}
                stop_reason = told_to_stop(input.turn, controls) => return Ok(Step::Done(End::of(stop_reason))),
            }
        }
        let is_told = placement.worker() != course.worker;
        if is_told {
            let known = self.make_known(client.clone(), &tenant, (&placement, course), input.turn, controls);
            if let Some(step) = known.await? {
                return Ok(step);
            }
            placement.worker().clone_into(&mut course.worker);
        }
        recorder.reach(Stage::Placed);
        let (core, session) = (Arc::clone(&self.core), self.session.clone());
        let sub_agents = SubAgents::new(core, session, (input.turn, &input.sender), standing.sub_agents.clone());
        let start = self.start(input, standing, &tenant);
        if let Some(error) = conversation::too_large(start.encoded_len()) {
            return Ok(Step::Done(End::failed(StopReason::ContextFull, error)));
        }
        let exchange = Exchange {
            core: &self.core,
            session: &self.session,
            recorder: &mut *recorder,
            controls,
            input_seq: &mut course.input_seq,
            deadline: course.deadline,
            approvals: Approvals::of(&start, input.seq),
            asking: FuturesUnordered::new(),
            sub_agents,
            is_out_of_budget: false,
            cut: None,
        };
        // By far the largest part of a turn, and of what a task of one would hold on its stack.
        let outcome = Box::pin(exchange.run(client, start)).await?;
        // It has what the session needs, or says otherwise at once.
        if !matches!(outcome, Outcome::Unreached(_)) {
            course.refusal = None;
        }
        // One that was stopped before it told anything, or hung, may know of more.
        if matches!(outcome, Outcome::Finished { .. }) {
            course.left_at = None;
        }
        self.after(outcome, &placement, is_told, course, recorder).await
    }

    /// Asks a worker that may live, and run the turn for a front that is lost, what was used there. What comes back waits for that for a
    /// while; it is done also where nobody waits.
    pub(super) fn leave(&self, worker: String, input: &Input) -> Leaving {
        let manager = Manager::new(Arc::clone(&self.core));
        let asked = manager.leave_worker(&self.session, &worker, self.epoch, (input.turn, &input.sender));
        Leaving { worker, heard: asked.boxed().shared() }
    }

    /// Tells a worker of the session. What the step has come to, where that did not go well.
    async fn make_known(
        &self,
        mut client: WorkerClient,
        tenant: &Tenant,
        (placement, course): (&Placement, &mut Course<'_>),
        turn: TurnId,
        controls: &mut Controls,
    ) -> Result<Option<Step>, Error> {
        let request = InitWorkerSessionRequest {
            session_id: self.session.id.to_string(),
            tenant: tenant.name.clone(),
            agent: Some(self.session.agent.clone()),
            provider: self.core.models.provider_of(&self.session.agent.model),
        };
        let known = tokio::select! {
            known = timeout(INIT_TIMEOUT, client.init_worker_session(request)) => known,
            stop_reason = told_to_stop(turn, controls) => return Ok(Some(Step::Done(End::of(stop_reason)))),
        };
        match known.unwrap_or_else(|_| Err(Status::deadline_exceeded("it does not answer"))) {
            Ok(_) => Ok(None),
            Err(status) => Ok(Some(self.refused(placement, &status, true, course).await?.unreached())),
        }
    }

    /// What the step has come to, by how its talk with the worker ended.
    async fn after(
        &self,
        outcome: Outcome,
        placement: &Placement,
        is_told: bool,
        course: &mut Course<'_>,
        recorder: &mut Recorder,
    ) -> Result<Step, Error> {
        match outcome {
            Outcome::Cancelled(stop_reason) => Ok(Step::Done(End::of(stop_reason))),
            Outcome::Unreached(status) => {
                course.worker.clear();
                Ok(self.refused(placement, &status, is_told, course).await?.unreached())
            }
            Outcome::WorkerLost(status) => {
                // Whatever worker comes next does not know the session.
                course.worker.clear();
                self.refused(placement, &status, is_told, course).await
            }
            Outcome::Overrun => {
                self.core.router.update_health(placement, false);
                course.worker.clear();
                Ok(Step::Done(End::failed(StopReason::Error, extent::beyond())))
            }
            Outcome::Finished { finished, mut last_words } if finished.stop_reason() == StopReason::HandedBack => {
                self.core.router.update_health(placement, false);
                course.worker.clear();
                if let Some(checkpoint) = &finished.checkpoint {
                    last_words.push(Kind::CheckpointTaken(checkpoint_taken(checkpoint)));
                }
                if !last_words.is_empty() {
                    recorder.store(last_words, finished.checkpoint, course.input_seq.take()).await?;
                }
                Ok(Step::Again)
            }
            Outcome::Finished { finished, last_words } => {
                self.core.router.update_health(placement, true);
                let end = End::of(finished.stop_reason());
                // As large as the conversation: there is one of it at a time.
                Ok(Step::Done(End { checkpoint: finished.checkpoint, last_words, ..end }))
            }
        }
    }

    /// What the step has come to whose worker refused it, or was lost.
    async fn refused(
        &self,
        placement: &Placement,
        status: &Status,
        is_told: bool,
        course: &mut Course<'_>,
    ) -> Result<Step, Error> {
        if worker_error::is_of_stale_epoch(status) {
            // The worker has heard of whoever drives the turn by now, and there is nothing wrong with it.
            self.see_lease().await?;
        }
        let error = worker_error::from_status(status);
        Ok(match error {
            _ if worker_error::may_suit_another(&error) => {
                course.worker.clear();
                course.unable.push(placement.worker().to_owned());
                course.refusal = Some(session_error(&error));
                Step::Again
            }
            Error::WorkerRefused { .. } if status.code() != Code::ResourceExhausted => {
                Step::Done(End::failed(StopReason::Error, session_error(&error)))
            }
            // It is there, and has forgotten the session: it is told of it at once, and not lost. Of one that forgets what it was told
            // in this very step nothing is had for now.
            _ if status.code() == Code::NotFound && !is_told => Step::Again,
            _ => {
                // An unknown session is no fault of the worker's: it has been restarted.
                if status.code() != Code::NotFound {
                    self.core.router.update_health(placement, false);
                }
                Step::Lost(session_error(&error))
            }
        })
    }

    /// Looks for a worker, for a while: one that was killed is replaced within seconds. Where some are unable to run the session, one of the
    /// others may be full or starting; only where all are known to be, nobody waits for another.
    async fn place(
        &self,
        course: &mut Course<'_>,
        turn: TurnId,
        controls: &mut Controls,
    ) -> Result<(Arc<Tenant>, Placement), Unplaced> {
        let until = Instant::now() + self.core.options.placement_timeout;
        let Course { worker, unable, refusal, .. } = course;
        let preferred = Some(worker.as_str()).filter(|worker| !worker.is_empty());
        loop {
            let (placed, all_lack) = match self.core.tenants.get(self.session.tenant) {
                None => (Err(Error::no_worker("its tenant is gone")), true),
                Some(tenant) => {
                    unable.retain(|worker| tenant.workers.iter().any(|routed| routed.name == *worker));
                    let placed = self.core.router.place_beside(tenant.id, self.session.id, preferred, unable);
                    let all_lack = tenant.workers.iter().all(|routed| unable.contains(&routed.name));
                    (placed.map(|placement| (tenant, placement)), all_lack)
                }
            };
            let is_late = Instant::now() >= until;
            match (placed, &*refusal) {
                (Ok(placed), _) => return Ok(placed),
                (Err(_), Some(refusal)) if all_lack || is_late => return Err(Unplaced::Refused(refusal.clone())),
                (Err(error), None) if is_late => return Err(Unplaced::Nowhere(error)),
                (Err(_), _) => {}
            }
            if let Some(why) = self.core.tenants.halted(self.session.tenant) {
                return Err(Unplaced::Halted(why));
            }
            if let Some(stop_reason) = pause(turn, controls).await {
                return Err(Unplaced::Stopped(stop_reason));
            }
        }
    }

    /// What the worker needs to begin, or to go on where another was lost.
    fn start(&self, input: &Input, standing: Standing, tenant: &Tenant) -> StepStart {
        StepStart {
            session_id: self.session.id.to_string(),
            turn_id: input.turn.to_string(),
            tenant: tenant.name.clone(),
            epoch: self.epoch,
            agent: Some(self.session.agent.clone()),
            checkpoint: standing.checkpoint,
            input: standing.input,
            journal: standing.journal,
            asked_approval_ids: standing.asked,
            decisions: standing.decisions,
            settled_grant_ids: standing.settled,
            user: input.sender.clone(),
        }
    }
}

/// How a step left the turn.
pub(super) enum Step {
    Done(End),
    /// On another worker, from the checkpoint that was handed back.
    Again,
    Lost(SessionError),
    /// Nothing was heard of the worker at all.
    Unreached(SessionError),
}

impl Step {
    fn unreached(self) -> Self {
        match self {
            Self::Lost(error) => Self::Unreached(error),
            other => other,
        }
    }
}

/// Waits a little before the next try. Why the turn is to stop, if it is told so meanwhile.
pub(super) async fn pause(turn: TurnId, controls: &mut Controls) -> Option<StopReason> {
    timeout(PLACEMENT_PAUSE, told_to_stop(turn, controls)).await.ok()
}

/// Until somebody stops a turn that no worker runs yet. Other words are nothing to it: what was decided meanwhile, the log tells.
pub(super) async fn told_to_stop(turn: TurnId, controls: &mut Controls) -> StopReason {
    loop {
        match controls.recv().await {
            Some(Frame::Interrupt { turn: meant }) if meant.is_none_or(|meant| meant == turn) => {
                return StopReason::Interrupted;
            }
            Some(Frame::Terminated) => return StopReason::Terminated,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Why a step has no worker.
enum Unplaced {
    Stopped(StopReason),
    /// The tenant runs nothing for now.
    Halted(Error),
    Nowhere(Error),
    /// Those that were asked are unable to run the session.
    Refused(SessionError),
}

impl Unplaced {
    /// How the turn ends with that.
    fn end(self) -> End {
        match self {
            Self::Stopped(stop_reason) => End::of(stop_reason),
            Self::Halted(why) => End::failed(StopReason::Interrupted, session_error(&why)),
            Self::Nowhere(error) => End::failed(StopReason::WorkerLost, session_error(&error)),
            Self::Refused(refusal) => End::failed(StopReason::Error, refusal),
        }
    }
}
