//! UsageService.

use std::sync::Arc;

use croft_proto::v1::usage_service_server::UsageService;
use croft_proto::v1::{
    ListUsageEventsRequest, ListUsageEventsResponse, SummarizeUsageRequest, SummarizeUsageResponse, UsageDimension,
};
use tonic::{Request, Response, Status};

use super::page_size;
use crate::core::Core;
use crate::door::Door;
use crate::error::Error;
use crate::session::validate;

/// The service, on the public port.
#[derive(Clone)]
pub struct Usage {
    core: Arc<Core>,
}

impl Usage {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl UsageService for Usage {
    async fn list_usage_events(
        &self,
        request: Request<ListUsageEventsRequest>,
    ) -> Result<Response<ListUsageEventsResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let session = match request.session_id.as_str() {
            "" => None,
            text => Some(validate::session_id(text)?),
        };
        let limit = page_size(request.page_size)?;
        let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
        let mut usage_events = self.core.stores.usage.list(identity.tenant, session, after, limit + 1).await?;
        let more = usage_events.len() > limit as usize;
        usage_events.truncate(limit as usize);
        let next_page_token = match usage_events.last() {
            Some(last) if more => last.attempt_id.clone(),
            _ => String::new(),
        };
        Ok(Response::new(ListUsageEventsResponse { usage_events, next_page_token }))
    }

    async fn summarize_usage(
        &self,
        request: Request<SummarizeUsageRequest>,
    ) -> Result<Response<SummarizeUsageResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let group_by: Vec<_> = request.group_by().collect();
        if group_by.contains(&UsageDimension::Unspecified) {
            return Err(Error::invalid("group_by", "has an unknown dimension").into());
        }
        let usage = &self.core.stores.usage;
        let summaries = usage.summarize(identity.tenant, request.start_time, request.end_time, &group_by).await?;
        Ok(Response::new(SummarizeUsageResponse { summaries }))
    }
}
