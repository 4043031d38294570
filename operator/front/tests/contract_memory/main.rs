//! The stores in memory keep what every store promises.

#[path = "../contract/mod.rs"]
mod contract;

use croft_front::store::Stores;

/// Stores for one test.
struct Ground {
    stores: Stores,
}

async fn ground() -> Ground {
    Ground { stores: Stores::memory() }
}

impl Ground {
    async fn end(self) {}
}

contract::promises!();
