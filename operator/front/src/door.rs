//! The doors of the front: who may come in where, and with what credential.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use croft_proto::v1::StreamEventsRequest;
use croft_serve::grpc::Unremarkable;
use croft_serve::tls::{PeerRole, peer_role};
use prost::Message as _;
use secrecy::SecretString;
use tonic::{Request, Status};

use crate::acts;
use crate::core::Core;
use crate::error::Error;
use crate::identity::{Call, Identity, Tenure};
use crate::intake::{PREFIX_BYTES, STREAM_EVENTS, anybody};
use crate::unread::Asker;

/// Calls whose answers are more than one message.
const STREAMS: [&str; 3] =
    [STREAM_EVENTS, "/croft.v1.LifecycleService/SendMessage", "/croft.v1.UsageService/ExportUsage"];

/// When there may be room for another answer.
const ROOM_AFTER: Duration = Duration::from_secs(5);

/// Which port a call came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Clients, with a credential of their tenant.
    Public,
    /// The operator, with its certificate and a token that names the tenant it acts for.
    Internal,
}

impl Door {
    /// The verified caller, who has a role for this call. The tenant of all that follows is this one's.
    pub async fn identify<C: Call>(self, core: &Core, request: &Request<C>) -> Result<Identity, Error> {
        let identity = match self {
            Self::Public => match request.extensions().get::<Identity>() {
                Some(identity) => identity.clone(),
                None => core.authenticator.authenticate_bearer(bearer(request.metadata().as_ref())?).await?,
            },
            Self::Internal => core.authenticator.authenticate_operator(operators_token(request)?)?,
        };
        acts::allow::<C>(core, &identity).await?;
        Ok(identity)
    }

    /// As [`Self::identify`], for a call that goes on, and may do so for as long as its credential is good.
    pub async fn admit<C: Call>(self, core: &Core, request: &Request<C>) -> Result<Tenure, Error> {
        let (identity, authenticator) = (self.identify(core, request).await?, core.authenticator.clone());
        Ok(match self {
            Self::Public => {
                let token = SecretString::from(bearer(request.metadata().as_ref())?);
                Tenure::of_token(authenticator, identity, token, core.options.credential_recheck)
            }
            Self::Internal => Tenure::of_connection(authenticator, identity),
        })
    }
}

/// Stands before the calls of the clients' port: a call without a valid credential is answered before its message is read, so that
/// only tenants can have the front hold large ones, and so is one beyond the tenant's rate, but for streams of events: whether one is
/// opened or gone on with, its message says. Nor is one decoded that takes too much room: see [`Intake`](crate::intake::Intake). Health and reflection ask nobody
/// who he is, and read the little that [`anybody`] may say.
pub(crate) async fn guard(State(core): State<Arc<Core>>, mut request: HttpRequest, next: Next) -> Response {
    if request.uri().path().starts_with("/croft.") {
        let identified = match bearer(request.headers()) {
            Ok(token) => core.authenticator.authenticate_bearer(token).await,
            Err(error) => Err(error),
        };
        // What a stream counts as, its message says.
        let is_stream = request.uri().path() == STREAM_EVENTS;
        let identified = match identified {
            Ok(identity) if !is_stream => core.limiter.request(identity.tenant).await.map(|()| identity),
            identified => identified,
        };
        let identity = match identified {
            Ok(identity) => identity,
            Err(error) => return refused(error),
        };
        let tenant = identity.tenant;
        request.extensions_mut().insert(identity);
        // All calls of clients have one message to say.
        let (head, body) = request.into_parts();
        let asker = Asker { tenant, is_stream: STREAMS.contains(&head.uri.path()) };
        if !asker.is_stream && core.unread.is_full(tenant) {
            let part = "room for answers: the tenant's callers have not taken theirs";
            return refused(Error::Unavailable { part, retry_after: ROOM_AFTER, source: None });
        }
        let (body, room) = match core.intake.read(tenant, head.uri.path(), body).await {
            Ok(read) => read,
            Err(refused) => {
                // What can't be read says nothing of what it is, and is a call.
                if is_stream && let Err(error) = core.limiter.request(tenant).await {
                    return self::refused(error);
                }
                return marked(refused.status, refused.is_callers);
            }
        };
        let body = if is_stream {
            let (body, after_seq) = cursor(body).await;
            let limited =
                if after_seq > 0 { core.limiter.resume(tenant).await } else { core.limiter.request(tenant).await };
            if let Err(error) = limited {
                return refused(error);
            }
            body
        } else {
            body
        };
        let mut answer = room.answering(next.run(HttpRequest::from_parts(head, body))).await;
        answer.extensions_mut().insert(asker);
        return answer;
    }
    let (head, body) = request.into_parts();
    next.run(HttpRequest::from_parts(head, anybody::bounded(body))).await
}

/// The number behind which a stream is to go on, of a request that was read; 0 where it says none.
async fn cursor(body: Body) -> (Body, u64) {
    // There is no more of it than was read.
    let read = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let asked = read.get(PREFIX_BYTES..).and_then(|message| StreamEventsRequest::decode(message).ok());
    (Body::from(read), asked.map_or(0, |asked| asked.after_seq))
}

/// The answer to a call that is not let in. What is not available here without an error of its own is what somebody keeps busy who says
/// that he is many others.
fn refused(error: Error) -> Response {
    let is_unremarkable = matches!(error, Error::Unavailable { source: None, .. });
    marked(Status::from(error), is_unremarkable)
}

/// It `is_unremarkable` where callers can have as many of it as they like.
fn marked(refused: Status, is_unremarkable: bool) -> Response {
    let mut response = refused.into_http();
    if is_unremarkable {
        response.extensions_mut().insert(Unremarkable);
    }
    response
}

/// The operator, with a token that names no tenant, since what it asks for concerns all of them.
pub fn for_all<T>(core: &Core, request: &Request<T>) -> Result<(), Error> {
    core.authenticator.authenticate_for_all(operators_token(request)?)
}

/// The operator, with a token that names a tenant that is to be removed, whether or not this front knows it.
pub fn for_removal<T>(core: &Core, request: &Request<T>) -> Result<Identity, Error> {
    core.authenticator.authenticate_removal(operators_token(request)?)
}

/// The bearer token of a call that came with the operator's certificate.
fn operators_token<T>(request: &Request<T>) -> Result<&str, Error> {
    match peer_role(request) {
        Some(PeerRole::Operator) => bearer(request.metadata().as_ref()),
        _ => Err(Error::Forbidden { action: "calling the internal port" }),
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let missing = Error::Unauthenticated { problem: "the authorization header is missing" };
    let header = headers.get(AUTHORIZATION).ok_or(missing)?;
    let token = header.to_str().ok().and_then(|text| text.split_once(' '));
    match token {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Error::Unauthenticated { problem: "the authorization header is not `Bearer …`" }),
    }
}
