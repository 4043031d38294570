//! A client of the front with an API key.

use std::time::Duration;

use anyhow::Context;
use croft_proto::v1::audit_service_client::AuditServiceClient;
use croft_proto::v1::budget_service_client::BudgetServiceClient;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::model_registry_service_client::ModelRegistryServiceClient;
use croft_proto::v1::usage_service_client::UsageServiceClient;
use croft_proto::v1::{
    AgentSpec, ContentBlock, CreateSessionRequest, SendMessageRequest, Session, Text, content_block,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Adds the credential to each call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Calls as one tenant.
#[derive(Clone)]
pub struct Client {
    pub lifecycle: LifecycleServiceClient<InterceptedService<Channel, Bearer>>,
    pub usage: UsageServiceClient<InterceptedService<Channel, Bearer>>,
    pub models: ModelRegistryServiceClient<InterceptedService<Channel, Bearer>>,
    pub audit: AuditServiceClient<InterceptedService<Channel, Bearer>>,
    pub budgets: BudgetServiceClient<InterceptedService<Channel, Bearer>>,
}

/// What was sent to a pod that went at this moment is never answered.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Client {
    /// `address` is `host:port`. Connects at the first call.
    pub fn new(address: &str, api_key: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).context("not an address")?;
        Self::over(endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy(), api_key)
    }

    /// Over a channel that is there already.
    pub fn over(channel: Channel, api_key: &str) -> anyhow::Result<Self> {
        let bearer = Bearer(format!("Bearer {api_key}").parse().context("not a key")?);
        Ok(Self {
            lifecycle: LifecycleServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            usage: UsageServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            models: ModelRegistryServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            audit: AuditServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            budgets: BudgetServiceClient::with_interceptor(channel, bearer),
        })
    }

    /// Opens a session of this agent.
    pub async fn create(&mut self, agent: AgentSpec) -> Result<Session, Status> {
        let request = CreateSessionRequest { agent: Some(agent), ..CreateSessionRequest::default() };
        let created = self.lifecycle.create_session(request).await?.into_inner();
        created.session.ok_or_else(|| Status::internal("the answer holds no session"))
    }
}

/// An agent on the scripted model.
pub fn scripted_agent(name: &str) -> AgentSpec {
    AgentSpec { name: name.to_owned(), model: "scripted-1".to_owned(), ..AgentSpec::default() }
}

/// A text message.
pub fn message(session_id: &str, text: &str) -> SendMessageRequest {
    let text = content_block::Block::Text(Text { text: text.to_owned() });
    SendMessageRequest {
        session_id: session_id.to_owned(),
        content: vec![ContentBlock { block: Some(text) }],
        ..SendMessageRequest::default()
    }
}
