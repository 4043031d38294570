//! LifecycleService: the calls that clients make.

use std::pin::Pin;
use std::sync::Arc;

use croft_proto::id::{SessionId, TurnId};
use croft_proto::v1::lifecycle_service_server::LifecycleService;
use croft_proto::v1::{
    CreateSessionRequest, CreateSessionResponse, FamilyUsage, GetSessionRequest, GetSessionResponse,
    InterruptSessionRequest, InterruptSessionResponse, ListApprovalsRequest, ListApprovalsResponse,
    ListSessionsRequest, ListSessionsResponse, ResolveApprovalRequest, ResolveApprovalResponse, SendMessageRequest,
    SendMessageResponse, Session, SessionEvent, StreamEventsRequest, StreamEventsResponse, TerminateSessionRequest,
    TerminateSessionResponse,
};
use croft_serve::grpc::UnremarkableOnce;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::acts::{self, Act};
use crate::core::Core;
use crate::counters::Amount;
use crate::door::Door;
use crate::error::Error;
use crate::events::replay;
use crate::events::tenured::tenured;
use crate::identity::{Call, Identity, Tenure};
use crate::leaving::{LEAVE_WITHIN, goodbye, leaving, until_left};
use crate::session::manager::Manager;
use crate::session::validate;
use crate::turn::{Accepted, Sent, Turns, ends_turn};

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service behind one door: the public port or the operator's.
#[derive(Clone)]
pub struct Lifecycle {
    core: Arc<Core>,
    door: Door,
    manager: Manager,
    turns: Turns,
}

/// The turn of a message that was stored.
struct Opened<E> {
    /// The number of the event before the message.
    after_seq: u64,
    /// By now, the session's turns are driven at this replica.
    is_driven_here: bool,
    /// Of the turn, from the message on.
    events: E,
}

impl Lifecycle {
    pub fn new(core: Arc<Core>, door: Door) -> Self {
        Self { manager: Manager::new(Arc::clone(&core)), turns: Turns::new(Arc::clone(&core)), core, door }
    }

    /// A call that came in by no door that looks at it: the caller has a role for it, and the tenant's rate has room.
    pub async fn admit<C: Call>(&self, identity: &Identity) -> Result<(), Error> {
        acts::allow::<C>(&self.core, identity).await?;
        self.limit(identity).await
    }

    /// The tenant's rate has room.
    pub async fn limit(&self, identity: &Identity) -> Result<(), Error> {
        self.core.limiter.request(identity.tenant).await
    }

    /// The same, for a stream that a client goes on with.
    pub async fn limit_resumes(&self, identity: &Identity) -> Result<(), Error> {
        self.core.limiter.resume(identity.tenant).await
    }

    /// Stores a message. Its turn begins when what comes back is dropped.
    pub async fn accept(&self, identity: &Identity, mut request: SendMessageRequest) -> Result<Sent, Error> {
        // By what is asked for a repeated request is known, not by how it is spelled.
        request.session_id = told(request.session_id);
        let act = Act::of::<SendMessageRequest>(identity, resource(&request.session_id));
        let (turns, tenant, sender) = (self.turns.clone(), identity.tenant, identity.actor.clone());
        let work = async move {
            validate::clients_key(&request.idempotency_key)?;
            turns.send(tenant, &sender, request).await
        };
        act.carry_out(&self.core, work).await
    }

    /// Stops the running turn. False when there is none.
    pub async fn interrupt(&self, identity: &Identity, session_id: &str) -> Result<bool, Error> {
        let act = Act::of::<InterruptSessionRequest>(identity, resource(session_id));
        let (turns, identity, id) = (self.turns.clone(), identity.clone(), session_id.to_owned());
        act.carry_out(&self.core, async move { turns.interrupt(&identity, &id).await }).await
    }

