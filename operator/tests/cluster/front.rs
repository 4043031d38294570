//! A front that remembers sessions and what it was asked, behind the same mutual TLS and tokens as the real one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use croft_proto::v1::lifecycle_service_server::{LifecycleService, LifecycleServiceServer};
use croft_proto::v1::{
    CreateSessionRequest, CreateSessionResponse, GetSessionRequest, GetSessionResponse, InterruptSessionRequest,
    InterruptSessionResponse, ListSessionsRequest, ListSessionsResponse, ResolveApprovalRequest,
    ResolveApprovalResponse, SendMessageRequest, SendMessageResponse, Session, SessionState, StreamEventsRequest,
    StreamEventsResponse, TerminateSessionRequest, TerminateSessionResponse,
};
use croft_serve::Tasks;
use croft_serve::tls::{PeerRole, TlsFiles, peer_role};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

/// Clones share all sessions.
#[derive(Clone, Default)]
pub(crate) struct FakeFront {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<String, Session>,
    by_key: HashMap<String, String>,
    /// `call tenant detail`, in order.
    calls: Vec<String>,
    /// What `CreateSession` answers to a tenant instead.
    refusals: HashMap<String, (Code, &'static str)>,
    ca: Vec<u8>,
}

#[derive(Deserialize)]
struct Claims {
    tenant: String,
    tenant_id: String,
}

impl FakeFront {
    /// Serves with the certificate that the operator made for fronts.
    pub(crate) fn serve(listener: TcpListener, secret: &Secret, tasks: &Tasks) -> Self {
        let files = tls_files(secret);
        let front = Self::default();
        front.inner().ca.clone_from(&files.ca);
        let mut server = Server::builder().tls_config(files.server()).expect("the front's certificate is usable");
        let routes = server.add_service(LifecycleServiceServer::new(front.clone()));
        drop(tasks.spawn("fake-front", routes.serve_with_incoming(TcpListenerStream::new(listener))));
        front
    }

    /// Every session that was made for an object with this UID.
    pub(crate) fn sessions_of(&self, uid: &str) -> Vec<Session> {
        let of = |session: &&Session| session.labels.get("croft.dev/agentsession-uid").is_some_and(|own| own == uid);
        self.inner().sessions.values().filter(of).cloned().collect()
    }

    /// Calls about a tenant, in order.
    pub(crate) fn calls(&self, tenant: &str) -> Vec<String> {
        let about = |call: &&String| call.split(' ').nth(1) == Some(tenant);
        self.inner().calls.iter().filter(about).cloned().collect()
    }

    /// Answers `CreateSession` like this from now on; `None` takes sessions again.
    pub(crate) fn refuse(&self, tenant: &str, answer: Option<(Code, &'static str)>) {
        match answer {
            Some(answer) => self.inner().refusals.insert(tenant.to_owned(), answer),
            None => self.inner().refusals.remove(tenant),
        };
    }

    /// Changes a session, as turns would.
    pub(crate) fn change(&self, session_id: &str, change: impl FnOnce(&mut Session)) {
        change(self.inner().sessions.get_mut(session_id).expect("there is such a session"));
    }

    /// Adds a session that no operator asked for.
    pub(crate) fn add(&self, session: Session) {
        self.inner().sessions.insert(session.session_id.clone(), session);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics with it")
    }

    /// The tenant that the operator's token names. Nobody else is let in.
    fn caller<T>(&self, request: &Request<T>) -> Result<Claims, Status> {
        if peer_role(request) != Some(PeerRole::Operator) {
            return Err(Status::permission_denied("not the operator's certificate"));
        }
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|bearer| bearer.strip_prefix("Bearer ")).ok_or(Status::unauthenticated("none"))?;
        let inner = self.inner();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&inner.ca).expect("ca.crt is PEM");
        let certificate = pem.parse_x509().expect("ca.crt is a certificate");
        let key = DecodingKey::from_ec_der(&certificate.public_key().subject_public_key.data);
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["croft"]);
        validation.set_issuer(&["croft-operator"]);
        let decoded = jsonwebtoken::decode::<Claims>(token, &key, &validation);
        decoded.map(|decoded| decoded.claims).map_err(|error| Status::unauthenticated(error.to_string()))
    }
}

