//! What callers change. It is carried out to its end though the caller leaves half way, and is recorded, however it went.

use std::sync::Arc;

use tracing::Instrument as _;

use crate::audit::Action;
use crate::core::Core;
use crate::error::Error;
use crate::identity::{Call, Identity};
use crate::intake::Held;

/// Something that a caller is about to change.
pub(crate) struct Act {
    identity: Identity,
    action: &'static str,
    resource: String,
}

impl Act {
    /// What this call does to the resource. A call that only reads is no act, and none that anybody has to know of.
    pub(crate) fn of<C: Call>(identity: &Identity, resource: impl Into<String>) -> Self {
        Self { identity: identity.clone(), action: C::AUDITED.unwrap_or(C::ACTION), resource: resource.into() }
    }

    /// Does it in a task of its own, which nobody but a kill of this process can stop: a caller who hangs up just when the change is stored
    /// must neither leave the rest of it undone nor go unrecorded.
    pub(crate) async fn carry_out<T: Send + 'static>(
        self,
        core: &Arc<Core>,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.carry_out_and_name(core, work, |_| None).await
    }

    /// As [`Self::carry_out`], of what has a name only when it is there.
    pub(crate) async fn carry_out_and_name<T: Send + 'static>(
        self,
        core: &Arc<Core>,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
        name: impl FnOnce(&T) -> Option<String> + Send + 'static,
    ) -> Result<T, Error> {
        Box::pin(self.carry_out_and_tell(core, work, |result| result.ok().and_then(name))).await
    }

    /// As [`Self::carry_out`], of what has another name once it was tried, however that went.
    pub(crate) async fn carry_out_and_tell<T: Send + 'static>(
        self,
        core: &Arc<Core>,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
        name: impl FnOnce(Result<&T, &Error>) -> Option<String> + Send + 'static,
    ) -> Result<T, Error> {
        let (recorder, held) = (Arc::clone(core), Held::current());
        let task = async move {
            let _held = held;
            let result = work.await;
            let Self { identity, action, resource } = self;
            let resource = name(result.as_ref()).unwrap_or(resource);
            record(&recorder, identity, action, resource, result.as_ref().err()).await;
            result
        };
        core.tasks.spawn("act", task.in_current_span()).await.map_err(Error::internal)?
    }

    /// It was refused before anything was done. Passes the error on.
    pub(crate) async fn refused(self, core: &Core, error: Error) -> Error {
        record(core, self.identity, self.action, self.resource, Some(&error)).await;
        error
    }
}

/// Fails with [`Error::Forbidden`] if no role of the caller's allows this call; where it would change something, the try is recorded.
pub(crate) async fn allow<C: Call>(core: &Core, identity: &Identity) -> Result<(), Error> {
    let allowed = identity.may::<C>();
    if let (Err(error), Some(action)) = (&allowed, C::AUDITED) {
        record(core, identity.clone(), action, String::new(), Some(error)).await;
    }
    allowed
}

async fn record(core: &Core, identity: Identity, action: &'static str, resource: String, error: Option<&Error>) {
    let outcome = error.map_or("ok", Error::reason).into();
    let Identity { tenant, actor, .. } = identity;
    core.audit.record(Action { tenant, actor, action: action.into(), resource, outcome, act_micros: None }).await;
}
