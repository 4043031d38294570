//! Health as anybody may ask for it, without a credential: no more than so many watch it at a time, and none of them keeps a program from
//! stopping.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Streams of `Watch` at a time. At the bound further ones are refused with `RESOURCE_EXHAUSTED`; `Check` goes on being answered.
pub(super) const WATCHES_MAX: usize = 256;

/// A service of health within the bounds of this module.
pub(super) struct Watches<H> {
    health: H,
    room: Arc<Semaphore>,
    /// Cancelled behind the last word about health.
    told: CancellationToken,
}

impl<H> Watches<H> {
    /// `told` is cancelled once `health` says nothing new any more: then every stream ends behind what it has not passed on yet.
    pub(super) fn new(health: H, told: CancellationToken) -> Self {
        Self { health, room: Arc::new(Semaphore::new(WATCHES_MAX)), told }
    }
}

#[tonic::async_trait]
impl<H: Health> Health for Watches<H> {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.health.check(request).await
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Watch>, Status> {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!("health is watched by {WATCHES_MAX} already")));
        };
        let watch = self.health.watch(request).await?;
        let told = Box::pin(self.told.clone().cancelled_owned());
        Ok(watch.map(|changes| Watch { changes: changes.boxed(), told, _place: place }))
    }
}

/// What one caller is told.
pub(super) struct Watch {
    changes: BoxStream<'static, Result<HealthCheckResponse, Status>>,
    told: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Looked at first: whatever was said before it is found by the look behind it.
        let is_told = self.told.as_mut().poll(context).is_ready();
        match self.changes.poll_next_unpin(context) {
            Poll::Pending if is_told => Poll::Ready(None),
            change => change,
        }
    }
}
