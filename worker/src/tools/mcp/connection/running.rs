//! A connection while it is open. When nobody has it any more it is closed, and the worker waits for that as for its steps.

use std::time::Duration;

use croft_serve::Tasks;
use rmcp::service::{Peer, RunningService};
use rmcp::{RoleClient, model};
use tokio_util::sync::DropGuard;

use super::blot::Blot;

/// How long closing may take: the library gives a server five seconds to hear that its session has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(6);

pub(super) type Service = RunningService<RoleClient, model::ClientConfig>;

/// See the module.
pub(super) struct Running {
    /// Until it is dropped.
    service: Option<Service>,
    /// What keeps the connection's credential out of what is told.
    pub(super) blot: Blot,
    /// What ends all that its HTTP client has under way.
    ended: Option<DropGuard>,
    tasks: Tasks,
}

impl Running {
    pub(super) fn new(service: Service, blot: Blot, ended: DropGuard, tasks: Tasks) -> Self {
        Self { service: Some(service), blot, ended: Some(ended), tasks }
    }

    /// Whom to ask; `None` when the connection broke.
    pub(super) fn peer(&self) -> Option<&Peer<RoleClient>> {
        let service = self.service.as_ref()?;
        (!service.is_closed() && !service.is_transport_closed()).then(|| service.peer())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(mut service), ended) = (self.service.take(), self.ended.take()) else { return };
        let close = async move {
            // It fails when the library panicked, which is logged.
            let _ = service.close_with_timeout(CLOSE_TIMEOUT).await;
            drop(ended);
        };
        drop(self.tasks.spawn("mcp-close", close));
    }
}
