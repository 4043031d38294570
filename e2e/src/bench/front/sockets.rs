//! What an open WebSocket costs that nothing happens on.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use tokio::time::Instant;

use super::socket::Socket;
use super::stage::Stage;
use crate::bench::row::Row;

/// Connected at a time.
const AT_A_TIME: usize = 64;
/// They stay open long enough for two pings and their answers.
const OPEN_FOR: Duration = Duration::from_secs(35);

/// Opens so many, keeps them for a while, and looks at the front's memory.
pub(super) async fn idle(stage: &Stage, count: u32) -> anyhow::Result<Row> {
    let (before, cpu) = (stage.front.program.load()?.resident, stage.cpu()?);
    let (address, api_key) = (stage.front.http, &stage.tenants[0].api_key);
    let begun = Instant::now();
    let connecting = stream::iter(0..count).map(|_| Socket::connect(address, api_key)).buffer_unordered(AT_A_TIME);
    let sockets: Vec<_> = connecting.collect().await;
    let sockets: Vec<Socket> = sockets.into_iter().collect::<anyhow::Result<_>>()?;
    let connected = begun.elapsed();
    // Listening answers the pings; nothing else comes, and whatever does ends the measure.
    let listening =
        futures::future::select_all(sockets.into_iter().map(|mut socket| Box::pin(async move { socket.hear().await })));
    match tokio::time::timeout(OPEN_FOR, listening).await {
        Err(_) => {}
        Ok((Ok(frame), ..)) => anyhow::bail!("a front speaks unasked: {frame}"),
        Ok((Err(error), ..)) => return Err(error.context("an idle WebSocket did not stay open")),
    }
    let each = stage.front.program.load()?.resident.saturating_sub(before) / u64::from(count);
    let kilobytes = f64::from(u32::try_from(each)?) / 1e3;
    Ok(Row::value(format!("{count} idle WebSockets"), format!("{kilobytes:.1} KB each"))
        .reach("≤ 20 KB each", kilobytes <= 20.0)
        .besides(format!("connected in {:.1} s, open for {OPEN_FOR:?}", connected.as_secs_f64()))
        .besides(stage.cpu_since(cpu)?))
}
