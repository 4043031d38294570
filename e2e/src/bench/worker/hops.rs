//! What the ways between two cores take by themselves: a question over a connection that stays open, and the answer to it. A
//! request has two such round trips on its way through the worker, so no worker could be quicker than both.

use std::time::Duration;

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::overhead::{WORKER_CORE, provider};
use crate::bench::row::Row;
use crate::bench::samples::Samples;

const TIMES: u32 = 1_000;
/// More than a question or an answer has, which come in one piece.
const BYTES_MAX: usize = 16 * 1024;

/// So many questions a second to a provider on the worker's core. None waits for another.
pub(super) async fn at(per_second: u32) -> anyhow::Result<Row> {
    let (_provider, address) = provider(WORKER_CORE).await?;
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut answer = vec![0; BYTES_MAX];
    let mut times = Vec::new();
    for _ in 0..TIMES {
        tokio::time::sleep(Duration::from_secs(1) / per_second).await;
        let asked = Instant::now();
        stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n").await?;
        ensure!(stream.read(&mut answer).await? > 0, "the provider has ended");
        times.push(asked.elapsed());
    }
    let times: Samples = times.into_iter().collect();
    Ok(Row::times(format!("bare round trip between two cores, at {per_second}/s"), times)
        .besides("two of them are in the overhead below"))
}
