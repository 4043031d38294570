//! Sessions in Postgres, of which many may be opened at a time.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use prost::Message;
use sqlx::Row;
use uuid::Uuid;

use super::append::Columns;
use super::append_group::all_fail;
use super::groups::{Groups, Job};
use super::row::{state_word, stop_reason_word};
use super::sessions::not_made;
use super::time::Time;
use super::usage::{self, Reported};
use super::{Postgres, failed, signed};
use crate::error::Error;
use crate::events::log::IdempotencyKey;
use crate::session::Session;
use crate::session::store::{Filter, Inserted, NewSession, Page, SessionStore};
use crate::store::projection;

/// What `INSERT` does for one session, for all of a group, and all that its transaction does besides. A place under the limit goes to
/// whoever came first. See `migrations/0023_one_call.sql`.
const INSERT_GROUP: &str =
    "select * from croft_open_sessions($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
    $18, $19, $20, $21, $22, $23, $24, $25)";

/// Sessions that are opened at the same time share transactions.
pub(in crate::store) struct GroupedSessions {
    postgres: Arc<Postgres>,
    tasks: Tasks,
    inserts: Groups<NewSession>,
}

impl GroupedSessions {
    pub(in crate::store) fn new(postgres: Arc<Postgres>, tasks: &Tasks) -> Self {
        Self { inserts: Groups::new(Arc::clone(&postgres), tasks), tasks: tasks.clone(), postgres }
    }
}

#[async_trait]
impl Job for NewSession {
    type Outcome = Inserted;

    fn session(&self) -> SessionId {
        self.id
    }

    fn events(&self) -> usize {
        self.events.len()
    }

    fn bytes(&self) -> usize {
        let events = self.events.iter().map(|event| event.kind.encoded_len());
        self.agent.encoded_len() + events.sum::<usize>()
    }

    async fn store(postgres: &Postgres, tenant: TenantId, group: Vec<Self>) -> Vec<Result<Inserted, Error>> {
        let uses_models = usage::Columns::of(group.iter().map(|new| Reported { session: new.id, events: &new.events }));
        if uses_models.is_empty() {
            match postgres.insert_together(tenant, &group).await {
                Ok(outcomes) => return outcomes,
                // Whether they are there nobody knows: another try would find its own.
                Err(error @ Error::Unavailable { .. }) => return all_fail(error, group.len()),
                // One of them is such that the database does not have it. The others shall not suffer from it.
                Err(_) => {}
            }
        }
        let mut outcomes = Vec::with_capacity(group.len());
        for new in group {
            outcomes.push(postgres.insert(new).await);
        }
        outcomes
    }
}