    /// Stores a message and streams its turn.
    pub async fn send(
        &self,
        identity: &Identity,
        request: SendMessageRequest,
    ) -> Result<impl Stream<Item = Result<SessionEvent, Error>> + Send + 'static, Error> {
        Ok(self.open(identity, request).await?.events)
    }

    /// The same, for as long as the caller's credential is good. The turn goes on when the stream ends, as it does when the caller
    /// leaves.
    async fn send_for(
        &self,
        tenure: Tenure,
        request: SendMessageRequest,
    ) -> Result<impl Stream<Item = Result<SessionEvent, Error>> + Send + 'static, Error> {
        // First, or a message would be stored whose turn nobody may see.
        let seat = match self.core.seats.take(tenure.identity().tenant) {
            Ok(seat) => seat,
            Err(error) => return Err(self.refused(tenure.identity(), &request, error).await),
        };
        let Opened { after_seq, is_driven_here, events } = self.open(tenure.identity(), request).await?;
        let events = tenured(events, after_seq, tenure, seat);
        // A turn that is another's may run on for long: its caller goes on listening at another replica. Our own is to end here.
        Ok(if is_driven_here { events.left_stream() } else { self.until_left(events).right_stream() })
    }

    /// For as long as this replica does not go away.
    fn until_left(
        &self,
        events: impl Stream<Item = Result<SessionEvent, Error>> + Send + 'static,
    ) -> BoxStream<'static, Result<SessionEvent, Error>> {
        let left = leaving(self.core.tasks.stopping(), LEAVE_WITHIN);
        until_left(events, left, goodbye).boxed()
    }

    /// The answer of a call whose events may end with a [`goodbye`].
    fn answer_until_left<T>(&self, events: T) -> Response<T> {
        let mut answer = Response::new(events);
        answer.extensions_mut().insert(UnremarkableOnce(self.core.tasks.stopping()));
        answer
    }

    /// Stores a message.
    async fn open(
        &self,
        identity: &Identity,
        request: SendMessageRequest,
    ) -> Result<Opened<impl Stream<Item = Result<SessionEvent, Error>> + Send + use<>>, Error> {
        let (tenant, id) = match validate::session_id(&request.session_id) {
            Ok(id) => (identity.tenant, id),
            Err(error) => return Err(self.refused(identity, &request, error).await),
        };
        // The place is taken first, and the relay is asked for it while the message is being stored: whatever happens from then on
        // is seen, the message itself included.
        let (place, sent) =
            tokio::join!(replay::place(&self.core.hub, tenant, id, false), self.accept(identity, request));
        let mut sent = sent?;
        let Accepted { turn, seq } = sent.accepted;
        let log = Arc::clone(&self.core.stores.events);
        let events = if sent.is_new() {
            place.follow_from_here(log, seq - 1).left_stream()
        } else {
            place.follow(log, seq - 1).await?.right_stream()
        };
        let is_driven_here = sent.begins() || self.core.held.holds(tenant, id);
        sent.begin();
        Ok(Opened { after_seq: seq - 1, is_driven_here, events: one_turn(events, turn) })
    }

    /// Records that a message was not taken, and passes on why.
    async fn refused(&self, identity: &Identity, request: &SendMessageRequest, error: Error) -> Error {
        let act = Act::of::<SendMessageRequest>(identity, resource(&request.session_id));
        act.refused(&self.core, error).await
    }

    /// Answers an approval that a turn waits for.
    pub async fn answer(&self, identity: &Identity, request: ResolveApprovalRequest) -> Result<(), Error> {
        let act = Act::of::<ResolveApprovalRequest>(identity, resource(&request.session_id));
        let (turns, identity) = (self.turns.clone(), identity.clone());
        act.carry_out(&self.core, async move { turns.answer(&identity, request).await }).await
    }
}

/// The id as the store tells it, however the caller spelled it. What is none stays as it is.
fn told(session_id: String) -> String {
    session_id.parse().map_or(session_id, |id: SessionId| id.to_string())
}

/// What a call on a session is recorded with: the same name, however the caller spelled it.
fn resource(session_id: &str) -> String {
    match session_id.parse::<SessionId>() {
        Ok(id) => format!("sessions/{id}"),
        Err(_) => format!("sessions/{session_id}"),
    }
}

/// Cuts a session's events down to one turn. It is over with the turn's last event, whenever the next one comes.
fn one_turn(
    events: impl Stream<Item = Result<SessionEvent, Error>> + Send + 'static,
    turn: TurnId,
) -> impl Stream<Item = Result<SessionEvent, Error>> + Send + 'static {
    let of_turn = turn.to_string();
    // Notices, and the session's end, belong to everyone.
    let shown = move |event: &SessionEvent| event.turn_id.is_empty() || event.turn_id == of_turn;
    futures::stream::unfold((Some(Box::pin(events)), shown), move |(events, shown)| async move {
        let mut events = events?;
        loop {
            match events.next().await? {
                Ok(event) if ends_turn(&event, turn) => return Some((Ok(event), (None, shown))),
                Ok(event) if shown(&event) => return Some((Ok(event), (Some(events), shown))),
                Ok(_) => {}
                Err(error) => return Some((Err(error), (None, shown))),
            }
        }
    })
}

