//! What the operator asks about tenants, on the front's internal port, over mutual TLS.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod doors;
#[path = "../doubles/mod.rs"]
mod doubles;
mod reaper;
mod removal;
mod retention;
mod scene;
mod watch;
