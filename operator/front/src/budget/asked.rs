//! A grant that the counters are being asked for. Whoever waits for it may go away, or the answer may be lost, when it is given already:
//! nobody would know of the reservation then, and it would keep others out for as long as it lasts.

use croft_proto::id::TenantId;

use super::Account;
use super::keeper::Keeper;
use crate::counters::Settlement;

/// A question to the counters. Dropped before [`Asked::answered`], it has what may have been granted given back.
pub(super) struct Asked<'question> {
    keeper: &'question Keeper,
    tenant: TenantId,
    /// Of the ask.
    id: &'question str,
    accounts: &'question [Account],
    is_open: bool,
}

impl<'question> Asked<'question> {
    pub(super) fn new(
        keeper: &'question Keeper,
        tenant: TenantId,
        id: &'question str,
        accounts: &'question [Account],
    ) -> Self {
        Self { keeper, tenant, id, accounts, is_open: true }
    }

    /// What came of it is known.
    pub(super) fn answered(mut self) {
        self.is_open = false;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // Nothing was used. What the ledger says is asked for anew by whoever comes next.
            let settlement =
                Settlement { tenant: self.tenant, id: self.id.to_owned(), tokens: Some(0), bounds: Vec::new() };
            self.keeper.give_back(settlement, self.accounts.to_vec());
        }
    }
}
