//! The installed chart on a real node: what a platform admin and a tenant's people see. Needs the system of `make up`.
//!
//! The tests share one cluster and run at the same time, so each that breaks something breaks its own tenant's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agentsession;
mod api_server;
mod bad_input;
mod crash;
mod fence;
mod identity;
mod models;
mod monitoring;
mod outside;
mod people;
mod reflection;
mod session;
mod support;
mod tenant_life;
mod traces;
