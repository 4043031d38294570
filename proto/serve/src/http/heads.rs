//! Heads of requests that are being answered: how much of them a port holds.
//!
//! Before it is a request, a head is its connection's, which has one of them under way. Behind the answer's own head nothing is left of it. In between
//! whoever answers has it, for as long as the caller lets a body come that he waits for, with or without a credential; and over HTTP/2 a header that
//! was said before takes one byte to be said again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::Request;
use prometheus::IntCounter;

/// What a connection may hold whatever all others do: a head of everyday size.
const ALWAYS_BYTES: usize = 4 * 1024;
/// A connection holds at most one in so many of all bytes.
const SHARE: usize = 4;
/// What a request takes besides its head, and a header besides its text, at most and roughly.
const REQUEST_BYTES: usize = 512;
const HEADER_BYTES: usize = 192;

/// Of a port. Clones share it.
#[derive(Clone)]
pub(super) struct Heads {
    bytes_max: usize,
    all: Arc<AtomicUsize>,
    refused: IntCounter,
}

/// Of one connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Own(Arc<AtomicUsize>);

/// Counts a head until it is dropped.
pub(super) struct Held {
    bytes: usize,
    of: [Arc<AtomicUsize>; 2],
}

impl Heads {
    pub(super) fn new(bytes_max: usize, refused: IntCounter) -> Self {
        Self { bytes_max, all: Arc::default(), refused }
    }

    /// Room for the head of a request that came by a connection. `None`, which is counted, while there is none.
    pub(super) fn hold<B>(&self, request: &Request<B>, own: &Own) -> Option<Held> {
        let bytes = bytes(request);
        let of = [Arc::clone(&self.all), Arc::clone(&own.0)];
        let [all, before] = of.each_ref().map(|held| held.fetch_add(bytes, Ordering::Relaxed));
        // Where it is refused, it is taken back at once.
        let held = Held { bytes, of };
        let has_room = all + bytes <= self.bytes_max && before + bytes <= self.bytes_max / SHARE;
        if has_room || before + bytes <= ALWAYS_BYTES {
            return Some(held);
        }
        self.refused.inc();
        None
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for held in &self.of {
            held.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

fn bytes<B>(request: &Request<B>) -> usize {
    let uri = request.uri();
    let target = uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    let header = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        name.as_str().len() + value.len() + HEADER_BYTES
    };
    REQUEST_BYTES + target + request.headers().iter().map(header).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: usize = 256 * 1024;

    fn heads() -> Heads {
        Heads::new(BYTES_MAX, IntCounter::new("refused", "Of this test").unwrap())
    }

    fn request(bytes: usize) -> Request<()> {
        Request::get("/").header("x", "a".repeat(bytes - REQUEST_BYTES - HEADER_BYTES - 2)).body(()).unwrap()
    }

    /// As many as there is room for.
    fn filled(heads: &Heads, own: &Own) -> Vec<Held> {
        std::iter::from_fn(|| heads.hold(&request(8 * 1024), own)).collect()
    }

    #[test]
    fn a_header_that_says_nothing_counts_too() {
        let many = (0..400).fold(Request::get("/healthz"), |request, _| request.header("x", "")).body(()).unwrap();
        assert_eq!(bytes(&many), REQUEST_BYTES + "/healthz".len() + 400 * (1 + HEADER_BYTES));
        assert_eq!(bytes(&request(8_000)), 8_000);
    }

    #[test]
    fn a_connection_holds_its_share_of_all_and_no_more() {
        let (heads, own) = (heads(), Own::default());
        let held = filled(&heads, &own);
        assert_eq!(held.len(), BYTES_MAX / SHARE / (8 * 1024));
        assert_eq!(heads.refused.get(), 1);
        drop(held);
        assert_eq!(filled(&heads, &own).len(), BYTES_MAX / SHARE / (8 * 1024), "it is all given back");
    }

    #[test]
    fn where_others_hold_all_a_connection_still_has_a_little() {
        let (heads, others) = (heads(), [(); SHARE].map(|()| Own::default()));
        let held: Vec<_> = others.iter().map(|own| filled(&heads, own)).collect();
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), BYTES_MAX / (8 * 1024));
        let own = Own::default();
        assert!(heads.hold(&request(ALWAYS_BYTES + 1), &own).is_none(), "also of its first it has no more");
        let little: Vec<_> = std::iter::from_fn(|| heads.hold(&request(1_000), &own)).collect();
        assert_eq!(little.len(), ALWAYS_BYTES / 1_000);
    }
}
