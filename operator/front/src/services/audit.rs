//! AuditService.

use std::sync::Arc;

use croft_proto::v1::audit_service_server::AuditService;
use croft_proto::v1::{
    ListAuditRecordsRequest, ListAuditRecordsResponse, VerifyAuditLogRequest, VerifyAuditLogResponse,
};
use tonic::{Request, Response, Status};

use super::page_size;
use crate::core::Core;
use crate::door::Door;

/// The service, on the public port.
#[derive(Clone)]
pub struct Audit {
    core: Arc<Core>,
}

impl Audit {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit_records(
        &self,
        request: Request<ListAuditRecordsRequest>,
    ) -> Result<Response<ListAuditRecordsResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let limit = page_size(request.page_size)?;
        let records = self.core.stores.audit.list(identity.tenant, request.after_number, limit).await?;
        Ok(Response::new(ListAuditRecordsResponse { records }))
    }

    async fn verify_audit_log(
        &self,
        request: Request<VerifyAuditLogRequest>,
    ) -> Result<Response<VerifyAuditLogResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        Ok(Response::new(self.core.stores.audit.verify(identity.tenant).await?))
    }
}
