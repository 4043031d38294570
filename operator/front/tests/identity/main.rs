//! Who is let in, and to what: tokens of a real issuer on loopback and keys with roles, by the calls that clients make.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../postgres/database.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod database;
mod issuer;
mod keys;
#[path = "../redis/port.rs"]
mod port;
mod ports;
mod program;
mod refusals;
mod roles;
mod scene;
mod spelling;
mod streams;