impl Postgres {
    /// Of sessions whose events report no usage.
    async fn insert_together(
        &self,
        tenant: TenantId,
        group: &[NewSession],
    ) -> Result<Vec<Result<Inserted, Error>>, Error> {
        let sessions = group.iter().map(projection::begin).collect::<Result<Vec<_>, _>>()?;
        let (mut owners, mut numbers, mut events) = (Vec::new(), Vec::new(), Columns::default());
        for new in group {
            let mut columns = Columns::of(&new.events)?;
            owners.resize(owners.len() + new.events.len(), new.id.0);
            numbers.extend((1_i64..).take(new.events.len()));
            events.append(&mut columns);
        }
        let labels = sessions.iter().map(|session| serde_json::to_string(&session.labels));
        let labels = labels.collect::<Result<Vec<_>, _>>().map_err(Error::internal)?;
        let bytes = events.bytes() + group.iter().map(|new| new.agent.encoded_len()).sum::<usize>();
        let is_limited = group.iter().any(|new| new.sessions_max.is_some());
        let call = || {
            sqlx::query(INSERT_GROUP)
                .bind(tenant.0)
                .bind(each(&sessions, |session| session.id.0))
                .bind(each(&sessions, |session| state_word(session.state)))
                .bind(each(&sessions, |session| session.agent.encode_to_vec()))
                .bind(each(&sessions, |session| session.agent.name.clone()))
                .bind(each(&sessions, |session| session.config_hash.clone()))
                .bind(&labels)
                .bind(each(&sessions, |session| Time(session.create_time)))
                .bind(each(&sessions, |session| Time(session.update_time)))
                .bind(each(&sessions, |session| signed(session.last_seq)))
                .bind(each(&sessions, |session| signed(session.newest_input_seq)))
                .bind(each(&sessions, |session| session.turn_id.clone()))
                .bind(each(&sessions, |session| session.worker.clone()))
                .bind(each(&sessions, |session| session.terminate_reason.clone()))
                .bind(each(&sessions, |session| stop_reason_word(session.last_stop_reason)))
                .bind(each(&sessions, |session| session.idle_timeout_ms))
                .bind(each(&sessions, |session| session.expire_time.map(Time)))
                .bind(group.iter().map(|new| new.sessions_max.map(i64::from)).collect::<Vec<_>>())
                .bind(&owners)
                .bind(&numbers)
                .bind(&events.kinds)
                .bind(&events.turns)
                .bind(&events.times)
                .bind(&events.payloads)
                .bind(is_limited)
        };
        let rows = self.at_once(bytes, call).await?;
        let row = rows.first().ok_or_else(|| Error::internal(anyhow::anyhow!("no row of what was made")))?;
        let made: Vec<Uuid> = row.try_get("made").map_err(failed)?;
        let made: HashSet<_> = made.into_iter().map(SessionId).collect();
        let removing: Option<bool> = row.try_get("removing").map_err(failed)?;
        let outcomes = group.iter().zip(sessions).map(|(new, session)| {
            if !made.contains(&new.id) {
                return Err(not_made(removing, new.sessions_max));
            }
            Ok(Inserted::New { session, events: projection::number(new.id, 1, new.events.clone()) })
        });
        Ok(outcomes.collect())
    }
}

fn each<T>(sessions: &[Session], column: impl Fn(&Session) -> T) -> Vec<T> {
    sessions.iter().map(column).collect()
}

#[async_trait]
impl SessionStore for GroupedSessions {
    async fn insert(&self, new: NewSession) -> Result<Inserted, Error> {
        // A key or a parent's call may turn out to be taken, and should not hold up a group.
        if new.idempotency_key.is_some() || new.parent.is_some() {
            // In a task of its own: a turn that is cut off while the transaction begins would leave the tenant locked.
            let postgres = Arc::clone(&self.postgres);
            let storing = self.tasks.spawn("store-one", async move { postgres.insert(new).await });
            let lost = |_| Err(Error::unavailable("postgres", anyhow::anyhow!("what stores a session has failed")));
            return storing.await.unwrap_or_else(lost);
        }
        self.inserts.store(new.tenant, new).await
    }

    async fn get(&self, tenant: TenantId, id: SessionId) -> Result<Option<Session>, Error> {
        SessionStore::get(&*self.postgres, tenant, id).await
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &Filter,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Page, Error> {
        SessionStore::list(&*self.postgres, tenant, filter, after, limit).await
    }

    async fn asking(&self, tenant: TenantId, after: Option<SessionId>, limit: u32) -> Result<Page, Error> {
        self.postgres.asking(tenant, after, limit).await
    }

    async fn count_open(&self, tenant: TenantId) -> Result<u32, Error> {
        self.postgres.count_open(tenant).await
    }

    async fn child(&self, tenant: TenantId, parent: SessionId, tool_call_id: &str) -> Result<Option<Session>, Error> {
        self.postgres.child(tenant, parent, tool_call_id).await
    }

    async fn find_created(&self, tenant: TenantId, key: &IdempotencyKey) -> Result<Option<Session>, Error> {
        self.postgres.find_created(tenant, key).await
    }
}
