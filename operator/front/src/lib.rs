//! The front: the service that clients talk to.
//!
//! It owns sessions, their event logs and leases; streams to clients; and drives each turn against a worker. It holds no
//! Kubernetes credential and no provider key.

pub mod audit;
pub mod error;
pub mod events;
pub mod identity;
pub mod lease;
pub mod metrics;
pub mod models;
pub mod routing;
pub mod session;
pub mod store;
pub mod tenants;
pub mod usage;
pub mod worker_client;

pub use error::Error;
