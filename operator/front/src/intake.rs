//! Clients' requests before they are decoded: how much of them is held at a time, and of how many parts one may be.
//!
//! A part of a protobuf message that says nothing takes two bytes on the wire, and some hundreds as a value: what fits the bound on bytes
//! could take all memory there is, and with it every tenant's streams, before anyone could look at the value.

pub(crate) mod anybody;

mod json;
mod rooms;
pub(crate) mod shape;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use croft_proto::id::TenantId;
use futures::StreamExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task_local;
use tokio::time::timeout;
use tonic::{Code, Status};

pub(crate) use self::rooms::{Room, Rooms};
use crate::error::Error;
use crate::shares::Shares;

/// The largest request that is read at all. Between a tenant's limit and this one, the refusal names the field.
pub const MESSAGE_BYTES_CEILING: usize = 16 * 1024 * 1024;
/// Of all clients' requests that are being read, decoded or carried out, and of one tenant's.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
const TENANT_BYTES_MAX: usize = 24 * 1024 * 1024;
/// From a request's head to its end.
pub(crate) const READ_MAX: Duration = Duration::from_mins(1);
/// What says before a message of gRPC whether it is compressed, and how long it is.
pub(crate) const PREFIX_BYTES: usize = 5;
/// What a part takes as a value, at most and roughly.
const PART_BYTES: usize = 512;
/// Requests of one tenant that are being read. Another is refused at once: what had come of one that waits would take of its connection's window, and
/// hold up those by the same connection that have a place.
const READING_MAX: usize = 1024;
/// When there may be a place for a request that was refused.
const PLACE_AFTER: Duration = Duration::from_secs(1);
/// A call that counts as one of its tenant's only once it is read, and how large its request may be: it names a session.
pub(crate) const STREAM_EVENTS: &str = "/croft.v1.LifecycleService/StreamEvents";
const STREAM_EVENTS_BYTES_MAX: usize = 4 * 1024;

/// Reads requests. Clones share their room.
#[derive(Debug, Clone)]
pub struct Intake {
    rooms: Rooms,
    reading: Shares,
}

/// Why a request is not read.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: Status,
    /// It came too slowly, or its tenant has all that one may have: whoever asks can have as many of it as he likes.
    pub(crate) is_callers: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let is_callers = matches!(error, Error::Unavailable { source: None, .. });
        Self { status: error.into(), is_callers }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { is_callers: status.code() == Code::DeadlineExceeded, status }
    }
}

/// Keeps a request's room until the last clone of it is dropped.
#[derive(Clone)]
pub(crate) struct Held {
    _room: Arc<Room>,
}

task_local! {
    static HELD: Held;
}

impl Held {
    /// The room of the request that is being answered here, for work that goes on with it when nobody waits for the answer any more.
    pub(crate) fn current() -> Option<Self> {
        HELD.try_with(Self::clone).ok()
    }

    /// Keeps it while the request is answered.
    pub(crate) async fn answering<T>(self, answer: impl Future<Output = T>) -> T {
        HELD.scope(self, answer).await
    }
}

impl Default for Intake {
    fn default() -> Self {
        Self { rooms: Rooms::of("requests", HELD_BYTES_MAX, TENANT_BYTES_MAX), reading: Shares::of(READING_MAX) }
    }
}

impl Intake {
    /// What requests take of.
    pub(crate) fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    /// A tenant's request by this path, whole: its one message. Refused with `OUT_OF_RANGE` when it is larger than any may be, with
    /// `DEADLINE_EXCEEDED` when it takes too long to come, as [`Error::Invalid`] when it is none or has too many parts, and as
    /// [`Error::Unavailable`] while too much is held already, or too many of the tenant's are being read; the latter, and what is the tenant's
    /// alone of the former, is the caller's doing.
    pub(crate) async fn read(&self, tenant: TenantId, path: &str, body: Body) -> Result<(Body, Held), Refused> {
        let late = |_| Status::deadline_exceeded(format!("the request did not come within {} s", READ_MAX.as_secs()));
        let (read, mut room) = timeout(READ_MAX, self.whole(tenant, path, body)).await.map_err(late)??;
        let parts = match message(&read)? {
            Some(message) => shape::parts(path, message).map_err(|problem| Error::invalid("request", problem))?,
            None => 0,
        };
        self.rooms.reckon(tenant, parts * PART_BYTES, &mut room)?;
        Ok((Body::from(read), Held { _room: Arc::new(room) }))
    }

    /// Room for a request that has come as this JSON text, before it is read. Fails as [`Self::read`] does.
    pub(crate) fn hold_json(&self, tenant: TenantId, text: &str) -> Result<Held, Error> {
        let parts = json::parts(text).map_err(|problem| Error::invalid("the frame", problem))?;
        let mut room = None;
        self.rooms.reckon(tenant, text.len() + parts * PART_BYTES, &mut room)?;
        Ok(Held { _room: Arc::new(room) })
    }

