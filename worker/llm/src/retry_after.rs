//! How long a provider asks us to wait, in all the ways providers say it.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// No wait is longer: a larger number is a mistake or a ban, and retrying is then not for us.
pub const WAIT_MAX: Duration = Duration::from_hours(24);

/// Above this, a plain number in a reset header is seconds since 1970 and not a wait.
const EPOCH_SECONDS_FROM: f64 = 1_000_000_000.0;

/// The wait that headers and body ask for. Taken in this order: `retry-after-ms`, `retry-after` (seconds or an HTTP
/// date), the latest of the reset headers whose allowance is spent, `RetryInfo` in the body. Never negative, never
/// above [`WAIT_MAX`]; `None` when nothing was said.
pub fn retry_after(headers: &HeaderMap, body: Option<&Value>, now: Timestamp) -> Option<Duration> {
    header(headers, "retry-after-ms")
        .and_then(|text| seconds(text).map(|milliseconds| milliseconds / 1000.0))
        .and_then(wait)
        .or_else(|| header(headers, "retry-after").and_then(|text| parse(text, now)))
        .or_else(|| reset(headers, now))
        .or_else(|| body.and_then(retry_info))
}

/// A wait as a number of seconds, a duration such as `6m0s` or `12ms`, seconds since 1970, RFC 3339 or an HTTP date.
pub fn parse(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Some(number) = seconds(text) {
        let from_now = if number >= EPOCH_SECONDS_FROM { number - now.as_duration().as_secs_f64() } else { number };
        return wait(from_now);
    }
    if let Some(duration) = duration(text) {
        return Some(duration);
    }
    let moment = text.parse::<Timestamp>().ok().or_else(|| DateTimeParser::new().parse_timestamp(text).ok())?;
    wait(moment.duration_since(now).as_secs_f64())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The latest reset among the allowances of which nothing remains. Some gateways serve `-1` or `0` for "unknown", so a
/// reset without a `remaining` of exactly zero beside it says nothing.
fn reset(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str();
            let remaining = if let Some(what) = name.strip_prefix("x-ratelimit-reset-") {
                format!("x-ratelimit-remaining-{what}")
            } else {
                let what = name.strip_prefix("anthropic-ratelimit-")?.strip_suffix("-reset")?;
                format!("anthropic-ratelimit-{what}-remaining")
            };
            let spent = header(headers, &remaining)?.trim() == "0";
            spent.then(|| parse(value.to_str().ok()?, now)).flatten()
        })
        .max()
}

/// `google.rpc.RetryInfo` in an error body, also where the body is wrapped in an array.
pub(crate) fn retry_info(body: &Value) -> Option<Duration> {
    let error = body.get("error").or_else(|| body.get(0)?.get("error"))?;
    let details = error.get("details")?.as_array()?;
    let delay = details.iter().find_map(|detail| detail.get("retryDelay")?.as_str())?;
    duration(delay)
}

fn seconds(text: &str) -> Option<f64> {
    let number: f64 = text.trim().parse().ok()?;
    number.is_finite().then_some(number)
}

fn wait(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds.clamp(0.0, WAIT_MAX.as_secs_f64())).ok()
}

/// `1h2m3.5s`, `12ms`: numbers, each with a unit.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let number_end = rest.find(|character: char| character != '.' && !character.is_ascii_digit())?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|character: char| !character.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let factor = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            "us" | "µs" => 0.000_001,
            _ => return None,
        };
        total += seconds(number)? * factor;
        rest = after;
    }
    // An empty text says nothing.
    (!text.is_empty()).then(|| wait(total)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn asked(headers: &[(&'static str, &str)], body: Option<&Value>) -> Option<Duration> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        retry_after(&map, body, NOW.parse().unwrap())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the shape of what it is compared with")]
    fn secs(seconds: f64) -> Option<Duration> {
        Some(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn every_form_is_understood() {
        let now: Timestamp = NOW.parse().unwrap();
        let cases = [
            ("0", secs(0.0)),
            ("7", secs(7.0)),
            ("1.5", secs(1.5)),
            ("-3", secs(0.0)),
            ("12ms", secs(0.012)),
            ("6m0s", secs(360.0)),
            ("1h2m3.5s", secs(3723.5)),
            ("Sun, 22 Nov 2026 12:00:30 GMT", secs(30.0)),
            ("Sun, 22 Nov 2026 11:00:00 GMT", secs(0.0)),
            ("2026-11-22T12:00:46Z", secs(46.0)),
            ("999999999", Some(WAIT_MAX)),
            ("soon", None),
            ("5 parsecs", None),
            ("", None),
            ("NaN", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text, now), expected, "{text:?}");
        }
        assert_eq!(parse(&(now.as_second() + 60).to_string(), now), secs(60.0));
    }

    #[test]
    fn milliseconds_come_before_seconds_and_those_before_resets_and_the_body() {
        let body = json!({"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "46s"}]}});
        let spent = ("x-ratelimit-remaining-tokens", "0");
        let reset = ("x-ratelimit-reset-tokens", "3s");
        assert_eq!(asked(&[("retry-after-ms", "250"), ("retry-after", "9")], Some(&body)), secs(0.25));
        assert_eq!(asked(&[("retry-after", "9"), spent, reset], Some(&body)), secs(9.0));
        assert_eq!(asked(&[spent, reset], Some(&body)), secs(3.0));
        assert_eq!(asked(&[], Some(&body)), secs(46.0));
        assert_eq!(asked(&[], Some(&json!([body]))), secs(46.0));
        assert_eq!(asked(&[], None), None);
    }

    #[test]
    fn a_reset_counts_only_where_nothing_remains() {
        let reset = ("anthropic-ratelimit-input-tokens-reset", "2026-11-22T12:00:20Z");
        assert_eq!(asked(&[reset, ("anthropic-ratelimit-input-tokens-remaining", "0")], None), secs(20.0));
        assert_eq!(asked(&[reset, ("anthropic-ratelimit-input-tokens-remaining", "500")], None), None);
        assert_eq!(asked(&[reset, ("anthropic-ratelimit-input-tokens-remaining", "-1")], None), None);
        assert_eq!(asked(&[reset], None), None);
    }

    #[test]
    fn an_unreadable_header_leaves_the_word_to_the_next() {
        assert_eq!(asked(&[("retry-after-ms", "soon"), ("retry-after", "2")], None), secs(2.0));
    }
}
