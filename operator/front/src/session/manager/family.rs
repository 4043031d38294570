//! Sessions of sub-agents: opened for a call of their parent's, and ended with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::{SessionId, TurnId};
use croft_proto::v1::{CreateSessionRequest, SessionState, TenantAdmission};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tokio::time::Instant;

use super::{Manager, Opened, Opening};
use crate::audit::Action;
use crate::clock::now;
use crate::error::Error;
use crate::events::log::Authority;
use crate::events::relay::Frame;
use crate::session::Session;
use crate::session::family::{DEPTH_MAX, Parent, callee};
use crate::session::lifetime::Lifetime;
use crate::session::store::Filter;
use crate::store::time;

/// Why a sub-agent's session was ended before its call had a result, as in its `SessionTerminated`.
pub(crate) const CALL_ENDED: &str = "CALL_ENDED";

/// Children that are looked at together. Nobody has more open: a turn's tool calls are bounded.
const PAGE: u32 = 1_000;
const CONCURRENCY: usize = 16;
/// How long a turn may take to end when it is told to.
const GRACE: Duration = Duration::from_millis(800);
/// Between two looks at whether it has. It is told to stop with each: it may have begun a moment ago, and not listened yet.
const LOOK_EVERY: Duration = Duration::from_millis(40);

impl Manager {
    /// The session for a call of a sub-agent: the one that is there, or a new one. Asked again, by whichever front, it is the same. What
    /// came of it in the end is to be [recorded](Self::record_child).
    ///
    /// `may_be_open` is whether a try before may have opened it without hearing of that: then one that is there is new. False at first. Of
    /// two that are made side by side it is new to one.
    ///
    /// Fails as [`Manager::create`] does; with [`Error::Invalid`] when the tool calls no sub-agent, or one too deep; and with
    /// [`Error::SessionTerminated`] when the caller has ended.
    pub(crate) async fn open_child(
        &self,
        caller: &Session,
        turn: TurnId,
        tool_call_id: &str,
        tool: &str,
        may_be_open: &mut bool,
    ) -> Result<Opened, Error> {
        if let Some(child) = self.core.stores.sessions.child(caller.tenant, caller.id, tool_call_id).await? {
            return Ok(Opened { session: child, is_new: *may_be_open });
        }
        let agent = callee(&caller.agent, tool).ok_or_else(|| Error::invalid("tool", "calls no sub-agent"))?;
        let parent = Parent::of(caller, turn, tool_call_id);
        if parent.lineage.len() > DEPTH_MAX {
            return Err(Error::invalid("agent.sub_agents", format!("are deeper than {DEPTH_MAX} below the first")));
        }
        let tenant = self.tenant(caller.tenant)?;
        // A cordon keeps new work out, and this belongs to work that goes on.
        match tenant.admission {
            TenantAdmission::Open | TenantAdmission::Unspecified | TenantAdmission::Cordoned => {}
            TenantAdmission::Suspended => return Err(Error::TenantSuspended),
            TenantAdmission::Terminating => return Err(crate::store::being_removed()),
            TenantAdmission::Stopped => return Err(Error::TenantStopped),
        }
        let mut lifetime = Lifetime::new(&CreateSessionRequest::default(), &tenant.limits, now())?;
        let ends = [lifetime.expire_time, caller.expire_time];
        lifetime.expire_time = ends.into_iter().flatten().min_by_key(time::micros);
        let opening = Opening { agent, labels: BTreeMap::new(), lifetime, idempotency_key: None, parent: Some(parent) };
        let opened = self.open(&tenant, opening).await;
        let Opened { session, is_new } = opened.inspect_err(|error| {
            *may_be_open |= matches!(error, Error::Unavailable { .. });
        })?;
        Ok(Opened { session, is_new: is_new || *may_be_open })
    }

    /// Records that a call's session was opened, or why it was not. Once a call, however often it was tried: each try would be a record.
    pub(crate) async fn record_child(&self, caller: &Session, opened: &Result<Opened, Error>) {
        let (resource, outcome) = match opened {
            Ok(child) if !child.is_new => return,
            Ok(child) => (format!("sessions/{}", child.session.id), "ok"),
            Err(error) => ("sessions".to_owned(), error.reason()),
        };
        let actor = format!("sessions/{}", caller.id);
        let action = Action {
            tenant: caller.tenant,
            actor,
            action: "session.create".into(),
            resource,
            outcome: outcome.into(),
            act_micros: None,
        };
        self.core.audit.record(action).await;
    }

    /// Ends a sub-agent's session. A turn at hand is let end in order first, so that what it used is told; when that takes longer than
    /// a moment, as when its front was lost just now, the session is left to the next look for those whose call is over.
    pub(crate) async fn end_child(&self, child: &Session, reason: &str) -> Result<(), Error> {
        let (tenant, id) = (child.tenant, child.id);
        let until = Instant::now() + GRACE;
        loop {
            let Some(now) = self.core.stores.sessions.get(tenant, id).await? else { return Ok(()) };
            if now.state != SessionState::Running {
                match self.end(&now, Authority::AtRest, reason).await {
                    // Its caller's word has come to it since.
                    Err(Error::SessionBusy { .. }) => {}
                    ended => {
                        if ended? {
                            self.release_worker(&now, reason);
                        }
                        return Ok(());
                    }
                }
            }
            if Instant::now() >= until {
                tracing::info!(%tenant, session = %id, "a sub-agent's turn has not ended yet");
                return Ok(());
            }
            let turn = now.turn_id.parse().ok();
            self.core.hub.control(tenant, id, Frame::Interrupt { turn });
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends every open session of a call of this one's. A session whose agent has no sub-agents has none.
    pub(crate) fn end_children<'a>(&'a self, parent: &'a Session) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            if parent.agent.sub_agents.is_empty() {
                return Ok(());
            }
            let open = Filter { parent: Some(parent.id), ..Filter::open() };
            let (mut outcome, mut after) = (Ok(()), None);
            loop {
                let page = self.core.stores.sessions.list(parent.tenant, &open, after, PAGE).await?;
                after = page.next();
                let ended: Vec<_> = stream::iter(page.sessions)
                    .map(|child| async move { self.end_child(&child, CALL_ENDED).await })
                    .buffer_unordered(CONCURRENCY)
                    .collect()
                    .await;
                outcome = ended.into_iter().fold(outcome, Result::and);
                if after.is_none() {
                    return outcome;
                }
            }
        }
        .boxed()
    }

    /// The same in a task of its own, for a parent that has ended. What this can't do, the look for orphans does.
    pub(super) fn end_what_hangs_on(&self, parent: &Session) {
        if parent.agent.sub_agents.is_empty() {
            return;
        }
        let (manager, parent) = (Self::new(Arc::clone(&self.core)), parent.clone());
        drop(self.core.tasks.spawn("end-sub-agents", async move {
            let (tenant, session): (_, SessionId) = (parent.tenant, parent.id);
            if let Err(error) = manager.end_children(&parent).await {
                tracing::warn!(%tenant, %session, %error, "sub-agents of a session that has ended are looked for again");
            }
        }));
    }
}
