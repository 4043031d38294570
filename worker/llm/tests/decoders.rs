//! What every decoder promises of whatever bytes come: it never panics, it ends, once, with a stop or an error of a class, it
//! does not matter how the network cut the bytes, and what it makes of them is bounded by what came.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod recorded;

use std::convert::Infallible;

use bytes::Bytes;
use croft_llm::recorded::Format;
use croft_llm::{Delta, Error, Limits};
use futures::{StreamExt as _, stream};
use proptest::prelude::*;
use proptest::sample::Index;
use recorded::{chunks, golden, outcome};

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

/// Something that goes wrong with a stream on its way.
#[derive(Debug, Clone)]
enum Change {
    Overwrite(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, usize),
    /// The bytes from here on come again.
    Repeat(Index, usize),
    /// Another stream, of whatever interface, follows from here on.
    Splice(Index, Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(place, byte)| Change::Overwrite(place, byte)),
        (place(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(place, bytes)| Change::Insert(place, bytes)),
        (place(), 1_usize..200).prop_map(|(place, length)| Change::Delete(place, length)),
        (place(), 1_usize..400).prop_map(|(place, length)| Change::Repeat(place, length)),
        (place(), place(), place()).prop_map(|(place, stream, from)| Change::Splice(place, stream, from)),
    ]
}

impl Change {
    fn apply(&self, stream: &mut Vec<u8>) {
        let at = |place: &Index, bytes: &[u8]| place.index(bytes.len() + 1);
        match self {
            Self::Overwrite(place, byte) if !stream.is_empty() => {
                let place = place.index(stream.len());
                stream[place] = *byte;
            }
            Self::Overwrite(..) => {}
            Self::Insert(place, bytes) => {
                let place = at(place, stream);
                stream.splice(place..place, bytes.iter().copied());
            }
            Self::Delete(place, length) => {
                let place = at(place, stream);
                stream.drain(place..stream.len().min(place + length));
            }
            Self::Repeat(place, length) => {
                let place = at(place, stream);
                let again = stream[place..stream.len().min(place + length)].to_vec();
                stream.splice(place..place, again);
            }
            Self::Splice(place, other, from) => {
                stream.truncate(at(place, stream));
                let all: Vec<_> = Format::ALL.into_iter().flat_map(golden).collect();
                let (_, other) = other.get(&all);
                stream.extend_from_slice(&other[at(from, other)..]);
            }
        }
    }
}

/// A recorded stream to which some of that happened.
fn garbled() -> impl Strategy<Value = (Format, Vec<u8>)> {
    let changes = prop::collection::vec(change(), 1..8);
    (0..Format::ALL.len(), any::<Index>(), changes).prop_map(|(format, pick, changes)| {
        let format = Format::ALL[format];
        let streams = golden(format);
        let mut stream = pick.get(&streams).1.clone();
        for change in &changes {
            change.apply(&mut stream);
        }
        (format, stream)
    })
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..40)
}

fn cut(whole: &[u8], cuts: &[Index]) -> Vec<Bytes> {
    let mut offsets: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
    offsets.sort_unstable();
    chunks(whole, &offsets)
}

/// Bytes of all that a delta says.
fn said(delta: &Delta) -> usize {
    match delta {
        Delta::Opened { response_id, model } => response_id.len() + model.len(),
        Delta::Text { text, .. } | Delta::Thinking { text, .. } => text.len(),
        Delta::Signature { signature, .. } => signature.len(),
        Delta::RedactedThinking { data, .. } => data.len(),
        Delta::ToolCallStarted { tool_call_id, name, .. } => tool_call_id.len() + name.len(),
        Delta::ToolArguments { partial_json, .. } => partial_json.len(),
        Delta::ToolCallStopped { arguments_json, .. } => arguments_json.len(),
        Delta::Native { native, .. } => native.json.len(),
        Delta::ServiceTier(word) | Delta::Refused(word) => word.len(),
        Delta::Usage(_) | Delta::Stop(_) => 0,
    }
}

