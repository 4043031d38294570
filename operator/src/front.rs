//! Calls to the front, as the operator, for one tenant at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::tenant_service_client::TenantServiceClient;
use croft_proto::v1::{
    CreateSessionRequest, GetSessionRequest, ListSessionsRequest, RemovalPolicy, RemoveTenantRequest,
    RemoveTenantResponse, Session, SessionState, TerminateSessionRequest, WatchSessionsRequest, WatchSessionsResponse,
};
use croft_serve::tls::TlsFiles;
use croft_serve::trace;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::token::{TenantRef, TokenMaker};

const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Opening a session takes milliseconds; a front that needs longer is in trouble.
const CALL_MAX: Duration = Duration::from_secs(10);
const PAGE: i32 = 500;

/// What became of an attempt to end all of a tenant's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Ended,
    /// Some were open and have been told to end.
    UnderWay,
}

/// The front's internal port. Clones share one connection, which is made when it is needed.
#[derive(Clone)]
pub struct Front {
    channel: Channel,
    tokens: Arc<TokenMaker>,
}

impl Front {
    /// Fails when the URL or the certificate can't be used; the front itself may be away.
    pub fn new(url: &str, tls: &TlsFiles, tokens: Arc<TokenMaker>) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .with_context(|| format!("the front's URL {url:?} is not usable"))?
            .connect_timeout(CONNECT_MAX)
            .timeout(CALL_MAX)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        let host = endpoint.uri().host().unwrap_or_default().to_owned();
        let endpoint = endpoint.tls_config(tls.client(&host)).context("the operator's certificate is not usable")?;
        Ok(Self { channel: endpoint.connect_lazy(), tokens })
    }

    /// Opens a session.
    pub async fn create(&self, tenant: &TenantRef, request: CreateSessionRequest) -> Result<Session, Status> {
        let response = self.client().create_session(self.request(tenant, request)?).await?;
        response.into_inner().session.ok_or_else(|| Status::internal("the front answered without a session"))
    }

    /// One session, or `None` if the tenant has no such session.
    pub async fn get(&self, tenant: &TenantRef, session_id: &str) -> Result<Option<Session>, Status> {
        let request = GetSessionRequest { session_id: session_id.to_owned() };
        match self.client().get_session(self.request(tenant, request)?).await {
            Ok(response) => Ok(response.into_inner().session),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Ends a session and says how it ended. One that has ended, or never was, is fine.
    pub async fn terminate(
        &self,
        tenant: &TenantRef,
        session_id: &str,
        reason: &str,
    ) -> Result<Option<Session>, Status> {
        let request = TerminateSessionRequest { session_id: session_id.to_owned(), reason: reason.to_owned() };
        match self.client().terminate_session(self.request(tenant, request)?).await {
            Ok(response) => Ok(response.into_inner().session),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Every session of the tenant that has not ended and bears these labels, page by page.
    pub async fn open_sessions(
        &self,
        tenant: &TenantRef,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Session>, Status> {
        let states =
            [SessionState::Creating, SessionState::Ready, SessionState::Running, SessionState::Idle].map(i32::from);
        let mut sessions = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListSessionsRequest {
                page_size: PAGE,
                page_token,
                states: states.to_vec(),
                labels: labels.clone(),
                ..ListSessionsRequest::default()
            };
            let page = self.client().list_sessions(self.request(tenant, request)?).await?.into_inner();
            sessions.extend(page.sessions);
            if page.next_page_token.is_empty() {
                return Ok(sessions);
            }
            page_token = page.next_page_token;
        }
    }

    /// Tells every open session of the tenant to end.
    pub async fn end_all(&self, tenant: &TenantRef, reason: &str) -> Result<Ending, Status> {
        let open = self.open_sessions(tenant, HashMap::new()).await?;
        for session in &open {
            self.terminate(tenant, &session.session_id, reason).await?;
        }
        Ok(if open.is_empty() { Ending::Ended } else { Ending::UnderWay })
    }

    /// Takes one step in removing a tenant that is being deleted.
    pub async fn remove(&self, tenant: &TenantRef, policy: RemovalPolicy) -> Result<RemoveTenantResponse, Status> {
        let request = self.request(tenant, RemoveTenantRequest { policy: policy.into() })?;
        Ok(TenantServiceClient::new(self.channel.clone()).remove_tenant(request).await?.into_inner())
    }

    /// What becomes of declared sessions of all tenants, each told at most once in an `interval`, until the stream breaks.
    pub async fn watch_sessions(&self, interval: Duration) -> Result<Streaming<WatchSessionsResponse>, Status> {
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX);
        let token = self.tokens.make_for_all(jiff::Timestamp::now().as_second());
        let mut request = bearing(token, WatchSessionsRequest { interval_ms })?;
        trace::inject(request.metadata_mut());
        Ok(TenantServiceClient::new(self.channel.clone()).watch_sessions(request).await?.into_inner())
    }

    fn client(&self) -> LifecycleServiceClient<Channel> {
        LifecycleServiceClient::new(self.channel.clone())
    }

    fn request<T>(&self, tenant: &TenantRef, message: T) -> Result<Request<T>, Status> {
        let mut request = bearing(self.tokens.make(tenant, jiff::Timestamp::now().as_second()), message)?;
        request.set_timeout(CALL_MAX);
        trace::inject(request.metadata_mut());
        Ok(request)
    }
}

fn bearing<T>(token: Result<String, jsonwebtoken::errors::Error>, message: T) -> Result<Request<T>, Status> {
    let token = token.map_err(|_| Status::internal("cannot sign a token"))?;
    let bearer = format!("Bearer {token}").parse().map_err(|_| Status::internal("a token is no header"))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer);
    Ok(request)
}
