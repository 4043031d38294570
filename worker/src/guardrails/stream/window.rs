//! The end of a text that is held back, since what follows decides about it.

use super::super::Found;
use super::super::scan::{Findings, Scanner, replace};

/// See the module.
pub(super) struct Window {
    /// The character before what is undecided, where there is one, and then that.
    held: String,
    /// Where what is undecided begins.
    from: usize,
    /// Bytes behind a place that decide about it.
    reach: usize,
}

impl Window {
    pub(super) fn new(reach: usize) -> Self {
        Self { held: String::new(), from: 0, reach }
    }

    pub(super) fn push(&mut self, text: &str) {
        self.held.push_str(text);
    }

    /// Returns what is decided, and what was found in it; with something refused, what comes before that.
    pub(super) fn advance(&mut self, scanner: &dyn Scanner, redact: bool, ended: bool) -> (String, Option<Found>) {
        let mut passed = String::new();
        let mut found = None;
        let decided = if ended {
            self.held.len()
        } else {
            self.held.floor_char_boundary(self.held.len().saturating_sub(self.reach))
        };
        if self.from < decided {
            let mut findings = Findings::new(scanner, &self.held, self.from);
            while self.from < decided {
                match findings.first(self.from) {
                    Some(finding) if finding.range.start < decided => {
                        passed.push_str(&self.held[self.from..finding.range.start]);
                        if !redact {
                            self.from = finding.range.start;
                            return (passed, Some(Found::Refused(finding.what)));
                        }
                        found = Some(Found::Replaced);
                        replace(&finding, &mut passed);
                        self.from = finding.range.end;
                    }
                    _ => {
                        passed.push_str(&self.held[self.from..decided]);
                        self.from = decided;
                    }
                }
            }
        }
        let before = self.held[..self.from].chars().next_back().map_or(0, char::len_utf8);
        self.held.drain(..self.from - before);
        self.from = before;
        (passed, found)
    }
}
