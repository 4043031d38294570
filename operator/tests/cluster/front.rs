//! A front that remembers sessions and what it was asked, behind the same mutual TLS and tokens as the real one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use croft_proto::v1::lifecycle_service_server::{LifecycleService, LifecycleServiceServer};
use croft_proto::v1::tenant_service_server::{TenantService, TenantServiceServer};
use croft_proto::v1::{
    BudgetAlert, CreateSessionRequest, CreateSessionResponse, GetSessionRequest, GetSessionResponse,
    InterruptSessionRequest, InterruptSessionResponse, ListApprovalsRequest, ListApprovalsResponse,
    ListSessionsRequest, ListSessionsResponse, RemovalStep, RemoveTenantRequest, RemoveTenantResponse,
    ResolveApprovalRequest, ResolveApprovalResponse, SendMessageRequest, SendMessageResponse, Session, SessionState,
    StreamEventsRequest, StreamEventsResponse, TenantTotals, TerminateSessionRequest, TerminateSessionResponse,
    UsageTotals, WatchSessionsRequest, WatchSessionsResponse, WatchedSession,
};
use croft_serve::Tasks;
use croft_serve::tls::{PeerRole, TlsFiles, peer_role};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Clones share all sessions.
#[derive(Clone)]
pub(crate) struct FakeFront {
    inner: Arc<Mutex<Inner>>,
    tasks: Tasks,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<String, Session>,
    by_key: HashMap<String, String>,
    /// What was asked for, by idempotency key.
    asked: HashMap<String, CreateSessionRequest>,
    /// `call tenant detail`, in order.
    calls: Vec<String>,
    /// What `RemoveTenant` answers to a tenant instead.
    removals: HashMap<String, Removal>,
    /// What `CreateSession` answers instead to a tenant, or to a request by its key.
    refusals: HashMap<String, Status>,
    /// The UID of each tenant that the operator's tokens have named, by name.
    tenant_ids: HashMap<String, String>,
    /// What a tenant has used in the month, by UID.
    spent: HashMap<String, UsageTotals>,
    /// Of tenants' budgets, by UID.
    alerts: HashMap<String, BudgetAlert>,
    /// Streams of `WatchSessions` that were begun before this many have been, end.
    cut_before: u64,
    watches: u64,
    /// How many messages each stream has been told in all.
    told: u64,
    ca: Vec<u8>,
}

/// Where the removal of a tenant stands still.
pub(crate) enum Removal {
    /// With so much left to do in a step.
    At(RemovalStep, i64),
    /// No front answers.
    Away,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    tenant_id: String,
}

/// 2026-11-01, when the month began in these tests.
const MONTH: croft_proto::Timestamp = croft_proto::Timestamp { seconds: 1_793_491_200, nanos: 0 };

impl FakeFront {
    /// Serves with the certificate that the operator made for fronts.
    pub(crate) fn serve(listener: TcpListener, secret: &Secret, tasks: &Tasks) -> Self {
        let files = tls_files(secret);
        let front = Self { inner: Arc::default(), tasks: tasks.clone() };
        front.inner().ca.clone_from(&files.ca);
        let mut server = Server::builder().tls_config(files.server()).expect("the front's certificate is usable");
        let routes = server
            .add_service(LifecycleServiceServer::new(front.clone()))
            .add_service(TenantServiceServer::new(front.clone()));
        drop(tasks.spawn("fake-front", routes.serve_with_incoming(TcpListenerStream::new(listener))));
        front
    }

    /// Every session that was made for an object with this UID.
    pub(crate) fn sessions_of(&self, uid: &str) -> Vec<Session> {
        let of = |session: &&Session| session.labels.get("croft.dev/agentsession-uid").is_some_and(|own| own == uid);
        self.inner().sessions.values().filter(of).cloned().collect()
    }

    /// What was asked for the object with this UID.
    pub(crate) fn asked_for(&self, uid: &str) -> CreateSessionRequest {
        self.inner().asked[&format!("agentsession/{uid}")].clone()
    }

    /// Calls about a tenant, in order.
    pub(crate) fn calls(&self, tenant: &str) -> Vec<String> {
        let about = |call: &&String| call.split(' ').nth(1) == Some(tenant);
        self.inner().calls.iter().filter(about).cloned().collect()
    }

