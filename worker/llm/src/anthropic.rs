//! The Anthropic Messages API.

/// The name by which it is configured and granted.
pub const NAME: &str = "anthropic";
