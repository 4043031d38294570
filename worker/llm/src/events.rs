//! Server-sent events out of bytes: in one pass, and without a copy of what lies in one piece, however the network cut it.
//!
//! Format: <https://html.spec.whatwg.org/multipage/server-sent-events.html>. What no provider sends is refused rather than
//! passed over (a field that is unknown, a line without a colon, two names of one event): a gateway's page in HTML must
//! not look like an answer that says nothing.

use std::num::ParseIntError;
use std::ops::Range;
use std::str::Utf8Error;

use bytes::Bytes;
use memchr::{memchr, memchr2};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// What is no event stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("an event is too long")]
    TooLong,
    #[error("a line has no field that there is")]
    Line,
    #[error("an event has a field twice")]
    Twice,
    #[error("a line is no text")]
    Text(#[source] Utf8Error),
    #[error("the time before another connection is no number")]
    Retry(#[source] ParseIntError),
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'events> {
    /// The data of an event, its lines joined. Events without data are passed over.
    Data(&'events str),
    /// JSON stands where an event should begin; [`Events::rest`] is its begin.
    Json,
    /// Nothing, until there are more bytes.
    Nothing,
}

/// The events of one body.
pub(crate) struct Events {
    /// What came, of which `read` bytes were read.
    chunk: Bytes,
    read: usize,
    /// The begin of a line whose end has not come.
    line: Vec<u8>,
    event: Event,
    /// Of the event that was told last.
    told: Data,
    /// Bytes of the event at hand, with what is no data.
    event_bytes: usize,
    event_bytes_max: usize,
    is_first_line: bool,
    /// A line feed that follows is of the same line end.
    after_carriage_return: bool,
}

/// What was read of the event at hand.
#[derive(Default)]
struct Event {
    data: Data,
    has_name: bool,
    has_id: bool,
    has_retry: bool,
}

#[derive(Default)]
enum Data {
    #[default]
    Missing,
    /// In the chunk at hand.
    InPlace(Range<usize>),
    /// Text only when it is told: wherever the network cuts, the first problem must be the same.
    Copied(Vec<u8>),
}

/// One line.
enum Line<'line> {
    Blank,
    Data(&'line [u8]),
    Name,
    Id,
    Retry,
    Comment,
}

impl Events {
    /// An event of more than `event_bytes_max` is a problem, also before its end has come.
    pub(crate) fn new(event_bytes_max: usize) -> Self {
        Self {
            chunk: Bytes::new(),
            read: 0,
            line: Vec::new(),
            event: Event::default(),
            told: Data::Missing,
            event_bytes: 0,
            event_bytes_max,
            is_first_line: true,
            after_carriage_return: false,
        }
    }

    /// Adds bytes. Only after [`Next::Nothing`].
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.read = 0;
        if let Some(first) = chunk.first() {
            let of_the_last_line = std::mem::take(&mut self.after_carriage_return) && *first == b'\n';
            self.read = usize::from(of_the_last_line);
        }
        self.chunk = chunk;
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> Bytes {
        self.chunk.slice(self.read..)
    }

    /// Reads on to the end of the next event that has data. After a problem nothing that follows makes sense.
    pub(crate) fn next(&mut self) -> Result<Next<'_>, Problem> {
        loop {
            if self.is_at_json() {
                return Ok(Next::Json);
            }
            let unread = &self.chunk[self.read..];
            let Some(length) = memchr2(b'\n', b'\r', unread) else {
                self.set_aside()?;
                return Ok(Next::Nothing);
            };
            let line = self.read..self.read + length;
            self.read = line.end + 1;
            if self.chunk[line.end] == b'\r' {
                match self.chunk.get(self.read) {
                    Some(b'\n') => self.read += 1,
                    Some(_) => {}
                    None => self.after_carriage_return = true,
                }
            }
            self.grow(length + 1)?;
            if self.line(line)? {
                self.event_bytes = 0;
                self.told = std::mem::take(&mut self.event).data;
                if !matches!(self.told, Data::Missing) {
                    return self.told();
                }
            }
        }
    }

    fn is_at_json(&self) -> bool {
        self.event_bytes == 0 && matches!(self.chunk.get(self.read), Some(b'{' | b'['))
    }

    fn told(&self) -> Result<Next<'_>, Problem> {
        match &self.told {
            Data::Missing => Ok(Next::Nothing),
            Data::InPlace(place) => text(&self.chunk[place.clone()]).map(Next::Data),
            Data::Copied(data) => text(data).map(Next::Data),
        }
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        self.event_bytes += bytes;
        if self.event_bytes > self.event_bytes_max { Err(Problem::TooLong) } else { Ok(()) }
    }

    /// Keeps what the chunk holds of an event that is not whole.
    fn set_aside(&mut self) -> Result<(), Problem> {
        let rest = self.rest();
        self.grow(rest.len())?;
        self.line.extend_from_slice(&rest);
        if let Data::InPlace(place) = &self.event.data {
            self.event.data = Data::Copied(self.chunk[place.clone()].to_vec());
        }
        self.chunk = Bytes::new();
        self.read = 0;
        Ok(())
    }

    /// Reads the line that ends in this place of the chunk. Whether it ends the event.
    fn line(&mut self, place: Range<usize>) -> Result<bool, Problem> {
        if self.line.is_empty() && !self.is_first_line {
            let line = Line::read(&self.chunk[place.clone()])?;
            if let (Line::Data(data), Data::Missing) = (&line, &self.event.data) {
                self.event.data = Data::InPlace(place.end - data.len()..place.end);
                return Ok(false);
            }
            return self.event.take_in(&line, &self.chunk);
        }
        let mut whole = std::mem::take(&mut self.line);
        whole.extend_from_slice(&self.chunk[place]);
        let mark = if std::mem::take(&mut self.is_first_line) { BYTE_ORDER_MARK } else { &[] };
        let line = Line::read(whole.strip_prefix(mark).unwrap_or(&whole))?;
        let ends = self.event.take_in(&line, &self.chunk)?;
        // The next one that is cut has room already.
        whole.clear();
        self.line = whole;
        Ok(ends)
    }
}

