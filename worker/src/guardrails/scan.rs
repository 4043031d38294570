//! What looks for something in a text.

use std::borrow::Cow;
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
    /// The first finding that begins at `from` or later.
    fn find(&self, text: &str, from: usize) -> Option<Finding>;

    /// `None` where no bound can be told.
    fn reach(&self) -> Option<usize>;
}

/// The text with a word in brackets in place of each finding.
pub(super) fn redacted<'text>(scanner: &dyn Scanner, text: &'text str) -> Cow<'text, str> {
    let Some(mut finding) = scanner.find(text, 0) else { return Cow::Borrowed(text) };
    let mut replaced = String::with_capacity(text.len());
    let mut from = 0;
    loop {
        replaced.push_str(&text[from..finding.range.start]);
        replace(&finding, &mut replaced);
        from = finding.range.end;
        match scanner.find(text, from) {
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
