//! What a session takes in a worker while nothing happens in it: it has been talked to once, and its state is kept.

use croft_proto::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Endpoint;

use super::Place;
use super::overhead::{OTHER_CORE, provider, session, turn, worker};
use crate::bench::load::megabytes;
use crate::bench::pace::Pace;
use crate::bench::row::Row;

const SESSIONS: u32 = 5_000;
const BYTES_MAX: u64 = 30 * 1024;
/// Turns a second while the sessions are made.
const PER_SECOND: u32 = 400;

pub(super) async fn sessions(place: &Place) -> anyhow::Result<Row> {
    let (_provider, provider_address) = provider(OTHER_CORE).await?;
    let (worker, grpc) = worker(place, "worker-idle", provider_address, SESSIONS).await?;
    let client = RuntimeServiceClient::new(Endpoint::from_shared(format!("http://{grpc}"))?.connect().await?);
    // What turns take anyway is taken before: connections, buffers, code.
    let first = session(&client).await?;
    let warm = Pace { per_second: PER_SECOND, count: PER_SECOND };
    for (_, outcome) in warm.run(async |_| turn(client.clone(), &session(&client).await?).await).await {
        outcome?;
    }
    turn(client.clone(), &first).await?;
    let before = worker.load()?.resident;
    let made = SESSIONS - PER_SECOND - 1;
    let rest = Pace { per_second: PER_SECOND, count: made };
    for (_, outcome) in rest.run(async |_| turn(client.clone(), &session(&client).await?).await).await {
        outcome?;
    }
    let after = worker.load()?.resident;
    let each = after.saturating_sub(before) / u64::from(made);
    Ok(Row::value(
        format!("memory of an idle session, {SESSIONS} in a worker"),
        format!("{}.{} KB", each / 1024, each % 1024 * 10 / 1024),
    )
    .reach("≤ 30 KB", each <= BYTES_MAX)
    .besides(format!("the worker has {}", megabytes(after))))
}