fn ends(heard: &[String]) -> usize {
    heard.iter().filter(|line| line.starts_with("error: ") || line.starts_with("Stop(")).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_stream_cut_into_many_pieces_gives_the_same_deltas(
        format in 0..Format::ALL.len(),
        pick in any::<Index>(),
        cuts in cuts(),
    ) {
        let format = Format::ALL[format];
        let streams = golden(format);
        let (name, whole) = pick.get(&streams);
        run(async {
            let expected = outcome(format, chunks(whole, &[])).await;
            assert_eq!(outcome(format, cut(whole, &cuts)).await, expected, "{}/{name}", format.as_str());
        });
    }

    #[test]
    fn whatever_bytes_come_each_stream_ends_and_ends_once(
        bytes in prop_oneof![nearly_a_stream(), prop::collection::vec(any::<u8>(), 0..600)],
        cuts in cuts(),
    ) {
        for format in Format::ALL {
            let heard = run(outcome(format, vec![Bytes::copy_from_slice(&bytes)]));
            prop_assert_eq!(ends(&heard), 1, "{}: {:?}", format.as_str(), heard);
            prop_assert_eq!(&run(outcome(format, cut(&bytes, &cuts))), &heard, "{}", format.as_str());
        }
    }

    #[test]
    fn a_garbled_stream_ends_and_ends_once((format, garbled) in garbled(), cuts in cuts()) {
        run(async {
            let heard = outcome(format, chunks(&garbled, &[])).await;
            assert_eq!(ends(&heard), 1, "{}: {heard:?}", format.as_str());
            assert_eq!(outcome(format, cut(&garbled, &cuts)).await, heard, "{}", format.as_str());
        });
    }

    /// One that begins again and again is read no further than its bound, and comes to no more than was read.
    #[test]
    fn what_an_endless_stream_comes_to_is_bounded((format, garbled) in garbled(), read in 1_usize..4_096) {
        const ANSWER_BYTES_MAX: usize = 64 * 1024;
        prop_assume!(!garbled.is_empty());
        let limits = Limits { event_bytes_max: 8 * 1024, answer_bytes_max: ANSWER_BYTES_MAX, ..Limits::default() };
        let pushed = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&pushed);
        let reads = stream::iter(garbled.chunks(read).map(Bytes::copy_from_slice).collect::<Vec<_>>().into_iter().cycle());
        let reads = reads.map(move |bytes| {
            counted.fetch_add(bytes.len(), std::sync::atomic::Ordering::Relaxed);
            Ok::<_, Infallible>(bytes)
        });
        let heard: Vec<Result<Delta, Error>> = run(format.deltas(reads, limits).collect());
        let pushed = pushed.load(std::sync::atomic::Ordering::Relaxed);
        prop_assert!(pushed <= ANSWER_BYTES_MAX + read);
        let told = heard.iter().flatten().map(said).sum::<usize>();
        // Arguments are told in pieces and as a whole, ids that the provider leaves out are made up, and numbers may be
        // written out.
        prop_assert!(told <= 16 * pushed, "{told} bytes of {pushed}");
        let end = heard.last().unwrap();
        prop_assert!(matches!(end, Ok(Delta::Stop(_)) | Err(_)), "{end:?}");
    }
}

/// xAI's total has what was thought beside the output; OpenAI's output has it within. The last two are of servers that give no
/// total, or one that fits neither.
#[test]
fn what_was_thought_is_output_whether_a_server_counts_it_within_or_beside() {
    for (prompt, completion, reasoning, total, output) in [
        (12, 1, 386, "399", 387),
        (10_120, 1_499, 2_809, "14428", 4_308),
        (32, 100, 94, "226", 194),
        (75, 1_186, 1_024, "1261", 1_186),
        (9, 12, 0, "21", 12),
        (12, 1, 386, "13", 1),
        (12, 1, 386, "null", 387),
        (12, 400, 386, "7", 400),
    ] {
        let usage = format!(
            r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total},
            "completion_tokens_details":{{"reasoning_tokens":{reasoning}}}}}"#
        );
        let event = format!("data: {{\"choices\":[],\"usage\":{}}}\n\n", usage.replace('\n', " "));
        let reads = stream::iter([Ok::<_, Infallible>(Bytes::from(event))]);
        let heard: Vec<_> = run(Format::OpenAiChat.deltas(reads, Limits::default()).collect());
        let told = heard.iter().flatten().find_map(|delta| match delta {
            Delta::Usage(usage) => Some((usage.input_uncached_tokens, usage.output_tokens, usage.reasoning_tokens)),
            _ => None,
        });
        assert_eq!(told, Some((prompt, output, reasoning)), "{usage}");
    }
}

/// Each call that Gemini gives no id repeats the response's: a long one of those with many calls would come to a square.
#[test]
fn ids_that_are_made_up_do_not_grow_with_the_responses_own() {
    let call = r#"{"functionCall":{"name":"f"}}"#;
    let calls = vec![call; 1_000].join(",");
    let id = "x".repeat(1_000_000);
    let event =
        format!("data: {{\"responseId\":\"{id}\",\"candidates\":[{{\"content\":{{\"parts\":[{calls}]}}}}]}}\n\n");
    let reads = stream::iter([Ok::<_, Infallible>(Bytes::from(event.clone()))]);
    let heard: Vec<_> = run(Format::Gemini.deltas(reads, Limits::default()).collect());
    let told: usize = heard.iter().flatten().map(said).sum();
    assert!(heard.len() > 1_000 && told < 2 * event.len(), "{told} bytes of {}", event.len());
}

