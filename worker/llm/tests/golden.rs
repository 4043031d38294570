//! Every provider's decoder against streams written from the documented formats, cut in every way that a network can cut
//! them, and against bytes that are no stream at all.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use croft_llm::recorded::Format;
use croft_llm::{Class, Delta, Error, Limits};
use futures::{StreamExt as _, stream};
use proptest::prelude::*;
use tokio::time::Instant;

/// One line a delta, and the class of the error if it ended in one.
type Outcome = Vec<String>;

fn told(delta: Result<Delta, Error>) -> String {
    match delta {
        Ok(delta) => format!("{delta:?}"),
        Err(error) => format!("error: {} ({})", error.class.as_str(), error.message),
    }
}

async fn outcome(format: Format, chunks: Vec<Bytes>) -> Outcome {
    let bytes = stream::iter(chunks.into_iter().map(Ok::<_, Infallible>));
    format.deltas(bytes, Limits::default()).map(told).collect().await
}

/// The streams of this interface with their names.
fn golden(format: Format) -> Vec<(String, Vec<u8>)> {
    let folder = format!("{}/tests/golden/{}", env!("CARGO_MANIFEST_DIR"), format.as_str());
    let mut streams: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sse"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    streams.sort();
    assert!(streams.len() >= 8, "golden streams of {} are missing", format.as_str());
    streams
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
    for format in Format::ALL {
        for (name, whole) in golden(format) {
            let heard = outcome(format, chunks(&whole, &[])).await;
            let path = format!("golden/{}", format.as_str());
            insta::with_settings!({ snapshot_path => path, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(name, heard.join("\n"));
            });
        }
    }
}

#[tokio::test]
async fn a_stream_cut_in_two_anywhere_gives_the_same_deltas() {
    for format in Format::ALL {
        for (name, whole) in golden(format) {
            let expected = outcome(format, chunks(&whole, &[])).await;
            for offset in 0..=whole.len() {
                let cut = outcome(format, chunks(&whole, &[offset])).await;
                assert_eq!(cut, expected, "{}/{name} cut at byte {offset}", format.as_str());
            }
            let every_byte: Vec<_> = (1..whole.len()).collect();
            let cut = outcome(format, chunks(&whole, &every_byte)).await;
            assert_eq!(cut, expected, "{}/{name} byte by byte", format.as_str());
        }
    }
}

#[tokio::test]
async fn line_ends_do_not_matter_wherever_they_are_cut() {
    for format in Format::ALL {
        for (name, whole) in golden(format) {
            let expected = outcome(format, chunks(&whole, &[])).await;
            for line_end in ["\r\n", "\r"] {
                let other = String::from_utf8(whole.clone()).unwrap().replace('\n', line_end).into_bytes();
                for offset in 0..=other.len() {
                    let cut = outcome(format, chunks(&other, &[offset])).await;
                    assert_eq!(cut, expected, "{}/{name}, {line_end:?}, byte {offset}", format.as_str());
                }
            }
        }
    }
}

