//! The labels and annotations by which Croft finds its own objects.

/// The tenant's name, on everything that belongs to it.
pub const TENANT: &str = "croft.dev/tenant";
/// Who made the object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] on all that the operator makes.
pub const MANAGED_BY_CROFT: &str = "croft";
/// The part of Croft that a pod is.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The value of [`COMPONENT`] on worker pods.
pub const COMPONENT_WORKER: &str = "worker";
/// The value of [`COMPONENT`] on front pods.
pub const COMPONENT_FRONT: &str = "front";
/// The application, `croft` everywhere.
pub const NAME: &str = "app.kubernetes.io/name";
/// The SHA-256 of what was last applied to this object.
pub const APPLIED_HASH: &str = "croft.dev/applied-hash";
/// The SHA-256 of the configuration and certificate that a worker pod started with.
pub const CONFIG_HASH: &str = "croft.dev/config-hash";
/// On a tenant's workers: the SHA-256 of what their template is by the platform's doing and the tenant's spec.
pub const TEMPLATE_HASH: &str = "croft.dev/template-hash";
/// On a tenant's workers: the SHA-256 of what the tenant's spec says of their template and of what they read at their start.
pub const SPEC_HASH: &str = "croft.dev/spec-hash";
/// On a tenant's workers, until they are exchanged: their template came with a permit for a rollout, and the tenant was served before.
pub const ROLLOUT_PERMIT: &str = "croft.dev/rollout-permit";
/// On a session of the front: the UID of the AgentSession that it was made for.
pub const AGENT_SESSION_UID: &str = "croft.dev/agentsession-uid";
/// On a session of the front: the name of the AgentSession that it was made for.
pub const AGENT_SESSION_NAME: &str = "croft.dev/agentsession-name";
/// On a session of the front: what made it.
pub const SESSION_SOURCE: &str = "croft.dev/source";
/// The value of [`SESSION_SOURCE`] on sessions that were made for an AgentSession.
pub const SESSION_SOURCE_OBJECT: &str = "agentsession";
/// The finalizer on an AgentTenant.
pub const FINALIZER: &str = "croft.dev/tenant";

/// The namespace of the tenant called `tenant`.
pub fn tenant_namespace(tenant: &str) -> String {
    format!("tenant-{tenant}")
}
