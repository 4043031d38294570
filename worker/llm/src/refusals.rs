//! What models refuse of a request, as they told. Newer ones take no temperature, or one alone; some know only one of the two
//! fields that bound the output; some take back no thoughts; some no user's word right behind a result. Nothing but the refusal of
//! a call says which:
//! <https://platform.claude.com/docs/en/api/messages/create#create.temperature>,
//! <https://platform.openai.com/docs/guides/latest-model>.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_proto::v1::Role;

use crate::carry;
use crate::error::{Class, Error};
use crate::request::Request;

/// Models of which refusals are kept. At the bound all are forgotten, and each costs one refused call more.
const MODELS_MAX: usize = 1_024;
/// Of one model. At the bound its own are forgotten.
const PARTS_MAX: usize = 32;

/// How a server says that it does not know a field, rather than that it takes another value of it.
const UNKNOWN_FIELD: [&str; 10] = [
    "unsupported",
    "not supported",
    "not support ",
    "extra_forbidden",
    "extra inputs",
    "not permitted",
    "not allowed",
    "unrecognized",
    "unknown",
    "unexpected",
];
/// What is said of the schema of a tool is not said of the request's own fields, which may have the names of its properties.
const OF_A_SCHEMA: [&str; 4] = ["schema", "properties", "tools.", "tools["];

/// How models of Mistral's say that a user's word must not follow a result, wherever they are served, and how templates of many
/// others do: "Conversation roles must alternate user/assistant/user/assistant/...".
const OF_THE_ROLES: [&str; 2] = ["'user' after role 'tool'", ROLES_MUST_ALTERNATE];
pub(crate) const ROLES_MUST_ALTERNATE: &str = "roles must alternate";

/// How providers say that they do not take back what a model thought: of what, and what is wrong with it. OpenAI's proof is good for one
/// organization, or one resource of Azure's, Gemini's for one way to the model; Anthropic's for the answer as it was. The words are theirs,
/// without quotes.
const OF_THE_PROOFS: [(&str, &str); 13] = [
    // `invalid_encrypted_content`: "could not be verified. Reason: Encrypted content organization_id did not match the target organization."
    ("encrypted content", "could not be verified"),
    ("encrypted content", "could not be decrypted"),
    ("encrypted content", "did not match"),
    ("encrypted_content", "could not be verified"),
    ("encrypted_content", "not issued to this caller"),
    // Of an answer that has lost its other half, and of servers that go by an item's id.
    ("of type reasoning", "without its required following item"),
    ("rs_", "items are not persisted"),
    ("thinking block", "invalid signature"),
    ("redacted_thinking block", "invalid data"),
    ("redacted_thinking", "cannot be modified"),
    ("thought signature", "invalid"),
    ("thought signature", "not valid"),
    ("thought signature", "corrupted"),
];

/// A part of a request that some models refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// A temperature, by its bits: another may be taken.
    Temperature(u64),
    /// The bound of the output in the field `max_tokens`: `max_completion_tokens` is taken.
    MaxTokens,
    /// The other way about.
    MaxCompletionTokens,
    /// What was thought, in a field of its own.
    ReasoningContent,
    /// A user's message right behind the results of calls: a word of the model's must stand between them.
    UserAfterResults,
}

/// What a call was made with of all that may be refused.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sent {
    temperature: Option<f64>,
    /// Behind which a user's word may stand.
    has_results: bool,
    /// What models thought, as it is proven to be theirs.
    has_proofs: bool,
    /// Was left out already.
    refused: Vec<Part>,
}

impl Sent {
    pub fn of(request: &Request) -> Self {
        Self {
            temperature: request.temperature,
            has_results: request.messages.iter().any(|message| message.role() == Role::Tool),
            has_proofs: carry::has_bound(&request.messages),
            refused: request.refused.clone(),
        }
    }

    /// The provider does not take back what the model thought, though it is its own: the key is another account's by now, or its address
    /// another's. That is so for this conversation, and all calls of it to come; others may have been begun since.
    pub fn has_refused_proofs(&self, error: &Error) -> bool {
        if !self.has_proofs || error.was_not_made || error.class != Class::Invalid {
            return false;
        }
        let is_quote = |character: char| matches!(character, '`' | '\'' | '"' | '\\');
        let message = error.message.to_lowercase().replace(is_quote, "");
        OF_THE_PROOFS.iter().any(|(of_what, word)| message.contains(of_what) && message.contains(word))
    }

