//! Opens, shows and ends sessions.

mod ending;
mod family;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, CreateSessionRequest, InitWorkerSessionRequest, ListSessionsRequest, ModelAttempt, RoutingSpec,
    RuntimeServiceTerminateSessionRequest, SessionCreated, SessionReady, SessionState, TenantAdmission,
    TerminateSessionRequest,
};
use serde::Serialize;
use tokio::time::Instant;

use super::family::Parent;
use super::lifetime::Lifetime;
use super::store::{Filter, Inserted, NewSession, Page};
use super::{Session, snapshot, validate};
use crate::clock::now;
use crate::core::Core;
use crate::error::Error;
use crate::events::log::{Authority, IdempotencyKey, NewEvent};
use crate::identity::Identity;
use crate::routing::{self, Placement};
use crate::store::being_removed;
use crate::tenants::Tenant;
use crate::worker_error::{self, may_suit_another};

pub(crate) use family::CALL_ENDED;

/// A worker that takes longer than this to take a session is treated as failed, and another one is asked.
pub(crate) const INIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Workers that are asked to take a new session, one after the other. Then the session is not made.
const WORKERS_MAX: usize = 3;
/// And how long that may take in all: callers wait for it, the operator for ten seconds.
const PLACING_MAX: Duration = Duration::from_secs(8);
/// With less left than this no other is asked.
const INIT_MIN: Duration = Duration::from_secs(1);

/// A session that is about to be opened.
struct Opening {
    agent: AgentSpec,
    labels: BTreeMap<String, String>,
    lifetime: Lifetime,
    idempotency_key: Option<IdempotencyKey>,
    parent: Option<Parent>,
}

/// A session that was to be opened.
pub(crate) struct Opened {
    pub(crate) session: Session,
    /// It was not there before; otherwise whoever came first has opened it.
    pub(crate) is_new: bool,
}

/// The session manager: all that concerns sessions but not their turns.
#[derive(Clone)]
pub struct Manager {
    core: Arc<Core>,
}

impl Manager {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Opens a session in five steps: authorise, resolve the agent and its model, snapshot, place, initialise; then records it
    /// with its first two events in one transaction.
    ///
    /// Nothing is recorded before a worker has the session, so a step that fails leaves no half-made session; a placement is
    /// given back when its guard is dropped, and a worker that was told is told again. A tenant that has all its sessions costs no worker
    /// anything; the store, which counts under a lock, has the last word. What no worker takes costs nothing of a rate.
    pub async fn create(&self, identity: &Identity, request: CreateSessionRequest) -> Result<Session, Error> {
        let body = CreateSessionRequest { idempotency_key: String::new(), ..request.clone() };
        let key = idempotency_key(&request.idempotency_key, &body)?;
        if let Some(key) = &key
            && let Some(session) = self.core.stores.sessions.find_created(identity.tenant, key).await?
        {
            return Ok(session);
        }

        let tenant = self.authorise(identity)?;
        let lifetime = Lifetime::new(&request, &tenant.limits, now())?;
        let labels = validate::labels(request.labels)?;
        let agent = self.resolve(request.agent).await?;
        let opening = Opening { agent, labels, lifetime, idempotency_key: key, parent: None };
        self.open(&tenant, opening).await.map(|opened| opened.session)
    }

