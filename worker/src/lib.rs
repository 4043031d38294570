//! `RuntimeService`: runs the agent. The front opens a step, the worker runs the turn's graph of model and tool calls
//! and streams back what happens; it holds no credential but its tenant's own and dials nothing but models and tools.

pub mod config;
mod executor;
mod guardrails;
mod http_client;
mod interrupt;
mod json_schema;
mod keys;
mod link;
mod memory;
mod metrics;
mod outbox;
mod patterns;
pub mod peer;
mod providers;
mod refusal;
mod server;
mod sessions;
mod spans;
mod step;
pub mod tools;

pub use config::Args;
pub use keys::Keys;
pub use refusal::Refusal;
pub use server::{RuntimeOptions, RuntimeServer};
pub use tools::mcp::McpServer;
