//! The front: the service that clients talk to.
//!
//! It owns sessions, their event logs and leases; streams to clients; and drives each turn against a worker. It holds no
//! Kubernetes credential and no provider key.

mod acts;
pub mod api_key_command;
pub mod app;
pub mod audit;
pub mod budget;
mod clock;
pub mod config;
pub mod core;
pub mod counters;
mod deadline;
pub mod door;
pub mod error;
pub mod events;
pub mod gateway;
pub mod identity;
pub mod intake;
pub mod lease;
mod leaving;
pub mod lifecycle;
pub mod limits;
pub mod metrics;
pub mod migrate;
pub mod models;
pub mod models_command;
mod plain;
mod reads;
pub mod redis_client;
mod redis_connection;
pub mod reprice_command;
pub mod routing;
pub mod seats;
pub mod serve;
pub mod services;
pub mod session;
mod shares;
pub mod status;
pub mod store;
mod sync;
pub mod tenants;
pub mod turn;
pub mod unread;
pub mod usage;
pub mod worker_client;
mod worker_error;

pub use error::Error;

// What stands in for stores is shared with the tests beside, and names this crate as they do.
#[cfg(test)]
extern crate self as croft_front;
#[cfg(test)]
#[path = "../tests/doubles/mod.rs"]
mod doubles;
