//! How soon another worker goes on from a checkpoint: from the moment that the front has it until the worker that it is sent
//! to has taken it in, and asks for a grant to call the model with it.

use std::time::Duration;

use anyhow::bail;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::runtime_service_client::RuntimeServiceClient;
use croft_proto::v1::{ExecuteStepRequest, Message, Role, SessionCheckpoint, StepStart};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::Place;
use super::overhead::{OTHER_CORE, TENANT, provider, session, text, worker};
use crate::bench::load::megabytes;
use crate::bench::row::Row;
use crate::bench::samples::Samples;

const TIMES: u32 = 100;
const MESSAGES: usize = 200;
/// With which the checkpoint has a good megabyte.
const CHARACTERS: usize = 5_300;
const REACH: Duration = Duration::from_millis(50);

pub(super) async fn checkpoint(place: &Place) -> anyhow::Result<Row> {
    let (_provider, provider_address) = provider(OTHER_CORE).await?;
    let (_worker, grpc) = worker(place, "worker-restore", provider_address, 2 * TIMES).await?;
    // As a front does, it speaks to the worker over one connection.
    let channel = Endpoint::from_shared(format!("http://{grpc}"))?.connect().await?;
    let client =
        RuntimeServiceClient::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
    let checkpoint = talk();
    let bytes = checkpoint.encoded_len();
    let mut times = Vec::new();
    for _ in 0..TIMES {
        times.push(restored(&client, &checkpoint).await?);
    }
    let times: Samples = times.into_iter().collect();
    let size = megabytes(u64::try_from(bytes)?);
    Ok(Row::times("checkpoint → restored on another worker", times)
        .p99_within(REACH)
        .besides(format!("a checkpoint of {size}; the session made known, the step begun, its grant asked for")))
}

/// A conversation of a good megabyte.
fn talk() -> SessionCheckpoint {
    let message =
        |role: Role| Message { role: role.into(), content: text(&"x".repeat(CHARACTERS)), ..Message::default() };
    let messages = (0..MESSAGES / 2).flat_map(|_| [message(Role::User), message(Role::Assistant)]).collect();
    SessionCheckpoint {
        checkpoint_id: "checkpoint".to_owned(),
        messages,
        turn_id: "turn-0".to_owned(),
        ..SessionCheckpoint::default()
    }
}

async fn restored(client: &RuntimeServiceClient<Channel>, checkpoint: &SessionCheckpoint) -> anyhow::Result<Duration> {
    let checkpoint = checkpoint.clone();
    let began = Instant::now();
    let session_id = session(client).await?;
    let (requests, receiver) = mpsc::channel(4);
    let start = StepStart {
        session_id,
        turn_id: "turn-1".to_owned(),
        tenant: TENANT.to_owned(),
        epoch: 2,
        input: text("go on"),
        checkpoint: Some(checkpoint),
        ..StepStart::default()
    };
    requests.send(ExecuteStepRequest { message: Some(ToWorker::Start(start)) }).await?;
    let mut responses = client.clone().execute_step(ReceiverStream::new(receiver)).await?.into_inner();
    loop {
        match responses.message().await?.and_then(|response| response.message) {
            Some(FromWorker::GrantRequest(_)) => return Ok(began.elapsed()),
            Some(_) => {}
            None => bail!("the step ended before it asked for a grant"),
        }
    }
}
