//! What every pass has at hand.

use std::sync::Arc;

use croft_crds::{AgentSessionStatus, AgentTenantStatus};
use jiff::Timestamp;
use kube::Client;

use crate::authority::Authority;
use crate::cluster::Cluster;
use crate::front::Front;
use crate::recent::Recent;
use crate::tenant::Settings;
use crate::writes::Writer;

/// Shared by all passes of one operator.
pub struct Context {
    pub cluster: Arc<Cluster>,
    /// For reads that the copies can't answer.
    pub client: Client,
    pub writer: Writer,
    pub settings: Settings,
    pub authority: Arc<Authority>,
    pub front: Front,
    /// The time now.
    pub clock: fn() -> Timestamp,
    /// Statuses as we last wrote them, by UID.
    pub tenant_statuses: Recent<AgentTenantStatus>,
    /// Statuses as we last wrote them, by UID.
    pub session_statuses: Recent<AgentSessionStatus>,
}

impl Context {
    /// The time, to the second, as conditions have it.
    pub(crate) fn timestamp(&self) -> Timestamp {
        Timestamp::from_second(self.now()).unwrap_or_default()
    }

    /// Seconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        (self.clock)().as_second()
    }
}