    /// Snapshot, place, initialise, record.
    async fn open(&self, tenant: &Tenant, opening: Opening) -> Result<Opened, Error> {
        let Opening { agent, labels, lifetime, idempotency_key, parent } = opening;
        let Lifetime { idle_timeout_ms, expire_time } = lifetime;
        let sessions_max = (tenant.limits.sessions_max > 0).then_some(tenant.limits.sessions_max);
        if let Some(max) = sessions_max
            && self.core.open_sessions.is_full(&*self.core.stores.sessions, tenant.id, max).await?
        {
            let existing = self.opened_before(tenant.id, idempotency_key.as_ref(), parent.as_ref()).await?;
            return existing.map(|session| Opened { session, is_new: false }).ok_or(Error::SessionLimit { max });
        }
        let config_hash = snapshot::config_hash(&agent)?;
        let id = SessionId::generate();
        let placement = self.core.router.place(tenant.id, id, None)?;
        let (id, placement) = self.settle_at_a_rate(tenant, (id, placement), &agent).await?;

        let new = NewSession {
            id,
            tenant: tenant.id,
            tenant_name: tenant.name.clone(),
            events: vec![
                NewEvent::now(Kind::SessionCreated(SessionCreated {
                    agent: Some(agent.clone()),
                    config_hash: config_hash.clone(),
                    parent: parent.as_ref().map(Into::into),
                })),
                NewEvent::now(Kind::SessionReady(SessionReady {
                    worker: placement.worker().to_owned(),
                    namespace: tenant.namespace.clone(),
                })),
            ],
            agent,
            config_hash,
            labels,
            idle_timeout_ms,
            expire_time,
            sessions_max,
            idempotency_key,
            parent,
        };
        match self.core.stores.sessions.insert(new).await {
            Ok(Inserted::New { session, events }) => {
                self.core.hub.publish(tenant.id, id, events);
                self.core.metrics.sessions_created.inc();
                self.core.open_sessions.opened(tenant.id).await;
                Ok(Opened { session, is_new: true })
            }
            Ok(Inserted::Existing(session)) => {
                self.forget(tenant, &placement, id, ("another request for the same came first", 0)).await;
                Ok(Opened { session, is_new: false })
            }
            Err(error) => {
                self.forget(tenant, &placement, id, ("it could not be recorded", 0)).await;
                Err(error)
            }
        }
    }

    /// What another request for the same has opened meanwhile: it may have taken the last room.
    async fn opened_before(
        &self,
        tenant: TenantId,
        key: Option<&IdempotencyKey>,
        parent: Option<&Parent>,
    ) -> Result<Option<Session>, Error> {
        let sessions = &self.core.stores.sessions;
        match (key, parent) {
            (Some(key), _) => sessions.find_created(tenant, key).await,
            (None, Some(parent)) => sessions.child(tenant, parent.session, &parent.tool_call_id).await,
            (None, None) => Ok(None),
        }
    }

    fn authorise(&self, identity: &Identity) -> Result<Arc<Tenant>, Error> {
        let tenant = self.tenant(identity.tenant)?;
        match tenant.admission {
            TenantAdmission::Open | TenantAdmission::Unspecified => Ok(tenant),
            TenantAdmission::Cordoned => Err(Error::TenantClosed { why: "it is cordoned" }),
            TenantAdmission::Suspended => Err(Error::TenantSuspended),
            TenantAdmission::Terminating => Err(being_removed()),
            TenantAdmission::Stopped => Err(Error::TenantStopped),
        }
    }

    fn tenant(&self, tenant: TenantId) -> Result<Arc<Tenant>, Error> {
        let unknown = Error::Unauthenticated { problem: "the tenant of this credential does not exist" };
        self.core.tenants.get(tenant).ok_or(unknown)
    }

    async fn resolve(&self, agent: Option<AgentSpec>) -> Result<AgentSpec, Error> {
        let agent = validate::agent(agent)?;
        let named: Vec<_> = std::iter::once(&agent).chain(&agent.sub_agents).flat_map(models).collect();
        for (field, model) in named {
            match self.core.models.find(model).await {
                Err(Error::ModelNotFound { .. }) => {
                    return Err(Error::ModelNotRegistered { field, model: model.clone() });
                }
                found => drop(found?),
            }
        }
        Ok(agent)
    }

    /// As [`Self::settle`], where the tenant's rates have room for the session. It counts once a worker has taken it, and until it is known
    /// that none does. Fails with [`Error::RateLimited`], too.
    async fn settle_at_a_rate(
        &self,
        tenant: &Tenant,
        placed: (SessionId, Placement),
        agent: &AgentSpec,
    ) -> Result<(SessionId, Placement), Error> {
        let Core { limiter, models, tasks, .. } = &*self.core;
        let counted = limiter.session(tenant.id, &models.provider_of(&agent.model)).await?;
        let settled = self.settle(tenant, placed, agent).await;
        match counted {
            // Nobody waits for that: it counts as it is.
            Some(counted) if settled.is_ok() => {
                let limiter = limiter.clone();
                drop(tasks.spawn("session-counts", async move { limiter.keep(counted).await }));
            }
            // Whoever tries again at once is to find the room.
            Some(counted) => limiter.give_back(counted).await,
            None => {}
        }
        settled
    }

