//! Every provider's decoder against streams written from the documented formats, cut in every way that a network can cut
//! them, and against bytes that are no stream at all.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod recorded;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use croft_llm::recorded::Format;
use croft_llm::{Class, Delta, Limits};
use futures::{Stream, StreamExt as _, stream};
use recorded::{Outcome, chunks, golden, outcome, told};
use tokio::time::Instant;

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
async fn pings_keep_a_stream_alive_but_begin_no_answer() {
    let ping = || Ok::<_, Infallible>(Bytes::from_static(b"event: ping\ndata: {\"type\": \"ping\"}\n\n"));
    let pings = stream::unfold((), move |()| async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Some((ping(), ()))
    });
    let limits = Limits { idle: Duration::from_secs(20), opened: Duration::from_secs(95), ..Limits::default() };
    let began = Instant::now();
    let outcome: Vec<_> = Format::Anthropic.deltas(Box::pin(pings), limits).collect().await;
    assert_eq!(outcome.len(), 1);
    assert_eq!(outcome[0].as_ref().unwrap_err().class, Class::Timeout);
    assert_eq!(began.elapsed(), limits.opened, "the pings kept it up until then");
}

/// The answer of text, cut behind its first event, which opens it.
fn opened(format: Format) -> [Bytes; 2] {
    let (_, whole) = golden(format).into_iter().find(|(name, _)| name == "text").unwrap();
    let ends = whole.windows(2).position(|pair| pair == b"\n\n").unwrap() + 2;
    [Bytes::copy_from_slice(&whole[..ends]), Bytes::copy_from_slice(&whole[ends..])]
}

/// That beginning, then so many pings of fifteen seconds each, then the rest.
fn thought(format: Format, pings: usize) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + Unpin + 'static {
    let [begin, rest] = opened(format).map(|bytes| (Duration::ZERO, bytes));
    let ping = (Duration::from_secs(15), Bytes::from_static(b": ping\n\n"));
    let pieces = [begin].into_iter().chain(std::iter::repeat_n(ping, pings)).chain([rest]);
    Box::pin(stream::iter(pieces).then(|(pause, bytes)| async move {
        tokio::time::sleep(pause).await;
        Ok(bytes)
    }))
}

/// A model that hides what it thinks may do so for long.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_opened_may_take_its_time_as_long_as_bytes_come() {
    let limits = Limits { idle: Duration::from_secs(20), opened: Duration::from_secs(30), ..Limits::default() };
    for format in Format::ALL {
        let expected = outcome(format, opened(format).to_vec()).await;
        let began = Instant::now();
        let heard: Vec<_> = format.deltas(thought(format, 60), limits).map(told).collect().await;
        assert_eq!(heard, expected, "{}", format.as_str());
        assert_eq!(began.elapsed(), Duration::from_mins(15), "{}", format.as_str());
    }
}

/// It was paid for, and the next one would be no shorter.
#[tokio::test(start_paused = true)]
async fn an_answer_without_end_is_ended_and_not_to_be_asked_for_again() {
    let limits = Limits { answer: Duration::from_mins(2), ..Limits::default() };
    for format in Format::ALL {
        let began = Instant::now();
        let heard: Vec<_> = format.deltas(thought(format, 60), limits).collect().await;
        let error = heard.last().unwrap().as_ref().unwrap_err();
        assert_eq!((error.class, error.is_retryable()), (Class::Timeout, false), "{}: {error}", format.as_str());
        assert_eq!(began.elapsed(), limits.answer, "{}", format.as_str());
    }
}

#[tokio::test(start_paused = true)]
async fn silence_after_output_ends_the_stream() {
    let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/anthropic/text.sse")).unwrap();
    let half = Ok::<_, Infallible>(Bytes::copy_from_slice(&whole[..whole.len() * 3 / 4]));
    let limits = Limits { idle: Duration::from_secs(20), opened: Duration::from_secs(5), ..Limits::default() };
    let began = Instant::now();
    let silent = stream::iter([half]).chain(stream::pending());
    let outcome: Vec<_> = Format::Anthropic.deltas(silent, limits).collect().await;
    assert!(outcome.iter().flatten().any(Delta::is_output));
    assert_eq!(outcome.last().unwrap().as_ref().unwrap_err().class, Class::Timeout);
    assert_eq!(began.elapsed(), limits.idle);
}

/// Some servers give an empty reason to finish with every piece.
#[tokio::test(start_paused = true)]
async fn a_blank_reason_to_finish_is_no_end_however_long_the_next_piece_takes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openai-chat/blank_finish_reason.sse");
    let whole = std::fs::read(path).unwrap();
    let pieces: Vec<_> = String::from_utf8(whole.clone()).unwrap().split_inclusive("\n\n").map(str::to_owned).collect();
    let slow = stream::iter(pieces).then(|piece| async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok::<_, Infallible>(Bytes::from(piece))
    });
    let heard: Vec<_> = Format::OpenAiChat.deltas(Box::pin(slow), Limits::default()).map(told).collect().await;
    assert_eq!(heard, outcome(Format::OpenAiChat, chunks(&whole, &[])).await);
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
