//! All that a front is made of, built once in `main` and shared by its services.

use std::time::Duration;

use croft_serve::Tasks;

use crate::audit::writer::AuditWriter;
use crate::events::fanout::Hub;
use crate::identity::{self, Authenticator};
use crate::metrics::Metrics;
use crate::models::registry::Registry;
use crate::routing::Router;
use crate::store::Stores;
use crate::tenants::Tenants;
use crate::worker_client::WorkerPool;

/// The parts, wired.
pub struct Core {
    /// This replica, as the holder of leases.
    pub replica: String,
    pub stores: Stores,
    pub hub: Hub,
    pub tenants: Tenants,
    pub router: Router,
    pub workers: WorkerPool,
    pub models: Registry,
    pub authenticator: Authenticator,
    pub audit: AuditWriter,
    pub metrics: Metrics,
    pub tasks: Tasks,
    pub options: Options,
}

/// What an operator of the system may set.
#[derive(Debug, Clone)]
pub struct Options {
    /// A turn whose front is silent for this long is taken over.
    pub lease_ttl: Duration,
    /// A user's message, in bytes, where the tenant has no limit of its own.
    pub message_bytes_max: usize,
    /// How long a turn may look for a worker before it ends with `STOP_REASON_WORKER_LOST`.
    pub placement_timeout: Duration,
    /// Wall time of one turn, where the agent has no limit of its own.
    pub turn_timeout: Duration,
    /// Who vouches for callers besides API keys.
    pub identity: identity::Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(10),
            message_bytes_max: 1024 * 1024,
            placement_timeout: Duration::from_secs(10),
            turn_timeout: Duration::from_mins(10),
            identity: identity::Settings::default(),
        }
    }
}
