//! The chart, as Helm renders it: values that reach the programs, and those that are refused. And what users read of it.
//! `e2e/tests/monitoring` has what concerns Prometheus.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod docs;
mod flags;
mod life;
mod values;