    /// The part of it that a message refuses, so that a call without it may go through.
    fn refused_by(&self, message: &str) -> Option<Part> {
        let message = message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        // Before all else: some quote their template with it, where any word may be.
        if says(&OF_THE_ROLES) {
            let part = Part::UserAfterResults;
            return (self.has_results && !self.refused.contains(&part)).then_some(part);
        }
        if says(&OF_A_SCHEMA) {
            return None;
        }
        // A word by itself, and not part of the name of a tool that the provider complains of.
        let of_a_name = |character: char| character.is_alphanumeric() || matches!(character, '_' | '-');
        let mut words = message.split(|character| !of_a_name(character));
        if let Some(temperature) = self.temperature
            && words.clone().any(|word| word == "temperature")
        {
            return Some(Part::Temperature(temperature.to_bits()));
        }
        if !says(&UNKNOWN_FIELD) {
            return None;
        }
        // The first one: what is to be used in its place may be named behind it.
        let part = words.find_map(|word| match word {
            "max_tokens" => Some(Part::MaxTokens),
            "max_completion_tokens" => Some(Part::MaxCompletionTokens),
            "reasoning_content" => Some(Part::ReasoningContent),
            _ => None,
        })?;
        let has_no_other = match part {
            Part::MaxTokens => self.refused.contains(&Part::MaxCompletionTokens),
            Part::MaxCompletionTokens => self.refused.contains(&Part::MaxTokens),
            Part::Temperature(_) | Part::ReasoningContent | Part::UserAfterResults => false,
        };
        (!has_no_other && !self.refused.contains(&part)).then_some(part)
    }
}

type Model = (String, String);

/// What is known of the models of one worker. Clones share it.
#[derive(Clone, Default)]
pub struct Refusals {
    /// By provider and model.
    known: Arc<Mutex<HashMap<Model, Vec<Part>>>>,
}

impl Refusals {
    /// What that model is known to refuse.
    pub fn of(&self, provider: &str, model: &str) -> Vec<Part> {
        self.lock().get(&(provider.to_owned(), model.to_owned())).cloned().unwrap_or_default()
    }

    /// Learns from the failure of a call that was made with this. The part that was refused, if it was one: the same call may go
    /// through without it.
    pub fn learn(&self, provider: &str, model: &str, sent: &Sent, error: &Error) -> Option<Part> {
        if error.was_not_made || error.class != Class::Invalid {
            return None;
        }
        let part = sent.refused_by(&error.message)?;
        let mut known = self.lock();
        if known.len() >= MODELS_MAX {
            known.clear();
        }
        let parts = known.entry((provider.to_owned(), model.to_owned())).or_default();
        if !parts.contains(&part) {
            if parts.len() >= PARTS_MAX {
                parts.clear();
            }
            parts.push(part);
        }
        Some(part)
    }

