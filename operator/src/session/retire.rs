//! Deletes an AgentSession when its session has ended for so long that nobody wants its record any more.

use croft_crds::{AgentSession, AgentSessionStatus};
use kube::ResourceExt as _;
use std::time::Duration;

use super::Error;
use crate::context::Context;
use crate::controller::Action;
use crate::tenant::session_defaults;

/// To be asked of a session after which nothing follows.
pub(super) async fn retire(
    session: &AgentSession,
    status: &AgentSessionStatus,
    context: &Context,
) -> Result<Action, Error> {
    let (Some(ttl), Some(finished)) = (ttl_seconds(session, context), &status.finish_time) else {
        return Ok(Action::await_change());
    };
    let left = finished.0.as_second().saturating_add(i64::from(ttl)) - context.now();
    if let Ok(left @ 1..) = u64::try_from(left) {
        return Ok(Action::requeue(Duration::from_secs(left)));
    }
    let (namespace, name) = (session.namespace(), session.name_any());
    let deleted =
        context.writer.delete::<AgentSession>(namespace.as_deref(), &name, &session.uid().unwrap_or_default()).await;
    deleted.map_err(Error::Delete)?;
    Ok(Action::await_change())
}

/// The session's own, or else its tenant's; a tenant that has none keeps records for ever.
fn ttl_seconds(session: &AgentSession, context: &Context) -> Option<u32> {
    session.spec.ttl_seconds_after_finished.or_else(|| {
        let tenant = context.cluster.tenant_called_by(&session.namespace()?)?;
        session_defaults(&tenant, &context.settings.tiers).ttl_seconds_after_finished
    })
}
