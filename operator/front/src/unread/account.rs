//! How many bytes are held of each tenant's answers, and of all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use croft_proto::id::TenantId;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Options;

/// Of all tenants, at one replica.
pub(super) struct Accounts {
    pub(super) options: Options,
    all: AtomicUsize,
    /// `None` is nobody: who has shown no credential.
    tenants: Mutex<HashMap<Option<TenantId>, Weak<Account>>>,
    /// Whether somebody waits for room.
    waits: AtomicBool,
    /// Something was taken while somebody waited.
    freed: Notify,
    /// Then nobody waits: what is told is a farewell.
    stopping: CancellationToken,
    held: IntGauge,
}

/// Of one tenant, for as long as something of it is held or on its way.
pub(super) struct Account {
    bytes: AtomicUsize,
    accounts: Arc<Accounts>,
}

impl Accounts {
    pub(super) fn new(options: Options, stopping: CancellationToken, held: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            options,
            all: AtomicUsize::new(0),
            tenants: Mutex::default(),
            waits: AtomicBool::new(false),
            freed: Notify::new(),
            stopping,
            held,
        })
    }

    pub(super) fn of(self: &Arc<Self>, tenant: Option<TenantId>) -> Arc<Account> {
        let mut tenants = self.lock();
        if let Some(there) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return there;
        }
        let made = Arc::new(Account { bytes: AtomicUsize::new(0), accounts: Arc::clone(self) });
        tenants.insert(tenant, Arc::downgrade(&made));
        made
    }

    /// The one that is there.
    pub(super) fn find(&self, tenant: TenantId) -> Option<Arc<Account>> {
        self.lock().get(&Some(tenant)).and_then(Weak::upgrade)
    }

    pub(super) fn forget_unused(&self) {
        self.lock().retain(|_, there| there.strong_count() > 0);
    }

    /// More is held of all than may be, when so much has gone.
    pub(super) fn is_over(&self, freed: usize) -> bool {
        self.all.load(Ordering::Relaxed).saturating_sub(freed) > self.options.held_bytes_max
    }

    /// Whether [`Self::freed`] is to be told of room.
    pub(super) fn wait(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Resolves once something was taken while somebody waited.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<TenantId>, Weak<Account>>> {
        // No code that holds the lock can leave the map half changed.
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// More for this account would be too much. Who has nothing here yet gets something whatever all others have.
    pub(super) fn has_no_room(&self) -> bool {
        let held = self.bytes.load(Ordering::Relaxed);
        let is_over = held > self.accounts.options.tenant_bytes_max || (held > 0 && self.accounts.is_over(0));
        is_over && !self.accounts.stopping.is_cancelled()
    }

    /// More is held of its tenant than may be, when so much has gone.
    pub(super) fn is_over(&self, freed: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_sub(freed) > self.accounts.options.tenant_bytes_max
    }
}

/// Bytes that count in a tenant's account, and in that of all, until it is dropped.
pub(crate) struct Kept {
    bytes: usize,
    own: Arc<Account>,
}

impl Kept {
    pub(super) fn of(bytes: usize, own: Arc<Account>) -> Self {
        own.bytes.fetch_add(bytes, Ordering::Relaxed);
        own.accounts.all.fetch_add(bytes, Ordering::Relaxed);
        own.accounts.held.add(gauged(bytes));
        Self { bytes, own }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Self { bytes, own } = self;
        own.bytes.fetch_sub(*bytes, Ordering::Relaxed);
        own.accounts.all.fetch_sub(*bytes, Ordering::Relaxed);
        own.accounts.held.sub(gauged(*bytes));
        if own.accounts.is_waited_for() {
            own.accounts.freed.notify_one();
        }
    }
}

fn gauged(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
