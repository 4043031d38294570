//! What the operator says about a tenant.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition;

/// Written by the operator alone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentTenantStatus {
    /// The generation of the spec that all of this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<TenantPhase>,
    /// The namespace, once it is this tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionsStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spend: Option<SpendStatus>,
    /// What holds of this tenant, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
}

/// The state of a tenant in a word.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantPhase {
    /// Its parts are being made.
    Pending,
    /// All is as the spec wants it.
    Ready,
    /// Something runs, but not all.
    Degraded,
    /// All is as the spec wants it, and `spec.cordon` is on: no new sessions.
    Cordoned,
    /// `spec.suspend` is on and no worker is left.
    Suspended,
    /// `spec.emergencyStop` is on and no worker is left.
    Stopped,
    /// It is being deleted.
    Terminating,
    /// Nothing can be made of it; the condition `Ready` says why.
    Failed,
}

/// Worker pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WorkersStatus {
    pub desired: i32,
    pub ready: i32,
}

/// Sessions, as the front last told: up to some seconds old.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SessionsStatus {
    /// Those that have not ended, declared in the cluster or not.
    pub open: i64,
    /// Those that may be open at a time.
    pub max: i64,
}

/// What the models have cost, as the front last told: up to some seconds old.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SpendStatus {
    /// The calendar month (UTC) that this is of, for example `2026-11`.
    pub month: String,
    /// In US dollars, to the cent.
    pub usd: String,
    /// Calls of models that have no price, and so are not in `usd`.
    pub unpriced_attempts: i64,
}
