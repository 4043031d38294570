//! A worker that says the first half of what belongs together, and lets the second wait.

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_proto::v1::execute_step_request::Message as FromFront;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ExecuteStepRequest, ExecuteStepResponse, InterruptSessionRequest, ModelAttempt, SessionEvent, StepEvent,
    StepFinished, StopReason, TextDelta,
};
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};

use crate::played::{Played, Said, Steps};
use crate::world::{STALL, World, read_all, stop_reason};

/// Tells of an attempt and not of its answer, and goes on when it is told to stop. Tells the test what it hears.
struct Halves(mpsc::Sender<FromFront>);

fn event(event_index: u64, kind: Kind) -> ExecuteStepResponse {
    let event = Some(SessionEvent { kind: Some(kind), ..SessionEvent::default() });
    ExecuteStepResponse { message: Some(FromWorker::Event(StepEvent { event_index, event })) }
}

#[tonic::async_trait]
impl Steps for Halves {
    async fn step(&self, mut request: Request<Streaming<ExecuteStepRequest>>) -> Result<Said, Status> {
        request.get_mut().message().await?;
        let shown = event(0, Kind::TextDelta(TextDelta { text: "so far".into() }));
        let attempt =
            ModelAttempt { attempt_id: "half".into(), finish_reason: "end_turn".into(), ..Default::default() };
        let half = event(1, Kind::ModelAttempt(attempt));
        let (tells, mut incoming) = (self.0.clone(), request.into_inner());
        let last = stream::once(async move {
            while let Some(ExecuteStepRequest { message: Some(message) }) = incoming.message().await? {
                let stops = matches!(message, FromFront::Cancel(_));
                tells.send(message).await.unwrap();
                if stops {
                    break;
                }
            }
            let finished = StepFinished { stop_reason: StopReason::Interrupted.into(), ..StepFinished::default() };
            Ok(ExecuteStepResponse { message: Some(FromWorker::Finished(finished)) })
        });
        Ok(stream::iter([Ok(shown), Ok(half)]).chain(last).boxed())
    }
}

/// It was heard a second later, when the first half had been stored by itself.
#[tokio::test]
async fn who_interrupts_is_heard_while_the_second_half_of_an_attempt_is_under_way() {
    steady(STALL, async || {
        let world = World::start().await;
        let (tells, mut heard) = mpsc::channel(8);
        let address = Played(Halves(tells)).serve(&world, "halves").await;
        world.reroute(|route| route.workers[0].address = address);
        let mut client = world.client();
        let session_id = client.create(scripted_agent("half")).await.unwrap().session_id;
        let mut turn = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap().into_inner();
        while !matches!(turn.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::TextDelta(_))) {}
        let interrupt = InterruptSessionRequest { session_id };
        assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
        let first = heard.recv().await.unwrap();
        assert!(matches!(first, FromFront::Cancel(_)), "{first:?}");
        assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::Interrupted));
    })
    .await;
}
