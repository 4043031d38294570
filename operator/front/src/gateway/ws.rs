//! `GET /v1/ws`: many sessions over one WebSocket, as JSON in text frames of at most 1 MiB.
//!
//! The credential is the `authorization` header's; or, for browsers, a WebSocket protocol `bearer.<token>` beside `croft.v1`;
//! or `?access_token=`. It is looked at again every half minute. A WebSocket and each of its subscriptions count as a stream
//! of the tenant's.
//!
//! The client sends one of:
//! ```json
//! {"subscribe": {"sessionId": "…", "since": "12", "durableOnly": false}}
//! {"unsubscribe": {"sessionId": "…"}}
//! {"send": {"sessionId": "…", "content": [{"text": {"text": "hello"}}], "busyPolicy": "BUSY_POLICY_ENQUEUE", "idempotencyKey": "…"}}
//! {"interrupt": {"sessionId": "…"}}
//! {"approve": {"sessionId": "…", "approvalId": "…", "approved": true, "message": "…"}}
//! {"ping": {"id": "…"}}
//! ```
//! `send` is a `SendMessageRequest` in the protobuf JSON mapping, and its turn shows to whoever has subscribed; `since` is the
//! last number that the client has. `approve` is a `ResolveApprovalRequest`, with `"approved": false` to deny. Frames are carried out one after the other, in their order. To subscribe twice, or
//! to unsubscribe from what is not subscribed, is no error. The server sends:
//! ```json
//! {"subscribed": {"sessionId": "…", "since": "12"}}
//! {"unsubscribed": {"sessionId": "…"}}
//! {"event": {"sessionId": "…", "seq": "13", "agentMessage": {}}}
//! {"gap": {"sessionId": "…", "droppedPreviews": "7", "lastSeq": "13"}}
//! {"ended": {"sessionId": "…"}}
//! {"sent": {"sessionId": "…", "seq": "14"}}
//! {"interrupted": {"sessionId": "…", "interrupted": true}}
//! {"approved": {"sessionId": "…", "approvalId": "…"}}
//! {"pong": {"id": "…"}}
//! {"error": {"reason": "…", "message": "…", "sessionId": "…"}}
//! ```
//! With `?resume=true` the connection takes the place of one that broke off, and so do its subscriptions that go on behind a number: they are
//! no calls of the tenant's, of which it has so many in a minute.
//!
//! `event` is a `SessionEvent` in the protobuf JSON mapping, where 64-bit numbers are text. `ended` closes the subscription
//! of a session that is terminated. A frame that makes no sense is answered with an error, and the connection stays.
//!
//! | close code | when |
//! | --- | --- |
//! | 1001 | this replica is going away: connect again |
//! | 1008 | the credential has ended, far too many frames or pings came, or a frame did not come to its end or found no room |
//! | 1009 | a frame was too large |
//! | 1013 | the client is too slow; the reason is `{"sessionId": "…", "since": "…"}`, to subscribe with again |

pub(super) mod buffers;
mod connection;
mod frames;
mod limiter;
mod metered;
mod subscriptions;
mod upgrade;

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use croft_proto::v1::StreamEventsRequest;
use croft_serve::http::Call;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use self::connection::Connection;
use self::metered::{Meter, Metered};
use self::upgrade::Upgrade;
use super::credential::Credential;
use super::failure::{self, Refused};
use super::{Opens, Shared};
use crate::error::Error;

/// The protocol that the server speaks, if the client asks which.
const PROTOCOL: &str = "croft.v1";
const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// What an idle connection keeps for reading; the library's own 128 KiB would be most of what a connection costs. A larger frame
/// gets more, which the connection then keeps: see [`buffers`].
const BUFFER_BYTES: usize = 2 * 1024;

#[derive(Deserialize)]
pub(super) struct Asked {
    access_token: Option<String>,
    /// The connection takes the place of one that broke off.
    #[serde(default)]
    resume: bool,
}

pub(super) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Refused> {
    let Query(asked) = asked.map_err(|_| Error::invalid("the query", "can't be read"))?;
    let opens = if asked.resume { Opens::Again } else { Opens::New };
    let tenure = Credential::find(&headers, asked.access_token)?.admit::<StreamEventsRequest>(&shared, opens).await?;
    let Some((answer, stream)) = upgrade.accept(PROTOCOL) else {
        let message = "this path speaks WebSocket: the request must ask for an upgrade";
        return Ok(failure::response(StatusCode::UPGRADE_REQUIRED, "UPGRADE_REQUIRED", message));
    };
    let places = (shared.admit()?, shared.gateway.seats.take(tenure.identity().tenant)?);
    // Its connection may have no other call, and is in use.
    let (call, tasks) = (Call::current(), shared.gateway.tasks.clone());
    drop(tasks.spawn("websocket", async move {
        // Without one, the client has gone before it had its answer.
        if let Ok(stream) = stream.await {
            let meter = Meter::new(
                tenure.identity().tenant,
                shared.gateway.intake.rooms().clone(),
                shared.buffers.buffer(tenure.identity().tenant),
            );
            let metered = Metered { stream: TokioIo::new(stream), meter: Arc::clone(&meter) };
            let socket = WebSocketStream::from_raw_socket(metered, Role::Server, Some(config())).await;
            Connection::new(shared, tenure, socket, meter, opens).run(call.as_ref()).await;
        }
        drop((places, call));
    }));
    Ok(answer)
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX))
}