#[tonic::async_trait]
impl LifecycleService for Lifecycle {
    type SendMessageStream = Events<SendMessageResponse>;
    type StreamEventsStream = Events<StreamEventsResponse>;

    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        let identity = self.door.identify(&self.core, &request).await?;
        let act = Act::of::<CreateSessionRequest>(&identity, "sessions");
        let (manager, door, request) = (self.manager.clone(), self.door, request.into_inner());
        let work = async move {
            if door == Door::Public {
                validate::clients_key(&request.idempotency_key)?;
                validate::clients_labels(request.labels.keys())?;
            }
            manager.create(&identity, request).await
        };
        let created =
            act.carry_out_and_name(&self.core, work, |created| Some(resource(&created.id.to_string()))).await?;
        Ok(Response::new(CreateSessionResponse { session: Some(created.into()) }))
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<Self::SendMessageStream>, Status> {
        let tenure = self.door.admit(&self.core, &request).await?;
        let events = self.send_for(tenure, request.into_inner()).await?;
        Ok(self.answer_until_left(Box::pin(
            events.map(|event| Ok(SendMessageResponse { event: Some(event.map_err(Status::from)?) })),
        )))
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<GetSessionResponse>, Status> {
        let identity = self.door.identify(&self.core, &request).await?;
        let session = self.manager.get(&identity, &request.into_inner().session_id).await?;
        let mut family_usage = None;
        if !session.agent.sub_agents.is_empty() {
            let Amount { nano_usd, tokens } = self.core.budgets.spent_by(&session).await?;
            family_usage = Some(FamilyUsage { cost_nano_usd: nano_usd, tokens });
        }
        let session = Session { family_usage, ..session.into() };
        Ok(Response::new(GetSessionResponse { session: Some(session) }))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let identity = self.door.identify(&self.core, &request).await?;
        let page = self.manager.list(&identity, request.into_inner()).await?;
        let next_page_token = page.next().map(|last| last.to_string()).unwrap_or_default();
        let sessions = page.sessions.into_iter().map(Into::into).collect();
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token }))
    }

    async fn terminate_session(
        &self,
        request: Request<TerminateSessionRequest>,
    ) -> Result<Response<TerminateSessionResponse>, Status> {
        let identity = self.door.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let act = Act::of::<TerminateSessionRequest>(&identity, resource(&request.session_id));
        let manager = self.manager.clone();
        let terminated = act.carry_out(&self.core, async move { manager.terminate(&identity, request).await }).await?;
        Ok(Response::new(TerminateSessionResponse { session: Some(terminated.into()) }))
    }

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let tenure = self.door.admit(&self.core, &request).await?;
        let request = request.into_inner();
        let session = self.manager.get(tenure.identity(), &request.session_id).await?;
        let seat = self.core.seats.take(session.tenant)?;
        if request.after_seq > session.last_seq {
            return Err(Error::CursorBeyondEnd { after_seq: request.after_seq, last_seq: session.last_seq }.into());
        }
        let log = Arc::clone(&self.core.stores.events);
        let events =
            replay::follow(log, &self.core.hub, session.tenant, session.id, request.after_seq, request.durable_only)
                .await?;
        // A stream may be idle for ever, and must not hold up the shutdown: its caller resumes at another replica.
        let events = self.until_left(tenured(events, request.after_seq, tenure, seat));
        Ok(self.answer_until_left(Box::pin(
            events.map(|event| Ok(StreamEventsResponse { event: Some(event.map_err(Status::from)?) })),
        )))
    }

    async fn interrupt_session(
        &self,
        request: Request<InterruptSessionRequest>,
    ) -> Result<Response<InterruptSessionResponse>, Status> {
        let identity = self.door.identify(&self.core, &request).await?;
        let interrupted = self.interrupt(&identity, &request.into_inner().session_id).await?;
        Ok(Response::new(InterruptSessionResponse { interrupted }))
    }

    async fn resolve_approval(
        &self,
        request: Request<ResolveApprovalRequest>,
    ) -> Result<Response<ResolveApprovalResponse>, Status> {
        let identity = self.door.identify(&self.core, &request).await?;
        self.answer(&identity, request.into_inner()).await?;
        Ok(Response::new(ResolveApprovalResponse {}))
    }

    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        let identity = self.door.identify(&self.core, &request).await?;
        Ok(Response::new(self.turns.inbox(&identity, request.into_inner()).await?))
    }
}
