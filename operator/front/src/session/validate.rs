//! What a request must look like before anything is done for it. Each refusal names the field.

mod guardrails;
mod limits;
mod models;
mod patterns;
mod permission_rules;
mod sub_agents;
mod tools;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use croft_proto::id::SessionId;
use croft_proto::v1::{AgentSpec, ContentBlock, Image, content_block, image};
use croft_proto::{Timestamp, media_type};
use croft_serve::config::http_url;
use prost::Message;

use crate::error::Error;

const NAME_CHARS_MAX: usize = 63;
/// Sooner, nearly every call would be made twice; later, it would have failed by itself.
const HEDGE_AFTER_MS: RangeInclusive<i64> = 50..=120_000;
const SYSTEM_PROMPT_BYTES_MAX: usize = 256 * 1024;
/// Of the whole agent, with its sub-agents: it is part of each answer that shows the session.
const AGENT_BYTES_MAX: usize = 1024 * 1024;
const LABELS_MAX: usize = 16;
const KEY_CHARS_MAX: usize = 255;
/// What the labels of Croft's own begin with.
const OWN_LABELS: &str = "croft.dev/";
/// What the idempotency keys of Croft's own begin with: sessions of AgentSessions, answers of approvals, those that a turn did not hear of,
/// alerts of budgets, and what sub-agents are told.
const OWN_KEYS: [&str; 5] = ["agentsession/", "approval/", "unheard/", "budget-alert/", "sub-agent-call"];
const REASON_CHARS_MAX: usize = 256;
/// Of a page of sessions, or of open questions, whose caller names no size.
pub const PAGE_SIZE: u32 = 50;
const PAGE_SIZE_MAX: i32 = 1_000;
/// The model reads it, and everybody who follows the session.
const APPROVAL_CHARS_MAX: usize = 4096;
const APPROVAL_ARGUMENTS_BYTES_MAX: usize = 64 * 1024;
/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, as `google.protobuf.Timestamp` has it.
const SECONDS_MIN: i64 = -62_135_596_800;
const SECONDS_MAX: i64 = 253_402_300_799;

/// The agent of a new session.
pub fn agent(agent: Option<AgentSpec>) -> Result<AgentSpec, Error> {
    let agent = agent.ok_or_else(|| Error::invalid("agent", "is missing"))?;
    let bytes = agent.encoded_len();
    if bytes > AGENT_BYTES_MAX {
        return Err(Error::invalid("agent", format!("has {bytes} bytes, and {AGENT_BYTES_MAX} is the limit")));
    }
    one(&agent)?;
    sub_agents::sub_agents(&agent)?;
    patterns::patterns(&agent)?;
    Ok(agent)
}

/// An agent, but for its sub-agents.
fn one(agent: &AgentSpec) -> Result<(), Error> {
    new_name("agent.name", &agent.name)?;
    models::models(agent)?;
    if agent.system_prompt.len() > SYSTEM_PROMPT_BYTES_MAX {
        return Err(Error::invalid("agent.system_prompt", format!("is longer than {SYSTEM_PROMPT_BYTES_MAX} bytes")));
    }
    if agent.temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
        return Err(Error::invalid("agent.temperature", "is not between 0 and 2"));
    }
    tools::tools(agent)?;
    guardrails::guardrails(&agent.guardrails)?;
    permission_rules::permission_rules(&agent.permission_rules)?;
    if agent.hedge_after_ms != 0 && !HEDGE_AFTER_MS.contains(&agent.hedge_after_ms) {
        return Err(Error::invalid("agent.hedge_after_ms", "is not 0 and not between 50 and 120000"));
    }
    limits::limits(&agent.limits.unwrap_or_default())
}

/// How many a page has at most: as many as were asked for, 1 to 1,000, or `unnamed` where that is 0.
pub fn page_size(asked: i32, unnamed: u32) -> Result<u32, Error> {
    match asked {
        0 => Ok(unnamed),
        1..=PAGE_SIZE_MAX => Ok(asked.unsigned_abs()),
        _ => Err(Error::invalid("page_size", format!("is not between 0 and {PAGE_SIZE_MAX}"))),
    }
}

