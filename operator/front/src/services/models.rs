//! ModelRegistryService.

use std::sync::Arc;

use croft_proto::Timestamp;
use croft_proto::v1::model_registry_service_server::ModelRegistryService;
use croft_proto::v1::{
    GetModelRequest, GetModelResponse, ListModelsRequest, ListModelsResponse, Model, RecommendModelsRequest,
    RecommendModelsResponse, UsageDimension, UsageSummary, UsageTotals,
};
use tonic::{Request, Response, Status};

use crate::clock::now;
use crate::core::Core;
use crate::door::Door;
use crate::error::Error;
use crate::models::recommend::recommend;

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
        let days = i64::from(if days == 0 { DAYS } else { days });
        let start = Timestamp { seconds: now().seconds - days * 24 * 60 * 60, nanos: 0 };
        let (usage, by) = (&self.core.stores.usage, [UsageDimension::Agent, UsageDimension::Model]);
        let used =
            self.core.reads.one(identity.tenant, usage.summarize(identity.tenant, Some(start), None, &by)).await?;
        let recommendations = recommend(&self.core.models, &by_model(used, &agent), now().seconds);
        Ok(Response::new(RecommendModelsResponse { recommendations }))
    }
}

/// What was used of each model, by an agent or, where none is named, by all of them.
fn by_model(used: Vec<UsageSummary>, agent: &str) -> Vec<UsageSummary> {
    let mut by_model: Vec<UsageSummary> = Vec::new();
    for UsageSummary { keys, totals } in used {
        let [used_by, model] = &keys[..] else { continue };
        if !agent.is_empty() && agent != used_by {
            continue;
        }
        match by_model.iter_mut().find(|summary| summary.keys.first() == Some(model)) {
            Some(UsageSummary { totals: Some(sum), .. }) => add(sum, &totals.unwrap_or_default()),
            _ => by_model.push(UsageSummary { keys: vec![model.clone()], totals }),
        }
    }
    by_model
}

fn add(sum: &mut UsageTotals, more: &UsageTotals) {
    let (tokens, added) = (sum.tokens.get_or_insert_default(), more.tokens.unwrap_or_default());
    tokens.input_uncached_tokens += added.input_uncached_tokens;
    tokens.cache_read_tokens += added.cache_read_tokens;
    tokens.cache_write_5m_tokens += added.cache_write_5m_tokens;
    tokens.cache_write_1h_tokens += added.cache_write_1h_tokens;
    tokens.output_tokens += added.output_tokens;
    tokens.reasoning_tokens += added.reasoning_tokens;
    sum.attempts += more.attempts;
    sum.cost_nano_usd += more.cost_nano_usd;
    sum.unpriced_attempts += more.unpriced_attempts;
}
