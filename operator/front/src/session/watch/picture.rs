//! What there is to tell of one tenant.

use std::collections::HashSet;

use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{self, BudgetAlert, TenantTotals, WatchSessionsResponse, WatchedSession};
use jiff::tz::TimeZone;

use super::{Answers, End};
use crate::budget::alert::Alert;
use crate::budget::of_tenant;
use crate::core::Core;
use crate::error::Error;
use crate::session::Session;
use crate::session::store::Filter;
use crate::usage::Selection;

/// Sessions that are read, and told, at a time.
const PAGE: u32 = 500;
/// The label on sessions that were declared in the cluster: `SESSION_SOURCE` of croft-crds, which the front does without.
const SOURCE: (&str, &str) = ("croft.dev/source", "agentsession");

/// A tenant's declared sessions, those that are worth telling, and its totals if they are. Where a sum fails, they are told without
/// the month: one tenant's long ledger must not keep the others' sessions from being told, nor how many it has open.
pub(super) struct Picture {
    pub(super) tenant: TenantId,
    sessions: Vec<v1::Session>,
    pub(super) totals: Option<TenantTotals>,
}

/// What is asked of a tenant's totals.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    /// How many sessions are open, as what the month has cost could not be summed up a moment ago.
    Open,
    /// And the sum of the month that begins then.
    Month(Timestamp),
}

impl Picture {
    /// All that are open, and the totals.
    pub(super) async fn of_open(core: &Core, tenant: TenantId, month_start: Timestamp) -> Result<Self, Error> {
        let filter = Filter { states: Filter::open().states, ..declared() };
        let sessions = listed(core, tenant, &filter).await?;
        Ok(Self { tenant, sessions, totals: totals(core, tenant, Asked::Month(month_start)).await? })
    }

    /// Those of these ids that are declared ones, and of the totals what is asked.
    pub(super) async fn of_changed(
        core: &Core,
        tenant: TenantId,
        ids: &HashSet<SessionId>,
        asked: Asked,
    ) -> Result<Self, Error> {
        let ids: Vec<_> = ids.iter().copied().collect();
        let mut sessions = Vec::new();
        for ids in ids.chunks(PAGE as usize) {
            sessions.extend(listed(core, tenant, &Filter { ids: ids.to_vec(), ..declared() }).await?);
        }
        Ok(Self { tenant, sessions, totals: totals(core, tenant, asked).await? })
    }

    /// In as many answers as it takes: none, where there is nothing.
    pub(super) async fn send(self, answers: &Answers) -> Result<(), End> {
        let Self { tenant, sessions, mut totals } = self;
        let mut sessions = sessions.into_iter().peekable();
        while sessions.peek().is_some() || totals.is_some() {
            let watched = |session| WatchedSession { tenant_id: tenant.to_string(), session: Some(session) };
            let answer = WatchSessionsResponse {
                sessions: sessions.by_ref().take(PAGE as usize).map(watched).collect(),
                tenants: totals.take().into_iter().collect(),
                synced: false,
            };
            answers.send(Ok(answer)).await.map_err(|_| End::Gone)?;
        }
        Ok(())
    }
}

fn declared() -> Filter {
    let (key, value) = SOURCE;
    Filter { labels: [(key.to_owned(), value.to_owned())].into(), ..Filter::default() }
}

async fn listed(core: &Core, tenant: TenantId, filter: &Filter) -> Result<Vec<v1::Session>, Error> {
    let (mut sessions, mut after) = (Vec::new(), None);
    loop {
        let page = core.stores.sessions.list(tenant, filter, after, PAGE).await?;
        after = page.next();
        sessions.extend(page.sessions.into_iter().map(told));
        if after.is_none() {
            return Ok(sessions);
        }
    }
}

/// Without the agent, which may be large and never changes.
fn told(session: Session) -> v1::Session {
    v1::Session { agent: None, ..session.into() }
}

/// Without the month where that is not asked for, or can't be summed up.
async fn totals(core: &Core, tenant: TenantId, asked: Asked) -> Result<Option<TenantTotals>, Error> {
    if asked == Asked::Nothing {
        return Ok(None);
    }
    let sessions_open = core.stores.sessions.count_open(tenant).await?.into();
    let mut totals = TenantTotals { tenant_id: tenant.to_string(), sessions_open, ..TenantTotals::default() };
    if let Asked::Month(month_start) = asked {
        // Before the sum, which is then none of an earlier time.
        let alerts = alerts(core, tenant, &month_start).await?;
        let of_month = Selection { start: Some(month_start), ..Selection::default() };
        match core.stores.usage.summarize(tenant, of_month, &[]).await {
            Ok(sums) => {
                totals.month = Some(sums.into_iter().next().and_then(|sum| sum.totals).unwrap_or_default());
                totals.month_start = Some(month_start);
                totals.alerts = alerts;
            }
            Err(error) => {
                tracing::warn!(%tenant, %error, "what the month has cost a tenant is not told, trying again in a while");
            }
        }
    }
    Ok(Some(totals))
}

/// What was told of the budget that the platform gives a tenant for the month that begins then; nothing where it gives none.
async fn alerts(core: &Core, tenant: TenantId, month_start: &Timestamp) -> Result<Vec<BudgetAlert>, Error> {
    let budget = core.tenants.get(tenant).and_then(|tenant| of_tenant(&tenant.limits));
    let Some(budget) = budget else { return Ok(Vec::new()) };
    let alerts = core.stores.budgets.highest_alerts(tenant, &budget, &budget.account(month_start)).await?;
    Ok(alerts.iter().map(Alert::event).collect())
}

/// Of the calendar month at hand, in UTC.
pub(super) fn month_start() -> Result<Timestamp, Error> {
    let now = jiff::Timestamp::now().to_zoned(TimeZone::UTC);
    let start = now.first_of_month().and_then(|day| day.start_of_day()).map_err(Error::internal)?;
    Ok(Timestamp { seconds: start.timestamp().as_second(), nanos: 0 })
}
