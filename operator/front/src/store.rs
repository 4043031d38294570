//! The stores of the front, together: Postgres, and the in-memory twin that is held to the same contract.

use std::sync::Arc;

use crate::audit::AuditStore;
use crate::events::log::EventLog;
use crate::identity::api_key::KeyStore;
use crate::lease::LeaseStore;
use crate::models::ModelStore;
use crate::session::store::SessionStore;
use crate::tenants::TenantMirror;
use crate::usage::UsageStore;

/// One of each; all on the same ground, since an append changes several at once.
#[derive(Clone)]
pub struct Stores {
    pub sessions: Arc<dyn SessionStore>,
    pub events: Arc<dyn EventLog>,
    pub leases: Arc<dyn LeaseStore>,
    pub usage: Arc<dyn UsageStore>,
    pub audit: Arc<dyn AuditStore>,
    pub models: Arc<dyn ModelStore>,
    pub keys: Arc<dyn KeyStore>,
    pub tenants: Arc<dyn TenantMirror>,
}
