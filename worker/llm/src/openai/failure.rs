//! OpenAI's errors by our classes: `{"error":{"message","type","param","code"}}`, as a response and in mid stream, and the
//! dialects of it that other servers of the same interface speak.

use std::borrow::Cow;

use serde_json::Value;

use super::NAME;
use crate::error::{Class, Error};
use crate::refusals::ROLES_MUST_ALTERNATE;
use crate::status;
use crate::wire::error_object;

/// What an HTTP status means, with the body if it was JSON.
pub(super) fn of_status(status: u16, body: Option<&Value>) -> Error {
    let told = body.map(|body| error_object(body).unwrap_or(body)).map(Told::read).unwrap_or_default();
    let message = told.whole().unwrap_or_else(|| status::message(status));
    let class = told.class(&message).unwrap_or_else(|| told.refined(status::class(status), &message));
    Error::new(NAME, class, message)
}

/// What an error in a stream that began well means: the object itself, or the body that holds it.
pub(super) fn in_stream(body: &Value) -> Error {
    let told = Told::read(error_object(body).unwrap_or(body));
    let message = told.whole().unwrap_or_else(|| told.with_param("failed without a word"));
    // What we don't know is the provider's fault until it is known to be ours.
    let class = told.class(&message).unwrap_or_else(|| {
        let class = told.status().map_or(Class::Overload, status::class);
        told.refined(class, &message)
    });
    Error::new(NAME, class, message)
}

/// The fields of an error. A code is a word at OpenAI, a number at others, and an error may be a bare sentence.
#[derive(Default)]
struct Told<'body> {
    message: Option<Cow<'body, str>>,
    /// What the provider behind a router said.
    routed: Option<String>,
    kind: &'body str,
    code: &'body str,
    /// The field of the request that it is about.
    param: &'body str,
    number: Option<u64>,
}

impl<'body> Told<'body> {
    fn read(error: &'body Value) -> Self {
        let field = |name: &str| error.get(name).and_then(Value::as_str);
        Self {
            message: sentence(error),
            routed: routed(error),
            kind: field("type").unwrap_or_default(),
            code: field("code").unwrap_or_default(),
            param: field("param").unwrap_or_default(),
            number: error.get("code").and_then(Value::as_u64).or_else(|| field("code")?.parse().ok()),
        }
    }

    /// All that was said, if anything was.
    fn whole(&self) -> Option<String> {
        let message = self.message.as_deref()?;
        Some(match &self.routed {
            Some(routed) => self.with_param(&format!("{message}: {routed}")),
            None => self.with_param(message),
        })
    }

    /// Few sentences leave out what they are about.
    fn with_param(&self, message: &str) -> String {
        if message.contains(self.param) { message.to_owned() } else { format!("{message} ({})", self.param) }
    }

    fn status(&self) -> Option<u16> {
        self.number.and_then(|number| u16::try_from(number).ok()).filter(|status| *status >= 400)
    }

    fn class(&self, message: &str) -> Option<Class> {
        let class = of_word(self.code).or_else(|| of_word(self.kind))?;
        Some(self.refined(class, message))
    }

    /// Some causes that need another answer share a word; only the sentence tells them apart.
    fn refined(&self, class: Class, message: &str) -> Class {
        let message = message.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        // The quota of the provider behind a router is the router's, and not of the key that we call with.
        let own = self.message.as_deref().unwrap_or_default().to_ascii_lowercase();
        let says_itself = |words: &[&str]| words.iter().any(|word| own.contains(word));
        match class {
            Class::Invalid if says(&TOO_LONG) => Class::Context,
            Class::Overload if says(&[OF_LLAMA_CPP]) => Class::Context,
            // What a template refuses is a fault of the server to llama.cpp, and would be tried again as it is.
            Class::Overload if says(&[ROLES_MUST_ALTERNATE]) => Class::Invalid,
            Class::Invalid if says(&["usage policy", "content management policy", "safety system"]) => Class::Content,
            Class::Invalid if says(&["api key"]) => Class::Auth,
            Class::Rate if says_itself(&["exceeded your current quota", "billing", "insufficient_quota"]) => {
                Class::Quota
            }
            // More than a minute's allowance in one request: waiting does not help, a shorter conversation does.
            Class::Rate if says_itself(&["request too large"]) => Class::Context,
            class => class,
        }
    }
}

