//! The two kinds that people write: [`AgentTenant`] and [`AgentSession`], group `croft.dev`, version `v1alpha1`.
//!
//! The rules on them are CEL in the schema, so the API server, unit tests and any Rust program judge alike.
#![expect(unreachable_pub, reason = "KubeSchema derives a twin of each struct, as public as it, inside a function")]

pub mod condition;
pub mod generate;
pub mod labels;
pub mod policy;
pub mod quantity;
pub mod session;
pub mod tenant;

pub use quantity::Quantity;
pub use session::{AgentSession, AgentSessionSpec, AgentSessionStatus};
pub use tenant::{AgentTenant, AgentTenantSpec, AgentTenantStatus};

/// The API group of both kinds.
pub const GROUP: &str = "croft.dev";

/// For `skip_serializing_if`: a field that says nothing is left out, in objects and in the schema's defaults.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
