//! ModelRegistryService.

use std::sync::Arc;

use croft_proto::v1::model_registry_service_server::ModelRegistryService;
use croft_proto::v1::{GetModelRequest, GetModelResponse, ListModelsRequest, ListModelsResponse, Model};
use tonic::{Request, Response, Status};

use crate::core::Core;
use crate::door::Door;

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
        let model = self.core.models.get(&request.into_inner().model_id)?;
        Ok(Response::new(GetModelResponse { model: Some(Model::clone(&model)) }))
    }
}
