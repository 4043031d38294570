//! The decoder against recorded streams, cut in every way that a network can cut them.

use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// One line a delta, and the class of the error if it ended in one.
type Outcome = Vec<String>;

fn golden() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/anthropic");
    let mut streams: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sse"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    streams.sort();
    assert!(streams.len() >= 8, "the golden streams are missing");
    streams
}

/// What arrives when the stream comes in these chunks.
async fn decoded(chunks: Vec<Bytes>) -> Outcome {
    let bytes = stream::iter(chunks.into_iter().map(Ok::<_, Infallible>));
    let until = Instant::now() + Duration::from_mins(1);
    decode(bytes, Limits::default(), until)
        .map(|delta| match delta {
            Ok(delta) => format!("{delta:?}"),
            Err(error) => format!("error: {} ({})", error.class.as_str(), error.message),
        })
        .collect()
        .await
}

/// The bytes in chunks that end at these offsets.
fn chunks(whole: &[u8], offsets: &[usize]) -> Vec<Bytes> {
    let mut begin = 0;
    let mut chunks = Vec::new();
    for end in offsets.iter().copied().chain([whole.len()]) {
        chunks.push(Bytes::copy_from_slice(&whole[begin..end]));
        begin = end;
    }
    chunks
}

#[tokio::test]
async fn golden_streams_come_to_these_deltas() {
    for (name, whole) in golden() {
        let outcome = decoded(chunks(&whole, &[])).await;
        insta::with_settings!({ snapshot_path => "../../tests/golden/anthropic", prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, outcome.join("\n"));
        });
    }
}

#[tokio::test]
async fn a_stream_cut_in_two_anywhere_gives_the_same_deltas() {
    for (name, whole) in golden() {
        let expected = decoded(chunks(&whole, &[])).await;
        for offset in 0..=whole.len() {
            assert_eq!(decoded(chunks(&whole, &[offset])).await, expected, "{name} cut at byte {offset}");
        }
        let every_byte: Vec<_> = (1..whole.len()).collect();
        assert_eq!(decoded(chunks(&whole, &every_byte)).await, expected, "{name} byte by byte");
    }
}

#[tokio::test]
async fn line_ends_do_not_matter_wherever_they_are_cut() {
    for (name, whole) in golden() {
        let expected = decoded(chunks(&whole, &[])).await;
        for line_end in ["\r\n", "\r"] {
            let other = String::from_utf8(whole.clone()).unwrap().replace('\n', line_end).into_bytes();
            for offset in 0..=other.len() {
                assert_eq!(decoded(chunks(&other, &[offset])).await, expected, "{name}, {line_end:?}, byte {offset}");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_gives_what_came_and_then_an_error() {
    for (name, whole) in golden() {
        let expected = decoded(chunks(&whole, &[])).await;
        // The last event is there only with its blank line.
        for length in 0..whole.len() {
            let mut outcome = decoded(vec![Bytes::copy_from_slice(&whole[..length])]).await;
            let end = outcome.pop().unwrap();
            assert!(end.starts_with("error: truncated"), "{name} of {length} bytes: {end}");
            assert_eq!(outcome[..], expected[..outcome.len()], "{name} of {length} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_stream_cut_into_many_pieces_gives_the_same_deltas(
        pick in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let streams = golden();
        let (name, whole) = pick.get(&streams);
        let mut offsets: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
        offsets.sort_unstable();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            assert_eq!(decoded(chunks(whole, &offsets)).await, decoded(chunks(whole, &[])).await, "{name}");
        });
    }
}

#[tokio::test]
async fn what_is_no_event_is_an_error_of_the_network() {
    for (line, message) in [
        (
            "data: {\"type\":\"content_block_delta\",\"index\":7,\"delta\":{\"type\":\"text_delta\",\"text\":\"x\"}}\n\n",
            "not open",
        ),
        ("data: {not json}\n\n", "makes no sense"),
        ("<html>\n\n", "no event stream"),
    ] {
        let outcome = decoded(vec![Bytes::from_static(line.as_bytes())]).await;
        assert_eq!(outcome.len(), 1);
        assert!(outcome[0].starts_with("error: network") && outcome[0].contains(message), "{outcome:?}");
    }
}

#[tokio::test]
async fn an_error_in_mid_stream_has_its_class() {
    for (kind, message, class) in [
        ("overloaded_error", "Overloaded", "overload"),
        ("api_error", "Internal", "overload"),
        ("rate_limit_error", "Slow down", "rate"),
        ("rate_limit_error", "You have reached your workspace's spend limit", "quota"),
        ("authentication_error", "invalid x-api-key", "auth"),
        ("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", "context"),
        ("invalid_request_error", "messages: at least one is needed", "invalid"),
        ("invalid_request_error", "Output blocked by content filtering policy", "content"),
        ("timeout_error", "Timed out", "timeout"),
        ("hologram_error", "?", "overload"),
    ] {
        let event = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}});
        let outcome = decoded(vec![format!("event: error\ndata: {event}\n\n").into()]).await;
        assert_eq!(outcome, [format!("error: {class} ({message})")]);
    }
}

#[tokio::test(start_paused = true)]
async fn pings_keep_a_stream_alive_but_are_no_output() {
    let ping = || Ok::<_, Infallible>(Bytes::from_static(b"event: ping\ndata: {\"type\": \"ping\"}\n\n"));
    let pings = stream::unfold((), move |()| async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Some((ping(), ()))
    });
    let limits = Limits { idle: Duration::from_secs(20), first_token: Duration::from_secs(95), ..Limits::default() };
    let began = Instant::now();
    let outcome: Vec<_> = decode(Box::pin(pings), limits, began + limits.first_token).collect().await;
    assert_eq!(outcome.len(), 1);
    assert_eq!(outcome[0].as_ref().unwrap_err().class, Class::Timeout);
    assert_eq!(began.elapsed(), limits.first_token, "the pings kept it up until then");
}

#[tokio::test(start_paused = true)]
async fn silence_after_output_ends_the_stream() {
    let (_, whole) = golden().into_iter().find(|(name, _)| name == "text").unwrap();
    let half = Ok::<_, Infallible>(Bytes::copy_from_slice(&whole[..whole.len() * 3 / 4]));
    let limits = Limits { idle: Duration::from_secs(20), first_token: Duration::from_secs(5), ..Limits::default() };
    let began = Instant::now();
    let silent = stream::iter([half]).chain(stream::pending());
    let outcome: Vec<_> = decode(silent, limits, began + limits.first_token).collect().await;
    assert!(outcome.iter().flatten().any(Delta::is_output));
    assert_eq!(outcome.last().unwrap().as_ref().unwrap_err().class, Class::Timeout);
    assert_eq!(began.elapsed(), limits.idle);
}

#[test]
fn debug_and_errors_do_not_show_the_key() {
    let key = SecretString::from("sk-ant-very-secret");
    let settings = Settings { base_url: BASE_URL.into(), api_key: key.clone(), limits: Limits::default() };
    assert!(!format!("{settings:?}").contains("very-secret"));
    let quoted = Error::new(NAME, Class::Auth, "the key sk-ant-very-secret is wrong");
    assert_eq!(blot_out(quoted, &key).message, "the key *** is wrong");
}