    /// It was something else: the call was refused without it, too.
    pub fn forget(&self, provider: &str, model: &str, parts: &[Part]) {
        if let Some(known) = self.lock().get_mut(&(provider.to_owned(), model.to_owned())) {
            known.retain(|part| !parts.contains(part));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Model, Vec<Part>>> {
        // No code that holds the lock can leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(message: &str) -> Error {
        Error::new("test", Class::Invalid, message)
    }

    fn warm(refused: &[Part]) -> Sent {
        Sent { temperature: Some(0.2), refused: refused.to_vec(), ..Sent::default() }
    }

    #[test]
    fn a_refusal_that_names_it_is_kept_for_that_model() {
        let refusals = Refusals::default();
        let temperature = Part::Temperature(0.2_f64.to_bits());
        let learnt =
            refusals.learn("anthropic", "x", &warm(&[]), &refusal("`temperature` is deprecated for this model."));
        assert_eq!(learnt, Some(temperature));
        assert_eq!(refusals.clone().of("anthropic", "x"), [temperature]);
        assert!(refusals.of("anthropic", "y").is_empty());
        assert!(refusals.of("z", "x").is_empty());
        refusals.forget("anthropic", "x", &[temperature]);
        assert!(refusals.of("anthropic", "x").is_empty());
    }

    #[test]
    fn what_was_sent_and_is_named_is_what_was_refused() {
        let temperature = Some(Part::Temperature(0.2_f64.to_bits()));
        let use_other = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
        let extra = "[{'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), 'msg': 'Extra inputs are not permitted'}]";
        let groq = "'messages.2' : for 'role:assistant' the following must be satisfied[('messages.2' : property 'reasoning_content' is unsupported)]";
        for (refused, message, expected) in [
            (vec![], "Unsupported value: 'temperature' does not support 0.2", temperature),
            (vec![], "bad (temperature)", temperature),
            (vec![], use_other, Some(Part::MaxTokens)),
            (vec![Part::MaxTokens], use_other, None),
            (vec![Part::MaxCompletionTokens], use_other, None),
            (vec![], extra, Some(Part::MaxCompletionTokens)),
            (vec![Part::MaxTokens], extra, None),
            (vec![Part::MaxTokens], groq, Some(Part::ReasoningContent)),
            (vec![Part::ReasoningContent], groq, None),
        ] {
            assert_eq!(warm(&refused).refused_by(message), expected, "{message}");
        }
        assert_eq!(Sent::default().refused_by("bad (temperature)"), None, "none was sent");
    }

    #[test]
    fn a_refusal_for_the_roles_is_of_a_word_behind_results_if_there_are_any() {
        let part = Some(Part::UserAfterResults);
        let with = |refused: &[Part]| Sent { has_results: true, refused: refused.to_vec(), ..Sent::default() };
        for message in [
            "Unexpected role 'user' after role 'tool'",
            "Conversation roles must alternate user/assistant/user/assistant/...",
            "Error: Jinja Exception: After the optional system message, conversation roles must alternate user and assistant \
             roles except for tool calls and results. {%- if tools[0].properties is not unknown -%}",
        ] {
            assert_eq!(with(&[]).refused_by(message), part, "{message}");
            assert_eq!(with(&[Part::UserAfterResults]).refused_by(message), None, "{message}");
            assert_eq!(Sent::default().refused_by(message), None, "there is no result: {message}");
        }
        assert_eq!(with(&[]).refused_by("Unexpected role 'tool' after role 'user'"), None);
    }

    #[test]
    fn each_provider_has_its_own_word_for_thoughts_that_it_does_not_take_back() {
        let sent = Sent { has_proofs: true, ..Sent::default() };
        for message in [
            "The encrypted content gAAA...DQ== could not be verified.",
            "The encrypted content for item rs_0a18 could not be verified. Reason: Encrypted content could not be decrypted or parsed.",
            "Encrypted content organization_id did not match the target organization.",
            "Upstream request failed: [invalid_request_error] reasoning `encrypted_content` was not issued to this caller",
            "Item 'rs_0a18' of type 'reasoning' was provided without its required following item.",
            "Item with id 'rs_0a18' not found. Items are not persisted when `store` is set to false.",
            "messages.1.content.0: Invalid `signature` in `thinking` block",
            r#"{\"message\":\"messages.1.content.0: Invalid `signature` in `thinking` block\"}"#,
            "messages.3.content.0: Invalid `data` in `redacted_thinking` block",
            "messages.5.content.1: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified.",
            "Corrupted thought signature.",
            "Invalid thought signature.",
            "Unable to submit request because Thought signature is not valid.",
        ] {
            assert!(sent.has_refused_proofs(&refusal(message)), "{message}");
            assert!(!Sent::default().has_refused_proofs(&refusal(message)), "there were none: {message}");
            assert!(!sent.has_refused_proofs(&Error::new("p", Class::Overload, message)), "{message}");
            assert!(!sent.has_refused_proofs(&refusal(message).without_a_call()), "{message}");
        }
        for message in [
            "Encrypted content is not supported with this model.",
            "Function call is missing a thought_signature in functionCall parts.",
            "Expected `thinking` or `redacted_thinking`, but found `tool_use`.",
            "Item 'msg_1' of type 'message' was provided without its required 'reasoning' item: 'rs_1'.",
            "tools.0: the signature is invalid",
        ] {
            assert!(!sent.has_refused_proofs(&refusal(message)), "{message}");
        }
    }

    #[test]
    fn whatever_else_was_refused_is_no_word_on_it() {
        let refusals = Refusals::default();
        for message in [
            "tools.0: get_temperature has no type",
            "temperatures",
            "max_tokens: must be positive",
            "max_tokens is too large: 16384. This model supports at most 4096 completion tokens",
            "max_tokens: 16384 > 8192, which is the maximum allowed number of output tokens",
            "The reasoning_content in the thinking mode must be passed back to the API.",
            "Invalid schema for function 'weather': In context=('properties', 'temperature'), 'type' is missing",
            "tools.0.custom.input_schema.properties.temperature: unknown type",
            "tools[0]: temperature has no type",
        ] {
            assert_eq!(refusals.learn("p", "m", &warm(&[]), &refusal(message)), None, "{message}");
        }
        let overload = Error::new("p", Class::Overload, "temperature of the machine is too high");
        assert_eq!(refusals.learn("p", "m", &warm(&[]), &overload), None);
        assert!(refusals.of("p", "m").is_empty());
    }

    #[test]
    fn at_the_bounds_all_are_forgotten() {
        let refusals = Refusals::default();
        for model in 0..=MODELS_MAX {
            assert!(refusals.learn("p", &model.to_string(), &warm(&[]), &refusal("temperature")).is_some());
        }
        assert_eq!(refusals.lock().len(), 1);
        for temperature in 0..=PARTS_MAX {
            let temperature = Some(f64::from(u32::try_from(temperature).unwrap()));
            let sent = Sent { temperature, ..Sent::default() };
            assert!(refusals.learn("p", "m", &sent, &refusal("temperature")).is_some());
        }
        assert_eq!(refusals.of("p", "m").len(), 1);
    }
}
