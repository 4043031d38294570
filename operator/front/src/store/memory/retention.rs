//! The end of what is kept, in memory.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;

use super::Memory;
use crate::error::Error;
use crate::session::retention::RetentionStore;
use crate::store::time;
use crate::turn::now;

const HOUR_MICROS: i64 = 3_600_000_000;

#[async_trait]
impl RetentionStore for Memory {
    async fn erase_ended(&self, tenant: TenantId, before: Timestamp, sessions_max: u32) -> Result<u64, Error> {
        let mut state = self.lock();
        let before = time::micros(&before).min(time::micros(&now()) - HOUR_MICROS);
        let mut ended: Vec<_> = state
            .sessions
            .iter()
            .filter(|((of, _), _)| *of == tenant)
            .filter_map(|(&(_, id), record)| Some((time::micros(record.session.terminate_time.as_ref()?), id)))
            .filter(|(ended, _)| *ended < before)
            .collect();
        ended.sort_unstable();
        ended.truncate(sessions_max as usize);
        for (_, id) in &ended {
            state.sessions.remove(&(tenant, *id));
            state.used_keys.retain(|(of, ..), used| *of != tenant || used.session != *id);
        }
        Ok(ended.len() as u64)
    }
}
