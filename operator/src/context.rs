//! What every pass has at hand.

use std::sync::Arc;
use std::time::Duration;

use croft_crds::{AgentSessionStatus, AgentTenantStatus};
use jiff::Timestamp;
use kube::Client;
use tokio::sync::Semaphore;

use crate::authority::Authority;
use crate::cluster::Cluster;
use crate::events::Events;
use crate::front::Front;
use crate::keyring::Keyring;
use crate::marks::Marks;
use crate::recent::Recent;
use crate::session;
use crate::tenant::Settings;
use crate::totals::Totals;
use crate::writes::Writer;

/// Writes of tenants' children on their way at a time; more wait. Each has a connection to itself, as kube speaks HTTP/1.1.
/// Statuses and declared sessions don't wait here, however many tenants are being made.
pub const CHILD_WRITES_MAX: usize = 64;

/// Shared by all passes of one operator.
pub struct Context {
    pub cluster: Arc<Cluster>,
    /// For reads that the copies can't answer.
    pub client: Client,
    pub writer: Writer,
    /// For writes of tenants' children, of which a pass has many at a time.
    pub child_turns: Semaphore,
    pub settings: Settings,
    pub authority: Arc<Authority>,
    pub keyring: Keyring,
    pub events: Events,
    pub front: Front,
    /// How long a tenant's pass may take, so that there is time left to say how it went.
    pub pass_max: Duration,
    /// The time now.
    pub clock: fn() -> Timestamp,
    /// Statuses as we last wrote them, by UID.
    pub tenant_statuses: Recent<AgentTenantStatus>,
    /// Statuses as we last wrote them, by UID.
    pub session_statuses: Recent<AgentSessionStatus>,
    /// What the fronts have told of declared sessions.
    pub told: session::Told,
    /// What the fronts have told of tenants.
    pub totals: Totals,
    /// Sessions that shall end at the front.
    pub(crate) endings: Marks<session::Ending>,
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
