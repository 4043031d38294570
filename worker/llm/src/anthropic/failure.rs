//! Anthropic's errors by our classes: `{"type":"error","error":{"type","message"}}`, as a response and in mid stream.

use serde_json::Value;

use super::NAME;
use crate::error::{Class, Error};
use crate::status;
use crate::wire::error_object;

/// What an HTTP status means, with the body if it was JSON.
pub(super) fn of_status(status: u16, body: Option<&Value>) -> Error {
    let error = body.and_then(error_object);
    let field = |name: &str| error.and_then(|error| error.get(name)).and_then(Value::as_str);
    let message = field("message").map_or_else(|| status::message(status), str::to_owned);
    let class = field("type")
        .and_then(|kind| of_type(kind, &message))
        .unwrap_or_else(|| refined(status::class(status), &message));
    Error::new(NAME, class, message)
}

/// What a body means that came in place of an event.
pub(super) fn of_body(body: &Value) -> Error {
    in_stream(error_object(body).unwrap_or(body))
}

/// What the error of an event in a stream that began well means.
pub(super) fn in_stream(error: &Value) -> Error {
    let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = field("message");
    // A kind that we don't know is the provider's fault until it is known to be ours.
    Error::new(NAME, of_type(field("type"), message).unwrap_or(Class::Overload), message)
}

fn of_type(kind: &str, message: &str) -> Option<Class> {
    let class = match kind {
        "invalid_request_error" | "not_found_error" => Class::Invalid,
        "authentication_error" | "permission_error" => Class::Auth,
        "billing_error" => Class::Quota,
        "request_too_large" => Class::Context,
        "rate_limit_error" => Class::Rate,
        "api_error" | "overloaded_error" => Class::Overload,
        "timeout_error" => Class::Timeout,
        _ => return None,
    };
    Some(refined(class, message))
}

/// Some causes that need another answer share a type; only the sentence tells them apart.
fn refined(class: Class, message: &str) -> Class {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match class {
        Class::Invalid if says(&["prompt is too long", "context limit", "context window"]) => Class::Context,
        // Of more than twenty images each must be smaller, and of more than a hundred none is taken: the oldest can be left out.
        Class::Invalid if says(&["many-image requests", "too much media"]) => Class::Context,
        Class::Invalid if says(&["content filtering", "usage policy"]) => Class::Content,
        Class::Invalid | Class::Rate | Class::Auth if says(&["credit balance", "spend limit", "spending limit"]) => {
            Class::Quota
        }
        Class::Invalid | Class::Rate if says(&["usage limits"]) => Class::Quota,
        class => class,
    }
}
