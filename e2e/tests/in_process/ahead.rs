//! Leave for a turn's first call, which the front asks for before its worker does.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_proto::v1::execute_step_request::Message as FromFront;
use croft_proto::v1::execute_step_response::Message as ToFront;
use croft_proto::v1::runtime_service_client::RuntimeServiceClient;
use croft_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentLimits, AgentSpec, Budget, BudgetAction, BudgetPeriod, BudgetScope, BuiltinTool, CheckpointRequest,
    CheckpointResponse, ExecuteStepRequest, ExecuteStepResponse, Grant, GrantRequest, GuardrailSpec,
    InitWorkerSessionRequest, InitWorkerSessionResponse, LengthCheck, Message, Role,
    RuntimeServiceTerminateSessionRequest, RuntimeServiceTerminateSessionResponse, SessionCheckpoint, SetBudgetRequest,
    StepFinished, StepStart, StopReason, ToolSpec, guardrail_spec,
};
use croft_serve::Tasks;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::world::{World, names, read_all, stop_reason};

/// A worker that ends each turn without a call, once it has leave for one. It asks only if the front has not, and tells what it heard.
struct Listener {
    heard: mpsc::UnboundedSender<(StepStart, Grant)>,
    tasks: Tasks,
}

/// What this worker's tools weigh, as it says.
const TOOLS_CHARACTERS: u32 = 4_000;

#[tonic::async_trait]
impl RuntimeService for Listener {
    type ExecuteStepStream = BoxStream<'static, Result<ExecuteStepResponse, Status>>;

    async fn init_worker_session(
        &self,
        _: Request<InitWorkerSessionRequest>,
    ) -> Result<Response<InitWorkerSessionResponse>, Status> {
        Ok(Response::new(InitWorkerSessionResponse::default()))
    }

    async fn execute_step(
        &self,
        requests: Request<Streaming<ExecuteStepRequest>>,
    ) -> Result<Response<Self::ExecuteStepStream>, Status> {
        let (heard, mut requests) = (self.heard.clone(), requests.into_inner());
        let (tell, told) = mpsc::unbounded_channel();
        drop(self.tasks.spawn("listener-step", async move {
            let say = |message| drop(tell.send(Ok(ExecuteStepResponse { message: Some(message) })));
            let Some(FromFront::Start(start)) = requests.message().await.unwrap().unwrap().message else {
                panic!("a step begins with its start")
            };
            if start.asked_for.is_none() {
                say(ToFront::GrantRequest(GrantRequest {
                    request_id: "own".into(),
                    model: "scripted-1".into(),
                    tools_characters: TOOLS_CHARACTERS,
                    ..GrantRequest::default()
                }));
            }
            let Some(FromFront::Grant(grant)) = requests.message().await.unwrap().unwrap().message else {
                panic!("there is leave")
            };
            let mut messages = start.checkpoint.clone().unwrap_or_default().messages;
            messages.push(Message { role: Role::User.into(), content: start.input.clone(), ..Message::default() });
            let checkpoint =
                SessionCheckpoint { turn_id: start.turn_id.clone(), messages, ..SessionCheckpoint::default() };
            heard.send((start, grant)).unwrap();
            say(ToFront::Finished(StepFinished {
                stop_reason: StopReason::EndTurn.into(),
                checkpoint: Some(checkpoint),
            }));
        }));
        Ok(Response::new(UnboundedReceiverStream::new(told).boxed()))
    }

    async fn checkpoint(&self, _: Request<CheckpointRequest>) -> Result<Response<CheckpointResponse>, Status> {
        Ok(Response::new(CheckpointResponse::default()))
    }

    async fn terminate_session(
        &self,
        _: Request<RuntimeServiceTerminateSessionRequest>,
    ) -> Result<Response<RuntimeServiceTerminateSessionResponse>, Status> {
        Ok(Response::new(RuntimeServiceTerminateSessionResponse::default()))
    }
}

/// A world whose worker listens.
async fn listened_to(world: &World) -> mpsc::UnboundedReceiver<(StepStart, Grant)> {
    let (heard, hearing) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = RuntimeServiceServer::new(Listener { heard, tasks: world.tasks.clone() });
    let server = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    world.tasks.spawn_last("listener", async { server.await.unwrap() });
    world.reroute(|route| {
        route.workers[0].name = "listener".into();
        route.workers[0].address = address.to_string();
    });
    hearing
}

