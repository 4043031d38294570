//! The JSON frames of the WebSocket. 64-bit numbers are text, as in the protobuf JSON mapping; from clients, numbers are
//! taken too.

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{InterruptSessionRequest, ResolveApprovalRequest, SendMessageRequest, SessionEvent};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::gateway::Failure;

/// Of a session's, an approval's or a ping's id: what is said again in an answer.
const ID_CHARACTERS_MAX: usize = 128;

/// What a client sends.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ClientFrame {
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Send(SendMessageRequest),
    Interrupt(InterruptSessionRequest),
    Approve(ResolveApprovalRequest),
    Ping(Ping),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Subscribe {
    pub(super) session_id: String,
    #[serde(default, deserialize_with = "number")]
    pub(super) since: u64,
    #[serde(default)]
    pub(super) durable_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Unsubscribe {
    pub(super) session_id: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Ping {
    #[serde(default)]
    pub(super) id: String,
}

/// What the server sends.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum ServerFrame {
    Subscribed {
        session_id: String,
        #[serde(serialize_with = "text")]
        since: u64,
    },
    Unsubscribed {
        session_id: String,
    },
    Event(Box<SessionEvent>),
    Gap {
        session_id: String,
        #[serde(serialize_with = "text")]
        dropped_previews: u64,
        #[serde(serialize_with = "text")]
        last_seq: u64,
    },
    Ended {
        session_id: String,
    },
    Sent {
        session_id: String,
        #[serde(serialize_with = "text")]
        seq: u64,
    },
    Interrupted {
        session_id: String,
        interrupted: bool,
    },
    Approved {
        session_id: String,
        approval_id: String,
    },
    Pong {
        id: String,
    },
    Error {
        #[serde(flatten)]
        failure: Failure,
        #[serde(skip_serializing_if = "Option::is_none")]
        session_id: Option<String>,
    },
}

impl ClientFrame {
    /// Fails with a sentence for the client.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let frame: Self = serde_json::from_str(text).map_err(|error| {
            // What serde quotes is the client's own, but may be long.
            let problem: String = error.to_string().chars().take(200).collect();
            format!("the frame can't be read: {problem}")
        })?;
        for (name, id) in frame.ids() {
            if id.chars().nth(ID_CHARACTERS_MAX).is_some() {
                return Err(format!("`{name}` has more than {ID_CHARACTERS_MAX} characters"));
            }
        }
        Ok(frame)
    }

    /// What an answer to it says again.
    fn ids(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let (session_id, other) = match self {
            Self::Subscribe(Subscribe { session_id, .. })
            | Self::Unsubscribe(Unsubscribe { session_id })
            | Self::Send(SendMessageRequest { session_id, .. })
            | Self::Interrupt(InterruptSessionRequest { session_id }) => (Some(session_id), None),
            Self::Approve(ResolveApprovalRequest { session_id, approval_id, .. }) => {
                (Some(session_id), Some(("approvalId", approval_id)))
            }
            Self::Ping(Ping { id }) => (None, Some(("id", id))),
        };
        session_id.map(|id| ("sessionId", id)).into_iter().chain(other).map(|(name, id)| (name, id.as_str()))
    }
}

impl From<SessionEvent> for ServerFrame {
    fn from(event: SessionEvent) -> Self {
        match event.kind {
            Some(Kind::Gap(gap)) => Self::Gap {
                session_id: event.session_id,
                dropped_previews: gap.dropped_previews,
                last_seq: gap.last_seq,
            },
            _ => Self::Event(Box::new(event)),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it like this")]
fn text<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer) {
        Ok(Either::Number(number)) => Ok(number),
        Ok(Either::Text(text)) => text.parse().map_err(|_| serde::de::Error::custom("`since` is not a number")),
        Err(_) => Err(serde::de::Error::custom("`since` is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cursor_is_taken_as_text_and_as_a_number() {
        for since in [json!("12"), json!(12)] {
            let frame = json!({ "subscribe": { "sessionId": "heron", "since": since } }).to_string();
            let Ok(ClientFrame::Subscribe(subscribe)) = ClientFrame::parse(&frame) else { panic!("{frame}") };
            assert_eq!((subscribe.since, subscribe.durable_only), (12, false));
        }
    }

    #[test]
    fn what_can_not_be_read_is_said_in_a_sentence() {
        for (frame, hint) in [
            ("", "EOF"),
            ("[]", "expected value"),
            (r#"{"subscribe":{}}"#, "sessionId"),
            (r#"{"subscribe":{"sessionId":"a","since":-1}}"#, "`since` is not a number"),
            (r#"{"shout":{}}"#, "unknown variant"),
        ] {
            let problem = ClientFrame::parse(frame).unwrap_err();
            assert!(problem.starts_with("the frame can't be read: ") && problem.contains(hint), "{problem}");
        }
    }

    #[test]
    fn an_id_has_so_many_characters_and_no_more() {
        let frames: [fn(&str) -> serde_json::Value; 7] = [
            |id| json!({ "subscribe": { "sessionId": id } }),
            |id| json!({ "unsubscribe": { "sessionId": id } }),
            |id| json!({ "send": { "sessionId": id } }),
            |id| json!({ "interrupt": { "sessionId": id } }),
            |id| json!({ "approve": { "sessionId": id } }),
            |id| json!({ "approve": { "sessionId": "heron", "approvalId": id } }),
            |id| json!({ "ping": { "id": id } }),
        ];
        for frame in frames {
            let fits = frame(&"ü".repeat(ID_CHARACTERS_MAX)).to_string();
            assert!(ClientFrame::parse(&fits).is_ok(), "{fits}");
            let problem = ClientFrame::parse(&frame(&"ü".repeat(ID_CHARACTERS_MAX + 1)).to_string()).unwrap_err();
            assert!(problem.ends_with("d` has more than 128 characters") && !problem.contains('ü'), "{problem}");
        }
    }

    #[test]
    fn frames_have_the_documented_form() {
        let session_id = || "heron".to_owned();
        let failure = Failure::new("SESSION_NOT_FOUND", "session heron does not exist");
        let event = SessionEvent { session_id: session_id(), seq: 13, ..Default::default() };
        for (frame, expected) in [
            (
                ServerFrame::Subscribed { session_id: session_id(), since: 12 },
                json!({ "subscribed": { "sessionId": "heron", "since": "12" } }),
            ),
            (ServerFrame::from(event), json!({ "event": { "sessionId": "heron", "seq": "13" } })),
            (
                ServerFrame::Error { failure, session_id: Some(session_id()) },
                json!({ "error": {
                    "reason": "SESSION_NOT_FOUND", "message": "session heron does not exist", "sessionId": "heron",
                } }),
            ),
        ] {
            assert_eq!(serde_json::to_value(&frame).unwrap(), expected);
        }
    }
}
