//! Who calls. The tenant of every query comes from here, never from a request.

pub mod api_key;

use croft_proto::id::TenantId;

/// A verified caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub tenant: TenantId,
    /// The AgentTenant's name.
    pub tenant_name: String,
    /// For the audit log: `api-key/ck_1a2b3c4d`, `operator`.
    pub actor: String,
}
