//! The stores in Postgres keep what every store promises, and what only a database can: row security, an audit log that
//! only grows, migrations.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../redis/authority.rs"]
mod authority;
mod changes;
#[path = "../contract/mod.rs"]
mod contract;
mod database;
mod erasure;
mod functions;
mod groups;
mod hooks;
mod idempotency;
mod install;
mod labels;
mod migrations;
mod outage;
mod pool;
mod pooler;
#[path = "../redis/port.rs"]
mod port;
mod reprice;
mod row_security;
mod silence;
mod silent;
mod tampering;
mod tls;
mod turn_cost;
mod twins;
mod words;

use croft_front::store::Stores;
use croft_serve::Tasks;
use database::Database;

/// A database for one test, and stores that go in as the front does.
struct Ground {
    stores: Stores,
    database: Database,
}

async fn ground() -> Ground {
    let database = Database::migrated().await;
    Ground { stores: Stores::postgres(&database.front().await, &Tasks::new()), database }
}

impl Ground {
    async fn end(self) {
        self.database.end().await;
    }
}

contract::promises!();
