//! The contract between Croft's programs and its clients: package `croft.v1`, generated from `croft/v1/*.proto`.
//!
//! Every message also has the protobuf JSON mapping through serde, which is what WebSocket and SSE clients see.

pub mod conversation;
pub mod estimate;
pub mod id;
pub mod media_type;

/// `croft.v1`, as generated.
#[expect(clippy::all, clippy::pedantic, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("croft.v1");
    include!(concat!(env!("OUT_DIR"), "/croft.v1.serde.rs"));
}

/// The calls of `croft.v1`, each as in its path: `croft.v1.LifecycleService/CreateSession`.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/croft.v1.methods.rs"));

/// The descriptors of `croft.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/croft.v1.descriptors.bin"));

pub use pbjson_types::Timestamp;
