//! Providers that misbehave: whatever one does, the call ends with one error of a fitting class, within the bounds on time
//! and memory.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use croft_llm::recorded::Format;
use croft_llm::{Class, Delta, Error, Limits, Settings, Stop};
use futures::{Stream, StreamExt as _, stream};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use wiremock::ResponseTemplate;

use crate::fixture::{FIXTURES, Fixture, server, settings};
use crate::hello;
use crate::scene::{Act, End, scene};

const EVENT_BYTES_MAX: usize = 64 * 1024;
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// What the sockets and HTTP may hold beyond that.
const BUFFERS: usize = 16 * 1024 * 1024;
/// No call may take longer, however busy the machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// That no call comes to by its time, however busy the machine.
const LIMITS: Limits = Limits {
    opened: Duration::from_mins(2),
    idle: Duration::from_mins(2),
    answer: Duration::from_mins(5),
    event_bytes_max: EVENT_BYTES_MAX,
    answer_bytes_max: ANSWER_BYTES_MAX,
};
/// That silence comes to.
const SHORT: Limits = Limits { opened: Duration::from_millis(600), idle: Duration::from_millis(300), ..LIMITS };

fn remote() -> impl Iterator<Item = &'static dyn Fixture> {
    FIXTURES.into_iter().filter(|fixture| fixture.is_remote())
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// How a call ends at a server that does `fault` with its connection once it has the request, and returns how many bytes
/// it could write.
async fn at(
    fixture: &dyn Fixture,
    limits: Limits,
    fault: impl AsyncFn(&mut TcpStream) -> std::io::Result<usize>,
) -> (Vec<Delta>, Error, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let provider = fixture.open(Settings { limits, ..settings(&url) });
    let call = async {
        let deltas: Vec<_> = provider.stream(hello()).collect().await;
        deltas
    };
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64 * 1024];
        assert!(socket.read(&mut request).await.unwrap() > 0);
        fault(&mut socket).await.unwrap_or_default()
    };
    let (mut deltas, written) =
        timeout(PATIENCE, async { tokio::join!(call, serve) }).await.expect("the call came to no end");
    let error = deltas.pop().unwrap().unwrap_err();
    let came = deltas.into_iter().map(|delta| delta.expect("an error is the last that comes")).collect();
    (came, error, written)
}

/// Writes these bytes again and again until the caller hangs up.
async fn endless(socket: &mut TcpStream, head: &str, again: &[u8]) -> std::io::Result<usize> {
    socket.write_all(head.as_bytes()).await?;
    let mut written = 0;
    while socket.write_all(again).await.is_ok() {
        written += again.len();
    }
    Ok(written)
}

/// Waits until the caller hangs up.
async fn silent(socket: &mut TcpStream, before: &str) -> std::io::Result<usize> {
    socket.write_all(before.as_bytes()).await?;
    let mut nothing = [0; 1];
    while socket.read(&mut nothing).await.unwrap_or(0) > 0 {}
    Ok(0)
}

/// Ends the connection without a goodbye.
async fn reset(socket: &mut TcpStream, before: &str) -> std::io::Result<usize> {
    socket.write_all(before.as_bytes()).await?;
    socket.set_zero_linger()?;
    Ok(0)
}

fn begun(fixture: &dyn Fixture) -> String {
    format!("{HEAD}{}", fixture.play(&scene(&[Act::Say("I was")], End::Cut)))
}

#[tokio::test]
async fn silence_at_the_door_and_after_it() {
    for fixture in remote() {
        for before in [String::new(), HEAD.to_owned(), begun(fixture)] {
            let began = Instant::now();
            let (_, error, _) = at(fixture, SHORT, async |socket| silent(socket, &before).await).await;
            assert_eq!(error.class, Class::Timeout, "{}: {error}", fixture.name());
            assert!(began.elapsed() >= SHORT.idle, "{}", fixture.name());
        }
    }
}

/// What comes first of a stream, what a while later, and so on.
fn paced(pieces: Vec<(Duration, Bytes)>) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + Unpin + 'static {
    let paced = stream::iter(pieces).then(|(pause, bytes)| async move {
        tokio::time::sleep(pause).await;
        Ok(bytes)
    });
    Box::pin(paced)
}

/// A model that reasons for so long, and shows nothing of it.
const REASONING: Duration = Duration::from_secs(150);

