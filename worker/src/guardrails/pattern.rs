//! Regular expressions that must not be found.

use regex::Regex;

use super::scan::{Finding, Scanner};
use crate::patterns::Patterns;

/// Of one check. At each bound the agent is refused.
const PATTERNS_MAX: usize = 64;
const PATTERN_BYTES_MAX: usize = 1_024;
/// Bytes that a stream is held back for one pattern. Matches that may be longer hold back all of the text.
const REACH_BYTES_MAX: usize = 4_096;
/// A pattern may look at the character behind its match.
const CHARACTER_BYTES_MAX: usize = 4;

/// Patterns that are denied. The search takes time linear in the text whatever the pattern: there is no back-tracking.
pub(super) struct Denied {
    patterns: Vec<Regex>,
    reach: Option<usize>,
}

impl Denied {
    pub(super) fn open(denied: &[String], compiled: &mut Patterns) -> Result<Self, String> {
        if denied.is_empty() || denied.len() > PATTERNS_MAX {
            return Err(format!("it has not 1 to {PATTERNS_MAX} patterns"));
        }
        let mut reach = Some(0);
        let mut patterns = Vec::with_capacity(denied.len());
        for (position, pattern) in denied.iter().enumerate() {
            let wrong = |problem: &str| format!("denied[{position}] {problem}");
            if pattern.len() > PATTERN_BYTES_MAX {
                return Err(wrong(&format!("is longer than {PATTERN_BYTES_MAX} bytes")));
            }
            let syntax = regex_syntax::parse(pattern).map_err(|_| wrong("is no regular expression of this dialect"))?;
            if syntax.properties().minimum_len().unwrap_or(0) == 0 {
                return Err(wrong("matches the empty text, and so every text"));
            }
            let longest = syntax.properties().maximum_len().map(|bytes| bytes.saturating_add(CHARACTER_BYTES_MAX));
            reach = reach.zip(longest.filter(|bytes| *bytes <= REACH_BYTES_MAX)).map(|(one, other)| one.max(other));
            patterns.push(compiled.compile(pattern).map_err(|problem| wrong(&problem))?);
        }
        Ok(Self { patterns, reach })
    }
}

impl Scanner for Denied {
    fn kinds(&self) -> usize {
        self.patterns.len()
    }

    fn find_kind(&self, kind: usize, text: &str, from: usize) -> Option<Finding> {
        let found = self.patterns.get(kind)?.find_at(text, from)?;
        Some(Finding { range: found.range(), what: "pattern" })
    }

    fn reach(&self) -> Option<usize> {
        self.reach
    }
}
