//! The stores in memory keep what every store promises.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../contract/mod.rs"]
mod contract;

use croft_front::store::Stores;

/// Stores for one test.
struct Ground {
    stores: Stores,
}

#[expect(clippy::unused_async, reason = "other grounds are made with a server")]
async fn ground() -> Ground {
    Ground { stores: Stores::memory() }
}

impl Ground {
    #[expect(clippy::unused_async, reason = "other grounds are taken down at a server")]
    async fn end(self) {}
}

contract::promises!();
