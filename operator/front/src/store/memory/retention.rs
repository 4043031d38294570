//! The end of what is kept, in memory.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};

use super::{Memory, State};
use crate::audit::Action;
use crate::budget::Scope;
use crate::clock::now;
use crate::error::Error;
use crate::session::retention::store::{ACTION, ACTOR, Erased, RetentionStore};
use crate::store::time;

const HOUR_MICROS: i64 = 3_600_000_000;

#[async_trait]
impl RetentionStore for Memory {
    async fn erase_ended(
        &self,
        tenant: TenantId,
        before: Timestamp,
        sessions_max: u32,
        events_max: u32,
    ) -> Result<Erased, Error> {
        let mut state = self.lock();
        let before = time::micros(&before).min(time::micros(&now()) - HOUR_MICROS);
        let going: Vec<_> = state.going.keys().filter(|(of, _)| *of == tenant).map(|&(_, id)| id).collect();
        let mut ended: Vec<_> = state
            .sessions
            .iter()
            .filter(|((of, _), _)| *of == tenant)
            .filter_map(|(&(_, id), record)| Some((time::micros(record.session.terminate_time.as_ref()?), id)))
            .filter(|(ended, _)| *ended < before)
            .collect();
        ended.sort_unstable();
        let ended = ended.into_iter().map(|(_, id)| id);
        let mut erased = Erased::default();
        for id in going.into_iter().chain(ended).take(sessions_max as usize) {
            let room = u64::from(events_max) - erased.events;
            let left = state.hide(tenant, id);
            let gone = (*left).min(room);
            *left -= gone;
            erased.events += gone;
            if erased.events == u64::from(events_max) {
                break;
            }
            state.going.remove(&(tenant, id));
            erased.sessions += 1;
            let (actor, resource) = (ACTOR.to_owned(), format!("sessions/{id}"));
            let act = Action { tenant, actor, action: ACTION.into(), resource, outcome: "ok".into(), act_micros: None };
            state.note(act, time::stored(&now()))?;
        }
        Ok(erased)
    }
}

impl State {
    /// Takes a session out of everybody's sight; how many events are left of it.
    fn hide(&mut self, tenant: TenantId, id: SessionId) -> &mut u64 {
        let record = self.sessions.remove(&(tenant, id));
        if record.is_some() {
            let is_its = |scope, subject: &str| scope == Scope::Session && subject == id.to_string();
            self.used_keys.retain(|(of, ..), used| *of != tenant || used.session != id);
            self.budgets.retain(|(of, scope, subject, _), _| *of != tenant || !is_its(*scope, subject));
            self.alerts.retain(|found| !found.is_of(tenant, |account| is_its(account.scope, &account.subject)));
        }
        let events = record.map_or(0, |record| record.events.len() as u64);
        self.going.entry((tenant, id)).or_insert(events)
    }
}
