//! Croft's operator: gives each AgentTenant its fenced namespace with workers, each AgentSession its session, and each
//! front its routes.
//!
//! `main.rs` is [`operator::start`]; [`cluster`] has the warm copies that all else reads, and [`writes`] is the only way
//! to write.

pub mod authority;
pub mod certificate;
pub mod cluster;
pub mod config;
pub mod context;
pub mod controller;
pub mod drift;
pub mod events;
pub mod freshness;
pub mod front;
mod front_certificate;
pub mod keyring;
pub mod leader;
mod marks;
pub mod metrics;
mod mirror;
pub mod operator;
mod own_certificate;
mod ownership;
mod permits;
mod recent;
mod rollouts;
pub mod routes;
pub mod secrets;
pub mod session;
mod settings_file;
pub mod tenant;
pub mod token;
pub mod totals;
pub mod worker;
pub mod writes;
