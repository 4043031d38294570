//! What happens in sessions: numbered and stored by the [log], carried to other replicas by the [relay], handed to
//! subscribers by the [fan-out](fanout), and read back without a seam by [replay].
//!
//! [log]: crate::events::log
//! [relay]: crate::events::relay
//! [replay]: crate::events::replay

pub mod fanout;
pub mod log;
pub mod relay;
pub mod replay;
pub(crate) mod tenured;

#[cfg(test)]
pub(crate) mod testing;
