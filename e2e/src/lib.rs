//! What the cluster tests, the benchmarks and the demo share: the running system and a client of it.

pub mod bench;
pub mod client;
pub mod helm;
pub mod kubectl;
pub mod steady;
pub mod system;
