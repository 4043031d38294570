//! One WebSocket, from the upgrade to its close.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::close_code;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use croft_serve::http::Call;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, SplitSink, SplitStream};
use futures::{FutureExt, SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use prometheus::IntCounter;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use super::frames::{ClientFrame, Ping, ServerFrame, Subscribe, Unsubscribe};
use super::limiter::{Limiter, Verdict};
use super::metered::{Meter, Metered, found_no_room};
use super::subscriptions::{Said, Subscriptions};
use crate::error::Error;
use crate::gateway::failure::log;
use crate::gateway::legible::number_alone;
use crate::gateway::metrics::Open;
use crate::gateway::open::{Opened, Wanted, open};
use crate::gateway::{Failure, Opens, Shared};
use crate::identity::{Identity, Tenure};
use crate::intake::Held;
use crate::leaving::leaving;
use crate::unread::Kept;

/// Frames of the client that wait to be carried out. At the bound the client is not read from.
const WAITING_MAX: usize = 16;

/// Events that are written together at most: those that wait already. To write each by itself would cost more than all else that is
/// done with it. Beyond, they go with the next.
const TOGETHER_MAX: usize = 64;
/// And until they have so many bytes, which a slow line takes a while for. Meanwhile nothing is read.
const TOGETHER_BYTES_MAX: usize = 256 * 1024;

/// A larger text takes of the room of what callers have not taken, until it is written.
const LARGE_BYTES: usize = 16 * 1024;
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(20);

/// Subscriptions that come with one call of the tenant's, of which it has so many in a minute; the first ones with the call that opened
/// the connection. Each looks into the store, so that they can't be for nothing; and who connects anew with many must have some
/// calls left to talk to them. A connection in place of one that broke off has none: each of its first ones that goes on behind a number is
/// resumed, as many as there may be at a time.
const SUBSCRIPTIONS_A_CALL: u32 = 8;

/// How long a peer may take to hear why it is closed, and to close in turn; and then to take what is on its way.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// Who sent too many frames may send another then, in milliseconds.
const FRAME_AFTER_MS: u64 = 1_000;
/// For each frame that a client may send it may send so many pings and pongs, which cost less.
const CONTROLS_A_FRAME: u32 = 4;

/// A client's, before anything is read from it.
pub(super) type Socket = WebSocketStream<Metered<TokioIo<Upgraded>>>;

pub(super) struct Connection {
    shared: Arc<Shared>,
    tenure: Tenure,
    outgoing: SplitSink<Socket, Message>,
    incoming: SplitStream<Socket>,
    meter: Arc<Meter>,
    state: State,
    events_sent: IntCounter,
    _open: Open,
}

/// What the connection is busy with.
struct State {
    subscriptions: Subscriptions,
    /// Each with the room that it takes.
    waiting: VecDeque<(ClientFrame, Held)>,
    /// The frame that is being carried out.
    current: Option<BoxFuture<'static, Outcome>>,
    limiter: Limiter,
    /// Of pings and pongs.
    controls: Limiter,
    /// Subscriptions that the last call still stands for.
    covered: u32,
    /// Those that may still be resumed.
    resumes: usize,
    heard_at: Instant,
    /// It keeps room that others need, reads no more, and ends when all that it was asked is answered.
    leaves: bool,
}

/// What came of a frame.
enum Outcome {
    Subscribed {
        session: SessionId,
        since: u64,
        events: Option<BoxStream<'static, Result<SessionEvent, Error>>>,
    },
    Reply(ServerFrame),
    /// The tenant has had all its calls, or resumes, of this minute: the next subscription asks again.
    Limited(ServerFrame, Opens),
}

/// Why the connection ends.
enum End {
    Close {
        code: u16,
        reason: String,
        /// Nothing more can be read of what the peer says.
        is_deaf: bool,
    },
    /// The peer closed it, and is to hear that we have heard.
    Closed,
    /// The peer is not there any more.
    Gone,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, tenure: Tenure, socket: Socket, meter: Arc<Meter>, opens: Opens) -> Self {
        let (outgoing, incoming) = socket.split();
        let options = &shared.gateway.options;
        let limiter = |times: u32| {
            let [per_second, at_once] =
                [options.frames_per_second, options.frames_at_once].map(|frames| frames.saturating_mul(times));
            Limiter::new(per_second, at_once)
        };
        let state = State {
            subscriptions: Subscriptions::default(),
            waiting: VecDeque::new(),
            current: None,
            limiter: limiter(1),
            controls: limiter(CONTROLS_A_FRAME),
            covered: if opens == Opens::New { SUBSCRIPTIONS_A_CALL } else { 0 },
            resumes: if opens == Opens::New { 0 } else { options.subscriptions_max },
            heard_at: Instant::now(),
            leaves: false,
        };
        let metrics = &shared.gateway.metrics;
        let (open, events_sent) = (metrics.open("websocket"), metrics.events_sent.with_label_values(&["websocket"]));
        Self { shared, tenure, outgoing, incoming, meter, state, events_sent, _open: open }
    }

    /// Until it ends, and nothing of it is left. `call` is the one that it came by.
    pub(super) async fn run(mut self, call: Option<&Call>) {
        let end = self.talk().await;
        let code = match &end {
            End::Close { code, .. } => *code,
            End::Closed | End::Gone => 0,
        };
        self.shared.gateway.metrics.closes.with_label_values(&[code.to_string().as_str()]).inc();
        // The connection's place is kept until nothing is left of it. What it listens to is given back before: a client that is told to connect again
        // would meet its own seats.
        let Self { mut outgoing, mut incoming, tenure, state, .. } = self;
        drop(state);
        let tenant = tenure.identity().tenant_name.as_str();
        let farewell = async {
            match end {
                End::Close { code, reason, is_deaf } => {
                    tracing::debug!(tenant, code, reason, "closing a WebSocket");
                    let close = Message::Close(Some(CloseFrame { code: code.into(), reason: Utf8Bytes::from(reason) }));
                    // The peer must see why, so it gets a moment to answer before the connection goes.
                    outgoing.send(close).await?;
                    while let Some(Ok(_)) = incoming.next().await {}
                    if is_deaf {
                        // To hang up on what is still being sent would take our word with it.
                        sleep(FAREWELL_MAX).await;
                    }
                    Ok(())
                }
                // The answer is there already, and not written yet.
                End::Closed => outgoing.flush().await,
                End::Gone => Err(tungstenite::Error::ConnectionClosed),
            }
        };
        let is_heard = matches!(timeout(FAREWELL_MAX, farewell).await, Ok(Ok(())));
        let Some(call) = call else { return };
        // Over HTTP/2 what is written is another's, who has it until the peer takes it, which may be never.
        if !is_heard {
            call.reset();
        }
        drop((outgoing, incoming));
        call.end_within(FAREWELL_MAX).await;
    }

    async fn talk(&mut self) -> End {
        let stopping = self.shared.gateway.tasks.stopping();
        let mut left = pin!(leaving(stopping.clone(), self.shared.gateway.options.leave_within));
        let mut ended = pin!(self.tenure.clone().ended());
        let mut goes = pin!(self.meter.goes().cancelled_owned());
        let keep_alive = self.shared.gateway.options.keep_alive;
        let mut ticks = tokio::time::interval_at(Instant::now() + keep_alive, keep_alive);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if stopping.is_cancelled() && self.begins_something() {
                return End::close(close_code::AWAY, "this replica is going away");
            }
            self.start_next();
            if self.state.leaves && self.state.current.is_none() {
                return End::close(close_code::AWAY, "its frames took room that others need: connect again");
            }
            let State { subscriptions, waiting, current, leaves, .. } = &mut self.state;
            let reads = waiting.len() < WAITING_MAX && !*leaves;
            let step = tokio::select! {
                () = &mut left => Err(End::close(close_code::AWAY, "this replica is going away")),
                () = &mut goes, if !*leaves => {
                    *leaves = true;
                    Ok(())
                }
                () = &mut ended => Err(End::close(close_code::POLICY, "the credential has ended")),
                message = self.incoming.next(), if reads => self.hear(message).await,
                outcome = async { current.as_mut().expect("checked below").await }, if current.is_some() => {
                    self.state.current = None;
                    self.settle(outcome).await
                }
                Some(said) = subscriptions.next() => self.forward(said).await,
                _ = ticks.tick() => self.sign_of_life(reads).await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// The next frame asks for what a replica that is going away should leave to another.
    fn begins_something(&self) -> bool {
        let next = self.state.waiting.front().filter(|_| self.state.current.is_none());
        next.is_some_and(|(frame, _)| {
            matches!(frame, ClientFrame::Subscribe(_) | ClientFrame::Send(_) | ClientFrame::Approve(_))
        })
    }

    /// Takes up the next frame, if none is being carried out.
    fn start_next(&mut self) {
        if self.state.current.is_some() {
            return;
        }
        let Some((frame, held)) = self.state.waiting.pop_front() else { return };
        let (shared, identity) = (Arc::clone(&self.shared), self.tenure.identity().clone());
        let is_subscribed = match &frame {
            ClientFrame::Subscribe(Subscribe { session_id, .. }) => {
                session_id.parse().is_ok_and(|id: SessionId| self.state.subscriptions.contains(id))
            }
            _ => false,
        };
        let is_full = self.state.subscriptions.len() >= shared.gateway.options.subscriptions_max;
        let carried_out = match frame {
            ClientFrame::Subscribe(Subscribe { session_id, since, .. }) if is_subscribed => {
                ready(ServerFrame::Subscribed { session_id, since })
            }
            ClientFrame::Subscribe(Subscribe { session_id, .. }) if is_full => {
                let message = format!("a connection has at most {} subscriptions", self.state.subscriptions.len());
                let failure = Failure::new("SUBSCRIPTION_LIMIT", message);
                ready(ServerFrame::Error { failure, session_id: Some(session_id) })
            }
            ClientFrame::Subscribe(subscribe) => {
                let is_resumed = self.state.resumes > 0 && subscribe.since > 0;
                let (opens, is_covered) = if is_resumed {
                    self.state.resumes -= 1;
                    (Opens::Again, false)
                } else {
                    let is_covered = self.state.covered > 0;
                    self.state.covered = if is_covered { self.state.covered } else { SUBSCRIPTIONS_A_CALL } - 1;
                    (Opens::New, is_covered)
                };
                async move {
                    if !is_covered && let Err(error) = shared.gateway.calls.limit(&identity, opens).await {
                        return Outcome::Limited(failed(&error, subscribe.session_id), opens);
                    }
                    subscribed(shared, identity, subscribe).await
                }
                .boxed()
            }
            ClientFrame::Unsubscribe(Unsubscribe { session_id }) => {
                if let Ok(id) = session_id.parse::<SessionId>() {
                    self.state.subscriptions.remove(id);
                }
                ready(ServerFrame::Unsubscribed { session_id })
            }
            ClientFrame::Send(request) => {
                let session_id = request.session_id.clone();
                async move {
                    let sent = shared.gateway.calls.send_message(&identity, request).await;
                    reply(sent, session_id, |session_id, seq| ServerFrame::Sent { session_id, seq })
                }
                .boxed()
            }
            ClientFrame::Interrupt(request) => async move {
                let session_id = request.session_id;
                let interrupted = shared.gateway.calls.interrupt(&identity, &session_id).await;
                reply(interrupted, session_id, |session_id, interrupted| ServerFrame::Interrupted {
                    session_id,
                    interrupted,
                })
            }
            .boxed(),
            ClientFrame::Approve(request) => async move {
                let (session_id, approval_id) = (request.session_id.clone(), request.approval_id.clone());
                let approved = shared.gateway.calls.resolve_approval(&identity, request).await;
                reply(approved, session_id, |session_id, ()| ServerFrame::Approved { session_id, approval_id })
            }
            .boxed(),
            ClientFrame::Ping(Ping { id }) => ready(ServerFrame::Pong { id }),
        };
        self.state.current = Some(held.answering(carried_out).boxed());
    }

    async fn hear(&mut self, message: Option<Result<Message, tungstenite::Error>>) -> Result<(), End> {
        self.state.heard_at = Instant::now();
        let text = match message {
            Some(Ok(Message::Text(text))) => Some(text),
            Some(Ok(Message::Ping(said) | Message::Pong(said))) => {
                self.meter.passed(said.len());
                return match self.state.controls.judge() {
                    // There is nothing that could be refused.
                    Verdict::Take | Verdict::Refuse => Ok(()),
                    Verdict::HangUp => Err(End::close(close_code::POLICY, "far too many pings")),
                };
            }
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => None,
            Some(Err(tungstenite::Error::Capacity(_))) => {
                return Err(End::deaf(close_code::SIZE, "a frame is at most 1 MiB"));
            }
            Some(Err(tungstenite::Error::Io(error))) if found_no_room(&error) => {
                return Err(End::deaf(close_code::POLICY, "too much of the tenant's is being read: send it later"));
            }
            Some(Ok(Message::Close(_))) => return Err(End::Closed),
            Some(Err(_)) | None => return Err(End::Gone),
        };
        self.meter.message_came();
        match self.state.limiter.judge() {
            Verdict::Take => {}
            Verdict::Refuse => {
                let failure = Failure::new("RATE_LIMITED", "too many frames: send fewer");
                return self.turn_away(Failure { retry_after_ms: Some(FRAME_AFTER_MS), ..failure }).await;
            }
            Verdict::HangUp => return Err(End::close(close_code::POLICY, "far too many frames")),
        }
        let Some(text) = text else {
            return self.refuse("INVALID_ARGUMENT", "frames are text, this one is binary".to_owned()).await;
        };
        let held = match self.shared.gateway.intake.hold_json(self.tenure.identity().tenant, &text) {
            Ok(held) => held,
            Err(error) => return self.turn_away(Failure::from(&error)).await,
        };
        match ClientFrame::parse(text.as_str()) {
            Ok(frame) => {
                self.state.waiting.push_back((frame, held));
                Ok(())
            }
            Err(problem) => self.refuse("INVALID_ARGUMENT", problem).await,
        }
    }

    async fn settle(&mut self, outcome: Outcome) -> Result<(), End> {
        match outcome {
            Outcome::Reply(frame) => self.tell(&frame).await,
            Outcome::Limited(frame, opens) => {
                match opens {
                    Opens::New => self.state.covered = 0,
                    Opens::Again => self.state.resumes += 1,
                }
                self.tell(&frame).await
            }
            Outcome::Subscribed { session, since, events } => {
                let session_id = session.to_string();
                self.tell(&ServerFrame::Subscribed { session_id: session_id.clone(), since }).await?;
                let Some(events) = events else { return self.tell(&ServerFrame::Ended { session_id }).await };
                self.state.subscriptions.insert(session, events);
                Ok(())
            }
        }
    }

    /// Passes on what a session says, and whatever waits behind it.
    async fn forward(&mut self, first: Said) -> Result<(), End> {
        let (mut next, mut written, mut bytes, mut kept) = (Some(first), 0, 0, Vec::new());
        while let Some((session, event)) = next.take() {
            let text = json(&self.frame(session, event)?)?;
            (written, bytes) = (written + 1, bytes + text.len());
            self.put(text, &mut kept).await?;
            if written < TOGETHER_MAX && bytes < TOGETHER_BYTES_MAX {
                next = self.state.subscriptions.waiting();
            }
        }
        self.in_time(async |outgoing| outgoing.flush().await).await
    }

    /// Writes a text to what is flushed next. Where it takes of the room of what callers have not taken, that is `kept` until then.
    async fn put(&mut self, text: String, kept: &mut Vec<Kept>) -> Result<(), End> {
        if text.len() > LARGE_BYTES {
            let (shared, tenant) = (Arc::clone(&self.shared), self.tenure.identity().tenant);
            let room = shared.gateway.unread.hold(tenant, text.len());
            // What is here already may be what there is too much of.
            if room.is_none() {
                self.in_time(async |outgoing| outgoing.flush().await).await?;
                kept.clear();
            }
            kept.push(match room {
                Some(room) => room,
                None => room_for(&shared, tenant, text.len()).await?,
            });
        }
        self.in_time(async |outgoing| feed(outgoing, text).await).await
    }

    /// What the client is told of it.
    fn frame(&mut self, session: SessionId, event: Option<Result<SessionEvent, Error>>) -> Result<ServerFrame, End> {
        match event {
            Some(Ok(event)) => {
                self.events_sent.inc();
                Ok(ServerFrame::from(event))
            }
            None => {
                self.state.subscriptions.remove(session);
                Ok(ServerFrame::Ended { session_id: session.to_string() })
            }
            Some(Err(Error::SlowConsumer { resume_after })) => {
                let reason = json!({ "sessionId": session.to_string(), "since": resume_after.to_string() });
                Err(End::close(close_code::AGAIN, &reason.to_string()))
            }
            Some(Err(error)) => {
                self.state.subscriptions.remove(session);
                Ok(failed(&error, session.to_string()))
            }
        }
    }

    /// Asks the peer for one, and hangs up on a peer that has given none since the last two.
    async fn sign_of_life(&mut self, reads: bool) -> Result<(), End> {
        let silence_max = self.shared.gateway.options.keep_alive * 2;
        let frame_within = self.shared.gateway.options.frame_within;
        if reads && self.meter.is_late(frame_within) {
            // Its end may be there, and not read yet.
            if let Some(message) = self.incoming.next().now_or_never() {
                self.hear(message).await?;
            }
            if self.meter.is_late(frame_within) {
                return Err(End::close(close_code::POLICY, "a frame did not come to its end"));
            }
        }
        // While the peer is not read from, its silence is ours.
        if reads && self.state.heard_at.elapsed() > silence_max {
            // It may have answered while we wrote, which is not read yet.
            let Some(message) = self.incoming.next().now_or_never() else { return Err(End::Gone) };
            self.hear(message).await?;
        }
        self.write(Message::Ping(Vec::new().into())).await
    }

    async fn refuse(&mut self, reason: &'static str, message: String) -> Result<(), End> {
        self.turn_away(Failure::new(reason, message)).await
    }

    async fn turn_away(&mut self, failure: Failure) -> Result<(), End> {
        self.shared.gateway.metrics.refusals.with_label_values(&[failure.reason]).inc();
        self.tell(&ServerFrame::Error { failure, session_id: None }).await
    }

    async fn tell(&mut self, frame: &ServerFrame) -> Result<(), End> {
        let mut kept = Vec::new();
        self.put(json(frame)?, &mut kept).await?;
        self.in_time(async |outgoing| outgoing.flush().await).await
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        self.in_time(async |outgoing| outgoing.send(message).await).await
    }

    /// Hangs up on a peer that takes too long for one frame.
    async fn in_time(
        &mut self,
        write: impl AsyncFnOnce(&mut SplitSink<Socket, Message>) -> Result<(), tungstenite::Error>,
    ) -> Result<(), End> {
        match timeout(self.shared.gateway.options.write_timeout, write(&mut self.outgoing)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }
}

impl End {
    fn close(code: u16, reason: &str) -> Self {
        Self::Close { code, reason: reason.to_owned(), is_deaf: false }
    }

    fn deaf(code: u16, reason: &str) -> Self {
        Self::Close { code, reason: reason.to_owned(), is_deaf: true }
    }
}

fn json(frame: &ServerFrame) -> Result<String, End> {
    let told = serde_json::to_string(frame).or_else(|error| match frame {
        ServerFrame::Event(event) => serde_json::to_string(&ServerFrame::from(number_alone(event, &error))),
        _ => Err(error),
    });
    told.map_err(|error| {
        tracing::error!(%error, "a frame can't be written as JSON");
        End::close(close_code::ERROR, "an internal error")
    })
}

/// By the piece, since the library keeps the room of the largest for as long as the socket is open.
async fn feed(outgoing: &mut SplitSink<Socket, Message>, text: String) -> Result<(), tungstenite::Error> {
    if text.len() <= LARGE_BYTES {
        return outgoing.feed(Message::text(text)).await;
    }
    let mut rest = Bytes::from(text);
    let mut kind = Data::Text;
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(LARGE_BYTES));
        let frame = Frame::message(piece, OpCode::Data(kind), rest.is_empty());
        outgoing.feed(Message::Frame(frame)).await?;
        kind = Data::Continue;
    }
    Ok(())
}

/// Room among what the tenant's callers have not taken. A client that finds none for too long is as one that takes nothing.
async fn room_for(shared: &Shared, tenant: TenantId, bytes: usize) -> Result<Kept, End> {
    let found = async {
        loop {
            match shared.gateway.unread.hold(tenant, bytes) {
                Some(kept) => return kept,
                None => sleep(LOOK_FOR_ROOM_EVERY).await,
            }
        }
    };
    timeout(shared.gateway.options.write_timeout, found).await.map_err(|_| End::Gone)
}

async fn subscribed(shared: Arc<Shared>, identity: Identity, subscribe: Subscribe) -> Outcome {
    let Subscribe { session_id, since, durable_only } = subscribe;
    let Ok(session) = session_id.parse::<SessionId>() else {
        let shown = session_id.chars().take(64).collect();
        return Outcome::Reply(failed(&Error::SessionNotFound { session_id: shown }, session_id));
    };
    let wanted = Wanted { session_id: &session_id, after_seq: since, durable_only };
    let seat = match shared.gateway.seats.take(identity.tenant) {
        Ok(seat) => seat,
        Err(error) => return Outcome::Reply(failed(&error, session_id)),
    };
    match open(&shared.gateway, &identity, wanted).await {
        Ok(Opened::Events(events)) => {
            let events = events.inspect(move |_| {
                let _for_as_long = &seat;
            });
            Outcome::Subscribed { session, since, events: Some(events.boxed()) }
        }
        Ok(Opened::Over) => Outcome::Subscribed { session, since, events: None },
        Err(error) => Outcome::Reply(failed(&error, session_id)),
    }
}

fn ready(frame: ServerFrame) -> BoxFuture<'static, Outcome> {
    futures::future::ready(Outcome::Reply(frame)).boxed()
}

fn reply<T>(result: Result<T, Error>, session_id: String, frame: impl FnOnce(String, T) -> ServerFrame) -> Outcome {
    Outcome::Reply(match result {
        Ok(value) => frame(session_id, value),
        Err(error) => failed(&error, session_id),
    })
}

fn failed(error: &Error, session_id: String) -> ServerFrame {
    log(error);
    ServerFrame::Error { failure: Failure::from(error), session_id: Some(session_id) }
}
