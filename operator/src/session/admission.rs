//! Whether a session may be opened at all, as far as is known without asking the front: each call that it refuses costs it a record.

use std::sync::Arc;
use std::time::Duration;

use croft_crds::{AgentSession, AgentTenant};
use croft_proto::v1::TenantAdmission;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;

use super::status;
use crate::context::Context;
use crate::routes;
use crate::tenant::limits;

/// Before a session is tried again whose tenant has as many as it may have, and nobody has told that one has ended.
pub(super) const STILL_FULL: Duration = Duration::from_mins(10);

/// Why the tenant takes no session, if it takes none. Only a change of the tenant lets it, and that wakes its sessions.
pub(super) fn closed(tenant: &AgentTenant) -> Option<&'static str> {
    match routes::admission(tenant) {
        TenantAdmission::Open | TenantAdmission::Unspecified => None,
        TenantAdmission::Cordoned => Some("it is cordoned"),
        TenantAdmission::Suspended => Some("it is suspended"),
        TenantAdmission::Stopped => Some("it is stopped"),
        TenantAdmission::Terminating => Some("it is being removed"),
    }
}

/// How many more sessions the tenant may open, as the fronts last told; `None` before they have.
pub(super) fn room(tenant: &AgentTenant, context: &Context) -> Option<usize> {
    let open = context.totals.of(&tenant.uid()?)?.sessions_open;
    match limits(tenant, &context.settings.tiers).max_sessions {
        // The front takes 0 for no limit.
        None | Some(0) => Some(usize::MAX),
        Some(max) => Some(usize::try_from(i64::from(max).saturating_sub(open)).unwrap_or(0)),
    }
}

/// Looks again at sessions that their tenant had no room for: at no more than there is room for now, the oldest first.
pub(crate) fn wake(tenant: &AgentTenant, context: &Context) {
    let room = room(tenant, context).unwrap_or(0);
    if room == 0 {
        return;
    }
    let waiting = context.cluster.session_index.waiting(&tenant.namespace_name());
    let waiting = waiting.into_iter().filter_map(|session| context.cluster.sessions.get(&session));
    let wants_room = |session: &Arc<AgentSession>| {
        session.metadata.deletion_timestamp.is_none() && !session.spec.terminate && status::lacks_room(session, context)
    };
    let mut waiting: Vec<_> = waiting.filter(wants_room).collect();
    waiting.sort_by_cached_key(|session| (session.creation_timestamp(), session.name_any()));
    for session in waiting.into_iter().take(room) {
        context.cluster.changes.sessions.mark(ObjectRef::<AgentSession>::from_obj(&*session));
    }
}

/// Has the next one tried that waits for a worker, as `session` waits no more. At a worker that is full this ends: who is refused
/// passes nothing on.
pub(super) fn pass_worker_on(session: &AgentSession, context: &Context) {
    let namespace = session.namespace().unwrap_or_default();
    for next in context.cluster.session_index.take_for_workers(&namespace, 1) {
        context.cluster.changes.sessions.mark(next);
    }
}

/// Gives the room that `session` could not use to the next that waits for some. Does nothing unless its status says by now that it waits
/// for something else, or for nothing: so each time there is one fewer, and this ends.
pub(super) fn pass_on(session: &AgentSession, context: &Context) {
    let tenant = context.cluster.tenant_called_by(&session.namespace().unwrap_or_default());
    if let Some(tenant) = tenant.filter(|_| !status::lacks_room(session, context)) {
        wake(&tenant, context);
    }
}
