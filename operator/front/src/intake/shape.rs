//! Of how many parts a request is, or what a worker answers: messages, texts and lists, counted along the contract's descriptors before
//! anything is made of them.

use std::collections::HashMap;
use std::sync::LazyLock;

use croft_proto::DESCRIPTORS;
use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// Of one request. The largest that anyone means, an agent with all its tools, has some thousands.
pub(super) const PARTS_MAX: usize = 16_384;
/// Of what a worker says at a time: an answer with all its calls has some hundreds.
const ANSWER_PARTS_MAX: usize = 4_096;
/// Of the checkpoints in it, each of which is a whole conversation: as many as its bytes allow where each part has 16 of a million
/// tokens' four million.
const CHECKPOINT_PARTS_MAX: usize = 262_144;
const CHECKPOINT: &str = ".croft.v1.SessionCheckpoint";
/// Decoding goes no deeper.
const DEPTH_MAX: usize = 100;

static CONTRACT: LazyLock<Contract> = LazyLock::new(Contract::read);

/// What the calls of the contract take and answer.
#[derive(Default)]
struct Contract {
    /// By path, the message's name.
    requests: HashMap<String, String>,
    answers: HashMap<String, String>,
    /// By name, which of a message's fields are messages, and which.
    messages: HashMap<String, HashMap<u64, String>>,
}

impl Contract {
    fn read() -> Self {
        let mut contract = Self::default();
        // These are our own, made with this program.
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default().file;
        for file in files {
            let package = file.package().to_owned();
            for message in &file.message_type {
                contract.add(&format!(".{package}"), message);
            }
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{package}.{}/{}", service.name(), method.name());
                    contract.requests.insert(path.clone(), method.input_type().to_owned());
                    contract.answers.insert(path, method.output_type().to_owned());
                }
            }
        }
        contract
    }

    fn add(&mut self, within: &str, message: &DescriptorProto) {
        let name = format!("{within}.{}", message.name());
        let messages = message.field.iter().filter(|field| field.r#type() == Type::Message);
        let messages =
            messages.filter_map(|field| Some((u64::try_from(field.number()).ok()?, field.type_name().to_owned())));
        self.messages.insert(name.clone(), messages.collect());
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
    }

    /// Counts the parts of a message of this name. What decoding would refuse is refused here, before it has made what comes before.
    fn count(&self, name: &str, mut bytes: &[u8], depth: usize, found: &mut Found) -> Result<(), &'static str> {
        const MALFORMED: &str = "is no message of its call's";
        if depth > DEPTH_MAX {
            return Err("is nested too deeply");
        }
        let fields = self.messages.get(name);
        while !bytes.is_empty() {
            let key = varint(&mut bytes).ok_or(MALFORMED)?;
            let length = match key & 7 {
                0 => varint(&mut bytes).map(|_| 0).ok_or(MALFORMED)?,
                1 => 8,
                2 => varint(&mut bytes).and_then(|length| usize::try_from(length).ok()).ok_or(MALFORMED)?,
                5 => 4,
                // Nothing of this contract is a group.
                _ => return Err(MALFORMED),
            };
            let (value, rest) = bytes.split_at_checked(length).ok_or(MALFORMED)?;
            bytes = rest;
            if key & 7 != 2 {
                continue;
            }
            found.add()?;
            if let Some(message) = fields.and_then(|fields| fields.get(&(key >> 3))) {
                let is_checkpoint = found.is_checkpoint;
                found.is_checkpoint |= message == CHECKPOINT;
                self.count(message, value, depth + 1, found)?;
                found.is_checkpoint = is_checkpoint;
            }
        }
        Ok(())
    }
}

/// How many parts the message has that a call of this path takes. A path of no call has none: nothing will be made of it. Says what is
/// wrong where it is no such message, or has more than [`PARTS_MAX`].
pub(super) fn parts(path: &str, message: &[u8]) -> Result<usize, &'static str> {
    let mut found = Found { parts_max: PARTS_MAX, ..Found::default() };
    if let Some(name) = CONTRACT.requests.get(path) {
        CONTRACT.count(name, message, 0, &mut found)?;
    }
    Ok(found.parts + found.of_checkpoints)
}

/// Whether the message that a worker answers a call of this path with may be decoded. Says what is wrong where it is no such message, or
/// has more than [`ANSWER_PARTS_MAX`] besides the [`CHECKPOINT_PARTS_MAX`] of its checkpoints.
pub(crate) fn answered(path: &str, message: &[u8]) -> Result<(), &'static str> {
    let mut found =
        Found { parts_max: ANSWER_PARTS_MAX, checkpoint_parts_max: CHECKPOINT_PARTS_MAX, ..Found::default() };
    match CONTRACT.answers.get(path) {
        Some(name) => CONTRACT.count(name, message, 0, &mut found),
        None => Ok(()),
    }
}

