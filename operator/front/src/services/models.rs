//! ModelRegistryService.

use std::sync::Arc;

use croft_proto::Timestamp;
use croft_proto::v1::model_registry_service_server::ModelRegistryService;
use croft_proto::v1::{
    GetModelRequest, GetModelResponse, ListModelsRequest, ListModelsResponse, Model, RecommendModelsRequest,
    RecommendModelsResponse, UsageDimension,
};
use tonic::{Request, Response, Status};

use crate::clock::now;
use crate::core::Core;
use crate::door::Door;
use crate::error::Error;
use crate::models::recommend::recommend;
use crate::session::validate;
use crate::usage::{GROUPS_MAX, Selection};

const DAYS: u32 = 30;
const DAYS_MAX: u32 = 366;

/// The service, on the public port.
#[derive(Clone)]
pub struct Models {
    core: Arc<Core>,
}

impl Models {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl ModelRegistryService for Models {
    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        Door::Public.identify(&self.core, &request).await?;
        let models = self.core.models.list(&request.into_inner().provider);
        Ok(Response::new(ListModelsResponse { models: models.iter().map(|model| Model::clone(model)).collect() }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        Door::Public.identify(&self.core, &request).await?;
        let model = self.core.models.find(&request.into_inner().model_id).await?;
        Ok(Response::new(GetModelResponse { model: Some(Model::clone(&model)) }))
    }

    async fn recommend_models(
        &self,
        request: Request<RecommendModelsRequest>,
    ) -> Result<Response<RecommendModelsResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let RecommendModelsRequest { agent, days } = request.into_inner();
        if days > DAYS_MAX {
            return Err(Error::invalid("days", format!("is not between 0 and {DAYS_MAX}")).into());
        }
        validate::printable("agent", &agent)?;
        let days = i64::from(if days == 0 { DAYS } else { days });
        let start = Timestamp { seconds: now().seconds - days * 24 * 60 * 60, nanos: 0 };
        let (usage, tenant, by) = (&self.core.stores.usage, identity.tenant, [UsageDimension::Model]);
        let agent = Some(&*agent).filter(|agent| !agent.is_empty());
        let look = usage.summarize(tenant, Selection { agent, start: Some(start), end: None }, &by);
        let used = self.core.reads.one(tenant, look).await?;
        if used.len() > GROUPS_MAX {
            let problem = format!("have more than {GROUPS_MAX} models used in them: ask for fewer");
            return Err(Error::invalid("days", problem).into());
        }
        let recommendations = recommend(&self.core.models, &used, now().seconds);
        Ok(Response::new(RecommendModelsResponse { recommendations }))
    }
}
