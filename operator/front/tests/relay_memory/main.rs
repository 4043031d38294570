//! The relay within one process keeps what every relay promises.

#[path = "../contract/relay.rs"]
mod relay;

use croft_front::events::relay::memory::MemoryRelay;

struct Ground {
    ours: MemoryRelay,
    theirs: MemoryRelay,
}

async fn ground() -> Ground {
    let ours = MemoryRelay::default();
    Ground { theirs: ours.clone(), ours }
}

impl Ground {
    async fn end(self) {}
}

relay::relay_promises!();
