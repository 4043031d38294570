//! Model providers over one trait: a neutral request in, a stream of neutral deltas out.
//!
//! An adapter turns one provider's wire format into [`Delta`]s and its failures into [`Error`]s of ten classes, whether
//! they come as an HTTP status, in the midst of a stream that began well, or as silence. What the deltas add up to is
//! [`Assembly`]; when to try again is [`retry`], when to leave a model alone [`breaker`], and what another model may see of
//! a conversation [`carry`].

mod answer;
pub mod anthropic;
mod arguments;
mod assembly;
mod blocks;
mod body;
pub mod breaker;
pub mod carry;
mod delta;
mod error;
pub mod estimate;
mod events;
pub mod gemini;
mod key;
pub mod openai;
mod provider;
mod quick;
pub mod recorded;
pub mod refusals;
mod request;
pub mod retry;
pub mod retry_after;
pub mod scripted;
mod status;
mod tier;
pub mod tool_call_ids;
mod tool_name;
mod wire;

pub use assembly::{Assembly, RequestedCall};
pub use body::Limits;
pub use delta::{Delta, Stop};
pub use error::{Class, Error};
pub use key::ApiKey;
pub use provider::{DeltaStream, Provider, Providers};
pub use request::{Request, ToolDefinition};
pub use wire::Settings;
