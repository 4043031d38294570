//! How long a caller waits for the answer to a call, as he says in `grpc-timeout`.

use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use croft_serve::grpc::Unremarkable;
use tokio::time::timeout;
use tonic::Status;

/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: so many digits at most, and a unit.
const DIGITS_MAX: usize = 8;

/// Who gives a call less than this has it end late whenever he likes. With more time it ends so where something here stands still.
const ENOUGH: Duration = Duration::from_secs(1);

/// Gives up a call whose answer does not begin in the time that its caller gave it. A stream that has begun goes on: its caller ends it.
pub(crate) async fn kept(request: Request, next: Next) -> Response {
    let Some(deadline) = told(request.headers()) else { return next.run(request).await };
    if let Ok(answer) = timeout(deadline, next.run(request)).await {
        return answer;
    }
    let mut late = Status::deadline_exceeded(format!("the call was given {deadline:?}")).into_http();
    // Anybody may give a call no time at all, also without a credential.
    if deadline < ENOUGH {
        late.extensions_mut().insert(Unremarkable);
    }
    late
}

/// What the header says; `None` where it says nothing, or nonsense.
fn told(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_hours(value)),
        "M" => Some(Duration::from_mins(value)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::HeaderValue;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use tower::ServiceExt as _;

    use super::*;

    /// A nanosecond, with any key, was a warning in the log for each call.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_given_too_little_time_is_no_news_to_the_log_and_another_is() {
        let calls = Router::new().route("/", post(std::future::pending::<()>)).layer(from_fn(kept));
        for (given, is_unremarkable) in [("1n", true), ("999m", true), ("1S", false), ("3S", false)] {
            let request = Request::post("/").header("grpc-timeout", given).body(Body::empty()).unwrap();
            let answer = calls.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.headers()["grpc-status"], "4");
            assert_eq!(answer.extensions().get::<Unremarkable>().is_some(), is_unremarkable, "{given}");
        }
    }

    #[test]
    fn units_are_those_of_the_protocol_and_nonsense_is_no_deadline() {
        let read =
            |text| told(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_static(text))]));
        let units = ["2H", "3M", "4S", "5m", "6u", "7n"].map(read);
        let expected =
            [7_200_000_000_000, 180_000_000_000, 4_000_000_000, 5_000_000, 6_000, 7].map(Duration::from_nanos);
        assert_eq!(units, expected.map(Some));
        assert_eq!(read("99999999H"), Some(Duration::from_hours(99_999_999)));
        assert!(["", "S", "-1S", "1", "1s", "123456789S", "1.5S"].map(read).iter().all(Option::is_none));
    }
}