    /// Answers `CreateSession` like this from now on; `None` takes sessions again.
    pub(crate) fn refuse(&self, tenant: &str, answer: Option<(Code, &'static str)>) {
        match answer {
            Some((code, message)) => self.inner().refusals.insert(tenant.to_owned(), Status::new(code, message)),
            None => self.inner().refusals.remove(tenant),
        };
    }

    /// Answers `CreateSession` for the object with this UID like this from now on, whatever its tenant is answered.
    pub(crate) fn refuse_object(&self, uid: &str, code: Code, message: &'static str) {
        self.inner().refusals.insert(format!("agentsession/{uid}"), Status::new(code, message));
    }

    /// Answers `CreateSession` as the front does when the worker refuses for this reason.
    pub(crate) fn refuse_as_worker(&self, tenant: &str, reason: &str) {
        let metadata = HashMap::from([("worker_reason".to_owned(), reason.to_owned())]);
        let details = ErrorDetails::with_error_info("WORKER_REFUSED", "croft.dev", metadata);
        let answer = Status::with_error_details(Code::FailedPrecondition, "the worker refused the session", details);
        self.inner().refusals.insert(tenant.to_owned(), answer);
    }

    /// Answers `CreateSession` with this reason of the front's own.
    pub(crate) fn refuse_for(&self, tenant: &str, code: Code, reason: &str, message: &str) {
        let details = ErrorDetails::with_error_info(reason, "croft.dev", HashMap::new());
        let answer = Status::with_error_details(code, message, details);
        self.inner().refusals.insert(tenant.to_owned(), answer);
    }

    /// How often `CreateSession` was called for a tenant.
    pub(crate) fn creates(&self, tenant: &str) -> usize {
        self.calls(tenant).iter().filter(|call| call.starts_with("create")).count()
    }

    /// Lets the removal of a tenant come no further; `None` lets it go on.
    pub(crate) fn hold_removal(&self, tenant: &str, at: Option<Removal>) {
        match at {
            Some(at) => self.inner().removals.insert(tenant.to_owned(), at),
            None => self.inner().removals.remove(tenant),
        };
    }

    /// Changes a session, as turns would.
    pub(crate) fn change(&self, session_id: &str, change: impl FnOnce(&mut Session)) {
        change(self.inner().sessions.get_mut(session_id).expect("there is such a session"));
    }

    /// What a tenant with this UID has used in the month.
    pub(crate) fn spend(&self, tenant_id: &str, used: UsageTotals) {
        self.inner().spent.insert(tenant_id.to_owned(), used);
    }

    /// What was told of its budget.
    pub(crate) fn alert(&self, tenant_id: &str, alert: BudgetAlert) {
        self.inner().alerts.insert(tenant_id.to_owned(), alert);
    }

    /// Breaks every stream of `WatchSessions` that is open, and says how many have been opened so far.
    pub(crate) fn cut_watches(&self) -> u64 {
        let mut inner = self.inner();
        inner.cut_before = inner.watches;
        inner.watches
    }

    /// How many streams of `WatchSessions` have been opened so far.
    pub(crate) fn watches(&self) -> u64 {
        self.inner().watches
    }

    /// How many messages streams of `WatchSessions` have carried.
    pub(crate) fn told(&self) -> u64 {
        self.inner().told
    }

    /// Forgets a session, as a database would that was restored from an old copy.
    pub(crate) fn forget(&self, session_id: &str) {
        let mut inner = self.inner();
        inner.sessions.remove(session_id);
        inner.by_key.retain(|_, id| id != session_id);
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

    /// The caller of a call that is for one tenant.
    fn tenant<T>(&self, request: &Request<T>) -> Result<Claims, Status> {
        let claims = self.caller(request)?;
        if claims.tenant.is_empty() || claims.tenant_id.is_empty() {
            return Err(Status::unauthenticated("the token names no tenant"));
        }
        self.inner().tenant_ids.insert(claims.tenant.clone(), claims.tenant_id.clone());
        Ok(claims)
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
        let caller = self.tenant(&request)?;
        let request = request.into_inner();
        let mut inner = self.inner();
        inner.calls.push(format!("create {} {}", caller.tenant, request.idempotency_key));
        let own = inner.refusals.get(&request.idempotency_key);
        if let Some(answer) = own.or(inner.refusals.get(&caller.tenant)) {
            return Err(answer.clone());
        }
        inner.asked.insert(request.idempotency_key.clone(), request.clone());
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
        let caller = self.tenant(&request)?;
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
        let caller = self.tenant(&request)?;
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
        let caller = self.tenant(&request)?;
        let request = request.into_inner();
        let mut inner = self.inner();
        inner.calls.push(format!("terminate {} {}", caller.tenant, request.session_id));
        if matches!(inner.removals.get(&caller.tenant), Some(Removal::Away)) {
            return Err(Status::unavailable("no front answers"));
        }
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

    async fn list_approvals(
        &self,
        _: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        Err(Status::permission_denied("the operator decides nothing"))
    }
}

/// What one stream has told last.
#[derive(Default)]
struct Picture {
    sessions: HashMap<String, WatchedSession>,
    totals: HashMap<String, TenantTotals>,
}

impl Inner {
    fn picture(&self) -> Picture {
        let tenant_id = |session: &Session| self.tenant_ids.get(&session.tenant).cloned().unwrap_or_default();
        let declared = |session: &&Session| session.labels.contains_key("croft.dev/agentsession-uid");
        let watched =
            |session: &Session| WatchedSession { tenant_id: tenant_id(session), session: Some(session.clone()) };
        let sessions = self.sessions.values().filter(declared);
        let total = |(name, tenant_id): (&String, &String)| {
            let is_open = |session: &&Session| session.tenant == *name && session.state() != SessionState::Terminated;
            let totals = TenantTotals {
                tenant_id: tenant_id.clone(),
                sessions_open: i64::try_from(self.sessions.values().filter(is_open).count()).expect("they are few"),
                month: Some(self.spent.get(tenant_id).copied().unwrap_or_default()),
                month_start: Some(MONTH),
                alerts: self.alerts.get(tenant_id).cloned().into_iter().collect(),
            };
            (tenant_id.clone(), totals)
        };
        Picture {
            sessions: sessions.map(|session| (session.session_id.clone(), watched(session))).collect(),
            totals: self.tenant_ids.iter().map(total).collect(),
        }
    }
}

#[tonic::async_trait]
impl TenantService for FakeFront {
    type WatchSessionsStream = ReceiverStream<Result<WatchSessionsResponse, Status>>;

    async fn watch_sessions(
        &self,
        request: Request<WatchSessionsRequest>,
    ) -> Result<Response<Self::WatchSessionsStream>, Status> {
        let caller = self.caller(&request)?;
        if !caller.tenant.is_empty() {
            return Err(Status::permission_denied("the call is for all tenants, and the token names one"));
        }
        let interval = Duration::from_millis(request.into_inner().interval_ms.unsigned_abs());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (front, number) = (self.clone(), {
            let mut inner = self.inner();
            inner.watches += 1;
            inner.watches
        });
        let tell = async move {
            let mut told = Picture::default();
            let mut is_first = true;
            loop {
                let next = {
                    let inner = front.inner();
                    (inner.cut_before < number).then(|| inner.picture())
                };
                let Some(next) = next else { return };
                let news = WatchSessionsResponse {
                    sessions: changed(&told.sessions, &next.sessions),
                    tenants: changed(&told.totals, &next.totals),
                    synced: is_first,
                };
                told = next;
                if is_first || !news.sessions.is_empty() || !news.tenants.is_empty() {
                    front.inner().told += 1;
                    if sender.send(Ok(news)).await.is_err() {
                        return;
                    }
                }
                is_first = false;
                tokio::time::sleep(interval).await;
            }
        };
        drop(self.tasks.spawn("fake-watch", tell));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// Two sessions end with each call, then the records are drained, then all is done.
    async fn remove_tenant(
        &self,
        request: Request<RemoveTenantRequest>,
    ) -> Result<Response<RemoveTenantResponse>, Status> {
        let caller = self.tenant(&request)?;
        let policy = request.into_inner().policy();
        let mut inner = self.inner();
        inner.calls.push(format!("remove {} {}", caller.tenant, policy.as_str_name()));
        match inner.removals.get(&caller.tenant) {
            Some(Removal::Away) => return Err(Status::unavailable("it is away")),
            Some(&Removal::At(step, left)) => {
                return Ok(Response::new(RemoveTenantResponse { step: step.into(), left }));
            }
            None => {}
        }
        let is_open =
            |session: &&mut Session| session.tenant == caller.tenant && session.state() != SessionState::Terminated;
        let mut left = 0;
        for session in inner.sessions.values_mut().filter(is_open) {
            left += 1;
            if left <= 2 {
                session.state = SessionState::Terminated.into();
                "the tenant is being deleted".clone_into(&mut session.terminate_reason);
            }
        }
        let step = if left > 0 { RemovalStep::EndingSessions } else { RemovalStep::Done };
        Ok(Response::new(RemoveTenantResponse { step: step.into(), left: (left - 2).max(0) }))
    }
}

fn changed<T: Clone + PartialEq>(told: &HashMap<String, T>, next: &HashMap<String, T>) -> Vec<T> {
    next.iter().filter(|(key, value)| told.get(*key) != Some(*value)).map(|(_, value)| value.clone()).collect()
}