/// The clock stands still while a socket is waited for, so the bodies come without one.
#[tokio::test(start_paused = true)]
async fn a_model_that_reasons_in_silence_is_heard_out() {
    let ping_interval = Duration::from_secs(15);
    let pings = REASONING.as_secs() / ping_interval.as_secs();
    let keepalive = Bytes::from_static(b": keepalive\n\n");
    let pinged = vec![(ping_interval, keepalive); usize::try_from(pings).unwrap()];
    let silent = vec![(REASONING, Bytes::from_static(b"\n"))];
    for (fixture, format) in remote().zip(Format::ALL) {
        let body = fixture.play(&scene(&[Act::Say("At last.")], End::Stop(Stop::EndTurn)));
        let (opening, rest) = body.split_at(body.find("\n\n").unwrap() + 2);
        for meanwhile in [&pinged, &silent] {
            let mut pieces = vec![(Duration::ZERO, Bytes::copy_from_slice(opening.as_bytes()))];
            pieces.extend_from_slice(meanwhile);
            pieces.push((Duration::ZERO, Bytes::copy_from_slice(rest.as_bytes())));
            let began = Instant::now();
            let mut deltas = format.deltas(paced(pieces), Limits::default());
            let first = deltas.next().await;
            assert!(matches!(first, Some(Ok(Delta::Opened { .. }))), "{}: {first:?}", fixture.name());
            assert_eq!(began.elapsed(), Duration::ZERO, "{}", fixture.name());
            let mut output_after = None;
            let mut last = None;
            while let Some(delta) = deltas.next().await {
                if delta.as_ref().is_ok_and(Delta::is_output) {
                    output_after.get_or_insert(began.elapsed());
                }
                last = Some(delta);
            }
            assert!(matches!(last, Some(Ok(Delta::Stop(Stop::EndTurn)))), "{}: {last:?}", fixture.name());
            assert_eq!(output_after, Some(REASONING), "{}", fixture.name());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_silent_for_too_long_is_given_up() {
    let limits = Limits::default();
    for (fixture, format) in remote().zip(Format::ALL) {
        let body = fixture.play(&scene(&[Act::Say("I was")], End::Cut));
        let opening = &body[..body.find("\n\n").unwrap() + 2];
        for (before, bound) in [("", limits.opened), (opening, limits.idle), (&body, limits.idle)] {
            let before = stream::iter([Ok::<_, Infallible>(Bytes::copy_from_slice(before.as_bytes()))]);
            let began = Instant::now();
            let deltas: Vec<_> = format.deltas(before.chain(stream::pending()), limits).collect().await;
            let error = deltas.last().unwrap().as_ref().unwrap_err();
            assert_eq!(error.class, Class::Timeout, "{}: {error}", fixture.name());
            assert_eq!(began.elapsed(), bound, "{}: {error}", fixture.name());
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_reset() {
    for fixture in remote() {
        for before in [String::new(), HEAD.to_owned(), begun(fixture)] {
            let (_, error, _) = at(fixture, LIMITS, async |socket| reset(socket, &before).await).await;
            assert!(matches!(error.class, Class::Network | Class::Truncated), "{}: {error}", fixture.name());
            assert!(error.is_retryable());
        }
    }
}

#[tokio::test]
async fn a_body_that_is_shorter_than_announced_or_is_cut_in_the_middle_of_an_event() {
    for fixture in remote() {
        let body = fixture.play(&scene(&[Act::Say("I was")], End::Cut));
        let announced =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99999\r\n\r\n{body}");
        let chunked = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\nzz",
            body.len()
        );
        let cut = format!("{HEAD}{}", &body[..body.len() - 20]);
        for answer in [announced, chunked, cut] {
            let (_, error, _) = at(fixture, LIMITS, async |socket| {
                socket.write_all(answer.as_bytes()).await?;
                socket.shutdown().await?;
                Ok(0)
            })
            .await;
            assert!(matches!(error.class, Class::Network | Class::Truncated), "{}: {error}", fixture.name());
        }
    }
}

#[tokio::test]
async fn an_answer_without_end_is_ended_by_its_size() {
    for fixture in remote() {
        let again = fixture.play(&scene(&[Act::Say("and on ")], End::Cut));
        let (came, error, written) =
            at(fixture, LIMITS, async |socket| endless(socket, HEAD, again.as_bytes()).await).await;
        assert_eq!(error.class, Class::Network, "{}: {error}", fixture.name());
        assert!(error.message.contains("an answer of more than"), "{}: {error}", fixture.name());
        assert!(came.iter().any(Delta::is_output), "{}", fixture.name());
        assert!(written <= ANSWER_BYTES_MAX + BUFFERS, "{} took {written} bytes", fixture.name());
    }
}

#[tokio::test]
async fn an_answer_that_drips_without_end_is_ended_by_its_time() {
    let limits = Limits { answer: Duration::from_millis(1_500), ..LIMITS };
    for fixture in remote() {
        let begun = begun(fixture);
        let (_, error, _) = at(fixture, limits, async |socket| {
            socket.write_all(begun.as_bytes()).await?;
            while socket.write_all(b": still here\n\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(0)
        })
        .await;
        assert_eq!(error.class, Class::Timeout, "{}: {error}", fixture.name());
        assert!(error.message.contains("came to no end"), "{}: {error}", fixture.name());
    }
}

#[tokio::test]
async fn an_event_without_end_is_ended_by_its_size() {
    for fixture in remote() {
        let head = format!("{HEAD}data: {{\"text\":\"");
        for again in ["x".repeat(8_192), "x\ndata: ".repeat(1_024)] {
            let (_, error, written) =
                at(fixture, LIMITS, async |socket| endless(socket, &head, again.as_bytes()).await).await;
            assert_eq!(error.class, Class::Network, "{}: {error}", fixture.name());
            assert!(error.message.contains("an event of more than"), "{}: {error}", fixture.name());
            assert!(written <= EVENT_BYTES_MAX + BUFFERS, "{} took {written} bytes", fixture.name());
        }
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_no_events_or_no_sense() {
    for fixture in remote() {
        for body in [
            b"data: \xff\xfe\xfd\n\n".as_slice(),
            b"data: {\"text\": \"\xc3\x28\"}\n\n",
            b"\x00\x01\x02\n\n",
            b"<html>busy</html>\n\n",
            b"data: {\"half\": \n\n",
            b"data: 17\n\n",
            b"data: [[[[[[[[\n\n",
        ] {
            let (came, error, _) = at(fixture, LIMITS, async |socket| {
                socket.write_all(HEAD.as_bytes()).await?;
                socket.write_all(body).await?;
                socket.shutdown().await?;
                Ok(0)
            })
            .await;
            let told = String::from_utf8_lossy(body);
            assert_eq!(error.class, Class::Network, "{} at {told:?}: {error}", fixture.name());
            assert!(came.is_empty(), "{} at {told:?}: {came:?}", fixture.name());
        }
    }
}

#[tokio::test]
async fn nothing_at_all() {
    for fixture in remote() {
        let (came, error, _) = at(fixture, LIMITS, async |socket| {
            socket.write_all(HEAD.as_bytes()).await?;
            socket.shutdown().await?;
            Ok(0)
        })
        .await;
        assert_eq!((error.class, came.len()), (Class::Truncated, 0), "{}: {error}", fixture.name());
    }
}

#[tokio::test]
async fn an_answer_of_another_kind() {
    for fixture in remote() {
        let failing =
            json!({"error": {"code": 503, "message": "busy", "type": "overloaded_error", "status": "UNAVAILABLE"}});
        for (kind, body, class) in [
            ("text/html", "<html>busy</html>".to_owned(), Class::Network),
            ("application/json", "{\"choices\": []}".to_owned(), Class::Network),
            ("application/json; charset=utf-8", failing.to_string(), Class::Overload),
            ("application/json", format!("[{failing}]"), Class::Overload),
            ("application/json", "{".to_owned(), Class::Network),
        ] {
            let server = server(fixture, ResponseTemplate::new(200).set_body_raw(body.clone(), kind)).await;
            let deltas: Vec<_> = fixture.open(settings(&server.uri())).stream(hello()).collect().await;
            assert_eq!(deltas.len(), 1, "{}", fixture.name());
            let error = deltas[0].as_ref().unwrap_err();
            assert_eq!(error.class, class, "{} at {kind} {body}: {error}", fixture.name());
        }
    }
}

#[tokio::test]
async fn a_refusal_without_end() {
    for fixture in remote() {
        let head = "HTTP/1.1 500 Oops\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{\"error\":{\"message\":\"";
        let again = "x".repeat(8_192);
        let (_, error, written) =
            at(fixture, LIMITS, async |socket| endless(socket, head, again.as_bytes()).await).await;
        assert_eq!(error.class, Class::Overload, "{}: {error}", fixture.name());
        assert!(error.message.chars().count() < 2_000, "{}", fixture.name());
        assert!(written <= BUFFERS, "{} took {written} bytes", fixture.name());
    }
}

#[tokio::test]
async fn a_long_message_is_told_in_short() {
    for fixture in remote() {
        let body = json!({"error": {"message": "ü".repeat(20_000)}});
        let server = server(fixture, ResponseTemplate::new(400).set_body_json(body)).await;
        let deltas: Vec<_> = fixture.open(settings(&server.uri())).stream(hello()).collect().await;
        let error = deltas[0].as_ref().unwrap_err();
        assert!(error.message.chars().count() < 2_000, "{}", fixture.name());
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_call() {
    for fixture in remote() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut deltas = fixture.open(settings(&url)).stream(hello());
        let begun = begun(fixture);
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64 * 1024];
            assert!(socket.read(&mut request).await.unwrap() > 0);
            socket.write_all(begun.as_bytes()).await.unwrap();
            socket
        };
        let (first, mut socket) = tokio::join!(deltas.next(), serve);
        assert!(matches!(first, Some(Ok(_))), "{}: {first:?}", fixture.name());
        drop(deltas);
        let mut nothing = [0; 1];
        let gone = timeout(PATIENCE, socket.read(&mut nothing)).await.expect("the connection stays");
        assert_eq!(gone.unwrap_or(0), 0, "{}", fixture.name());
    }
}

/// Who refuses, with which body and headers, and for how many seconds it asks to wait.
type Dialect<'a> =
    (&'a dyn Fixture, &'a serde_json::Value, &'a [(&'static str, &'a str)], Option<std::ops::Range<f64>>);

/// How each provider, and some gateways before them, say that it is too much and when to come again.
#[tokio::test]
async fn too_much_is_told_in_every_dialect_with_its_wait() {
    let [anthropic, chat, responses, gemini] = [0, 1, 2, 3].map(|index| FIXTURES[index]);
    let openai = json!({"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}});
    let azure = json!({"error": {"code": "429", "message": "Requests have exceeded the token rate limit"}});
    let claude = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}});
    let retry = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "46.5s"}]);
    let google = json!({"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED", "details": retry}});
    let hour = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(30)).to_string();
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(30)))
        .unwrap();
    let cases: [Dialect<'_>; 12] = [
        (anthropic, &claude, &[("retry-after", "7")], Some(7.0..7.1)),
        (anthropic, &claude, &[("retry-after", &date)], Some(1.0..31.0)),
        (
            anthropic,
            &claude,
            &[
                ("anthropic-ratelimit-input-tokens-remaining", "0"),
                ("anthropic-ratelimit-input-tokens-reset", &hour),
                ("anthropic-ratelimit-requests-remaining", "9"),
                ("anthropic-ratelimit-requests-reset", "2099-01-01T00:00:00Z"),
            ],
            Some(1.0..31.0),
        ),
        (chat, &openai, &[("retry-after-ms", "250"), ("retry-after", "1")], Some(0.25..0.26)),
        (
            chat,
            &openai,
            &[("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6m0s")],
            Some(360.0..360.1),
        ),
        (
            responses,
            &openai,
            &[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "12ms")],
            Some(0.012..0.013),
        ),
        (chat, &azure, &[("x-ratelimit-remaining-tokens", "-1"), ("x-ratelimit-reset-tokens", "9s")], None),
        (chat, &azure, &[("retry-after", "-5")], Some(0.0..0.1)),
        (responses, &openai, &[("retry-after", "99999999")], Some(86_400.0..86_401.0)),
        (responses, &openai, &[("retry-after", "soon")], None),
        (gemini, &google, &[], Some(46.5..46.6)),
        (gemini, &google, &[("retry-after", "3")], Some(3.0..3.1)),
    ];
    for (fixture, body, headers, wait) in cases {
        let mut answer = ResponseTemplate::new(429).set_body_json(body);
        for (name, value) in headers {
            answer = answer.insert_header(*name, *value);
        }
        let server = server(fixture, answer).await;
        let deltas: Vec<_> = fixture.open(settings(&server.uri())).stream(hello()).collect().await;
        let error = deltas[0].as_ref().unwrap_err();
        assert_eq!(error.class, Class::Rate, "{} {headers:?}: {error}", fixture.name());
        let asked = error.retry_after.map(|wait| wait.as_secs_f64());
        match wait {
            Some(wait) => assert!(asked.is_some_and(|asked| wait.contains(&asked)), "{headers:?}: {asked:?}"),
            None => assert_eq!(asked, None, "{headers:?}"),
        }
    }
}
