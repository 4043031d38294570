//! Whom the front calls, over real sockets: the operator for routes, workers for turns.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod authority;
#[path = "../redis/port.rs"]
mod port;
mod routes;
mod workers;