    /// Has a worker take the session: the one where it is placed, or in place of one that is lost, shuts down, is full or lacks what the session
    /// needs another. What such a one lacks is told where none of those that were asked failed otherwise. Each is told
    /// of an id of its own, so that what the one before hears late, or forgets late, is no other's session.
    async fn settle(
        &self,
        tenant: &Tenant,
        mut placed: (SessionId, Placement),
        agent: &AgentSpec,
    ) -> Result<(SessionId, Placement), Error> {
        let until = Instant::now() + PLACING_MAX;
        let (mut asked, mut told) = (Vec::new(), None);
        loop {
            let (id, placement) = placed;
            let within = INIT_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
            let error = match self.initialise(tenant, &placement, id, agent, within).await {
                Ok(()) => return Ok((id, placement)),
                Err(error @ Error::WorkerLost { .. }) => error,
                // Other fronts have placed there, too.
                Err(Error::WorkersFull { .. }) => routing::all_full(tenant),
                Err(error) if may_suit_another(&error) => error,
                Err(error) => return Err(error),
            };
            asked.push(placement.worker().to_owned());
            drop(placement);
            let error = match told.take() {
                Some(passing) if may_suit_another(&error) && !may_suit_another(&passing) => passing,
                Some(_) | None => error,
            };
            if asked.len() >= WORKERS_MAX || until.saturating_duration_since(Instant::now()) < INIT_MIN {
                return Err(error);
            }
            let id = SessionId::generate();
            placed = match self.core.router.place_beside(tenant.id, id, None, &asked) {
                Ok(next) => (id, next),
                // There is no other.
                Err(_) => return Err(error),
            };
            told = Some(error);
        }
    }

