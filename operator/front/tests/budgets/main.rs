//! Budgets on a real ledger and real counters: races of calls, crashes and replicas, held against the ledger.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../postgres/database.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod database;
#[path = "../contract/fixtures.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod fixtures;
mod given_up;
mod races;
mod rewound;
mod running;
mod scene;