    async fn whole(&self, tenant: TenantId, path: &str, body: Body) -> Result<(Vec<u8>, Room), Refused> {
        let bytes_max = if path == STREAM_EVENTS { STREAM_EVENTS_BYTES_MAX } else { MESSAGE_BYTES_CEILING };
        let _reading = self.place(tenant)?;
        let (mut chunks, mut read, mut room) = (body.into_data_stream(), Vec::new(), None);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
            read.extend_from_slice(&chunk);
            if read.len() > bytes_max + PREFIX_BYTES {
                return Err(Status::out_of_range(format!("the request is larger than {bytes_max} bytes")).into());
            }
            self.rooms.reckon(tenant, read.len(), &mut room)?;
        }
        Ok((read, room))
    }

    /// Among those of the tenant's that are being read.
    fn place(&self, tenant: TenantId) -> Result<OwnedSemaphorePermit, Error> {
        self.reading.of_tenant(tenant).try_acquire_owned().map_err(|_| {
            let part = "a place for the request: too many of the tenant's do not come to their end";
            Error::Unavailable { part, retry_after: PLACE_AFTER, source: None }
        })
    }
}

/// The one message of a request; none where nothing was said.
fn message(read: &[u8]) -> Result<Option<&[u8]>, Status> {
    let Some((prefix, message)) = read.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::unimplemented("requests are not taken compressed"));
    }
    // What came behind it would be decoded, and thrown away.
    if usize::try_from(u32::from_be_bytes(length)).ok() != Some(message.len()) {
        return Err(Error::invalid("request", "is not one whole message").into());
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use croft_proto::v1::content_block::Block;
    use croft_proto::v1::image::Source;
    use croft_proto::v1::{AgentSpec, ContentBlock, CreateSessionRequest, Image, SendMessageRequest, Text, ToolSpec};
    use futures::FutureExt as _;
    use prost::Message;

    use super::*;

    fn framed(message: &impl Message) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        bytes.extend(message.encode_to_vec());
        bytes
    }

    const CREATE: &str = "/croft.v1.LifecycleService/CreateSession";
    const SEND: &str = "/croft.v1.LifecycleService/SendMessage";

    async fn created(request: Vec<u8>) -> Refused {
        let tenant = TenantId::generate();
        Intake::default().read(tenant, CREATE, Body::from(request)).await.err().expect("it is refused")
    }

    async fn read(intake: &Intake, bytes: Vec<u8>) -> Result<(Vec<u8>, Held), Refused> {
        read_of(intake, TenantId::generate(), bytes).await
    }

    async fn read_of(intake: &Intake, tenant: TenantId, bytes: Vec<u8>) -> Result<(Vec<u8>, Held), Refused> {
        let (body, held) = intake.read(tenant, SEND, Body::from(bytes)).await?;
        Ok((axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec(), held))
    }

    fn agent(agent: AgentSpec) -> CreateSessionRequest {
        CreateSessionRequest { agent: Some(agent), ..CreateSessionRequest::default() }
    }

    fn said(block: Block) -> SendMessageRequest {
        let content = vec![ContentBlock { block: Some(block) }];
        SendMessageRequest { session_id: "a".repeat(36), content, ..SendMessageRequest::default() }
    }

    #[tokio::test]
    async fn what_people_mean_is_passed_on_as_it_is() {
        let tool =
            ToolSpec { name: "search".into(), input_schema_json: r#"{"type":"object"}"#.into(), ..ToolSpec::default() };
        let noise = (0..4_000_000_u32).map(|place| u8::try_from(place.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0));
        let created = [
            framed(&agent(AgentSpec { tools: vec![tool; 128], ..AgentSpec::default() })),
            framed(&CreateSessionRequest::default()),
            Vec::new(),
        ];
        let sent = [
            framed(&said(Block::Text(Text { text: "\n".repeat(10_000_000) }))),
            framed(&said(Block::Text(Text { text: "b\n".repeat(1_000_000) }))),
            framed(&said(Block::Image(Image { source: Some(Source::Data(noise.collect())), ..Image::default() }))),
        ];
        for (path, request) in
            created.map(|request| (CREATE, request)).into_iter().chain(sent.map(|request| (SEND, request)))
        {
            let (body, _held) =
                Intake::default().read(TenantId::generate(), path, Body::from(request.clone())).await.unwrap();
            assert_eq!(axum::body::to_bytes(body, usize::MAX).await.unwrap(), request);
        }
    }

    #[tokio::test]
    async fn a_request_of_many_parts_is_refused_before_it_is_decoded() {
        let empty = |count| vec![AgentSpec::default(); count];
        let many = agent(AgentSpec { sub_agents: empty(shape::PARTS_MAX + 1), ..AgentSpec::default() });
        // 8,000 of two parts and one around them.
        let twin = AgentSpec { sub_agents: empty(2), ..AgentSpec::default() };
        let nested = agent(AgentSpec { sub_agents: vec![twin; 8_000], ..AgentSpec::default() });
        let mut deep = AgentSpec { sub_agents: empty(shape::PARTS_MAX + 1), ..AgentSpec::default() };
        for _ in 0..60 {
            deep = AgentSpec { sub_agents: vec![deep], ..AgentSpec::default() };
        }
        // What decoding passes over, or meets behind what it has made.
        let with = |before: &[u8], after: &[u8]| {
            let message = [before, &many.encode_to_vec(), after].concat();
            let mut bytes = vec![0];
            bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            [bytes, message].concat()
        };
        let none = framed(&CreateSessionRequest::default());
        let requests = [
            framed(&many),
            framed(&nested),
            framed(&agent(deep)),
            with(b"\xfb\x07\xfc\x07", b""),
            with(b"", b"\x00"),
            [framed(&many), none.clone()].concat(),
            [none, framed(&many)].concat(),
        ];
        for request in requests {
            assert!(request.len() < 256 * 1024, "it takes {} bytes", request.len());
            let refused = created(request).await;
            assert_eq!(refused.status.code(), Code::InvalidArgument, "{refused:?}");
        }
        let mut compressed = framed(&CreateSessionRequest::default());
        compressed[0] = 1;
        assert_eq!(created(compressed).await.status.code(), Code::Unimplemented);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_is_not_waited_for() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let refused = Intake::default().read(TenantId::generate(), SEND, body).await.err().expect("it never ends");
        assert_eq!(refused.status.code(), Code::DeadlineExceeded, "{refused:?}");
        assert!(refused.is_callers);
    }

    #[tokio::test]
    async fn so_many_requests_are_read_at_a_time_and_others_refused_at_once() {
        let (intake, tenant) = (Intake::default(), TenantId::generate());
        let body = || Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let mut never: Vec<_> = (0..READING_MAX).map(|_| Box::pin(intake.read(tenant, SEND, body()))).collect();
        for request in &mut never {
            assert!(futures::poll!(request).is_pending());
        }
        let small = || framed(&said(Block::Text(Text { text: "small".into() })));
        let refused = read_of(&intake, tenant, small()).now_or_never().expect("it waits").err().unwrap();
        assert_eq!(refused.status.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.is_callers, "it is its tenant's doing");
        read(&intake, small()).await.expect("another tenant has places of its own");
        // One has gone, and another may.
        never.pop();
        read_of(&intake, tenant, small()).await.unwrap();
        never.clear();
        read_of(&intake, tenant, small()).await.unwrap();
    }

    #[tokio::test]
    async fn what_asks_for_a_stream_of_events_is_small() {
        let large = Body::from(vec![0; STREAM_EVENTS_BYTES_MAX + PREFIX_BYTES + 1]);
        let refused = Intake::default().read(TenantId::generate(), STREAM_EVENTS, large).await.err().unwrap();
        assert_eq!(refused.status.code(), Code::OutOfRange, "{refused:?}");
    }

    #[tokio::test]
    async fn what_comes_as_json_takes_of_the_same_room() {
        let (intake, one, other) = (Intake::default(), TenantId::generate(), TenantId::generate());
        // A part takes 512 bytes, and a tenant has room for 49,152 of them.
        let json = format!("[{}]", vec!["{}"; shape::PARTS_MAX / 2].join(","));
        let mut held: Vec<_> = (0..2).map(|_| intake.hold_json(one, &json).unwrap()).collect();
        let message = framed(&said(Block::Text(Text { text: "x".repeat(9_000_000) })));
        let refused = read_of(&intake, one, message.clone()).await.err().expect("the tenant has no room");
        assert_eq!(refused.status.code(), Code::Unavailable, "{refused:?}");
        assert!(matches!(intake.hold_json(one, &json), Err(Error::Unavailable { .. })));
        intake.hold_json(one, "{}").unwrap();
        intake.hold_json(other, &json).unwrap();
        held.pop();
        read_of(&intake, one, message).await.unwrap();
        assert!(matches!(intake.hold_json(one, &json.replace("{}", "[[]]")), Err(Error::Invalid { .. })));
    }

    #[tokio::test]
    async fn so_much_is_held_at_a_time_and_no_more() {
        let intake = Intake::default();
        let large = framed(&said(Block::Text(Text { text: "x".repeat(MESSAGE_BYTES_CEILING - 100) })));
        let (one, mut held) = (TenantId::generate(), Vec::new());
        held.push(read_of(&intake, one, large.clone()).await.unwrap().1);
        let refused = read_of(&intake, one, large.clone()).await.err().expect("the tenant has no room");
        assert_eq!(refused.status.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.is_callers);
        for _ in 1..HELD_BYTES_MAX / MESSAGE_BYTES_CEILING {
            held.push(read(&intake, large.clone()).await.unwrap().1);
        }
        let refused = read(&intake, large.clone()).await.err().expect("there is no room");
        assert_eq!(refused.status.code(), Code::Unavailable, "{refused:?}");
        assert!(!refused.is_callers, "others have it all");
        read(&intake, framed(&said(Block::Text(Text { text: "small".into() })))).await.unwrap();
        held.pop();
        read(&intake, large).await.unwrap();
        let larger = framed(&said(Block::Text(Text { text: "x".repeat(MESSAGE_BYTES_CEILING + 1) })));
        assert_eq!(read(&Intake::default(), larger).await.err().unwrap().status.code(), Code::OutOfRange);
    }
}
