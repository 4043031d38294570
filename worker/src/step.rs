//! One `ExecuteStep`: waits for its start, runs the turn, and listens to the front meanwhile.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::execute_step_request::Message;
use croft_proto::v1::{ExecuteStepRequest, StepStart, StepStarted, StopReason};
use tonic::{Status, Streaming};
use tracing::Span;

use crate::executor::{Bounds, Chain, Executor, State, unused};
use crate::interrupt::{Interrupt, Why};
use crate::link::Link;
use crate::outbox::Outbox;
use crate::refusal::Refusal;
use crate::server::{Shared, session_id};

/// How long the front may take to send the start. At the bound the call fails.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A step that is about to run.
pub(crate) struct Step {
    shared: Arc<Shared>,
    outbox: Outbox,
    interrupt: Interrupt,
}

impl Step {
    pub(crate) fn new(shared: Arc<Shared>, outbox: Outbox, interrupt: Interrupt) -> Self {
        Self { shared, outbox, interrupt }
    }

    /// Runs to the end, which the front hears of unless it has gone; also if it ends in a panic.
    pub(crate) async fn run(self, mut incoming: Streaming<ExecuteStepRequest>) {
        let _ends = self.outbox.ends_with_step();
        let outcome = match self.start(&mut incoming).await {
            Ok(start) => Box::pin(self.turn(start, incoming)).await,
            Err(refusal) => Err(refusal),
        };
        self.shared.metrics.dropped_previews(self.outbox.dropped_previews());
        match outcome {
            Ok(()) => self.outbox.close(),
            Err(refusal) => {
                tracing::info!(reason = refusal.reason(), "step refused or broken off: {refusal}");
                self.outbox.fail(Status::from(refusal));
            }
        }
    }

    async fn start(&self, incoming: &mut Streaming<ExecuteStepRequest>) -> Result<StepStart, Refusal> {
        let first = tokio::time::timeout(START_TIMEOUT, self.interrupt.or(incoming.message())).await;
        match first {
            Err(_) => Err(Refusal::StartMissing),
            Ok(Err(_) | Ok(Err(_) | Ok(None))) => Err(Refusal::FrontGone),
            Ok(Ok(Ok(Some(request)))) => match request.message {
                Some(Message::Start(start)) => Ok(start),
                _ => Err(Refusal::Malformed { field: "start" }),
            },
        }
    }

    async fn turn(&self, start: StepStart, incoming: Streaming<ExecuteStepRequest>) -> Result<(), Refusal> {
        let StepStart {
            session_id: id,
            turn_id,
            tenant,
            epoch,
            agent,
            checkpoint,
            input,
            journal,
            asked_approval_ids,
            decisions,
            settled_grant_ids,
            user,
        } = start;
        let shared = &self.shared;
        let session = session_id(&id)?;
        if turn_id.is_empty() {
            return Err(Refusal::Malformed { field: "turn_id" });
        }
        // Together, as the log writes all of a span's fields anew with each record of one.
        tracing::record_all!(Span::current(), tenant = tenant.as_str(), session = id.as_str());
        let mut begun = shared.sessions.begin(session, epoch, &self.interrupt, &self.outbox).await?;
        let agent = agent.unwrap_or_else(|| begun.agent.clone());
        let (toolbox, guardrails) = shared.check(&tenant, &agent, &begun.provider, &user).await?;
        let (state, closed) = State::begin(checkpoint, &turn_id, input, journal);
        if state.is_empty() {
            return Err(Refusal::Malformed { field: "input" });
        }
        // From here on they are told: a step that is refused leaves them to the next.
        let mut untold = begun.take_untold(&turn_id);
        untold.retain(|attempt| !settled_grant_ids.contains(&attempt.grant_id));
        let link = Link::new(turn_id.clone(), self.outbox.clone(), self.interrupt.clone())
            .with_approvals(asked_approval_ids, decisions);
        let bounds = Bounds::of(&agent);
        let executor = Executor {
            link: &link,
            interrupt: &self.interrupt,
            draining: shared.tasks.stopping(),
            begun: &begun,
            providers: &shared.providers,
            retry: shared.options.retry,
            metrics: &shared.metrics,
            toolbox: &toolbox,
            guardrails: &guardrails,
            agent: &agent,
            bounds,
            session,
            chain: Chain::new(&agent),
            state,
            closed,
            untold,
        };
        let started =
            StepStarted { worker: shared.options.worker.clone(), namespace: shared.options.namespace.clone(), epoch };
        tokio::select! {
            () = executor.run(started) => {}
            () = self.listen(incoming, &link, bounds.turn_timeout) => {}
        }
        let raised = self.interrupt.raised();
        let is_cut_off = raised == Some(Why::HungUp) || self.outbox.is_abandoned();
        begun.leave_untold(turn_id, link.untold(), is_cut_off);
        match raised {
            // The stream's own end rings the bell too, but only after this.
            Some(Why::HungUp) => Err(Refusal::FrontGone),
            Some(Why::Stop(_)) | None => Ok(()),
        }
    }

    /// Passes on what the front says, and watches the clock. Never ends by itself: the executor does.
    async fn listen(&self, mut incoming: Streaming<ExecuteStepRequest>, link: &Link, turn_timeout: Duration) {
        let listening = async {
            loop {
                match incoming.message().await {
                    Ok(Some(request)) => link.hear(request),
                    Ok(None) => break tracing::debug!("the front ended its requests"),
                    Err(status) => break tracing::debug!(%status, "the front is gone"),
                }
            }
            self.interrupt.raise(Why::HungUp);
            std::future::pending::<()>().await;
        };
        let left_over = async {
            loop {
                let grant = link.next_unused().await;
                link.attempted(unused(&grant)).await;
            }
        };
        let late = async {
            tokio::time::sleep(turn_timeout).await;
            self.interrupt.raise(Why::Stop(StopReason::TimeLimit));
            std::future::pending::<()>().await;
        };
        let drained = async {
            self.shared.tasks.stopping().cancelled().await;
            tokio::time::sleep(self.shared.options.drain).await;
            self.interrupt.raise(Why::Stop(StopReason::HandedBack));
            std::future::pending::<()>().await;
        };
        tokio::join!(listening, left_over, late, drained);
    }
}
