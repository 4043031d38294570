//! A client on a thread of its own.

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::task::block_in_place;

/// Does all of it on this thread. On a runtime of many, a call and its answer go from thread to thread, and to wake one costs as much as
/// what is measured. Needs such a runtime around it; what is connected outside goes on there.
pub fn alone<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    block_in_place(|| Builder::new_current_thread().enable_all().build().context("no runtime")?.block_on(work))
}