/// Ends early: what came stands, and then it is truncated, unless nothing but the account of it was missing.
#[tokio::test]
async fn a_stream_that_ends_early_gives_what_came_and_then_an_end() {
    for format in Format::ALL {
        for (name, whole) in golden(format) {
            let expected = outcome(format, chunks(&whole, &[])).await;
            for length in 0..whole.len() {
                let mut heard = outcome(format, vec![Bytes::copy_from_slice(&whole[..length])]).await;
                let end = heard.pop().unwrap();
                let place = format!("{}/{name} of {length} bytes: {end}", format.as_str());
                let is_the_end = expected.last() == Some(&end);
                assert!(is_the_end || end.starts_with("error: truncated"), "{place}");
                assert_eq!(heard[..], expected[..heard.len()], "{place}");
            }
        }
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Bytes that look enough like a stream to get somewhere.
fn nearly_a_stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(b"data: ".to_vec()),
        Just(b"event: ".to_vec()),
        Just(b"\n\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"data: [DONE]\n\n".to_vec()),
        Just(b"{\"type\":\"".to_vec()),
        "data: \\{\"[a-z_]{1,12}\":(null|0|-1|1e99|\"\"|\\[\\]|\\{\\}|\\[\\{\\}\\])\\}\n\n"
            .prop_map(String::into_bytes),
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_stream_cut_into_many_pieces_gives_the_same_deltas(
        format in 0..Format::ALL.len(),
        pick in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let format = Format::ALL[format];
        let streams = golden(format);
        let (name, whole) = pick.get(&streams);
        let mut offsets: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
        offsets.sort_unstable();
        run(async {
            let expected = outcome(format, chunks(whole, &[])).await;
            assert_eq!(outcome(format, chunks(whole, &offsets)).await, expected, "{}/{name}", format.as_str());
        });
    }

    #[test]
    fn whatever_bytes_come_each_stream_ends_and_ends_once(bytes in nearly_a_stream()) {
        for format in Format::ALL {
            let heard = run(outcome(format, vec![Bytes::copy_from_slice(&bytes)]));
            let ends = heard.iter().filter(|line| line.starts_with("error: ") || line.starts_with("Stop(")).count();
            prop_assert_eq!(ends, 1, "{}: {:?}", format.as_str(), heard);
        }
    }

    /// A golden stream with a few bytes overwritten: what is left of it still decodes to something with one end.
    #[test]
    fn a_garbled_stream_ends_and_ends_once(
        format in 0..Format::ALL.len(),
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let format = Format::ALL[format];
        let streams = golden(format);
        let (name, whole) = pick.get(&streams);
        let mut garbled = whole.clone();
        for (place, byte) in &changes {
            let place = place.index(garbled.len());
            garbled[place] = *byte;
        }
        run(async {
            let heard = outcome(format, chunks(&garbled, &[])).await;
            let ends = heard.iter().filter(|line| line.starts_with("error: ") || line.starts_with("Stop(")).count();
            assert_eq!(ends, 1, "{}/{name}: {heard:?}", format.as_str());
            let cut = outcome(format, chunks(&garbled, &[cut.index(garbled.len())])).await;
            assert_eq!(cut, heard, "{}/{name}", format.as_str());
        });
    }
}

async fn anthropic(text: impl Into<Bytes>) -> Outcome {
    outcome(Format::Anthropic, vec![text.into()]).await
}

#[tokio::test]
async fn what_is_no_event_is_an_error_of_the_network() {
    for (line, message) in [
        (
            "data: {\"type\":\"content_block_delta\",\"index\":7,\"delta\":{\"type\":\"text_delta\",\"text\":\"x\"}}\n\n",
            "not open",
        ),
        ("data: {not json}\n\n", "makes no sense"),
        ("data: {\"type\":\"content_block_delta\",\"index\":0}\n\n", "makes no sense without delta"),
        ("<html>\n\n", "no event stream"),
    ] {
        let outcome = anthropic(line).await;
        assert_eq!(outcome.len(), 1);
        assert!(outcome[0].starts_with("error: network") && outcome[0].contains(message), "{outcome:?}");
    }
}

#[tokio::test]
async fn what_came_before_garbage_in_the_same_chunk_stands() {
    for format in Format::ALL {
        let (name, whole) = golden(format).into_iter().find(|(name, _)| name == "text").unwrap();
        let half = &whole[..whole.windows(2).position(|pair| pair == b"\n\n").unwrap() + 2];
        let heard = outcome(format, vec![[half, b"<html>\n\n"].concat().into()]).await;
        assert!(heard.len() > 1, "{}/{name}: {heard:?}", format.as_str());
        assert_eq!(heard.last().unwrap(), "error: network (sent what is no event stream)");
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
    let outcome: Vec<_> = Format::Anthropic.deltas(Box::pin(pings), limits).collect().await;
    assert_eq!(outcome.len(), 1);
    assert_eq!(outcome[0].as_ref().unwrap_err().class, Class::Timeout);
    assert_eq!(began.elapsed(), limits.first_token, "the pings kept it up until then");
}

#[tokio::test(start_paused = true)]
async fn silence_after_output_ends_the_stream() {
    let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/anthropic/text.sse")).unwrap();
    let half = Ok::<_, Infallible>(Bytes::copy_from_slice(&whole[..whole.len() * 3 / 4]));
    let limits = Limits { idle: Duration::from_secs(20), first_token: Duration::from_secs(5), ..Limits::default() };
    let began = Instant::now();
    let silent = stream::iter([half]).chain(stream::pending());
    let outcome: Vec<_> = Format::Anthropic.deltas(silent, limits).collect().await;
    assert!(outcome.iter().flatten().any(Delta::is_output));
    assert_eq!(outcome.last().unwrap().as_ref().unwrap_err().class, Class::Timeout);
    assert_eq!(began.elapsed(), limits.idle);
}

/// Gemini has no last event, and a server may keep its connection open.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_whole_does_not_wait_for_the_connection_to_end() {
    let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gemini/text.sse")).unwrap();
    let open = stream::iter([Ok::<_, Infallible>(Bytes::from(whole))]).chain(stream::pending());
    let began = Instant::now();
    let outcome: Vec<_> = Format::Gemini.deltas(open, Limits::default()).map(told).collect().await;
    assert_eq!(outcome.last().unwrap(), "Stop(EndTurn)");
    assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
}
