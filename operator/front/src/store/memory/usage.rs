//! The ledger of usage in memory.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{TokenUsage, UsageDimension, UsageEvent, UsageSummary, UsageTotals};

use super::{Memory, State};
use crate::error::Error;
use crate::events::log::NewEvent;
use crate::store::{projection, time};
use crate::usage::{self, GROUPS_MAX, Selection, UsageStore};

#[async_trait]
impl UsageStore for Memory {
    async fn list(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        before: Option<Timestamp>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageEvent>, Error> {
        let state = self.lock();
        let mut rows: Vec<_> = state.usage_of(tenant).collect();
        rows.sort_by_key(|row| Reverse((time_of(row), row.attempt_id.clone())));
        let skip = match after {
            None => 0,
            Some(after) => 1 + rows.iter().position(|row| row.attempt_id == after).ok_or_else(usage::unknown_page)?,
        };
        let session = session.map(|session| session.to_string());
        Ok(rows
            .into_iter()
            .skip(skip)
            .filter(|row| session.as_ref().is_none_or(|session| row.session_id == *session))
            .filter(|row| before.is_none_or(|before| time_of(row) < time::micros(&before)))
            .take(limit as usize)
            .cloned()
            .collect())
    }

    async fn summarize(
        &self,
        tenant: TenantId,
        selection: Selection<'_>,
        group_by: &[UsageDimension],
    ) -> Result<Vec<UsageSummary>, Error> {
        let Selection { agent, start, end } = selection;
        let state = self.lock();
        let mut groups: BTreeMap<Vec<String>, UsageTotals> = BTreeMap::new();
        if group_by.is_empty() {
            groups.insert(Vec::new(), no_usage());
        }
        for row in state.usage_of(tenant).filter(|row| agent.is_none_or(|agent| row.agent == agent)) {
            let time = time_of(row);
            if start.is_some_and(|start| time < time::micros(&start))
                || end.is_some_and(|end| time >= time::micros(&end))
            {
                continue;
            }
            let keys = group_by.iter().map(|dimension| value(row, *dimension)).collect::<Result<_, _>>()?;
            projection::add_usage(groups.entry(keys).or_insert_with(no_usage), row);
        }
        Ok(groups
            .into_iter()
            .take(GROUPS_MAX + 1)
            .map(|(keys, totals)| UsageSummary { keys, totals: Some(totals) })
            .collect())
    }

    async fn add_behind_end(&self, tenant: TenantId, session: SessionId, events: &[NewEvent]) -> Result<u64, Error> {
        let mut state = self.lock();
        let Ok(record) = state.record(tenant, session) else {
            usage::added_for_nobody(tenant, session, events);
            return Ok(0);
        };
        let before = record.session.usage;
        state.meter_for(tenant, session, projection::usage_rows(session, events))?;
        let after = state.record(tenant, session)?.session.usage;
        if after.attempts != before.attempts {
            state.changed(tenant, session)?;
        }
        Ok(after.unpriced_attempts.abs_diff(before.unpriced_attempts))
    }
}

impl State {
    fn usage_of(&self, tenant: TenantId) -> impl Iterator<Item = &UsageEvent> {
        self.usage.iter().filter(move |((owner, _), _)| *owner == tenant).map(|(_, row)| row)
    }
}

fn no_usage() -> UsageTotals {
    UsageTotals { tokens: Some(TokenUsage::default()), ..UsageTotals::default() }
}

fn time_of(row: &UsageEvent) -> i64 {
    row.create_time.as_ref().map_or(0, time::micros)
}

fn value(row: &UsageEvent, dimension: UsageDimension) -> Result<String, Error> {
    Ok(match dimension {
        UsageDimension::Unspecified => return Err(Error::invalid("group_by", "holds an unspecified dimension")),
        UsageDimension::Agent => row.agent.clone(),
        UsageDimension::Model => row.model.clone(),
        UsageDimension::Provider => row.provider.clone(),
        UsageDimension::Session => row.session_id.clone(),
        UsageDimension::Sender => row.sender.clone(),
        UsageDimension::Mode => row.mode().as_str_name().trim_start_matches("PROVIDER_MODE_").to_ascii_lowercase(),
        UsageDimension::Day => {
            let time = jiff::Timestamp::from_microsecond(time_of(row)).map_err(Error::internal)?;
            time.strftime("%Y-%m-%d").to_string()
        }
    })
}