    /// Asks one worker, and takes down how it did.
    async fn initialise(
        &self,
        tenant: &Tenant,
        placement: &Placement,
        id: SessionId,
        agent: &AgentSpec,
        within: Duration,
    ) -> Result<(), Error> {
        let mut worker = self.core.workers.client(tenant, placement)?;
        let request = InitWorkerSessionRequest {
            session_id: id.to_string(),
            tenant: tenant.name.clone(),
            agent: Some(agent.clone()),
            provider: self.core.models.provider_of(&agent.model),
        };
        let answer = tokio::time::timeout(within, worker.init_worker_session(request)).await;
        let is_late = answer.is_err();
        let outcome = match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(worker_error::from_status(&status)),
            Err(_) => Err(Error::WorkerLost { message: "it did not answer in time".into() }),
        };
        match &outcome {
            Ok(()) => self.core.router.update_health(placement, true),
            Err(Error::WorkerLost { .. }) => {
                // One that had less time than it may take has not failed for that.
                if !is_late || within == INIT_TIMEOUT {
                    self.core.router.update_health(placement, false);
                }
                // It may have taken it all the same.
                self.forget_behind(placement, id, "it was not heard to take it");
            }
            Err(Error::WorkersFull { .. }) => self.core.router.update_health(placement, false),
            Err(_) => {}
        }
        outcome
    }

    /// As [`Self::forget`], in a task of its own: nobody waits for a worker that does not answer.
    fn forget_behind(&self, placement: &Placement, id: SessionId, reason: &'static str) {
        let (manager, tenant, worker) = (self.clone(), placement.tenant(), placement.worker().to_owned());
        drop(self.core.tasks.spawn("forget-session", async move {
            let Some(tenant) = manager.core.tenants.get(tenant) else { return };
            let Ok(placement) = manager.core.router.locate(tenant.id, &worker) else { return };
            manager.forget(&tenant, &placement, id, (reason, 0)).await;
        }));
    }

    /// Tells a worker to forget a session, which it does by itself too, later, if this fails. Returns the attempts at models that it
    /// knows of and nobody else may. `epoch` is of the lease under which the session goes on at another worker, and 0 where it goes on
    /// at none.
    async fn forget(
        &self,
        tenant: &Tenant,
        placement: &Placement,
        id: SessionId,
        (reason, epoch): (&str, u64),
    ) -> Vec<ModelAttempt> {
        let Ok(mut worker) = self.core.workers.client(tenant, placement) else { return Vec::new() };
        let (session_id, reason) = (id.to_string(), reason.to_owned());
        let request = RuntimeServiceTerminateSessionRequest { session_id, reason, epoch };
        match tokio::time::timeout(INIT_TIMEOUT, worker.terminate_session(request)).await {
            Ok(Ok(response)) => return response.into_inner().untold_attempts,
            Ok(Err(status)) => tracing::debug!(session = %id, code = ?status.code(), "worker not told to forget"),
            Err(_) => tracing::debug!(session = %id, "worker not told to forget in time"),
        }
        Vec::new()
    }

    /// A session of the caller's tenant.
    pub async fn get(&self, identity: &Identity, session_id: &str) -> Result<Session, Error> {
        let id = validate::session_id(session_id)?;
        let session = self.core.stores.sessions.get(identity.tenant, id).await?;
        session.ok_or_else(|| Error::SessionNotFound { session_id: session_id.to_owned() })
    }

    /// A page of the caller's sessions, newest first. The token is the last id of the page before.
    pub async fn list(&self, identity: &Identity, request: ListSessionsRequest) -> Result<Page, Error> {
        let limit = validate::page_size(request.page_size, validate::PAGE_SIZE)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| Error::invalid("page_token", "is not one of ours"))?),
        };
        let parent = match request.parent_session_id.as_str() {
            "" => None,
            parent => Some(validate::session_id(parent)?),
        };
        let (states, labels) = (states(&request.states)?, validate::labels(request.labels)?);
        let filter = Filter { states, labels, parent, ..Filter::default() };
        let look = self.core.stores.sessions.list(identity.tenant, &filter, after, limit);
        // Where few of a tenant's sessions are as wanted, all of them are looked at.
        let is_long = !filter.states.is_empty() || !filter.labels.is_empty();
        if is_long { self.core.reads.one(identity.tenant, look).await } else { look.await }
    }

    /// Ends a session, and tells how it ended, whoever ended it.
    pub async fn terminate(&self, identity: &Identity, request: TerminateSessionRequest) -> Result<Session, Error> {
        let reason = validate::terminate_reason(&request.reason)?;
        let session = self.get(identity, &request.session_id).await?;
        if session.state == SessionState::Terminated {
            self.end_once_more(&session).await;
            return Ok(session);
        }
        if self.end(&session, Authority::Fence, &reason).await? {
            self.release_worker(&session, &reason);
        }
        self.get(identity, &request.session_id).await
    }
}

/// Those that are wanted; none is all. One that is not known here must not turn into none: then all would be shown.
fn states(named: &[i32]) -> Result<Vec<SessionState>, Error> {
    let named: BTreeSet<_> = named.iter().copied().collect();
    let known = named.into_iter().map(|state| match SessionState::try_from(state) {
        Ok(known) if known != SessionState::Unspecified => Ok(known),
        _ => Err(Error::invalid("states", format!("has {state}, which is no state"))),
    });
    known.collect()
}

/// All that an agent names, each with its field.
fn models(agent: &AgentSpec) -> impl Iterator<Item = (&'static str, &String)> {
    let own = std::iter::once(("agent.model", &agent.model));
    let fallbacks = agent.fallback_models.iter().map(|model| ("agent.fallback_models", model));
    own.chain(fallbacks).chain(agent.routing.iter().flat_map(economy_models))
}

fn economy_models(routing: &RoutingSpec) -> impl Iterator<Item = (&'static str, &String)> {
    routing.economy_models.iter().map(|model| ("agent.routing.economy_models", model))
}

/// The key with the hash of what it stands for; `None` when the caller gave none.
///
/// The hash is over JSON with sorted keys: protobuf maps have no order of their own.
pub(crate) fn idempotency_key(key: &str, body: &impl Serialize) -> Result<Option<IdempotencyKey>, Error> {
    let Some(key) = validate::idempotency_key(key)? else { return Ok(None) };
    // Only what is not among an enum's values has no JSON.
    let body = serde_json::to_value(body)
        .map_err(|_| Error::invalid("request", "has a value that this release does not know"))?;
    Ok(Some(IdempotencyKey { key: key.to_owned(), body_hash: snapshot::canonical_hash(&body) }))
}