/// The name of an agent or a guardrail of a new session.
fn new_name(field: &str, text: &str) -> Result<(), Error> {
    name(field, text)?;
    if text.starts_with('-') || text.ends_with('-') {
        return Err(Error::invalid(field, "begins or ends with -"));
    }
    Ok(())
}

/// An agent's name, also one of a session from before names were kept from beginning and ending with `-`.
pub fn name(field: &str, text: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > NAME_CHARS_MAX || !text.chars().all(fits) {
        return Err(Error::invalid(field, "is not 1 to 63 of a-z 0-9 -"));
    }
    Ok(())
}

/// The labels of a new session, or of a filter.
pub fn labels(labels: impl IntoIterator<Item = (String, String)>) -> Result<BTreeMap<String, String>, Error> {
    let labels: BTreeMap<_, _> = labels.into_iter().collect();
    if labels.len() > LABELS_MAX {
        return Err(Error::invalid("labels", format!("has more than {LABELS_MAX} entries")));
    }
    for (key, value) in &labels {
        if key.is_empty() || [key, value].into_iter().any(|text| text.chars().count() > NAME_CHARS_MAX) {
            return Err(Error::invalid("labels", "has a key or value that is empty or longer than 63 characters"));
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(Error::invalid("labels", "has a key or value with a control character"));
        }
    }
    Ok(labels)
}

/// Labels of a session that a client makes. By its own, Croft knows which sessions are whose.
pub fn clients_labels<'a>(keys: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    match keys.into_iter().find(|key| key.starts_with(OWN_LABELS)) {
        Some(_) => Err(Error::invalid("labels", format!("has a key of {OWN_LABELS}, which are Croft's own"))),
        None => Ok(()),
    }
}

/// An idempotency key of a client's. One of Croft's own in its place would keep what Croft does with it from being done.
pub fn clients_key(key: &str) -> Result<(), Error> {
    match OWN_KEYS.into_iter().find(|own| key.starts_with(own)) {
        Some(own) => Err(Error::invalid("idempotency_key", format!("begins with {own}, as Croft's own do"))),
        None => Ok(()),
    }
}

/// An idempotency key, or `None` when there is none.
pub fn idempotency_key(key: &str) -> Result<Option<&str>, Error> {
    if key.chars().count() > KEY_CHARS_MAX {
        return Err(Error::invalid("idempotency_key", format!("is longer than {KEY_CHARS_MAX} characters")));
    }
    if key.contains(char::is_control) {
        return Err(Error::invalid("idempotency_key", "has a control character"));
    }
    Ok((!key.is_empty()).then_some(key))
}

/// What a user says: something, of kinds that users may say, within the bound. An image gets the media type of its data, whatever
/// was said of it.
pub fn message(content: &mut [ContentBlock], bytes_max: usize) -> Result<(), Error> {
    if content.is_empty() {
        return Err(Error::invalid("content", "is empty"));
    }
    let bytes: usize = content.iter().map(Message::encoded_len).sum();
    if bytes > bytes_max {
        return Err(Error::invalid("content", format!("has {bytes} bytes, and {bytes_max} is the limit")));
    }
    for (position, block) in content.iter_mut().enumerate() {
        match &mut block.block {
            Some(content_block::Block::Text(text)) if text.text.trim().is_empty() => {
                return Err(Error::invalid(format!("content[{position}].text"), "is empty"));
            }
            Some(content_block::Block::Text(_)) => {}
            Some(content_block::Block::Image(image)) => one_image(image, &format!("content[{position}].image"))?,
            Some(_) => return Err(Error::invalid(format!("content[{position}]"), "is neither text nor image")),
            None => return Err(Error::invalid(format!("content[{position}]"), "is empty")),
        }
    }
    Ok(())
}

/// An image that no provider takes would end its session: it is part of each later request.
fn one_image(image: &mut Image, field: &str) -> Result<(), Error> {
    match &image.source {
        None => return Err(Error::invalid(field, "has neither data nor url")),
        Some(image::Source::Data(data)) => match media_type::of_image(data) {
            Some(media_type) => media_type.clone_into(&mut image.media_type),
            None => return Err(Error::invalid(format!("{field}.data"), "is no PNG, JPEG, GIF, WebP, HEIC or HEIF")),
        },
        Some(image::Source::Url(url)) => {
            if http_url(url).is_err() {
                return Err(Error::invalid(format!("{field}.url"), "is no http:// or https:// address"));
            }
            if !image.media_type.is_empty() && !image.media_type.starts_with("image/") {
                return Err(Error::invalid(format!("{field}.media_type"), "is no type of images"));
            }
        }
    }
    Ok(())
}

