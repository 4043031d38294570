//! Workers that come and go beneath one turn, as they do while they are rolled.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_front::core::Options;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::{ExecuteStepRequest, ExecuteStepResponse, StepFinished, StopReason};
use futures::{StreamExt as _, stream};
use tokio::time::sleep;
use tonic::{Request, Status, Streaming};

use crate::played::{Played, Said, Steps};
use crate::world::{Ground, World, read_all, stop_reason};

/// For how long a front looks for a worker that answers, and for longer than that.
const LOOKS_FOR: Duration = Duration::from_millis(300);
const RUNS_FOR: Duration = Duration::from_millis(600);

/// What becomes of a step.
#[derive(Clone, Copy)]
enum Fate {
    /// Its worker is about to go, or not there yet.
    Refused,
    /// It runs for a while, and is handed back.
    HandedBack,
    Done,
}

/// One worker in the place of several, by turns.
struct Rolled {
    fates: &'static [Fate],
    next: AtomicUsize,
}

#[tonic::async_trait]
impl Steps for Rolled {
    async fn step(&self, mut request: Request<Streaming<ExecuteStepRequest>>) -> Result<Said, Status> {
        request.get_mut().message().await?;
        let stop_reason = match self.fates.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            Some(Fate::Refused) | None => return Err(Status::unavailable("it is about to go")),
            Some(Fate::HandedBack) => {
                sleep(RUNS_FOR).await;
                StopReason::HandedBack
            }
            Some(Fate::Done) => StopReason::EndTurn,
        };
        let finished = StepFinished { stop_reason: stop_reason.into(), ..StepFinished::default() };
        let last = Ok(ExecuteStepResponse { message: Some(FromWorker::Finished(finished)) });
        Ok(stream::iter([last]).boxed())
    }
}

/// How a turn ends whose steps have these fates.
async fn end_of(fates: &'static [Fate]) -> Option<StopReason> {
    let options = Options { placement_timeout: LOOKS_FOR, ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let rolled = Rolled { fates, next: AtomicUsize::new(0) };
    let address = Played(rolled).serve(&world, "rolled").await;
    world.reroute(|route| route.workers[0].address = address);
    let mut client = world.client();
    let session_id = client.create(scripted_agent("long")).await.unwrap().session_id;
    let turn = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap().into_inner();
    stop_reason(&read_all(turn).await)
}

/// It had run well for longer than anybody looks for a worker between two that refused it, and was ended at the second.
#[tokio::test]
async fn a_turn_looks_for_a_worker_each_time_as_long_as_the_first() {
    let fates = &[Fate::Refused, Fate::HandedBack, Fate::Refused, Fate::Done];
    assert_eq!(end_of(fates).await, Some(StopReason::EndTurn));
}

#[tokio::test]
async fn a_turn_whose_workers_all_refuse_it_ends() {
    assert_eq!(end_of(&[]).await, Some(StopReason::WorkerLost));
}
