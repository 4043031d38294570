//! `GET /v1/sessions/{id}/events`: one session's events as server-sent events, for `EventSource`.
//!
//! Each message's `data` is a `SessionEvent` in the protobuf JSON mapping. A durable event has its number as `id`, so that a
//! browser which reconnects goes on where it was, by `Last-Event-ID`; others begin with `?after_seq=`. `?durable_only=true`
//! leaves previews out. The credential is the `authorization` header's, or `?access_token=`.
//!
//! The stream ends when the session does; a browser that comes back then gets 204, and stays away. An error in mid stream is
//! a message of type `error`, with the body that an HTTP error has. So is what keeps an `EventSource` from going on for now: with any status
//! but 200 it would never come back (<https://html.spec.whatwg.org/multipage/server-sent-events.html#fail-the-connection>).

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use croft_proto::v1::{SessionEvent, StreamEventsRequest};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;

use super::credential::Credential;
use super::failure::{Failure, Refused, log};
use super::legible::number_alone;
use super::open::{Opened, Wanted, open};
use super::{Metrics, Opens, Shared};
use crate::error::Error;
use crate::events::tenured::tenured;
use crate::leaving::{leaving, some_part_of};
use crate::unread::Asker;

const EVENT_STREAM: &str = "text/event-stream";
/// Beyond what a refusal says: all who were refused together would come back together.
const COME_BACK_WITHIN: Duration = Duration::from_secs(5);
/// After so long an `EventSource` comes back whose stream broke off, as browsers have it unless they are told.
const RETRY: Duration = Duration::from_secs(3);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx, and those that follow it, not to keep tokens back.
const NO_BUFFERING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

#[derive(Deserialize)]
pub(super) struct Asked {
    after_seq: Option<String>,
    #[serde(default)]
    durable_only: bool,
    access_token: Option<String>,
}

pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Path(session_id): Path<String>,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let Query(asked) = asked.map_err(|_| Error::invalid("the query", "can't be read"))?;
    let after_seq = cursor(&headers, asked.after_seq.as_deref());
    let comes_back = after_seq.as_ref().ok().copied().filter(|seq| *seq > 0 && is_event_source(&headers));
    match (follow(&shared, &session_id, asked, after_seq, &headers).await, comes_back) {
        (Err(error), Some(after_seq)) if is_passing(&error) => Ok(later(&error, after_seq)),
        (followed, _) => Ok(followed?),
    }
}

async fn follow(
    shared: &Shared,
    session_id: &str,
    asked: Asked,
    after_seq: Result<u64, Error>,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let opens = Opens::behind(after_seq.as_ref().copied().unwrap_or_default());
    let tenure = Credential::find(headers, asked.access_token)?.admit::<StreamEventsRequest>(shared, opens).await?;
    let after_seq = after_seq?;
    let (permit, seat) = (shared.admit()?, shared.gateway.seats.take(tenure.identity().tenant)?);
    let wanted = Wanted { session_id, after_seq, durable_only: asked.durable_only };
    let events = match open(&shared.gateway, tenure.identity(), wanted).await? {
        Opened::Events(events) => events,
        Opened::Over => return Ok(StatusCode::NO_CONTENT.into_response()),
    };
    let whose = Asker { tenant: tenure.identity().tenant, is_stream: true };
    let metrics = shared.gateway.metrics.clone();
    let counted = (permit, metrics.open("sse"));
    let keep_alive = KeepAlive::new().interval(shared.gateway.options.keep_alive);
    let left = leaving(shared.gateway.tasks.stopping(), shared.gateway.options.leave_within);
    let messages = tenured(events, after_seq, tenure, seat).take_until(left).map(move |event| {
        let _for_as_long = &counted;
        message(event, &metrics)
    });
    // An `EventSource` that was told to come back later keeps to that time for good, unless it is told another.
    let retry = (after_seq > 0).then(|| Ok(Event::default().retry(RETRY)));
    let messages = stream::iter(retry).chain(messages);
    Ok(([NO_BUFFERING], Extension(whose), Sse::new(messages).keep_alive(keep_alive)).into_response())
}

/// The request is an `EventSource`'s, or made to look like one: what reconnects by itself says what it has had, and asks for nothing else.
fn is_event_source(headers: &HeaderMap) -> bool {
    let says = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    !says(LAST_EVENT_ID).is_empty() || says(ACCEPT).split(',').any(|kind| kind.trim() == EVENT_STREAM)
}

/// The same request may be taken in a while.
fn is_passing(error: &Error) -> bool {
    matches!(error, Error::RateLimited { .. } | Error::StreamLimit { .. } | Error::Unavailable { .. })
}

/// Has an `EventSource` come back later, each at a time of its own, with the number that it has: where a stream names none, it forgets it.
fn later(error: &Error, after_seq: u64) -> Response {
    log(error);
    let after = error.retry_after().unwrap_or(COME_BACK_WITHIN) + some_part_of(COME_BACK_WITHIN);
    let told = Event::default().retry(after).id(after_seq.to_string()).event("error");
    let told = told.json_data(json!({ "error": Failure::from(error) }));
    ([NO_BUFFERING], Sse::new(stream::iter([told]))).into_response()
}

/// Where to begin. The header is newer than the query: it comes with a reconnect to the same address.
fn cursor(headers: &HeaderMap, after_seq: Option<&str>) -> Result<u64, Error> {
    let header = headers.get(LAST_EVENT_ID).map(|header| header.to_str().unwrap_or("?"));
    let (field, text) = match (header.filter(|header| !header.is_empty()), after_seq) {
        (Some(header), _) => ("Last-Event-ID", header),
        (None, Some(query)) => ("after_seq", query),
        (None, None) => return Ok(0),
    };
    text.parse().map_err(|_| Error::invalid(field, "is not the number of an event"))
}

fn message(event: Result<SessionEvent, Error>, metrics: &Metrics) -> Result<Event, axum::Error> {
    match event {
        Ok(event) => {
            metrics.events_sent.with_label_values(&["sse"]).inc();
            let told = Event::default().json_data(&event);
            let message = told.or_else(|error| Event::default().json_data(number_alone(&event, &error)))?;
            Ok(if event.seq > 0 { message.id(event.seq.to_string()) } else { message })
        }
        Err(error) => {
            log(&error);
            Event::default().event("error").json_data(json!({ "error": Failure::from(&error) }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(LAST_EVENT_ID, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_last_event_id_wins_over_the_query_and_an_empty_one_is_none() {
        assert_eq!(cursor(&with_header("12"), Some("3")).unwrap(), 12);
        assert_eq!(cursor(&with_header(""), Some("3")).unwrap(), 3);
        assert_eq!(cursor(&HeaderMap::new(), None).unwrap(), 0);
    }

    #[test]
    fn a_cursor_that_is_no_number_names_where_it_stood() {
        assert_eq!(
            cursor(&with_header("-1"), None).unwrap_err().to_string(),
            "Last-Event-ID is not the number of an event"
        );
        let query = cursor(&HeaderMap::new(), Some("0x10")).unwrap_err();
        assert_eq!(query.to_string(), "after_seq is not the number of an event");
    }
}