async fn say(client: &mut Client, session_id: &str, text: &str) {
    let sent = client.lifecycle.send_message(message(session_id, text)).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
}

#[tokio::test]
async fn comes_with_the_start_of_each_turn_for_what_the_conversation_weighs() {
    let world = World::start().await;
    let mut heard = listened_to(&world).await;
    let mut client = world.client();
    let session = client.create(scripted_agent("quick")).await.unwrap();
    for (text, tokens) in [("hello", 2), ("again", 3)] {
        say(&mut client, &session.session_id, text).await;
        let (start, grant) = heard.recv().await.unwrap();
        let asked_for = start.asked_for.expect("the front asks");
        assert_eq!((asked_for.model.as_str(), asked_for.input_tokens_estimated), ("scripted-1", tokens), "{text}");
        assert_eq!((grant.request_id, grant.output_tokens_max), (asked_for.request_id, 4_096));
    }
}

#[tokio::test]
async fn comes_for_an_agent_with_tools_once_they_are_known() {
    let world = World::start().await;
    let mut heard = listened_to(&world).await;
    let mut client = world.client();
    let clock = Source::Builtin(BuiltinTool { name: "clock".into() });
    let clock = ToolSpec { name: "clock".into(), source: Some(clock), ..ToolSpec::default() };
    let agent = AgentSpec { tools: vec![clock], ..scripted_agent("handy") };
    let sessions = [client.create(agent.clone()).await.unwrap(), client.create(agent).await.unwrap()];
    say(&mut client, &sessions[0].session_id, "hello").await;
    let (start, grant) = heard.recv().await.unwrap();
    assert_eq!(
        (start.asked_for, grant.request_id.as_str()),
        (None, "own"),
        "what its tools weigh is the worker's to say"
    );
    // Of all who have the same tools.
    say(&mut client, &sessions[1].session_id, "hello").await;
    let (start, grant) = heard.recv().await.unwrap();
    let asked_for = start.asked_for.expect("now it is known");
    assert_eq!((asked_for.tools_characters, asked_for.input_tokens_estimated), (TOOLS_CHARACTERS, 1_002));
    assert_eq!(grant.request_id, asked_for.request_id);
}

#[tokio::test]
async fn does_not_come_where_a_guard_may_end_the_turn_before() {
    let world = World::start().await;
    let mut heard = listened_to(&world).await;
    let mut client = world.client();
    let check = guardrail_spec::Check::Length(LengthCheck { characters_max: 100 });
    let guard = GuardrailSpec { name: "brief".into(), check: Some(check), ..GuardrailSpec::default() };
    let agent = AgentSpec { guardrails: vec![guard], ..scripted_agent("guarded") };
    let session = client.create(agent).await.unwrap();
    say(&mut client, &session.session_id, "hello").await;
    let (start, grant) = heard.recv().await.unwrap();
    assert_eq!((start.asked_for, grant.request_id.as_str()), (None, "own"));
}

/// A worker that has been restarted refuses the step, and is told of the session: the leave that it never heard of is no call.
#[tokio::test]
async fn is_given_back_when_the_worker_does_not_know_the_session() {
    let world = World::start().await;
    let mut client = world.client();
    // There is room for one call at a time.
    let budget = Budget {
        scope: BudgetScope::Agent.into(),
        subject: "forgotten".into(),
        period: BudgetPeriod::Life.into(),
        limit_tokens: Some(150),
        action: BudgetAction::Block.into(),
        ..Budget::default()
    };
    client.budgets.set_budget(SetBudgetRequest { budget: Some(budget) }).await.unwrap();
    let limits = Some(AgentLimits { output_tokens_max: 100, ..AgentLimits::default() });
    let session = client.create(AgentSpec { limits, ..scripted_agent("forgotten") }).await.unwrap();
    say(&mut client, &session.session_id, "hello").await;
    let mut worker = RuntimeServiceClient::connect(format!("http://{}", world.worker())).await.unwrap();
    let forget = RuntimeServiceTerminateSessionRequest { session_id: session.session_id.clone(), ..Default::default() };
    assert!(worker.terminate_session(forget).await.unwrap().into_inner().found);
    let sent = client.lifecycle.send_message(message(&session.session_id, "again")).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(names(&events), ["user", "running", "step", "attempt", "agent", "checkpoint", "stepped", "idle"]);
    assert_eq!(world.stored(&session.session_id).await.usage.attempts, 2);
}
