//! The operator against a real API server and controller manager. There is no node: the tests play the kubelet.
//!
//! One operator serves all tests, each of which has tenants of its own. A test that counts passes or writes has the
//! operator to itself for as long; see [`world::World::alone`].

mod deaf;
mod faults;
mod freshness;
mod front;
mod kinds;
mod kubelet;
mod leader;
mod owners;
mod program;
mod providers;
mod proxy;
mod pulls;
mod removal;
mod repairs;
mod rollouts;
mod routes;
mod rules;
mod session_endings;
mod session_status;
mod session_waits;
mod sessions;
mod stops;
mod tenants;
mod upkeep;
mod world;