/// A session's id. What isn't one names no session, and the answer is the same as for a foreign session.
pub fn session_id(text: &str) -> Result<SessionId, Error> {
    if text.is_empty() {
        return Err(Error::invalid("session_id", "is empty"));
    }
    text.parse().map_err(|_| Error::SessionNotFound { session_id: text.chars().take(64).collect() })
}

/// What a person says to a decision.
pub fn approval_message(text: &str) -> Result<(), Error> {
    if text.chars().count() > APPROVAL_CHARS_MAX {
        return Err(Error::invalid("message", format!("is longer than {APPROVAL_CHARS_MAX} characters")));
    }
    Ok(())
}

/// What a person has a call made with in place of the model's arguments; nothing where those stand.
pub fn approval_arguments(arguments_json: &str, approved: bool) -> Result<(), Error> {
    let refused = |problem: String| Err(Error::invalid("arguments_json", problem));
    if arguments_json.is_empty() {
        return Ok(());
    }
    if approved {
        return refused("is given beside a yes to the call as it was asked for".to_owned());
    }
    if arguments_json.len() > APPROVAL_ARGUMENTS_BYTES_MAX {
        return refused(format!("is longer than {APPROVAL_ARGUMENTS_BYTES_MAX} bytes"));
    }
    printable("arguments_json", arguments_json)?;
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments_json) {
        Ok(_) => Ok(()),
        Err(error) => refused(format!("is no JSON object: {error}")),
    }
}

/// Text that a database takes.
pub fn printable(field: &str, text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        return Err(Error::invalid(field, "has a NUL character"));
    }
    Ok(())
}

/// A time of the protobuf format: from the year 1 to the year 9999.
pub fn time(field: &str, time: Option<Timestamp>) -> Result<(), Error> {
    let fits = |time: Timestamp| {
        (SECONDS_MIN..=SECONDS_MAX).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos)
    };
    if time.is_some_and(|time| !fits(time)) {
        return Err(Error::invalid(field, "is no time between the years 1 and 9999"));
    }
    Ok(())
}