/// The sentence of an error.
fn sentence(error: &Value) -> Option<Cow<'_, str>> {
    let field = |name: &str| error.get(name).and_then(Value::as_str);
    let nested = |name: &str| error.get(name)?.get("message")?.as_str();
    error
        .as_str()
        .or_else(|| field("message"))
        .or_else(|| field("detail"))
        .or_else(|| nested("detail"))
        .filter(|message| !message.is_empty())
        .map(Cow::Borrowed)
        .or_else(|| listed(error).map(Cow::Owned))
}

/// What the provider behind a router said, whose own words are "Provider returned error":
/// <https://openrouter.ai/docs/api-reference/errors#provider-errors>. It is the whole body, of which the sentence alone is told: other
/// fields may quote the conversation.
fn routed(error: &Value) -> Option<String> {
    let raw = error.get("metadata")?.get("raw")?;
    let Some(text) = raw.as_str() else { return told_in(raw) };
    let text = text.trim();
    match serde_json::from_str::<Value>(text) {
        Ok(body) => told_in(&body),
        // One that was cut is no text either.
        Err(_) => (!text.is_empty() && !text.starts_with(['{', '['])).then(|| text.to_owned()),
    }
}

fn told_in(body: &Value) -> Option<String> {
    sentence(error_object(body).unwrap_or(body)).map(Cow::into_owned)
}

