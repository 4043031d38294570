//! JSON read in place, for the few shapes that nearly all events have.
//!
//! It knows a part of the format, and declines what is beyond it: such an event is read by `serde_json`, which decides. So it
//! says nothing that `serde_json` would not, only sooner. (But for a key that nobody looks at: that it comes twice is passed over.)

/// How deep what nobody looks at may be. Deeper, it is declined.
const SKIPPED_DEPTH_MAX: u32 = 8;
/// Digits of a number. Longer ones are declined: they might not fit.
const DIGITS_MAX: usize = 9;

/// A place in a text. Every `None` declines all of it.
pub(crate) struct Quick<'data> {
    data: &'data str,
    at: usize,
}

impl<'data> Quick<'data> {
    pub(crate) fn new(data: &'data str) -> Self {
        Self { data, at: 0 }
    }

    /// Reads an object; `field` reads the value of each key.
    pub(crate) fn object(&mut self, mut field: impl FnMut(&mut Self, &'data str) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(());
        }
        loop {
            let key = self.plain()?;
            self.take(b':')?;
            field(self, key)?;
            if self.take(b',').is_none() {
                return self.take(b'}');
            }
        }
    }

    /// Reads an array; `element` reads each of its values.
    pub(crate) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.take(b'[')?;
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            element(self)?;
            if self.take(b',').is_none() {
                return self.take(b']');
            }
        }
    }

    /// A string in which nothing is escaped.
    pub(crate) fn plain(&mut self) -> Option<&'data str> {
        self.take(b'"')?;
        let (run, end) = self.run()?;
        (end == b'"').then_some(run)
    }

    /// A string.
    pub(crate) fn text(&mut self) -> Option<String> {
        self.take(b'"')?;
        let (run, mut end) = self.run()?;
        let mut text = run.to_owned();
        while end != b'"' {
            text.push(self.escaped(end)?);
            let (run, next) = self.run()?;
            text.push_str(run);
            end = next;
        }
        Some(text)
    }

    /// A number that is whole and not negative.
    pub(crate) fn number(&mut self) -> Option<u32> {
        self.digits().filter(|digits| digits.len() <= DIGITS_MAX)?.parse().ok()
    }

    pub(crate) fn null(&mut self) -> Option<()> {
        self.word("null")
    }

    /// Any value.
    pub(crate) fn skip(&mut self) -> Option<()> {
        self.skip_within(SKIPPED_DEPTH_MAX)
    }

    /// That nothing follows.
    pub(crate) fn end(mut self) -> Option<()> {
        self.pass_space();
        (self.at == self.data.len()).then_some(())
    }

    fn skip_within(&mut self, depth: u32) -> Option<()> {
        self.pass_space();
        match self.data.as_bytes().get(self.at)? {
            b'"' => {
                self.at += 1;
                while let (_, end @ b'\\') = self.run()? {
                    self.escaped(end)?;
                }
                (self.data.as_bytes()[self.at - 1] == b'"').then_some(())
            }
            b'{' => {
                let depth = depth.checked_sub(1)?;
                self.object(|quick, _| quick.skip_within(depth))
            }
            b'[' => {
                let depth = depth.checked_sub(1)?;
                self.array(|quick| quick.skip_within(depth))
            }
            b'n' => self.null(),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            _ => self.digits().map(drop),
        }
    }

    fn digits(&mut self) -> Option<&'data str> {
        self.pass_space();
        let rest = &self.data[self.at..];
        let digits = &rest[..rest.bytes().take_while(u8::is_ascii_digit).count()];
        self.at += digits.len();
        let has_needless_zero = digits.len() > 1 && digits.starts_with('0');
        (!digits.is_empty() && !has_needless_zero).then_some(digits)
    }

    /// Passes over a byte, if it is the next but for space.
    #[inline]
    fn take(&mut self, byte: u8) -> Option<()> {
        self.pass_space();
        (self.data.as_bytes().get(self.at) == Some(&byte)).then(|| self.at += 1)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.pass_space();
        self.data[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    #[inline]
    fn pass_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.data.as_bytes().get(self.at) {
            self.at += 1;
        }
    }

    /// Reads on within a string, to its end or to what is no plain character, and passes over that byte.
    #[inline]
    fn run(&mut self) -> Option<(&'data str, u8)> {
        let rest = &self.data[self.at..];
        let length = plain_bytes(rest.as_bytes())?;
        self.at += length + 1;
        Some((&rest[..length], rest.as_bytes()[length]))
    }

    /// What is escaped behind a backslash, which was passed over; any other byte is out of place.
    fn escaped(&mut self, backslash: u8) -> Option<char> {
        let character = match self.data.as_bytes().get(self.at)? {
            _ if backslash != b'\\' => return None,
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            _ => return None,
        };
        self.at += 1;
        Some(character)
    }
}

