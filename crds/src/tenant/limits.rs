//! What a tenant's callers may do, and how long their sessions live.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The largest request that a front reads at all, in bytes.
pub const MESSAGE_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Bounds that the front keeps; what is not set comes from the tier.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Sessions that may be open at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_sessions: Option<u32>,
    /// Calls of the tenant's clients in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub requests_per_minute: Option<u32>,
    /// Tokens of all classes that the models may use in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub tokens_per_minute: Option<i64>,
    /// Size of one message, in bytes; fronts read no more than 16 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MESSAGE_BYTES_MAX))]
    pub max_message_bytes: Option<u32>,
}

/// Times of sessions that say nothing of their own, in seconds; what is not set comes from the tier. The first two are
/// also the longest that a session may ask for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.idleTimeoutSeconds) || !has(self.lifetimeSeconds) || self.idleTimeoutSeconds <= self.lifetimeSeconds")
        .message("idleTimeoutSeconds is more than lifetimeSeconds, so it would never matter")
)]
pub struct SessionDefaultsSpec {
    /// A session that has heard nothing for so long is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub idle_timeout_seconds: Option<u32>,
    /// A session is ended when it is so old, whatever it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315_360_000))]
    pub lifetime_seconds: Option<u32>,
    /// An AgentSession is deleted so long after its session has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<u32>,
}
