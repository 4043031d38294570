//! What the worker adds to a request: the time from the grant to the stored answer, less the time that the provider took.
//!
//! The harness plays the front, over plaintext on loopback. The provider is a process of its own and says when it was asked
//! and when it began to answer; all clocks are the machine's one. The rest is the worker's: gRPC in and out, building the
//! request, HTTP, server-sent events, JSON, and the turn. The worker has a core of its own, harness and provider share another.
//! The four ways between these cores are in the time too: what two bare round trips take is told beside.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use croft_proto::id::SessionId;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::runtime_service_client::RuntimeServiceClient;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, ContentBlock, EventStored, ExecuteStepRequest, Grant, InitWorkerSessionRequest, StepStart, Text,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::provider::{moments, now};
use super::{Place, WorkerExtent, hops};
use crate::bench::load::megabytes;
use crate::bench::pace::Pace;
use crate::bench::process::Program;
use crate::bench::row::Row;
use crate::bench::samples::Samples;

pub(super) const TENANT: &str = "bench";
/// The worker's alone.
pub(super) const WORKER_CORE: &str = "0";
/// Of everyone else.
pub(super) const OTHER_CORE: &str = "1";
const P50_MAX: Duration = Duration::from_micros(300);
const P99_MAX: Duration = Duration::from_millis(1);
/// Sessions that the requests go round.
const SESSIONS: u32 = 500;

/// At each rate.
pub(super) async fn all(place: &Place, extent: &WorkerExtent) -> anyhow::Result<Vec<Row>> {
    let (_provider, provider_address) = provider(OTHER_CORE).await?;
    let (worker, grpc) = worker(place, "worker", provider_address, 2 * SESSIONS).await?;
    stay_on_the_other_core().await?;
    let client = RuntimeServiceClient::new(Endpoint::from_shared(format!("http://{grpc}"))?.connect().await?);
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(session(&client).await?);
    }
    let mut rows = Vec::new();
    for &rate in &extent.rates {
        rows.push(hops::at(rate).await?);
        rows.push(at(&worker, &client, &sessions, rate, extent.seconds).await?);
    }
    Ok(rows)
}

/// This very program, as a provider on that core.
pub(super) async fn provider(core: &str) -> anyhow::Result<(Child, SocketAddr)> {
    let own = std::env::current_exe()?;
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", core]).arg(own).arg("provider");
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let printed = child.stdout.take().context("it prints nothing")?;
    let line = BufReader::new(printed).lines().next_line().await?.context("the provider has ended")?;
    Ok((child, line.parse()?))
}

/// Keeps this process off the worker's core from now on.
async fn stay_on_the_other_core() -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", OTHER_CORE]).arg(own).stdout(Stdio::null());
    ensure!(command.status().await?.success(), "cannot move to core {OTHER_CORE}: the machine must have two");
    Ok(())
}

/// The worker, on a core of its own.
pub(super) async fn worker(
    place: &Place,
    name: &str,
    provider: SocketAddr,
    sessions_max: u32,
) -> anyhow::Result<(Program, SocketAddr)> {
    std::fs::create_dir_all(&place.scratch)?;
    let file = place.scratch.join("providers.json");
    std::fs::write(
        &file,
        json!({ "providers": { "anthropic": { "base_url": format!("http://{provider}") } } }).to_string(),
    )?;
    let free = || anyhow::Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?);
    let (grpc, ops) = (free()?, free()?);
    let mut command = Command::new("taskset");
    command.env_clear().args(["--cpu-list", WORKER_CORE]).arg(place.programs.join("croft-worker")).args([
        format!("--tenant={TENANT}"),
        "--worker-name=worker-0".to_owned(),
        format!("--grpc-addr={grpc}"),
        format!("--metrics-addr={ops}"),
        format!("--providers={}", file.display()),
        format!("--sessions-max={sessions_max}"),
        "--insecure".to_owned(),
    ]);
    command.env("PATH", std::env::var("PATH").unwrap_or_default());
    let mut worker = Program::start(name, command, ops, &place.scratch.join(format!("{name}.log")))?;
    worker.ready().await?;
    Ok((worker, grpc))
}

pub(super) fn text(text: &str) -> Vec<ContentBlock> {
    vec![ContentBlock { block: Some(Block::Text(Text { text: text.to_owned() })) }]
}

