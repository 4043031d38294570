//! The stores of the front, together: Postgres, and the in-memory twin that is held to the same contract.

pub mod memory;
pub mod postgres;

pub(crate) mod batch;
pub(crate) mod chain;
pub(crate) mod projection;
pub(crate) mod time;

use std::sync::Arc;

use crate::audit::AuditStore;
use crate::budget::BudgetStore;
use crate::error::Error;
use crate::events::log::EventLog;
use crate::identity::api_key::KeyStore;
use crate::lease::LeaseStore;
use crate::models::ModelStore;
use crate::models::seed::SeedModels;
use crate::session::across::AcrossTenants;
use crate::session::retention::store::RetentionStore;
use crate::session::store::SessionStore;
use crate::tenants::TenantMirror;
use crate::tenants::removal::store::RemovalStore;
use crate::turn::store::TurnStore;
use crate::usage::UsageStore;

/// One of each; all on the same ground, since an append changes several at once.
#[derive(Clone)]
pub struct Stores {
    pub sessions: Arc<dyn SessionStore>,
    pub events: Arc<dyn EventLog>,
    pub turns: Arc<dyn TurnStore>,
    pub leases: Arc<dyn LeaseStore>,
    pub usage: Arc<dyn UsageStore>,
    pub audit: Arc<dyn AuditStore>,
    pub models: Arc<dyn ModelStore>,
    pub budgets: Arc<dyn BudgetStore>,
    pub keys: Arc<dyn KeyStore>,
    pub tenants: Arc<dyn TenantMirror>,
    pub across: Arc<dyn AcrossTenants>,
    pub removal: Arc<dyn RemovalStore>,
    pub retention: Arc<dyn RetentionStore>,
}

impl Stores {
    /// Stores that live as long as the process, with the models of the seed.
    pub fn memory() -> Self {
        let memory = Arc::new(memory::Memory::default());
        Self {
            sessions: memory.clone(),
            events: memory.clone(),
            turns: memory.clone(),
            leases: memory.clone(),
            usage: memory.clone(),
            audit: memory.clone(),
            models: Arc::new(SeedModels),
            budgets: memory.clone(),
            keys: memory.clone(),
            tenants: memory.clone(),
            across: memory.clone(),
            removal: memory.clone(),
            retention: memory,
        }
    }
}

/// What a tenant that is being removed answers.
pub(crate) fn being_removed() -> Error {
    Error::TenantClosed { why: "it is being deleted" }
}

/// The mirror has not caught up with the operator's word yet: a moment later it will.
pub(crate) fn unknown_tenant() -> Error {
    Error::unavailable("the tenant's record", anyhow::anyhow!("the tenant is not mirrored yet"))
}
