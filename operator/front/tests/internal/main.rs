//! What the operator asks about tenants, on the front's internal port, over mutual TLS.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod doors;
mod reaper;
mod removal;
mod retention;
mod scene;
mod watch;
