//! Envelopes as bytes, between fronts that may be of two releases. Private to the front: no client sees them.

use croft_proto::id::TurnId;
use croft_proto::v1::SessionEvent;
use prost::{DecodeError, Message, Oneof};
use uuid::Uuid;

use super::{Envelope, Frame};

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(bytes = "vec", tag = "1")]
    origin: Vec<u8>,
    #[prost(uint64, tag = "2")]
    after_seq: u64,
    #[prost(uint64, tag = "3")]
    dropped_previews: u64,
    #[prost(oneof = "Content", tags = "4, 5, 6, 7, 8")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Content {
    #[prost(message, tag = "4")]
    Events(Events),
    #[prost(message, tag = "5")]
    Interrupt(Interrupt),
    #[prost(message, tag = "6")]
    Terminated(()),
    #[prost(uint64, tag = "7")]
    ApprovalResolved(u64),
    #[prost(message, tag = "8")]
    Listening(()),
}

#[derive(Clone, PartialEq, Message)]
struct Interrupt {
    #[prost(bytes = "vec", tag = "1")]
    turn: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Events {
    #[prost(message, repeated, tag = "1")]
    events: Vec<SessionEvent>,
}

pub(super) fn encode(envelope: &Envelope) -> Vec<u8> {
    let Envelope { origin, after_seq, dropped_previews, frame } = envelope;
    let content = match frame {
        Frame::Events(events) => Content::Events(Events { events: events.clone() }),
        Frame::Interrupt { turn } => {
            Content::Interrupt(Interrupt { turn: turn.map(|turn| turn.0.as_bytes().to_vec()).unwrap_or_default() })
        }
        Frame::Terminated => Content::Terminated(()),
        Frame::ApprovalResolved { seq } => Content::ApprovalResolved(*seq),
        Frame::Listening => Content::Listening(()),
    };
    Wire {
        origin: origin.as_bytes().to_vec(),
        after_seq: *after_seq,
        dropped_previews: *dropped_previews,
        content: Some(content),
    }
    .encode_to_vec()
}

/// `None` for a frame of a kind that this release doesn't know.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<Envelope>, DecodeError> {
    let Wire { origin, after_seq, dropped_previews, content } = Wire::decode(bytes)?;
    let frame = match content {
        Some(Content::Events(Events { events })) => Frame::Events(events),
        Some(Content::Interrupt(Interrupt { turn })) => {
            Frame::Interrupt { turn: Uuid::from_slice(&turn).ok().map(TurnId) }
        }
        Some(Content::Terminated(())) => Frame::Terminated,
        Some(Content::ApprovalResolved(seq)) => Frame::ApprovalResolved { seq },
        Some(Content::Listening(())) => Frame::Listening,
        None => return Ok(None),
    };
    // An origin that is no UUID is nobody's own, so the frame is taken for another's.
    let origin = Uuid::from_slice(&origin).unwrap_or_default();
    Ok(Some(Envelope { origin, after_seq, dropped_previews, frame }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_back_as_it_was() {
        let event = SessionEvent { session_id: "s".into(), seq: 7, ..SessionEvent::default() };
        let frames = [
            Frame::Events(vec![event.clone(), SessionEvent::default()]),
            Frame::Events(Vec::new()),
            Frame::Interrupt { turn: None },
            Frame::Interrupt { turn: Some(TurnId::generate()) },
            Frame::Terminated,
            Frame::ApprovalResolved { seq: 0 },
            Frame::ApprovalResolved { seq: u64::MAX },
            Frame::Listening,
        ];
        for frame in frames {
            let envelope = Envelope { origin: Uuid::new_v4(), after_seq: 6, dropped_previews: 5, frame };
            assert_eq!(decode(&encode(&envelope)).unwrap(), Some(envelope));
        }
    }

    #[test]
    fn what_a_newer_release_says_is_passed_over() {
        let unknown_field_99 = [0x9a, 0x06, 0x01, 0x00];
        assert_eq!(decode(&unknown_field_99).unwrap(), None);
        assert!(decode(b"no protobuf").is_err());
    }
}
