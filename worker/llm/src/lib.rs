//! Model providers over one trait: a neutral request in, a stream of neutral deltas out.
//!
//! An adapter turns one provider's wire format into [`Delta`]s and its failures into [`Error`]s of ten classes, whether
//! they come as an HTTP status, in the midst of a stream that began well, or as silence. What the deltas add up to is
//! [`Assembly`]; when to try again is [`retry`].

pub mod anthropic;
mod assembly;
mod body;
mod delta;
mod error;
pub mod estimate;
mod provider;
mod request;
pub mod retry;
pub mod retry_after;
pub mod scripted;

pub use assembly::{Assembly, RequestedCall};
pub use body::Limits;
pub use delta::{Delta, Stop};
pub use error::{Class, Error};
pub use provider::{DeltaStream, Provider, Providers};
pub use request::{Request, ToolDefinition};
