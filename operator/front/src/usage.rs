//! What models used and cost. A row is written with the event that reports its attempt, where the session's log takes one; here rows are
//! read, and those are added of which no event tells.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{UsageDimension, UsageEvent, UsageSummary};

use crate::error::Error;
use crate::events::log::NewEvent;

/// Groups of which a summary tells at most: those of a hundred thousand sessions would fill a front's memory, and no client takes them.
pub const GROUPS_MAX: usize = 10_000;

/// Which rows of a tenant's are summed: of one agent or all, in `[start, end)` where these are given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    pub agent: Option<&'a str>,
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
}

/// The ledger of usage. What events report is added where they are stored; here it is read, and added where they can't be.
#[async_trait]
pub trait UsageStore: Send + Sync {
    /// Rows from before `before` (to the microsecond), newest first, that come after `after` (an attempt id) in that order; of one session
    /// or of all. An `after` that the ledger does not have is [`Error::InvalidArgument`] of `page_token`.
    async fn list(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        before: Option<Timestamp>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageEvent>, Error>;

    /// Totals of the rows selected, one for each combination of the dimensions' values, ordered by them. At most one more than
    /// [`GROUPS_MAX`], which says that there are too many.
    async fn summarize(
        &self,
        tenant: TenantId,
        selection: Selection<'_>,
        group_by: &[UsageDimension],
    ) -> Result<Vec<UsageSummary>, Error>;

    /// Adds rows for what these events of a session report, as storing them would, where they can't be stored any more: the session
    /// has ended, or another worker goes on with the turn, and the provider charges all the same. Attempts that the ledger has are
    /// passed over. A session that was erased meanwhile has no rows added, and the log says so. How many of those that were added have no price.
    async fn add_behind_end(&self, tenant: TenantId, session: SessionId, events: &[NewEvent]) -> Result<u64, Error>;
}

/// What a store says of an attempt to go on behind that it does not have.
pub(crate) fn unknown_page() -> Error {
    Error::invalid("page_token", "is of no page of this list")
}

/// What a store says that was to add rows for a session that is gone: its attempts are in no ledger.
pub(crate) fn added_for_nobody(tenant: TenantId, session: SessionId, events: &[NewEvent]) {
    tracing::warn!(%tenant, %session, events = events.len(), "what a session used that has been erased is not in the ledger");
}
