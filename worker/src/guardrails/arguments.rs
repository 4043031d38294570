//! The arguments of a call as checks read them: escapes undone, of a key that is there twice the last, and `12` for `12.0`. A whole number that 64 bits
//! don't hold stands in them as a text of its digits, and is written as the number that it was, so that the tool's own check finds it.

use std::borrow::Cow;

use serde_json::Value;

use super::scan::Scanner;
use super::{Verdict, json};
use crate::tools::integers;

#[derive(Clone)]
pub(super) struct Arguments {
    value: Value,
    has_large_numbers: bool,
}

impl Arguments {
    /// `None` if it is no JSON.
    pub(super) fn read(json: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(json).ok()?;
        let (mut value, has_large_numbers) = match integers::as_texts(json) {
            Cow::Borrowed(_) => (value, false),
            Cow::Owned(json) => (serde_json::from_str(&json).ok()?, true),
        };
        integers::settle(&mut value);
        Some(Self { value, has_large_numbers })
    }

    /// As JSON, without spaces.
    pub(super) fn written(&self) -> String {
        let json = self.value.to_string();
        if self.has_large_numbers { integers::as_numbers(&json).into_owned() } else { json }
    }

    /// What a scanner says of them, and what they become where it replaces something. A number in which something is found becomes a text.
    pub(super) fn scanned(&self, scanner: &dyn Scanner, redact: bool) -> (Verdict, Option<Self>) {
        if !redact {
            return (self.find(scanner).map_or(Verdict::Passed, Verdict::Refused), None);
        }
        let mut replaced = self.clone();
        if !json::redact(&mut replaced.value, scanner) {
            return (Verdict::Passed, None);
        }
        (Verdict::Replaced(replaced.written()), Some(replaced))
    }

    /// What is found in a key, a text or a number, or in the whole as it is written: escapes must hide nothing.
    fn find(&self, scanner: &dyn Scanner) -> Option<&'static str> {
        json::find(&self.value, scanner).or_else(|| scanner.find(&self.written(), 0).map(|finding| finding.what))
    }
}
