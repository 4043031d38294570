//! Benchmarks: the real programs against a real control plane, from the outside, a table row a measure.
//!
//! Nothing here is taken on trust: times are those at which a watch of the harness's own saw a thing, writes are counted
//! in the API server's audit log, processor time and memory come from `/proc`.

pub mod alone;
pub mod api;
pub mod arrivals;
pub mod audit;
pub mod chart;
pub mod front;
pub mod kubelet;
pub mod launch;
pub mod load;
pub mod metronome;
pub mod operator;
pub mod pace;
pub mod process;
pub mod row;
pub mod samples;
pub mod scrape;
pub mod stage;
pub mod worker;