/// What was counted so far.
#[derive(Default)]
struct Found {
    parts: usize,
    parts_max: usize,
    of_checkpoints: usize,
    checkpoint_parts_max: usize,
    /// What is counted now is within one.
    is_checkpoint: bool,
}

impl Found {
    fn add(&mut self) -> Result<(), &'static str> {
        let (count, max) = if self.is_checkpoint {
            (&mut self.of_checkpoints, self.checkpoint_parts_max)
        } else {
            (&mut self.parts, self.parts_max)
        };
        *count += 1;
        if *count > max { Err("has too many parts") } else { Ok(()) }
    }
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
    use croft_proto::METHODS;
    use croft_proto::v1::execute_step_response::Message as Said;
    use croft_proto::v1::session_event::Kind;
    use croft_proto::v1::{
        AgentMessage, AgentSpec, ContentBlock, CreateSessionRequest, ExecuteStepResponse, Message, SessionCheckpoint,
        SessionEvent, StepEvent, StepFinished, ToolSpec,
    };

    use super::*;

    const CREATE: &str = "/croft.v1.LifecycleService/CreateSession";
    const STEP: &str = "/croft.v1.RuntimeService/ExecuteStep";

    #[test]
    fn every_call_and_every_message_of_it_is_known() {
        for method in METHODS {
            for messages in [&CONTRACT.requests, &CONTRACT.answers] {
                let message = messages.get(&format!("/{method}")).unwrap_or_else(|| panic!("{method}"));
                assert!(CONTRACT.messages.contains_key(message), "{message}");
            }
        }
        assert!(CONTRACT.messages.contains_key(CHECKPOINT));
        for (message, fields) in &CONTRACT.messages {
            for field in fields.values() {
                assert!(CONTRACT.messages.contains_key(field), "{field} of {message}");
            }
        }
    }

    #[test]
    fn parts_within_parts_are_counted_and_texts_are_one() {
        let tool = ToolSpec { name: "\x0a\x00\x0a\x00".into(), ..ToolSpec::default() };
        let agent =
            AgentSpec { tools: vec![tool; 3], sub_agents: vec![AgentSpec::default(); 2], ..AgentSpec::default() };
        let labels = [("team".to_owned(), "blue".to_owned())].into();
        let request = CreateSessionRequest { agent: Some(agent), labels, ..CreateSessionRequest::default() };
        // The agent, three tools with a name each, two agents; a pair, its key and its value.
        assert_eq!(parts(CREATE, &request.encode_to_vec()), Ok(1 + 6 + 2 + 3));
        assert_eq!(parts("/croft.v1.LifecycleService/Dance", &request.encode_to_vec()), Ok(0));
    }

    #[test]
    fn a_worker_may_say_little_at_a_time_and_all_of_a_conversation() {
        let conversation = |messages| SessionCheckpoint {
            messages: vec![Message::default(); messages],
            ..SessionCheckpoint::default()
        };
        let step = |said| ExecuteStepResponse { message: Some(said) }.encode_to_vec();
        let most = step(Said::Checkpoint(conversation(CHECKPOINT_PARTS_MAX)));
        assert_eq!(answered(STEP, &most), Ok(()));
        let finished = |messages| StepFinished { checkpoint: Some(conversation(messages)), ..StepFinished::default() };
        assert_eq!(answered(STEP, &step(Said::Finished(finished(CHECKPOINT_PARTS_MAX)))), Ok(()));
        assert!(answered(STEP, &step(Said::Finished(finished(CHECKPOINT_PARTS_MAX + 1)))).is_err());
        // Decoding adds one to the other.
        assert!(answered(STEP, &[most, step(Said::Checkpoint(conversation(1)))].concat()).is_err());

        let message =
            |content| AgentMessage { content: vec![ContentBlock::default(); content], ..AgentMessage::default() };
        let told = |content| {
            let event = SessionEvent { kind: Some(Kind::AgentMessage(message(content))), ..SessionEvent::default() };
            step(Said::Event(StepEvent { event: Some(event), ..StepEvent::default() }))
        };
        // Within an event, its event, and the message.
        assert_eq!(answered(STEP, &told(ANSWER_PARTS_MAX - 3)), Ok(()));
        assert!(answered(STEP, &told(ANSWER_PARTS_MAX - 2)).is_err());
    }

    #[test]
    fn what_is_no_message_of_the_call_is_refused() {
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x05ab",
            b"\x08",
            b"\x0e",
            &[0xff; 11],
            // A group; and a part that reaches beyond the one that it is in.
            b"\xfb\x07\xfc\x07",
            b"\x0a\x02\x5a\x04\x5a\x00\x5a\x00",
        ] {
            assert!(parts(CREATE, bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(parts(CREATE, b""), Ok(0));
    }
}
