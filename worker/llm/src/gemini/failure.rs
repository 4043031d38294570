//! Gemini's errors by our classes: `google.rpc.Status` under `error`, sometimes wrapped in an array, as a response and in
//! mid stream.

use std::time::Duration;

use serde_json::Value;

use super::NAME;
use crate::error::{Class, Error};
use crate::retry_after::retry_info;
use crate::status;
use crate::wire::error_object;

/// Who is told to wait longer than this has spent a day's allowance.
const WAIT_OF_A_RATE: Duration = Duration::from_hours(1);

/// What an HTTP status means, with the body if it was JSON.
pub(super) fn of_status(status: u16, body: Option<&Value>) -> Error {
    let error = body.and_then(error_object);
    let message = error.and_then(|error| error.get("message")).and_then(Value::as_str);
    let message = message.map_or_else(|| status::message(status), str::to_owned);
    let class = error.and_then(of_error).unwrap_or_else(|| status::class(status));
    Error::new(NAME, refined(class, &message, error, body), message)
}

/// What an error in a stream that began well means, by the body that holds it.
pub(super) fn of_body(body: &Value) -> Error {
    let error = error_object(body).unwrap_or(body);
    let message = error.get("message").and_then(Value::as_str).unwrap_or("failed without a word");
    // What we don't know is the provider's fault until it is known to be ours.
    let class = of_error(error).unwrap_or(Class::Overload);
    Error::new(NAME, refined(class, message, Some(error), Some(body)), message).asked_to_wait(retry_info(body))
}

fn of_error(error: &Value) -> Option<Class> {
    let word = error.get("status").and_then(Value::as_str).unwrap_or_default();
    Some(match word {
        "RESOURCE_EXHAUSTED" => Class::Rate,
        "UNAUTHENTICATED" | "PERMISSION_DENIED" => Class::Auth,
        "INVALID_ARGUMENT" | "NOT_FOUND" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" | "UNIMPLEMENTED" => Class::Invalid,
        "DEADLINE_EXCEEDED" => Class::Timeout,
        "UNAVAILABLE" | "INTERNAL" | "ABORTED" | "UNKNOWN" | "CANCELLED" => Class::Overload,
        _ => {
            let code = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok())?;
            if code < 400 {
                return None;
            }
            status::class(code)
        }
    })
}

/// Some causes that need another answer share a word; only the details and the sentence tell them apart.
fn refined(class: Class, message: &str, error: Option<&Value>, body: Option<&Value>) -> Class {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match class {
        Class::Rate if says(&["limit: 0,", "billing", "spending cap"]) || is_of_a_day(error) => Class::Quota,
        Class::Rate if body.and_then(retry_info).is_some_and(|wait| wait > WAIT_OF_A_RATE) => Class::Quota,
        Class::Invalid if says(&["api key"]) => Class::Auth,
        Class::Invalid if says(&["billing"]) => Class::Quota,
        Class::Invalid if says(&["exceeds the maximum number of tokens", "token count", "context length"]) => {
            Class::Context
        }
        class => class,
    }
}

/// The allowance that was spent is a day's, by its name in `google.rpc.QuotaFailure`.
fn is_of_a_day(error: Option<&Value>) -> bool {
    let details = error.and_then(|error| error.get("details")).and_then(Value::as_array);
    details
        .into_iter()
        .flatten()
        .filter_map(|detail| detail.get("violations")?.as_array())
        .flatten()
        .filter_map(|violation| violation.get("quotaId")?.as_str())
        .any(|quota| quota.contains("PerDay"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(code: u16, word: &str, message: &str, details: &Value) -> Value {
        json!({"error": {"code": code, "message": message, "status": word, "details": details}})
    }

    #[test]
    fn each_refusal_has_its_class() {
        let none = json!([]);
        let wait = |delay: &str| json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]);
        let spent = |quota: &str| {
            let kind = "type.googleapis.com/google.rpc.QuotaFailure";
            json!([{"@type": kind, "violations": [{"quotaId": quota}]}])
        };
        let cases = [
            (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted", wait("46s"), Class::Rate),
            (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted", wait("7200s"), Class::Quota),
            (429, "RESOURCE_EXHAUSTED", "Quota exceeded, limit: 0, model: x", none.clone(), Class::Quota),
            (429, "RESOURCE_EXHAUSTED", "Quota exceeded", spent("GenerateRequestsPerDayPerProject"), Class::Quota),
            (429, "RESOURCE_EXHAUSTED", "Quota exceeded", spent("GenerateRequestsPerMinutePerProject"), Class::Rate),
            (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", none.clone(), Class::Auth),
            (400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum", none.clone(), Class::Context),
            (400, "INVALID_ARGUMENT", "Unknown name \"x\"", none.clone(), Class::Invalid),
            (400, "FAILED_PRECONDITION", "enable billing on your project", none.clone(), Class::Quota),
            (400, "FAILED_PRECONDITION", "User location is not supported", none.clone(), Class::Invalid),
            (403, "PERMISSION_DENIED", "no", none.clone(), Class::Auth),
            (404, "NOT_FOUND", "no such model", none.clone(), Class::Invalid),
            (500, "INTERNAL", "oops", none.clone(), Class::Overload),
            (503, "UNAVAILABLE", "The model is overloaded", none.clone(), Class::Overload),
            (504, "DEADLINE_EXCEEDED", "late", none.clone(), Class::Timeout),
            (499, "CANCELLED", "The operation was cancelled", none.clone(), Class::Overload),
        ];
        for (status, word, message, details, class) in cases {
            let body = body(status, word, message, &details);
            for body in [json!([body]), body] {
                assert_eq!(of_status(status, Some(&body)).class, class, "{body}");
                assert_eq!(of_body(&body).class, class, "in mid stream, {body}");
            }
        }
    }

    #[test]
    fn without_a_sensible_body_the_status_tells() {
        for (status, class) in [(502, Class::Overload), (429, Class::Rate), (401, Class::Auth), (400, Class::Invalid)] {
            assert_eq!(of_status(status, None).class, class);
            assert_eq!(of_status(status, Some(&json!({"x": 1}))).class, class);
        }
        assert_eq!(of_body(&json!({"x": 1})).class, Class::Overload);
        assert_eq!(of_body(&json!({"error": {"code": 400}})).class, Class::Invalid);
    }

    #[test]
    fn the_wait_is_taken_from_the_body_also_in_mid_stream() {
        let details = json!([{"@type": "x/google.rpc.RetryInfo", "retryDelay": "46s"}]);
        let body = json!([body(429, "RESOURCE_EXHAUSTED", "slow down", &details)]);
        assert_eq!(of_body(&body).retry_after, Some(Duration::from_secs(46)));
    }
}
