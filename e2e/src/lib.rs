//! What the cluster tests, the benchmarks and the demo share: the running system and a client of it.

pub mod bench;
pub mod client;
pub mod control_plane;
pub mod helm;
pub mod kubectl;
pub mod programs;
pub mod steady;
pub mod system;
