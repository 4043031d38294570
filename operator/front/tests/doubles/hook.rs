//! What a test does about the calls of a store.

use std::sync::Arc;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::log::Append;
use croft_front::session::store::NewSession;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use futures::future::BoxFuture;

/// A call of a store, with what hooks look at.
#[derive(Clone, Copy)]
pub(crate) enum Call<'call> {
    Insert(&'call NewSession),
    Get,
    List,
    CountOpen,
    Child,
    FindCreated,
    Append(&'call Append),
    FindSent,
    Read,
    Waiting,
    Checkpoint,
    Begin,
    /// The last word of a turn.
    End(&'call Append),
    Acquire,
    RenewAll(&'call [(SessionId, u64)]),
    Release,
    Abandon,
    Abandoned,
    ListUsage,
    Summarize,
    AddBehindEnd,
}

impl Call<'_> {
    /// Whether it appends something of the kind.
    pub(crate) fn appends(&self, is_meant: fn(&Kind) -> bool) -> bool {
        matches!(self, Self::Append(append) if append.events.iter().any(|event| is_meant(&event.kind)))
    }
}

/// The call itself, which is made when this is awaited. It fails as the store behind does.
pub(crate) type Made<'call> = BoxFuture<'call, Result<(), Error>>;

/// What stands around each call of a store.
#[async_trait]
pub(crate) trait Hook: Send + Sync {
    /// Has the call made, or not. An error is the call's answer, whatever was made of it; without one the call must have been made, and is
    /// answered as it was.
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error>;
}

#[async_trait]
impl<H: Hook> Hook for Arc<H> {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        H::around(self, call, made).await
    }
}
