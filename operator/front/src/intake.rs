//! Clients' requests before they are decoded: how much of them is held at a time, and of how many parts one may be.
//!
//! A part of a protobuf message that says nothing takes two bytes on the wire, and some hundreds as a value: what fits the bound on bytes
//! could take all memory there is, and with it every tenant's streams, before anyone could look at the value.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use croft_proto::id::TenantId;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::timeout;
use tonic::Status;

use crate::app::MESSAGE_BYTES_CEILING;
use crate::error::Error;
use crate::shares::Shares;

/// Of all clients' requests that are being read, decoded or carried out, and of one tenant's.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
const TENANT_BYTES_MAX: usize = 24 * 1024 * 1024;
/// Requests of fewer bytes are not reckoned: they are as many as the rates allow.
const SMALL_BYTES: usize = 16 * 1024;
/// From a request's head to its end.
const READ_MAX: Duration = Duration::from_mins(1);
/// What says before each message of gRPC how long it is: a flag, and the length.
const PREFIX_BYTES: usize = 5;
/// Messages, texts and lists within one request. The largest that anyone means, an agent with all its tools, has some thousands.
const PARTS_MAX: usize = 65_536;
/// Decoding goes no deeper.
const DEPTH_MAX: usize = 100;

/// Reads requests. Clones share their room.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    room: Arc<Semaphore>,
    shares: Shares,
}

/// Keeps a request's room until it is dropped: the tenant's, and all tenants'.
pub(crate) struct Held {
    _room: Option<[OwnedSemaphorePermit; 2]>,
}

impl Default for Intake {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(HELD_BYTES_MAX)), shares: Shares::of(TENANT_BYTES_MAX) }
    }
}

impl Intake {
    /// A tenant's request, whole: its one message. Refused with `OUT_OF_RANGE` when it is larger than any may be, with `DEADLINE_EXCEEDED`
    /// when it takes too long to come, as [`Error::Invalid`] when it has too many parts, and as [`Error::Unavailable`] while too much is
    /// held already.
    pub(crate) async fn read(&self, tenant: TenantId, body: Body) -> Result<(Body, Held), Status> {
        let late = |_| Status::deadline_exceeded(format!("the request did not come within {} s", READ_MAX.as_secs()));
        let (read, held) = timeout(READ_MAX, self.whole(tenant, body)).await.map_err(late)??;
        let message = read.get(PREFIX_BYTES..).unwrap_or_default();
        let length = read.get(1..PREFIX_BYTES).and_then(|length| length.try_into().ok()).map_or(0, u32::from_be_bytes);
        let message = message.get(..usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or(message);
        if parts(message, 0) > PARTS_MAX {
            return Err(Error::invalid("request", format!("has more than {PARTS_MAX} parts")).into());
        }
        Ok((Body::from(read), held))
    }

    async fn whole(&self, tenant: TenantId, body: Body) -> Result<(Vec<u8>, Held), Status> {
        let (mut chunks, mut read) = (body.into_data_stream(), Vec::new());
        let mut room: Option<[OwnedSemaphorePermit; 2]> = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
            read.extend_from_slice(&chunk);
            if read.len() > MESSAGE_BYTES_CEILING + PREFIX_BYTES {
                return Err(Status::out_of_range(format!("the request is larger than {MESSAGE_BYTES_CEILING} bytes")));
            }
            if read.len() > SMALL_BYTES {
                let held = room.as_ref().map_or(0, |[own, _]| own.num_permits());
                let [own, all] = self.take(tenant, read.len() - held)?;
                match &mut room {
                    Some([tenants, everybodys]) => {
                        tenants.merge(own);
                        everybodys.merge(all);
                    }
                    None => room = Some([own, all]),
                }
            }
        }
        Ok((read, Held { _room: room }))
    }

    fn take(&self, tenant: TenantId, bytes: usize) -> Result<[OwnedSemaphorePermit; 2], Status> {
        let full = |_: TryAcquireError| {
            let problem = anyhow::anyhow!(
                "{TENANT_BYTES_MAX} bytes of the tenant's requests, or {HELD_BYTES_MAX} of all, are held already"
            );
            Error::unavailable("the intake", problem)
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let own = self.shares.of_tenant(tenant).try_acquire_many_owned(bytes).map_err(full)?;
        let all = Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(full)?;
        Ok([own, all])
    }
}

/// How many parts a message has, with those within its parts; a few more than [`PARTS_MAX`] stand for any number. Where it is no message,
/// a text or an image, or one that breaks off, those before that place: decoding makes them all before it comes to it. What is within
/// a group counts as beside it.
fn parts(mut bytes: &[u8], depth: usize) -> usize {
    let mut found = 0;
    while found <= PARTS_MAX
        && let Some(field) = next(&mut bytes)
    {
        if let Field::Part(part) = field {
            found += 1;
            if depth < DEPTH_MAX {
                found += parts(part, depth + 1);
            }
        }
    }
    found
}

/// A field of a message.
enum Field<'bytes> {
    Part(&'bytes [u8]),
    /// A number, or where a group begins or ends.
    Other,
}

/// Takes one field off the front. `None` at the end, and where no field is.
fn next<'bytes>(bytes: &mut &'bytes [u8]) -> Option<Field<'bytes>> {
    let tag = varint(bytes)?;
    match tag & 7 {
        0 => drop(varint(bytes)?),
        1 => *bytes = bytes.get(8..)?,
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            let (part, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            return Some(Field::Part(part));
        }
        3 | 4 => {}
        5 => *bytes = bytes.get(4..)?,
        _ => return None,
    }
    Some(Field::Other)
}

