//! All that a front is made of, built once in `main` and shared by its services.

use std::time::Duration;

use croft_serve::Tasks;

use crate::audit::spool::Folder;
use crate::audit::writer::AuditWriter;
use crate::budget::keeper::Keeper;
use crate::budget::webhook::Hook;
use crate::events::fanout::Hub;
use crate::identity::{self, Authenticator};
use crate::intake::Intake;
use crate::limits::Limiter;
use crate::limits::rates::{ProviderRates, Rates};
use crate::metrics::Metrics;
use crate::models::registry::Registry;
use crate::reads::Reads;
use crate::routing::Router;
use crate::seats::Seats;
use crate::session::open::OpenSessions;
use crate::store::Stores;
use crate::tenants::Tenants;
use crate::turn::held::Held;
use crate::unread::Unread;
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
    pub seats: Seats,
    pub(crate) open_sessions: OpenSessions,
    pub(crate) intake: Intake,
    pub(crate) reads: Reads,
    pub(crate) unread: Unread,
    /// Turns that run here.
    pub held: Held,
    pub limiter: Limiter,
    pub budgets: Keeper,
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
    /// Streams of events that one tenant may have open at this replica: see [`Seats`].
    pub streams_per_tenant_max: usize,
    /// The same, of all tenants.
    pub streams_max: usize,
    /// Between two looks at whether an open stream's credential still holds.
    pub credential_recheck: Duration,
    /// How long a session that has ended is kept; `None` is for ever.
    pub retention: Option<Duration>,
    /// Between two looks for sessions that have been kept for long enough.
    pub retention_look_every: Duration,
    /// Fronts that share rates and budgets while Redis is away.
    pub replicas: u32,
    /// Where audit records wait while the database is away; none waits in memory.
    pub audit_folder: Option<Folder>,
    /// Where alerts of budgets are posted.
    pub hook: Option<Hook>,
    /// For tenants that have no rates of their own.
    pub rates: Rates,
    /// Of each tier at each provider.
    pub provider_rates: ProviderRates,
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
            streams_per_tenant_max: 5_000,
            streams_max: 40_000,
            credential_recheck: Duration::from_secs(30),
            retention: Some(Duration::from_hours(90 * 24)),
            retention_look_every: Duration::from_mins(10),
            replicas: 1,
            audit_folder: None,
            hook: None,
            rates: Rates::default(),
            provider_rates: ProviderRates::default(),
            identity: identity::Settings::default(),
        }
    }
}