/// The files of a Secret that the operator made.
pub(crate) fn tls_files(secret: &Secret) -> TlsFiles {
    let file = |name: &str| secret.data.as_ref().expect("it has data")[name].0.clone();
    TlsFiles { cert: file("tls.crt"), key: file("tls.key"), ca: file("ca.crt") }
}

#[tonic::async_trait]
impl LifecycleService for FakeFront {
    type SendMessageStream = tokio_stream::Empty<Result<SendMessageResponse, Status>>;
    type StreamEventsStream = tokio_stream::Empty<Result<StreamEventsResponse, Status>>;

    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let mut inner = self.inner();
        inner.calls.push(format!("create {} {}", caller.tenant, request.idempotency_key));
        if let Some((code, message)) = inner.refusals.get(&caller.tenant) {
            return Err(Status::new(*code, *message));
        }
        if let Some(session_id) = inner.by_key.get(&request.idempotency_key) {
            let session = inner.sessions[session_id].clone();
            return Ok(Response::new(CreateSessionResponse { session: Some(session) }));
        }
        let session = Session {
            session_id: uuid::Uuid::now_v7().to_string(),
            tenant: caller.tenant,
            state: SessionState::Ready.into(),
            agent: request.agent,
            labels: request.labels,
            worker: format!("workers-of-{}", caller.tenant_id),
            last_seq: 2,
            ..Session::default()
        };
        inner.by_key.insert(request.idempotency_key, session.session_id.clone());
        inner.sessions.insert(session.session_id.clone(), session.clone());
        Ok(Response::new(CreateSessionResponse { session: Some(session) }))
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<GetSessionResponse>, Status> {
        let caller = self.caller(&request)?;
        let session_id = request.into_inner().session_id;
        let session = self.inner().sessions.get(&session_id).filter(|session| session.tenant == caller.tenant).cloned();
        let session = session.ok_or_else(|| Status::not_found("no such session"))?;
        Ok(Response::new(GetSessionResponse { session: Some(session) }))
    }

    /// Pages of two, so that whoever lists must turn them.
    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let mut inner = self.inner();
        inner.calls.push(format!("list {} ", caller.tenant));
        let mut sessions: Vec<_> = inner
            .sessions
            .values()
            .filter(|session| session.tenant == caller.tenant)
            .filter(|session| request.states.is_empty() || request.states.contains(&session.state))
            .filter(|session| request.labels.iter().all(|(label, value)| session.labels.get(label) == Some(value)))
            .cloned()
            .collect();
        sessions.sort_by(|one, other| other.session_id.cmp(&one.session_id));
        let from: usize = request.page_token.parse().unwrap_or(0);
        let next_page_token = if sessions.len() > from + 2 { (from + 2).to_string() } else { String::new() };
        let sessions = sessions.into_iter().skip(from).take(2).collect();
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token }))
    }

    async fn terminate_session(
        &self,
        request: Request<TerminateSessionRequest>,
    ) -> Result<Response<TerminateSessionResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let mut inner = self.inner();
        inner.calls.push(format!("terminate {} {}", caller.tenant, request.session_id));
        let session = inner.sessions.get_mut(&request.session_id).filter(|session| session.tenant == caller.tenant);
        let session = session.ok_or_else(|| Status::not_found("no such session"))?;
        session.state = SessionState::Terminated.into();
        session.terminate_reason = request.reason;
        Ok(Response::new(TerminateSessionResponse { session: Some(session.clone()) }))
    }

    async fn send_message(&self, _: Request<SendMessageRequest>) -> Result<Response<Self::SendMessageStream>, Status> {
        Err(Status::permission_denied("the operator has nothing to say"))
    }

    async fn stream_events(
        &self,
        _: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        Err(Status::permission_denied("the operator does not listen"))
    }

    async fn interrupt_session(
        &self,
        _: Request<InterruptSessionRequest>,
    ) -> Result<Response<InterruptSessionResponse>, Status> {
        Err(Status::permission_denied("the operator interrupts nobody"))
    }

    async fn resolve_approval(
        &self,
        _: Request<ResolveApprovalRequest>,
    ) -> Result<Response<ResolveApprovalResponse>, Status> {
        Err(Status::permission_denied("the operator decides nothing"))
    }
}