/// Takes one off the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use croft_proto::v1::content_block::Block;
    use croft_proto::v1::image::Source;
    use croft_proto::v1::{AgentSpec, ContentBlock, CreateSessionRequest, Image, SendMessageRequest, Text, ToolSpec};
    use prost::Message;
    use tonic::Code;

    use super::*;

    fn framed(message: &impl Message) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        bytes.extend(message.encode_to_vec());
        bytes
    }

    async fn read(intake: &Intake, bytes: Vec<u8>) -> Result<(Vec<u8>, Held), Status> {
        read_of(intake, TenantId::generate(), bytes).await
    }

    async fn read_of(intake: &Intake, tenant: TenantId, bytes: Vec<u8>) -> Result<(Vec<u8>, Held), Status> {
        let (body, held) = intake.read(tenant, Body::from(bytes)).await?;
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
        let requests = [
            framed(&agent(AgentSpec { tools: vec![tool; 128], ..AgentSpec::default() })),
            framed(&said(Block::Text(Text { text: "a line\n\n".repeat(1_000_000) }))),
            framed(&said(Block::Image(Image { source: Some(Source::Data(noise.collect())), ..Image::default() }))),
            framed(&CreateSessionRequest::default()),
        ];
        for request in requests {
            assert_eq!(read(&Intake::default(), request.clone()).await.unwrap().0, request);
        }
    }

    #[tokio::test]
    async fn a_request_of_many_parts_is_refused_before_it_is_decoded() {
        let empty = |count| vec![AgentSpec::default(); count];
        let many = agent(AgentSpec { sub_agents: empty(PARTS_MAX + 1), ..AgentSpec::default() });
        // 22,000 of two parts and one around them.
        let twin = AgentSpec { sub_agents: empty(2), ..AgentSpec::default() };
        let nested = agent(AgentSpec { sub_agents: vec![twin; 22_000], ..AgentSpec::default() });
        // What decoding meets before it comes to the mistake, or passes over, is made all the same.
        let with = |before: &[u8], after: &[u8]| {
            let message = [before, &many.encode_to_vec(), after].concat();
            let mut bytes = vec![0];
            bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            [bytes, message].concat()
        };
        let mut deep = AgentSpec { sub_agents: empty(PARTS_MAX + 1), ..AgentSpec::default() };
        for _ in 0..60 {
            deep = AgentSpec { sub_agents: vec![deep], ..AgentSpec::default() };
        }
        let requests = [
            framed(&many),
            framed(&nested),
            framed(&agent(deep)),
            with(b"\xfb\x07\xfc\x07", b""),
            with(b"", b"\x00"),
            with(b"", b"\x0f"),
            [framed(&many), framed(&CreateSessionRequest::default())].concat(),
        ];
        for request in requests {
            assert!(request.len() < 256 * 1024, "it takes {} bytes", request.len());
            let refused = read(&Intake::default(), request).await.err().expect("it is refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_is_not_waited_for() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let refused = Intake::default().read(TenantId::generate(), body).await.err().expect("it never ends");
        assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    }

    #[tokio::test]
    async fn so_much_is_held_at_a_time_and_no_more() {
        let intake = Intake::default();
        let large = framed(&said(Block::Text(Text { text: "x".repeat(MESSAGE_BYTES_CEILING - 100) })));
        let (one, mut held) = (TenantId::generate(), Vec::new());
        held.push(read_of(&intake, one, large.clone()).await.unwrap().1);
        let refused = read_of(&intake, one, large.clone()).await.err().expect("the tenant has no room");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        for _ in 1..HELD_BYTES_MAX / MESSAGE_BYTES_CEILING {
            held.push(read(&intake, large.clone()).await.unwrap().1);
        }
        let refused = read(&intake, large.clone()).await.err().expect("there is no room");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        read(&intake, framed(&said(Block::Text(Text { text: "small".into() })))).await.unwrap();
        held.pop();
        read(&intake, large).await.unwrap();
        let larger = framed(&said(Block::Text(Text { text: "x".repeat(MESSAGE_BYTES_CEILING + 1) })));
        assert_eq!(read(&Intake::default(), larger).await.err().unwrap().code(), Code::OutOfRange);
    }

    #[test]
    fn what_is_no_message_has_the_parts_before_the_mistake() {
        for bytes in [&b""[..], b"\x0a", b"\x0a\x05ab", b"\x08", b"\x0e\x0a\x00", &[0xff; 11]] {
            assert_eq!(parts(bytes, 0), 0, "{bytes:?}");
        }
        assert_eq!(parts(b"\x08\x01\x0a\x00\x12\x02\x0a\x00", 0), 3);
        assert_eq!(parts(b"\x0a\x00\x12\x03\x0a\x00\x0f\x0f\x0a\x00", 0), 3);
        assert_eq!(parts(b"\x0b\x0a\x00\x0c\x0a\x00", 0), 2, "one is within a group");
    }
}