pub(super) async fn session(client: &RuntimeServiceClient<Channel>) -> anyhow::Result<String> {
    let session_id = SessionId::generate().to_string();
    let agent = AgentSpec { name: "bench".to_owned(), model: "claude-haiku-4-5".to_owned(), ..AgentSpec::default() };
    let request = InitWorkerSessionRequest {
        session_id: session_id.clone(),
        tenant: TENANT.to_owned(),
        agent: Some(agent),
        provider: "anthropic".to_owned(),
    };
    client.clone().init_worker_session(request).await?;
    Ok(session_id)
}

async fn at(
    worker: &Program,
    client: &RuntimeServiceClient<Channel>,
    sessions: &[String],
    per_second: u32,
    seconds: u32,
) -> anyhow::Result<Row> {
    // Connections and code are warm before anything counts.
    let warm = Pace { per_second: per_second.min(200), count: SESSIONS };
    for (_, outcome) in warm.run(async |number| turn(client.clone(), &sessions[number as usize]).await).await {
        outcome?;
    }
    let (before, begun) = (worker.load()?, Instant::now());
    let pace = Pace { per_second, count: per_second * seconds };
    let calls = pace.run(async |number| turn(client.clone(), &sessions[number as usize % sessions.len()]).await).await;
    let took = begun.elapsed();
    let after = worker.load()?;
    let mut times = Vec::with_capacity(calls.len());
    for (_, outcome) in calls {
        times.push(outcome?);
    }
    let times: Samples = times.into_iter().collect();
    let holds = times.p50() <= P50_MAX && times.p99() <= P99_MAX;
    let core = (after.cpu.saturating_sub(before.cpu)).as_secs_f64() / took.as_secs_f64() * 100.0;
    Ok(Row::times(format!("worker overhead a request, one core, at {per_second}/s"), times)
        .reach("p50 ≤ 300 µs, p99 ≤ 1 ms", holds)
        .besides(format!("worker {core:.0} % of its core, {}", megabytes(after.resident))))
}

/// One turn of one model call; what the worker added to it.
pub(super) async fn turn(mut client: RuntimeServiceClient<Channel>, session_id: &str) -> anyhow::Result<Duration> {
    // Grows from turn to turn.
    let epoch = u64::try_from(now().as_nanos())?;
    let (requests, receiver) = mpsc::channel(16);
    let send = async |message| requests.send(ExecuteStepRequest { message: Some(message) }).await;
    let start = StepStart {
        session_id: session_id.to_owned(),
        turn_id: format!("turn-{epoch}"),
        tenant: TENANT.to_owned(),
        epoch,
        input: text("hello"),
        ..StepStart::default()
    };
    send(ToWorker::Start(start)).await?;
    let mut responses = client.execute_step(ReceiverStream::new(receiver)).await?.into_inner();
    let (mut granted, mut overhead) = (None, None);
    while let Some(response) = responses.message().await? {
        match response.message {
            Some(FromWorker::GrantRequest(request)) => {
                granted = Some(now());
                let grant = Grant {
                    request_id: request.request_id,
                    grant_id: "grant".to_owned(),
                    provider: "anthropic".to_owned(),
                    model: request.model,
                    output_tokens_max: request.output_tokens_max,
                    expire_time: None,
                    routed: false,
                    images: None,
                };
                send(ToWorker::Grant(grant)).await?;
            }
            Some(FromWorker::Event(event)) => {
                let heard = now();
                let kind = event.event.and_then(|event| event.kind);
                if event.event_index > 0 {
                    let stored = EventStored { event_index: event.event_index, seq: event.event_index };
                    // The worker may have finished: it waits for no word of its last events.
                    drop(send(ToWorker::EventStored(stored)).await);
                }
                match kind {
                    Some(Kind::AgentMessage(message)) => {
                        let Some(Block::Text(text)) = message.content.first().and_then(|block| block.block.as_ref())
                        else {
                            bail!("an answer is empty");
                        };
                        let (asked, answered) = moments(&text.text).context("an answer is not the provider's")?;
                        let granted = granted.context("a call without a grant")?;
                        let before = asked.checked_sub(granted).unwrap_or_default();
                        overhead = Some(before + heard.checked_sub(answered).unwrap_or_default());
                    }
                    Some(Kind::Error(error)) => bail!("{}: {}", error.reason, error.message),
                    _ => {}
                }
            }
            Some(FromWorker::Checkpoint(_) | FromWorker::Finished(_) | FromWorker::SubAgentCall(_)) | None => {}
        }
    }
    overhead.context("a turn ended without an answer")
}
