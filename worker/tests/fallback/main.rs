//! What happens when a model can't answer: others take over, and one that keeps failing is left alone.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod bad_calls;
mod breaker;
mod canned;
mod estimates;
mod outgrown;
mod proofs;
mod refusals;
mod routed;
mod shapes;
#[path = "../support/mod.rs"]
mod support;
mod takeover;
