//! A server of each kind that we run, called as its peers call it.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod authority;
mod bounds;
mod collector;
mod health;
mod seen;
mod served;
mod tls;
mod traced;
