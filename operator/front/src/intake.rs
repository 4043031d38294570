//! Clients' requests before they are decoded: how much of them is held at a time, and of how many parts one may be.
//!
//! A part of a protobuf message that says nothing takes two bytes on the wire, and some hundreds as a value: what fits the bound on bytes
//! could take all memory there is, and with it every tenant's streams, before anyone could look at the value.

use std::sync::Arc;

use axum::body::Body;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tonic::Status;

use crate::app::MESSAGE_BYTES_CEILING;
use crate::error::Error;

/// Of all clients' requests that are being read, decoded or carried out.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Requests of fewer bytes are not reckoned: they are as many as the rates allow.
const SMALL_BYTES: usize = 16 * 1024;
/// What says before each message of gRPC how long it is.
const PREFIX_BYTES: usize = 5;
/// Messages, texts and lists within one request. The largest that anyone means, an agent with all its tools, has some thousands.
const PARTS_MAX: usize = 65_536;
/// What is nested deeper is taken as one part; decoding refuses it before it comes to much.
const DEPTH_MAX: usize = 32;

/// Reads requests. Clones share their room.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    room: Arc<Semaphore>,
}

/// Keeps a request's room until it is dropped.
pub(crate) struct Held {
    _room: Option<OwnedSemaphorePermit>,
}

impl Default for Intake {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(HELD_BYTES_MAX)) }
    }
}

impl Intake {
    /// The request's one message, whole. Refused with `OUT_OF_RANGE` when it is larger than any may be, as [`Error::Invalid`] when it has
    /// too many parts, and as [`Error::Unavailable`] while too much is held already.
    pub(crate) async fn read(&self, body: Body) -> Result<(Body, Held), Status> {
        let (mut chunks, mut read, mut room) = (body.into_data_stream(), Vec::new(), None::<OwnedSemaphorePermit>);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
            read.extend_from_slice(&chunk);
            if read.len() > MESSAGE_BYTES_CEILING + PREFIX_BYTES {
                return Err(Status::out_of_range(format!("the request is larger than {MESSAGE_BYTES_CEILING} bytes")));
            }
            if read.len() > SMALL_BYTES {
                let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
                let more = self.take(read.len() - held)?;
                match &mut room {
                    Some(room) => room.merge(more),
                    None => room = Some(more),
                }
            }
        }
        if parts(read.get(PREFIX_BYTES..).unwrap_or_default(), 0).is_some_and(|parts| parts > PARTS_MAX) {
            return Err(Error::invalid("request", format!("has more than {PARTS_MAX} parts")).into());
        }
        Ok((Body::from(read), Held { _room: room }))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_: TryAcquireError| {
            Error::unavailable("the intake", anyhow::anyhow!("{HELD_BYTES_MAX} bytes of requests are held already"))
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(full)?)
    }
}

/// How many parts a message has, with those within its parts; a few more than [`PARTS_MAX`] stand for any number. `None` for what is no
/// message: a text, or an image. One that can be read as a message is taken for one.
fn parts(mut bytes: &[u8], depth: usize) -> Option<usize> {
    let mut found = 0;
    while !bytes.is_empty() && found <= PARTS_MAX {
        let tag = varint(&mut bytes)?;
        match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (_, 0) => drop(varint(&mut bytes)?),
            (_, 1) => bytes = bytes.get(8..)?,
            (_, 5) => bytes = bytes.get(4..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (part, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                found += 1;
                if depth < DEPTH_MAX {
                    found += parts(part, depth + 1).unwrap_or(0);
                }
            }
            _ => return None,
        }
    }
    Some(found)
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
        let (body, held) = intake.read(Body::from(bytes)).await?;
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
        for request in [framed(&many), framed(&nested)] {
            assert!(request.len() < 256 * 1024, "it takes {} bytes", request.len());
            let refused = read(&Intake::default(), request).await.err().expect("it is refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        }
    }

    #[tokio::test]
    async fn so_much_is_held_at_a_time_and_no_more() {
        let intake = Intake::default();
        let large = framed(&said(Block::Text(Text { text: "x".repeat(MESSAGE_BYTES_CEILING - 100) })));
        let mut held = Vec::new();
        for _ in 0..HELD_BYTES_MAX / MESSAGE_BYTES_CEILING {
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
    fn what_is_no_message_has_no_parts() {
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x05ab",
            b"\x08",
            b"\x00\x01",
            b"\x0b",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(parts(bytes, 0), None, "{bytes:?}");
        }
        assert_eq!(parts(b"", 0), Some(0));
        assert_eq!(parts(b"\x08\x01\x0a\x00\x12\x02\x0a\x00", 0), Some(3));
    }
}