impl Event {
    /// Adds a line. Whether it ends the event.
    fn take_in(&mut self, line: &Line<'_>, chunk: &[u8]) -> Result<bool, Problem> {
        let once = |before: &mut bool| if std::mem::replace(before, true) { Err(Problem::Twice) } else { Ok(false) };
        match line {
            Line::Blank => Ok(true),
            Line::Comment => Ok(false),
            Line::Name => once(&mut self.has_name),
            Line::Id => once(&mut self.has_id),
            Line::Retry => once(&mut self.has_retry),
            Line::Data(data) => {
                let before = match std::mem::take(&mut self.data) {
                    Data::Missing => None,
                    Data::InPlace(place) => Some(chunk[place].to_vec()),
                    Data::Copied(before) => Some(before),
                };
                let mut joined = before.map_or_else(Vec::new, |mut before| {
                    before.push(b'\n');
                    before
                });
                joined.extend_from_slice(data);
                self.data = Data::Copied(joined);
                Ok(false)
            }
        }
    }
}

impl<'line> Line<'line> {
    fn read(line: &'line [u8]) -> Result<Self, Problem> {
        if line.is_empty() {
            return Ok(Self::Blank);
        }
        // Nearly every one.
        if let Some(value) = line.strip_prefix(b"data:") {
            return Ok(Self::Data(value.strip_prefix(b" ").unwrap_or(value)));
        }
        let colon = memchr(b':', line).ok_or(Problem::Line)?;
        let value = &line[colon + 1..];
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"event" => text(value).map(|_| Self::Name),
            // The format says so.
            b"id" if value.contains(&0) => Ok(Self::Comment),
            b"id" => text(value).map(|_| Self::Id),
            b"retry" => text(value)?.trim_ascii().parse::<u64>().map(|_| Self::Retry).map_err(Problem::Retry),
            b"" => Ok(Self::Comment),
            _ => Err(Problem::Line),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(Problem::Text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data of all events, and the problem that they end in, if they do.
    fn read(chunks: &[&[u8]]) -> Vec<String> {
        let (mut events, mut heard) = (Events::new(64), Vec::new());
        for chunk in chunks {
            events.push(Bytes::copy_from_slice(chunk));
            loop {
                match events.next() {
                    Ok(Next::Data(data)) => heard.push(data.to_owned()),
                    Ok(Next::Nothing) => break,
                    Ok(Next::Json) => {
                        heard.push("JSON".to_owned());
                        return heard;
                    }
                    Err(problem) => {
                        heard.push(problem.to_string());
                        return heard;
                    }
                }
            }
        }
        heard
    }

    fn whole(text: &str) -> Vec<String> {
        read(&[text.as_bytes()])
    }

    #[test]
    fn data_is_what_the_format_says_whatever_ends_the_lines() {
        for (stream, data) in [
            ("data: 1\n\ndata:2\n\n", &["1", "2"][..]),
            ("data: 1\ndata: 2\ndata:\ndata:  3\n\n", &["1\n2\n\n 3"][..]),
            ("\u{feff}data: 1\n\n", &["1"][..]),
            (": comment\nevent: e\nid: 7\nretry: 10\ndata: 1\n\n", &["1"][..]),
            ("event: ping\n\n:\n\n\n\ndata: 1\n\n", &["1"][..]),
            ("data\u{3a}\n\n", &[""][..]),
            ("data: 1\n\ndata: the end is missing\n", &["1"][..]),
        ] {
            for line_end in ["\n", "\r\n", "\r"] {
                let stream = stream.replace('\n', line_end);
                assert_eq!(whole(&stream), data, "{stream:?}");
                let bytes: Vec<_> = stream.as_bytes().chunks(1).collect();
                assert_eq!(read(&bytes), data, "{stream:?}, byte by byte");
            }
        }
    }

    #[test]
    fn what_no_provider_sends_is_a_problem_and_what_came_before_it_stands() {
        let long = format!("data: {}\n", "x".repeat(70));
        for (line, problem) in [
            ("<html>\n", "a line has no field that there is"),
            ("colour: red\n", "a line has no field that there is"),
            ("data: 2\n{\"in\": 2}\n", "a line has no field that there is"),
            ("event: a\nevent: b\n", "an event has a field twice"),
            ("retry: soon\n", "the time before another connection is no number"),
            ("{\"error\": 1}", "JSON"),
            (long.as_str(), "an event is too long"),
            (&long[..70], "an event is too long"),
        ] {
            assert_eq!(whole(&format!("data: 1\n\n{line}")), ["1", problem], "{line:?}");
        }
        assert_eq!(read(&[b"data: 1\n\ndata: \xff\n\n"]), ["1", "a line is no text"]);
        assert_eq!(read(&[b"data: \xc3", b"\xbc\n\n"]), ["\u{fc}"]);
        let two_problems: &[u8] = b"data: \xff\ncolour: red\n\n";
        for cut in 0..two_problems.len() {
            let (begin, end) = two_problems.split_at(cut);
            assert_eq!(read(&[begin, end]), ["a line has no field that there is"], "cut at {cut}");
        }
    }

    const PIECES: &[&[u8]] = &[
        b"data: ",
        b"data",
        b":",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"event: e",
        b"id: 1",
        b"retry: 5",
        b"{",
        b"x",
        b"\xef\xbb\xbf",
        b"\xc3",
        b"\xbc",
        b"\0",
    ];

    proptest! {
        #[test]
        fn cuts_change_nothing_and_what_is_kept_is_bounded(
            stream in prop::collection::vec(prop::sample::select(PIECES), 0..60),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = stream.concat();
            let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let chunks: Vec<_> = places.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect();
            prop_assert_eq!(read(&chunks), read(&[&stream[..]]));
            let mut events = Events::new(64);
            for chunk in chunks {
                events.push(Bytes::copy_from_slice(chunk));
                let goes_on = loop {
                    match events.next() {
                        Ok(Next::Data(_)) => {}
                        other => break matches!(other, Ok(Next::Nothing)),
                    }
                };
                let kept = match &events.event.data { Data::Copied(data) => data.len(), _ => 0 };
                prop_assert!(events.line.len() + kept <= 64);
                // After a problem, or JSON, no more bytes are given to it.
                if !goes_on {
                    break;
                }
            }
        }
    }
}
