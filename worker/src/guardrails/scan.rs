//! What looks for something in a text.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::ops::Range;

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) range: Range<usize>,
    /// A fixed word for what it is.
    pub(super) what: &'static str,
}

/// Looks for something. Whether it stands at a place depends on the character before, and on [`Scanner::reach`] bytes from
/// there on, and on nothing else: so a text that comes in pieces is judged like the whole.
pub(super) trait Scanner: Send + Sync {
    /// How many kinds of things it looks for.
    fn kinds(&self) -> usize;

    /// The first finding of one kind that begins at `from` or later. Takes time in the bytes up to it, or to the text's end.
    fn find_kind(&self, kind: usize, text: &str, from: usize) -> Option<Finding>;

    /// The first finding that begins at `from` or later.
    fn find(&self, text: &str, from: usize) -> Option<Finding> {
        (0..self.kinds()).filter_map(|kind| self.find_kind(kind, text, from)).min_by_key(Finding::order)
    }

    /// `None` where no bound can be told.
    fn reach(&self) -> Option<usize>;
}

impl Finding {
    /// Of two that begin together the longer one tells more.
    fn order(&self) -> (usize, Reverse<usize>) {
        (self.range.start, Reverse(self.range.end))
    }
}

/// What is found in one text, from its begin to its end. What comes next of each kind is kept until it is passed, so that all of them
/// take time linear in the text, however many there are and however rare some kinds are.
pub(super) struct Findings<'text> {
    scanner: &'text dyn Scanner,
    text: &'text str,
    ahead: Vec<Option<Finding>>,
}

impl<'text> Findings<'text> {
    pub(super) fn new(scanner: &'text dyn Scanner, text: &'text str, from: usize) -> Self {
        let ahead = (0..scanner.kinds()).map(|kind| scanner.find_kind(kind, text, from)).collect();
        Self { scanner, text, ahead }
    }

    /// The first that begins at `from` or later, which never goes back.
    pub(super) fn first(&mut self, from: usize) -> Option<Finding> {
        for (kind, ahead) in self.ahead.iter_mut().enumerate() {
            if ahead.as_ref().is_some_and(|finding| finding.range.start < from) {
                *ahead = self.scanner.find_kind(kind, self.text, from);
            }
        }
        self.ahead.iter().flatten().min_by_key(|finding| finding.order()).cloned()
    }
}

/// The text with a word in brackets in place of each finding.
pub(super) fn redacted<'text>(scanner: &dyn Scanner, text: &'text str) -> Cow<'text, str> {
    let mut findings = Findings::new(scanner, text, 0);
    let Some(mut finding) = findings.first(0) else { return Cow::Borrowed(text) };
    let mut replaced = String::with_capacity(text.len());
    let mut from = 0;
    loop {
        replaced.push_str(&text[from..finding.range.start]);
        replace(&finding, &mut replaced);
        from = finding.range.end;
        match findings.first(from) {
            Some(next) => finding = next,
            None => break,
        }
    }
    replaced.push_str(&text[from..]);
    Cow::Owned(replaced)
}

/// Writes what stands in a finding's place.
pub(super) fn replace(finding: &Finding, out: &mut String) {
    out.push('[');
    out.push_str(finding.what);
    out.push(']');
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::super::personal::PersonalData;
    use super::*;

    /// Counts the bytes that are looked at.
    struct Counting {
        inner: PersonalData,
        bytes: AtomicUsize,
    }

    impl Scanner for Counting {
        fn kinds(&self) -> usize {
            self.inner.kinds()
        }

        fn find_kind(&self, kind: usize, text: &str, from: usize) -> Option<Finding> {
            let found = self.inner.find_kind(kind, text, from);
            let end = found.as_ref().map_or(text.len(), |finding| finding.range.end);
            self.bytes.fetch_add(end - from, Ordering::Relaxed);
            found
        }

        fn reach(&self) -> Option<usize> {
            self.inner.reach()
        }
    }

    /// After each finding every kind was looked for again, up to the text's end where there was none.
    #[test]
    fn a_text_full_of_one_kind_is_looked_through_once_for_each() {
        let counting = Counting { inner: PersonalData::open(&[]).unwrap(), bytes: AtomicUsize::new(0) };
        let text = "a@b.co ".repeat(37_000);
        assert_eq!(redacted(&counting, &text), "[email] ".repeat(37_000));
        let looked_at = counting.bytes.load(Ordering::Relaxed);
        assert!(looked_at <= counting.kinds() * text.len(), "{looked_at} bytes of {}", text.len());
    }

    /// Each finding by itself, with all kinds looked for behind the one before.
    fn one_by_one(scanner: &dyn Scanner, text: &str) -> Vec<Finding> {
        let mut from = 0;
        std::iter::from_fn(|| {
            let finding = scanner.find(text, from)?;
            from = finding.range.end;
            Some(finding)
        })
        .collect()
    }

    fn all(scanner: &dyn Scanner, text: &str) -> Vec<Finding> {
        let mut findings = Findings::new(scanner, text, 0);
        let mut from = 0;
        std::iter::from_fn(|| {
            let finding = findings.first(from)?;
            from = finding.range.end;
            Some(finding)
        })
        .collect()
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_is_found_one_by_one(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(vec![
                        "a@b.co", "jo.doe+news@mail.example.co.uk", "+49 30 1234567", "(415) 555-2671", "0049-30-1234567",
                        "4111 1111 1111 1111", "378282246310005", "DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819",
                        "192.0.2.7", "2001:db8::7", "::1", " ", "-", ".", ":", "@", "ü", "1", "de", "+",
                    ])
                    .prop_map(str::to_owned),
                    "[ -~]{0,6}",
                ],
                0..24,
            )
        ) {
            let (scanner, text) = (PersonalData::open(&[]).unwrap(), parts.concat());
            prop_assert_eq!(all(&scanner, &text), one_by_one(&scanner, &text));
        }
    }
}
