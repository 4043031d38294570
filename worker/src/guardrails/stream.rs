//! The checks of an answer while it streams. Text is let through once nothing that is still to come could make it part of
//! something refused, so what is refused was never shown. What can only be judged as a whole is held back to its end.

mod window;

use croft_proto::v1::{GuardrailStage, GuardrailViolation};

use super::{Check, Found, Guard, Verdict};
use window::Window;

const STAGE: GuardrailStage = GuardrailStage::Output;

/// The checks of one answer's text.
pub(crate) struct Output<'guards> {
    filters: Vec<Filter<'guards>>,
    /// All that was let through.
    released: String,
    violations: Vec<GuardrailViolation>,
    blocked: bool,
}

/// One check, and what it holds back.
struct Filter<'guards> {
    guard: &'guards Guard,
    hold: Hold,
    told: bool,
}

enum Hold {
    /// Nothing is held back, and all is judged in the end.
    Nothing {
        seen: String,
    },
    /// Characters that may still pass.
    Count {
        left: usize,
    },
    Window(Window),
    Everything {
        held: String,
    },
}

impl<'guards> Output<'guards> {
    pub(super) fn new(guards: Vec<&'guards Guard>) -> Self {
        let filters = guards.into_iter().map(Filter::new).collect();
        Self { filters, released: String::new(), violations: Vec::new(), blocked: false }
    }

    /// Takes in a piece, and returns what is let through.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.blocked {
            return String::new();
        }
        let mut passing = text.to_owned();
        for filter in &mut self.filters {
            // What came before something refused still goes through the checks behind.
            let (passed, found) = filter.push(&passing);
            passing = passed;
            self.blocked |= filter.tell(found, &mut self.violations);
        }
        self.released.push_str(&passing);
        passing
    }

    /// The answer is whole: judges what is still held back, and returns what of it is let through. `leads_on` says that it is
    /// not the one that the turn comes to: it calls tools, or did not come to its end.
    pub(crate) async fn finish(&mut self, leads_on: bool) -> String {
        let mut passing = String::new();
        for filter in &mut self.filters {
            let (passed, found) = filter.push(&passing);
            passing = passed;
            self.blocked |= filter.tell(found, &mut self.violations);
            if !self.blocked {
                let (rest, found) = filter.finish(leads_on).await;
                passing.push_str(&rest);
                self.blocked |= filter.tell(found, &mut self.violations);
            }
        }
        self.released.push_str(&passing);
        passing
    }

    /// A check lets nothing more through.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// All that was let through.
    pub(crate) fn released(&self) -> &str {
        &self.released
    }

    /// What was found.
    pub(crate) fn violations(&self) -> &[GuardrailViolation] {
        &self.violations
    }
}

impl<'guards> Filter<'guards> {
    fn new(guard: &'guards Guard) -> Self {
        let hold = match &guard.check {
            _ if guard.shadow => Hold::Nothing { seen: String::new() },
            Check::Length(characters_max) => Hold::Count { left: *characters_max },
            Check::Scan { scanner, .. } => match scanner.reach() {
                Some(reach) => Hold::Window(Window::new(reach)),
                None => Hold::Everything { held: String::new() },
            },
            Check::Schema(_) | Check::Http(_) => Hold::Everything { held: String::new() },
        };
        Self { guard, hold, told: false }
    }

    fn push(&mut self, text: &str) -> (String, Option<Found>) {
        match &mut self.hold {
            Hold::Nothing { seen } => {
                seen.push_str(text);
                (text.to_owned(), None)
            }
            Hold::Count { left } => match text.char_indices().nth(*left) {
                None => {
                    *left -= text.chars().count();
                    (text.to_owned(), None)
                }
                Some((end, _)) => {
                    *left = 0;
                    (text[..end].to_owned(), Some(Found::Refused("length")))
                }
            },
            Hold::Window(window) => {
                window.push(text);
                self.advance(false)
            }
            Hold::Everything { held } => {
                held.push_str(text);
                (String::new(), None)
            }
        }
    }

    async fn finish(&mut self, leads_on: bool) -> (String, Option<Found>) {
        // Of a shape is what the turn comes to. What leads there may be said if it has the shape too, and is left out if not.
        let excuses = leads_on && matches!(self.guard.check, Check::Schema(_));
        match &mut self.hold {
            // What was not said is not judged.
            Hold::Nothing { seen: said } | Hold::Everything { held: said } if said.is_empty() => (String::new(), None),
            Hold::Nothing { .. } if excuses => (String::new(), None),
            Hold::Nothing { seen } => (String::new(), self.guard.verdict(STAGE, seen).await.found()),
            Hold::Count { .. } => (String::new(), None),
            Hold::Window(_) => self.advance(true),
            Hold::Everything { held } => match self.guard.verdict(STAGE, held).await {
                Verdict::Passed => (std::mem::take(held), None),
                Verdict::Replaced(text) => (text, Some(Found::Replaced)),
                Verdict::Refused(_) if excuses => (String::new(), None),
                Verdict::Refused(reason) => (String::new(), Some(Found::Refused(reason))),
            },
        }
    }

    /// Lets through what a window has decided about; all of it when the text has ended.
    fn advance(&mut self, ended: bool) -> (String, Option<Found>) {
        match (&mut self.hold, &self.guard.check) {
            (Hold::Window(window), Check::Scan { scanner, redact }) => window.advance(scanner.as_ref(), *redact, ended),
            _ => (String::new(), None),
        }
    }

    /// Writes down what was found, once; true when nothing more may pass.
    fn tell(&mut self, found: Option<Found>, violations: &mut Vec<GuardrailViolation>) -> bool {
        let Some(found) = found else { return false };
        if !std::mem::replace(&mut self.told, true) {
            violations.push(self.guard.violation(STAGE, found));
        }
        matches!(found, Found::Refused(_)) && !self.guard.shadow
    }
}

#[cfg(test)]
mod tests;
