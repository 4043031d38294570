//! `TenantService`: what the operator asks, on the internal port.

use std::pin::Pin;
use std::sync::Arc;

use croft_proto::v1::tenant_service_server::TenantService;
use croft_proto::v1::{RemoveTenantRequest, RemoveTenantResponse, WatchSessionsRequest, WatchSessionsResponse};
use croft_serve::grpc::UnremarkableOnce;
use futures::Stream;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::core::Core;
use crate::door;
use crate::error::Error;
use crate::session::watch::Watch;
use crate::tenants::removal::{Progress, Removal};

/// Watches of sessions at this front. More are refused: there is one operator, and a few of its replicas.
const WATCHES_MAX: usize = 8;

/// The service, for the operator's certificate alone.
#[derive(Clone)]
pub struct Tenants {
    core: Arc<Core>,
    removal: Removal,
    watches: Arc<Semaphore>,
}

impl Tenants {
    pub fn new(core: Arc<Core>) -> Self {
        let watches = Arc::new(Semaphore::new(WATCHES_MAX));
        Self { removal: Removal::new(Arc::clone(&core)), core, watches }
    }
}

#[tonic::async_trait]
impl TenantService for Tenants {
    type WatchSessionsStream = Pin<Box<dyn Stream<Item = Result<WatchSessionsResponse, Status>> + Send>>;

    async fn watch_sessions(
        &self,
        request: Request<WatchSessionsRequest>,
    ) -> Result<Response<Self::WatchSessionsStream>, Status> {
        door::for_all(&self.core, &request)?;
        let seat = Arc::clone(&self.watches).try_acquire_owned();
        let seat = seat.map_err(|_| Error::unavailable("the watch", anyhow::anyhow!("{WATCHES_MAX} are open")))?;
        let changes = Watch::new(Arc::clone(&self.core), request.into_inner().interval_ms).start(seat);
        let mut answer: Response<Self::WatchSessionsStream> = Response::new(Box::pin(changes));
        answer.extensions_mut().insert(UnremarkableOnce(self.core.tasks.stopping()));
        Ok(answer)
    }

    async fn remove_tenant(
        &self,
        request: Request<RemoveTenantRequest>,
    ) -> Result<Response<RemoveTenantResponse>, Status> {
        let identity = door::for_removal(&self.core, &request)?;
        let (removal, policy) = (self.removal.clone(), request.into_inner().policy());
        // In a task of its own: what has been done is recorded though the operator's patience ends meanwhile.
        let task = self.core.tasks.spawn("removal", async move { removal.go_on(&identity, policy).await });
        let Progress { step, left } = task.await.map_err(Error::internal)??;
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        Ok(Response::new(RemoveTenantResponse { step: step.into(), left }))
    }
}
