//! AuditService.

use std::sync::Arc;

use croft_proto::v1::audit_service_server::AuditService;
use croft_proto::v1::{
    ListAuditRecordsRequest, ListAuditRecordsResponse, VerifyAuditLogRequest, VerifyAuditLogResponse,
};
use tonic::{Request, Response, Status};

use super::PAGE_SIZE;
use crate::audit::Known;
use crate::core::Core;
use crate::door::Door;
use crate::error::Error;
use crate::session::validate;
use crate::store::chain;

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
        let limit = validate::page_size(request.page_size, PAGE_SIZE)?;
        let records = self
            .core
            .reads
            .one(identity.tenant, self.core.stores.audit.list(identity.tenant, request.after_number, limit))
            .await?;
        Ok(Response::new(ListAuditRecordsResponse { records }))
    }

    async fn verify_audit_log(
        &self,
        request: Request<VerifyAuditLogRequest>,
    ) -> Result<Response<VerifyAuditLogResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let known = known(&request.into_inner())?;
        let look = self.core.stores.audit.verify(identity.tenant, known);
        Ok(Response::new(self.core.reads.one(identity.tenant, look).await?))
    }
}

/// What the caller knows of the log.
fn known(request: &VerifyAuditLogRequest) -> Result<Option<Known>, Error> {
    let VerifyAuditLogRequest { known_number: number, known_hash } = request;
    if *number == 0 && known_hash.is_empty() {
        return Ok(None);
    }
    let hash = chain::parse(known_hash).map_err(|_| Error::invalid("known_hash", "is not a SHA-256 in hex"))?;
    match number {
        0 => Err(Error::invalid("known_number", "is missing beside known_hash")),
        number => Ok(Some(Known { number: *number, hash })),
    }
}