/// Servers that speak the interface tell no index, or the same for all, or an item twice: a call is known by its id.
#[test]
fn calls_of_responses_are_told_apart_by_their_ids() {
    let item = |place: u32, index: &str, arguments: &str| {
        format!(
            r#"{index}"item":{{"type":"function_call","id":"fc_{place}","call_id":"call_{place}","name":"dig","arguments":"{arguments}"}}"#
        )
    };
    for index in [r#""output_index":0,"#, ""] {
        for names_items in [true, false] {
            let added = |place| format!(r#"{{"type":"response.output_item.added",{}}}"#, item(place, index, ""));
            let done =
                |place| format!(r#"{{"type":"response.output_item.done",{}}}"#, item(place, index, &place.to_string()));
            let piece = |place: u32| {
                let item_id = if names_items { format!(r#""item_id":"fc_{place}","#) } else { String::new() };
                format!(r#"{{"type":"response.function_call_arguments.delta",{index}{item_id}"delta":"{place}"}}"#)
            };
            let mut events = vec![added(1), added(2), added(2)];
            events.extend(if names_items { vec![piece(1), piece(2)] } else { vec![piece(2)] });
            events.extend([done(1), done(2), done(1), done(2), added(1), piece(1)]);
            events.push(r#"{"type":"response.completed"}"#.into());
            let stream = format!("data: {}\n\n", events.join("\n\ndata: "));
            let heard = run(outcome(Format::OpenAiResponses, chunks(stream.as_bytes(), &[])));
            let started = |block: u32| {
                let place = block + 1;
                format!(r#"ToolCallStarted {{ block: {block}, tool_call_id: "call_{place}", name: "dig" }}"#)
            };
            let pieces = |block: u32| {
                let place = block + 1;
                format!(r#"ToolArguments {{ block: {block}, partial_json: "{place}" }}"#)
            };
            let stopped = |block: u32| {
                let place = block + 1;
                format!(r#"ToolCallStopped {{ block: {block}, arguments_json: "{place}" }}"#)
            };
            let mut expected = vec![started(0), started(1)];
            expected.extend(if names_items { vec![pieces(0), pieces(1)] } else { vec![pieces(1)] });
            expected.extend([stopped(0), stopped(1), "Stop(ToolUse)".to_owned()]);
            assert_eq!(heard, expected, "{index:?} {names_items}");
        }
    }
}

/// Some servers count the calls of each name by itself.
#[test]
fn calls_of_responses_with_the_same_id_are_two() {
    let item = |place: u32| {
        format!(
            r#""output_index":{place},"item":{{"type":"function_call","id":"fc_{place}","call_id":"one","name":"dig","arguments":"{place}"}}"#
        )
    };
    let told =
        |kind: &str, place: u32| format!("data: {{\"type\":\"response.output_item.{kind}\",{}}}\n\n", item(place));
    let stream = [told("added", 0), told("added", 1), told("done", 0), told("done", 1), told("done", 0)].concat();
    let heard = run(outcome(Format::OpenAiResponses, chunks(stream.as_bytes(), &[])));
    let started = |block| format!(r#"ToolCallStarted {{ block: {block}, tool_call_id: "one", name: "dig" }}"#);
    let stopped = |block| format!(r#"ToolCallStopped {{ block: {block}, arguments_json: "{block}" }}"#);
    assert_eq!(heard[..heard.len() - 1], [started(0), started(1), stopped(0), stopped(1)]);
}

/// It was kept where nobody sees it, and where no check of the output looked.
#[test]
fn a_text_of_gemini_is_a_text_whatever_else_its_part_has() {
    let parts = r#"{"text":"seen","hologram":1},{"functionCall":{"id":"one","name":"f"},"hologram":1},{"hologram":1}"#;
    let event =
        format!("data: {{\"candidates\":[{{\"content\":{{\"parts\":[{parts}]}},\"finishReason\":\"STOP\"}}]}}\n\n");
    let heard = run(outcome(Format::Gemini, chunks(event.as_bytes(), &[])));
    let expected = [
        r#"Text { block: 0, text: "seen" }"#,
        r#"ToolCallStarted { block: 1, tool_call_id: "one", name: "f" }"#,
        r#"ToolArguments { block: 1, partial_json: "{}" }"#,
        r#"ToolCallStopped { block: 1, arguments_json: "{}" }"#,
        r#"Native { block: 2, native: NativeBlock { provider: "gemini", json: "{\"hologram\":1}" } }"#,
        "Stop(ToolUse)",
    ];
    assert_eq!(heard[1..], expected, "behind what opens it");
}
