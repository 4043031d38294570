//! The recorded streams, and what a stream comes to.

use std::convert::Infallible;

use bytes::Bytes;
use croft_llm::recorded::Format;
use croft_llm::{Delta, Error, Limits};
use futures::{StreamExt as _, stream};

/// One line a delta, and the class of the error if it ended in one.
pub(crate) type Outcome = Vec<String>;

pub(crate) fn told(delta: Result<Delta, Error>) -> String {
    match delta {
        Ok(delta) => format!("{delta:?}"),
        Err(error) => format!("error: {} ({})", error.class.as_str(), error.message),
    }
}

pub(crate) async fn outcome(format: Format, chunks: Vec<Bytes>) -> Outcome {
    let bytes = stream::iter(chunks.into_iter().map(Ok::<_, Infallible>));
    format.deltas(bytes, Limits::default()).map(told).collect().await
}

/// The streams of this interface with their names.
pub(crate) fn golden(format: Format) -> Vec<(String, Vec<u8>)> {
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
pub(crate) fn chunks(whole: &[u8], offsets: &[usize]) -> Vec<Bytes> {
    let mut begin = 0;
    let mut chunks = Vec::new();
    for end in offsets.iter().copied().chain([whole.len()]) {
        chunks.push(Bytes::copy_from_slice(&whole[begin..end]));
        begin = end;
    }
    chunks
}