/// Why a session is terminated.
pub fn terminate_reason(text: &str) -> Result<String, Error> {
    if text.chars().count() > REASON_CHARS_MAX {
        return Err(Error::invalid("reason", format!("is longer than {REASON_CHARS_MAX} characters")));
    }
    printable("reason", text)?;
    Ok(if text.is_empty() { "requested".to_owned() } else { text.to_owned() })
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::tool_spec::Source;
    use croft_proto::v1::{AgentLimits, GuardrailSpec, McpTool, Text, ToolSpec};

    use super::*;

    fn field_of(result: Result<impl std::fmt::Debug, Error>) -> String {
        match result.unwrap_err() {
            Error::Invalid { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    fn spec() -> AgentSpec {
        AgentSpec { name: "helper".into(), model: "scripted-1".into(), ..AgentSpec::default() }
    }

    fn text(text: &str) -> ContentBlock {
        ContentBlock { block: Some(content_block::Block::Text(Text { text: text.into() })) }
    }

    #[test]
    fn each_mistake_in_an_agent_names_its_field() {
        let nameless_tool = ToolSpec { name: "no spaces please".into(), ..ToolSpec::default() };
        let sourceless_tool = ToolSpec { name: "clock".into(), ..ToolSpec::default() };
        let telling = Source::Mcp(McpTool { server_url: "https://me:secret@tools.test".into(), ..McpTool::default() });
        let telling_tool = ToolSpec { source: Some(telling), ..sourceless_tool.clone() };
        let budget = |budget_nano_usd, budget_tokens| {
            Some(AgentLimits { budget_nano_usd, budget_tokens, ..AgentLimits::default() })
        };
        let cases = [
            (AgentSpec { guardrails: vec![GuardrailSpec::default()], ..spec() }, "agent.guardrails[0].name"),
            (AgentSpec { limits: budget(-1, 0), ..spec() }, "agent.limits.budget_nano_usd"),
            (AgentSpec { limits: budget(0, -1), ..spec() }, "agent.limits.budget_tokens"),
            (
                AgentSpec { limits: Some(AgentLimits { turn_timeout_ms: -1, ..AgentLimits::default() }), ..spec() },
                "agent.limits.turn_timeout_ms",
            ),
            (AgentSpec { name: "Upper".into(), ..spec() }, "agent.name"),
            (AgentSpec { name: "-a".into(), ..spec() }, "agent.name"),
            (AgentSpec { name: "a-".into(), ..spec() }, "agent.name"),
            (AgentSpec { fallback_models: vec!["scripted-1".into()], ..spec() }, "agent.fallback_models"),
            (AgentSpec { model: String::new(), ..spec() }, "agent.model"),
            (AgentSpec { temperature: Some(f64::NAN), ..spec() }, "agent.temperature"),
            (AgentSpec { hedge_after_ms: 49, ..spec() }, "agent.hedge_after_ms"),
            (AgentSpec { hedge_after_ms: -1, ..spec() }, "agent.hedge_after_ms"),
            (AgentSpec { hedge_after_ms: 120_001, ..spec() }, "agent.hedge_after_ms"),
            (AgentSpec { tools: vec![nameless_tool], ..spec() }, "agent.tools[0].name"),
            (AgentSpec { tools: vec![sourceless_tool], ..spec() }, "agent.tools[0].source"),
            (AgentSpec { tools: vec![telling_tool], ..spec() }, "agent.tools[0].mcp.server_url"),
            (AgentSpec { system_prompt: "x".repeat(SYSTEM_PROMPT_BYTES_MAX + 1), ..spec() }, "agent.system_prompt"),
        ];
        for (bad, field) in cases {
            assert_eq!(field_of(agent(Some(bad))), field);
        }
        assert_eq!(field_of(agent(None)), "agent");
        agent(Some(spec())).unwrap();
    }

    #[test]
    fn a_message_says_something_and_fits() {
        assert_eq!(field_of(message(&mut [], 100)), "content");
        assert_eq!(field_of(message(&mut [text(" \n")], 100)), "content[0].text");
        assert_eq!(field_of(message(&mut [text(&"x".repeat(200))], 100)), "content");
        assert_eq!(field_of(message(&mut [ContentBlock { block: None }], 100)), "content[0]");
        message(&mut [text("hello")], 100).unwrap();
    }

    #[test]
    fn an_image_is_one_that_providers_take_and_has_the_type_of_its_data() {
        let of = |media_type: &str, source| {
            let image = Image { media_type: media_type.into(), source };
            [text("see"), ContentBlock { block: Some(content_block::Block::Image(image)) }]
        };
        let data = |data: &'static [u8]| Some(image::Source::Data(data.into()));
        let url = |url: &str| Some(image::Source::Url(url.into()));
        for (media_type, source, field) in [
            ("image/png", None, "content[1].image"),
            ("image/png", data(b""), "content[1].image.data"),
            ("image/png", data(b"%PDF-1.7"), "content[1].image.data"),
            ("image/svg+xml", data(b"<svg/>"), "content[1].image.data"),
            ("image/png", url(""), "content[1].image.url"),
            ("image/png", url("file:///etc/passwd"), "content[1].image.url"),
            ("text/html", url("https://pictures.test/1"), "content[1].image.media_type"),
        ] {
            assert_eq!(field_of(message(&mut of(media_type, source), 100)), field);
        }
        for media_type in ["", "image/jpg", "image/gif"] {
            let mut content = of(media_type, data(b"\x89PNG\r\n\x1a\n\0"));
            message(&mut content, 100).unwrap();
            assert_eq!(content, of("image/png", data(b"\x89PNG\r\n\x1a\n\0")), "{media_type}");
        }
        let mut content = of("image/jpeg", data(b"\0\0\0\x10ftypheic\0\0\0\0"));
        message(&mut content, 100).unwrap();
        assert_eq!(content, of("image/heic", data(b"\0\0\0\x10ftypheic\0\0\0\0")), "Gemini takes it");
        for media_type in ["", "image/avif"] {
            let mut content = of(media_type, url("https://pictures.test/1"));
            message(&mut content, 100).unwrap();
            assert_eq!(content, of(media_type, url("https://pictures.test/1")));
        }
    }

    #[test]
    fn what_is_no_id_is_a_session_that_does_not_exist() {
        assert!(matches!(session_id("nonsense"), Err(Error::SessionNotFound { .. })));
        assert_eq!(field_of(session_id("")), "session_id");
    }

    #[test]
    fn what_is_crofts_own_is_no_clients() {
        for (key, fits) in [
            ("mine", true),
            ("agentsession/1", false),
            ("approval/1", false),
            ("unheard/1", false),
            ("budget-alert/1", false),
            ("sub-agent-call", false),
        ] {
            assert_eq!(clients_key(key).is_ok(), fits, "{key}");
        }
        assert!(clients_labels([&"croft.dev".to_owned(), &"team".to_owned()]).is_ok());
        assert_eq!(field_of(clients_labels([&"croft.dev/agentsession-uid".to_owned()])), "labels");
    }

    #[test]
    fn nothing_that_is_stored_as_text_has_a_control_character() {
        assert_eq!(field_of(labels([("a\0".to_owned(), "b".to_owned())])), "labels");
        assert_eq!(field_of(labels([("a".to_owned(), "b\n".to_owned())])), "labels");
        assert_eq!(field_of(idempotency_key("a\0")), "idempotency_key");
        assert_eq!(field_of(idempotency_key(&"a".repeat(KEY_CHARS_MAX + 1))), "idempotency_key");
        // Whatever the characters are: an index of the database has room for four bytes each.
        let birds = |count| "\u{1f426}".repeat(count);
        assert!(idempotency_key(&birds(KEY_CHARS_MAX)).is_ok());
        assert!(labels([(birds(NAME_CHARS_MAX), birds(NAME_CHARS_MAX))]).is_ok());
        assert_eq!(field_of(labels([("a".to_owned(), birds(NAME_CHARS_MAX + 1))])), "labels");
        assert_eq!(field_of(terminate_reason("a\0")), "reason");
        assert_eq!(field_of(printable("page_token", "a\0")), "page_token");
    }

    #[test]
    fn what_a_person_says_to_a_decision_is_short() {
        approval_message(&"ü".repeat(APPROVAL_CHARS_MAX)).unwrap();
        assert_eq!(field_of(approval_message(&"x".repeat(APPROVAL_CHARS_MAX + 1))), "message");
    }

    #[test]
    fn what_a_person_has_a_call_made_with_is_a_short_object_and_stands_for_a_yes() {
        let object = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - r#"{"a":""}"#.len()));
        for (arguments, approved) in
            [("", false), ("", true), ("{}", false), (&object(APPROVAL_ARGUMENTS_BYTES_MAX), false)]
        {
            approval_arguments(arguments, approved).unwrap();
        }
        let long = object(APPROVAL_ARGUMENTS_BYTES_MAX + 1);
        for (arguments, approved) in
            [("{}", true), ("[]", false), ("{", false), ("{} {}", false), ("{\"a\":\"\0\"}", false), (&long, false)]
        {
            assert_eq!(field_of(approval_arguments(arguments, approved)), "arguments_json", "{arguments:.20}");
        }
    }

    #[test]
    fn a_time_is_one_that_the_protobuf_format_has() {
        let at = |seconds, nanos| time("end_time", Some(Timestamp { seconds, nanos }));
        for (seconds, nanos) in [(SECONDS_MIN, 0), (0, 0), (SECONDS_MAX, 999_999_999)] {
            at(seconds, nanos).unwrap();
        }
        time("end_time", None).unwrap();
        for (seconds, nanos) in [(SECONDS_MIN - 1, 0), (SECONDS_MAX + 1, 0), (i64::MAX, 0), (0, -1), (0, 1_000_000_000)]
        {
            assert_eq!(field_of(at(seconds, nanos)), "end_time", "{seconds} {nanos}");
        }
    }
}