/// How many bytes there are before the first that ends a string, escapes, or may not stand in one; `None` if there is none.
/// Eight at a time, as strings are most of an event.
fn plain_bytes(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    // The top bit of each byte that is less than `bound`, which has none: exact for the lowest such byte, which is the one that counts.
    let less = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound)) & !word & (ONES << 7);
    let equal = |word: u64, byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
    let (words, _) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = less(word, b' ') | equal(word, b'"') | equal(word, b'\\');
        if found != 0 {
            return Some(number * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let begin = words.len() * 8;
    bytes[begin..].iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < b' ').map(|place| begin + place)
}

/// Puts a value in its place. A key that comes twice is declined.
pub(crate) fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn value(quick: &mut Quick<'_>) -> Option<Value> {
        quick.pass_space();
        match quick.data.as_bytes().get(quick.at)? {
            b'{' => {
                let mut map = Map::new();
                quick.object(|quick, key| {
                    map.insert(key.to_owned(), value(quick)?);
                    Some(())
                })?;
                Some(Value::Object(map))
            }
            b'[' => {
                let mut values = Vec::new();
                quick.array(|quick| {
                    values.push(value(quick)?);
                    Some(())
                })?;
                Some(Value::Array(values))
            }
            b'"' => quick.text().map(Value::String),
            b'n' => quick.null().map(|()| Value::Null),
            b't' => quick.word("true").map(|()| true.into()),
            b'f' => quick.word("false").map(|()| false.into()),
            _ => quick.number().map(Value::from),
        }
    }

    fn whole(text: &str) -> Option<Value> {
        let mut quick = Quick::new(text);
        let read = value(&mut quick)?;
        quick.end()?;
        Some(read)
    }

    fn skipped(text: &str) -> Option<()> {
        let mut quick = Quick::new(text);
        quick.skip()?;
        quick.end()
    }

    #[test]
    fn what_events_are_made_of_is_read() {
        let text = " { \"a\" : [ 1 , null, true , false ] , \"b\":{}, \"c\":[], \"d\" : \"K\u{e4}fer\\n\\\"x\\\"\", \"n\": 0 } ";
        let expected = json!({ "a": [1, null, true, false], "b": {}, "c": [], "d": "K\u{e4}fer\n\"x\"", "n": 0 });
        assert_eq!(whole(text), Some(expected));
        assert_eq!(skipped(text), Some(()));
    }

    #[test]
    fn what_is_beyond_it_is_declined() {
        assert_eq!((whole("1234567890"), skipped("1234567890")), (None, Some(())));
        for text in ["1.5", "-1", "01", "\"\\u0041\"", "\"a\nb\"", "\"a", "{\"a\":1,}", "[1 2]", "nul", "1 1"] {
            assert_eq!((whole(text), skipped(text)), (None, None), "{text:?}");
        }
        let deep = "[".repeat(9) + &"]".repeat(9);
        assert_eq!(skipped(&deep), None);
    }

    #[test]
    fn a_string_goes_to_the_first_byte_that_is_not_plain() {
        for length in 0..20 {
            for end in [b'"', b'\\', b'\n', 0, 0x1f] {
                for other in *b"a !#[]\x7f\x80\xa2\xdc\xff" {
                    let mut bytes = vec![other; length];
                    assert_eq!(plain_bytes(&bytes), None);
                    bytes.extend([end, end, b'"', other]);
                    assert_eq!(plain_bytes(&bytes), Some(length), "{length} times {other} and {end}");
                }
            }
        }
    }

    #[test]
    fn what_comes_twice_is_declined() {
        let mut place = None;
        assert_eq!((once(&mut place, 1), once(&mut place, 2)), (Some(()), None));
    }

    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\"a\"",
        "\"\u{fc}\"",
        "\\n",
        "\\",
        "\\u00fc",
        "\\\"",
        "1",
        "0",
        "12",
        "-",
        ".5",
        "e3",
        "null",
        "true",
        "false",
        " ",
        "\n",
        "\t",
        "\u{1}",
        "{\"a\":1}",
        "[1,\"b\"]",
        "\"a\":",
    ];

    proptest! {
        #[test]
        fn it_says_nothing_that_serde_would_not(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..24)) {
            let text = pieces.concat();
            let decided = serde_json::from_str::<Value>(&text);
            if let Some(read) = whole(&text) {
                prop_assert_eq!(Some(read), decided.as_ref().ok().cloned(), "{:?}", text);
            }
            if skipped(&text).is_some() {
                prop_assert!(decided.is_ok(), "{:?}", text);
            }
        }
    }
}
