//! A log of events that a test holds up.

use std::sync::Arc;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::log::{Append, Appended, EventLog, IdempotencyKey, StoredCheckpoint};
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use croft_proto::v1::session_event::Kind;
use futures::future::BoxFuture;

/// A moment at which a call of the log can be held up.
pub(crate) enum Moment<'a> {
    /// Before this is stored.
    Appends(&'a Append),
    /// Once this is stored, and before anybody is told.
    Appended(&'a Append),
    /// Before events are read.
    Reads,
}

impl Moment<'_> {
    /// Whether this is just before something of the kind is stored.
    pub(crate) fn appends(&self, is_meant: fn(&Kind) -> bool) -> bool {
        matches!(self, Self::Appends(append) if has(append, is_meant))
    }

    /// Whether this is just behind it.
    pub(crate) fn appended(&self, is_meant: fn(&Kind) -> bool) -> bool {
        matches!(self, Self::Appended(append) if has(append, is_meant))
    }
}

fn has(append: &Append, is_meant: fn(&Kind) -> bool) -> bool {
    append.events.iter().any(|event| is_meant(&event.kind))
}

struct PausedLog<P> {
    log: Arc<dyn EventLog>,
    pause: P,
}

/// `log`, each call of which goes on once what `pause` makes of its moments is over.
pub(crate) fn paused<P>(log: Arc<dyn EventLog>, pause: P) -> Arc<dyn EventLog>
where
    P: Fn(Moment<'_>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
{
    Arc::new(PausedLog { log, pause })
}

#[async_trait]
impl<P> EventLog for PausedLog<P>
where
    P: Fn(Moment<'_>) -> BoxFuture<'static, ()> + Send + Sync,
{
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        let (before, after) = ((self.pause)(Moment::Appends(&append)), (self.pause)(Moment::Appended(&append)));
        before.await;
        let appended = self.log.append(append).await;
        after.await;
        appended
    }

    async fn find_sent(&self, tenant: TenantId, id: SessionId, key: &IdempotencyKey) -> Result<Option<u64>, Error> {
        self.log.find_sent(tenant, id, key).await
    }

    async fn read(&self, tenant: TenantId, id: SessionId, after: u64, limit: u32) -> Result<Vec<SessionEvent>, Error> {
        (self.pause)(Moment::Reads).await;
        self.log.read(tenant, id, after, limit).await
    }

    async fn checkpoint(&self, tenant: TenantId, id: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.log.checkpoint(tenant, id).await
    }
}
