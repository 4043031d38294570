//! The relay within one process keeps what every relay promises.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../contract/relay.rs"]
mod relay;

use croft_front::events::relay::memory::MemoryRelay;

struct Ground {
    ours: MemoryRelay,
    theirs: MemoryRelay,
}

#[expect(clippy::unused_async, reason = "other grounds are made with a server")]
async fn ground() -> Ground {
    let ours = MemoryRelay::default();
    Ground { theirs: ours.clone(), ours }
}

impl Ground {
    #[expect(clippy::unused_async, reason = "other grounds are taken down at a server")]
    async fn end(self) {}
}

relay::relay_promises!();