/// Each field that servers by `FastAPI` find fault with, in `detail`, or in `message.detail` at Mistral:
/// `[{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}]`.
fn listed(error: &Value) -> Option<String> {
    let faults = error.get("detail").or_else(|| error.get("message")?.get("detail"))?.as_array()?;
    let fault = |fault: &Value| {
        let place: Vec<_> = fault.get("loc")?.as_array()?.iter().map(place_of).collect();
        Some(format!("{}: {}", place.join("."), fault.get("msg")?.as_str()?))
    };
    let told: Vec<_> = faults.iter().filter_map(fault).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// The name of a field, or the number of an item.
fn place_of(step: &Value) -> String {
    step.as_str().map_or_else(|| step.to_string(), str::to_owned)
}

fn of_word(word: &str) -> Option<Class> {
    Some(match word {
        "rate_limit_exceeded" | "rate_limit_error" | "rate_limit_reached" | "requests" | "tokens" => Class::Rate,
        "insufficient_quota" | "quota_exceeded" | "billing_hard_limit_reached" | "billing_not_active" => Class::Quota,
        // The last one is llama.cpp's, in some builds with a code of 500.
        "context_length_exceeded" | "string_above_max_length" | "exceed_context_size_error" => Class::Context,
        "content_filter" | "content_policy_violation" | "moderation_blocked" | "ResponsibleAIPolicyViolation" => {
            Class::Content
        }
        "invalid_api_key"
        | "invalid_authentication"
        | "authentication_error"
        | "permission_error"
        | "permission_denied"
        | "account_deactivated"
        | "unsupported_country_region_territory" => Class::Auth,
        "server_error"
        | "internal_server_error"
        | "InternalServerError"
        | "overloaded_error"
        | "server_overloaded"
        | "slow_down"
        | "service_unavailable"
        | "engine_overloaded" => Class::Overload,
        "timeout" | "request_timeout" => Class::Timeout,
        "invalid_request_error"
        | "BadRequestError"
        | "NotFoundError"
        | "invalid_prompt"
        | "invalid_encrypted_content"
        | "model_not_found"
        | "DeploymentNotFound"
        | "invalid_value"
        | "unsupported_value"
        | "unsupported_parameter" => Class::Invalid,
        _ => return None,
    })
}

/// How servers say that a conversation does not fit their model. The last five are of Groq, xAI, Moonshot, Anthropic behind a gateway,
/// and llama.cpp.
const TOO_LONG: [&str; 9] = [
    "maximum context length",
    "context window",
    "context length",
    "too many tokens",
    "reduce the length of the messages",
    "maximum prompt length",
    "exceeded model token limit",
    "prompt is too long",
    OF_LLAMA_CPP,
];

/// Older builds call it a fault of the server.
const OF_LLAMA_CPP: &str = "exceeds the available context size";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_refusal_has_its_class_in_every_dialect_of_the_interface() {
        let openai = |kind: &str, code: &str, message: &str| {
            Some(json!({"error": {"message": message, "type": kind, "param": null, "code": code}}))
        };
        let cases = [
            (429, openai("requests", "rate_limit_exceeded", "Rate limit reached for requests"), Class::Rate),
            (429, openai("tokens", "rate_limit_exceeded", "Rate limit reached for tokens"), Class::Rate),
            (
                429,
                openai("tokens", "rate_limit_exceeded", "Request too large for gpt-6 on tokens per min"),
                Class::Context,
            ),
            (429, openai("insufficient_quota", "insufficient_quota", "You exceeded your current quota"), Class::Quota),
            (400, openai("invalid_request_error", "context_length_exceeded", "maximum context length"), Class::Context),
            (400, openai("invalid_request_error", "content_policy_violation", "safety system"), Class::Content),
            (
                400,
                openai("invalid_request_error", "invalid_prompt", "flagged: violating our usage policy"),
                Class::Content,
            ),
            (400, openai("invalid_request_error", "unsupported_value", "temperature"), Class::Invalid),
            (401, openai("invalid_request_error", "invalid_api_key", "Incorrect API key provided"), Class::Auth),
            (403, openai("invalid_request_error", "unsupported_country_region_territory", "no"), Class::Auth),
            (404, openai("invalid_request_error", "model_not_found", "no such model"), Class::Invalid),
            (500, openai("server_error", "", "oops"), Class::Overload),
            (503, openai("", "slow_down", "slow down"), Class::Overload),
            // Azure.
            (429, openai("", "429", "Requests have exceeded the token rate limit"), Class::Rate),
            (
                401,
                Some(json!({"error": {"code": "401", "message": "Access denied due to invalid subscription key"}})),
                Class::Auth,
            ),
            (400, openai("", "content_filter", "triggered the content management policy"), Class::Content),
            (404, openai("", "DeploymentNotFound", "The API deployment does not exist"), Class::Invalid),
            // vLLM, older and newer.
            (
                400,
                Some(
                    json!({"object": "error", "message": "This model's maximum context length is 8 tokens", "type": "BadRequestError", "code": 400}),
                ),
                Class::Context,
            ),
            (400, Some(json!({"error": {"message": "bad", "type": "BadRequestError", "code": 400}})), Class::Invalid),
            (
                404,
                Some(json!({"error": {"message": "no model", "type": "NotFoundError", "code": 404}})),
                Class::Invalid,
            ),
            // llama.cpp, whose template is the model's.
            (
                500,
                openai(
                    "server_error",
                    "",
                    "\n------------\nError: Jinja Exception: Conversation roles must alternate user/assistant",
                ),
                Class::Invalid,
            ),
            // A bare sentence, and what a framework makes of a mistake.
            (503, Some(json!({"error": "model is loading"})), Class::Overload),
            (422, Some(json!({"detail": "max_tokens: too large"})), Class::Invalid),
            // No sense at all: the status tells.
            (502, None, Class::Overload),
            (504, None, Class::Timeout),
            (524, None, Class::Timeout),
            (413, None, Class::Context),
            (418, Some(json!([1, 2])), Class::Invalid),
        ];
        for (status, body, class) in cases {
            let error = of_status(status, body.as_ref());
            assert_eq!(error.class, class, "{status} {body:?}");
            assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn each_server_says_in_its_own_way_that_a_conversation_is_too_long() {
        let too_long = [
            // llama.cpp, with the code of a fault of its own in some builds.
            (
                400,
                json!({"error": {
                    "code": 400,
                    "message": "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9000,
                    "n_ctx": 4096,
                }}),
            ),
            (500, json!({"error": {"code": 500, "message": "too long", "type": "exceed_context_size_error"}})),
            (
                500,
                json!({"error": {
                    "code": 500,
                    "message": "the request exceeds the available context size. try increasing the context size or enable context shift",
                    "type": "server_error",
                }}),
            ),
            (
                400,
                json!({
                    "code": "Client specified an invalid argument",
                    "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
                }),
            ),
            (
                400,
                json!({"error": {
                    "message": "Invalid request: Your request exceeded model token limit: 262144",
                    "type": "invalid_request_error",
                }}),
            ),
            (
                400,
                json!({
                    "object": "error",
                    "message": "Prompt contains 40017 tokens, too large for model with 32768 maximum context length",
                    "type": "invalid_request_error",
                }),
            ),
        ];
        for (status, body) in too_long {
            assert_eq!(of_status(status, Some(&body)).class, Class::Context, "{body}");
        }
    }

    #[test]
    fn the_field_that_was_refused_is_named() {
        let refused = |message: &str, param: Value| {
            let body = json!({"error": {"message": message, "type": "invalid_request_error", "param": param}});
            of_status(400, Some(&body)).message
        };
        assert_eq!(refused("Unsupported value.", json!("temperature")), "Unsupported value. (temperature)");
        assert_eq!(
            refused("Unsupported value: 'temperature'", json!("temperature")),
            "Unsupported value: 'temperature'"
        );
        assert_eq!(refused("no", Value::Null), "no");
        let routed = json!({"error": {
            "message": "Provider returned error",
            "code": 400,
            "metadata": {"provider_name": "Mistral", "raw": r#"{"message":"Unexpected role 'user' after role 'tool'"}"#},
        }});
        let expected = "Provider returned error: Unexpected role 'user' after role 'tool'";
        assert_eq!(of_status(400, Some(&routed)).message, expected);
        let detail = json!([{"type": "extra_forbidden", "loc": ["body", "messages", 2, "x"], "msg": "Extra inputs", "input": "secret"}]);
        for body in [json!({"detail": detail}), json!({"object": "error", "message": {"detail": detail}})] {
            let error = of_status(422, Some(&body));
            assert_eq!((error.class, error.message.as_str()), (Class::Invalid, "body.messages.2.x: Extra inputs"));
        }
    }

    #[test]
    fn of_a_body_behind_a_router_the_sentence_alone_is_told_and_decides() {
        let routed = |status: u16, raw: Value| {
            let message = "Provider returned error";
            let body = json!({"error": {"message": message, "code": status, "metadata": {"raw": raw}}});
            let error = of_status(status, Some(&body));
            assert_eq!(in_stream(&body).class, error.class, "{body}");
            (error.class, error.message.strip_prefix(message).unwrap().to_owned())
        };
        // Quoted by FastAPI: words that would change the class, or teach a refusal.
        let input = "my api key, temperature, billing; roles must alternate";
        let fault = json!({"detail": [{"loc": ["body", "x"], "msg": "Extra inputs", "input": input}]}).to_string();
        let object = json!({"error": {"message": "slow down", "input": input}});
        for (status, raw, class, told) in [
            (400, json!(fault), Class::Invalid, ": body.x: Extra inputs"),
            (429, json!(object.to_string()), Class::Rate, ": slow down"),
            (429, object, Class::Rate, ": slow down"),
            (400, json!({"input": input}), Class::Invalid, ""),
            (400, json!(json!({"input": input}).to_string()), Class::Invalid, ""),
            (400, json!(format!(r#"{{"input":"{input}"#)), Class::Invalid, ""),
            (400, json!("no such field"), Class::Invalid, ": no such field"),
            (400, json!(r#"{"message":"the prompt is too long"}"#), Class::Context, ": the prompt is too long"),
            (429, json!("You exceeded your current quota"), Class::Rate, ": You exceeded your current quota"),
            (429, json!("request too large"), Class::Rate, ": request too large"),
            (400, json!(""), Class::Invalid, ""),
            (400, Value::Null, Class::Invalid, ""),
        ] {
            assert_eq!(routed(status, raw.clone()), (class, told.to_owned()), "{raw}");
        }
    }

    #[test]
    fn each_error_in_mid_stream_has_its_class() {
        let cases = [
            (json!({"error": {"message": "oops", "type": "server_error"}}), Class::Overload),
            (json!({"message": "oops", "type": "server_error", "code": null}), Class::Overload),
            (json!({"code": "rate_limit_exceeded", "message": "slow down"}), Class::Rate),
            (json!({"code": "insufficient_quota", "message": "pay"}), Class::Quota),
            (json!({"code": "context_length_exceeded", "message": "too long"}), Class::Context),
            (json!({"code": "invalid_prompt", "message": "violates our usage policy"}), Class::Content),
            (json!({"message": "bad", "code": 400}), Class::Invalid),
            (json!({"message": "down", "code": 503}), Class::Overload),
            (json!("out of memory"), Class::Overload),
            (json!({"hologram": true}), Class::Overload),
        ];
        for (body, class) in cases {
            assert_eq!(in_stream(&body).class, class, "{body}");
        }
    }
}
