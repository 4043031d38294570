//! Finds what tells of a person: e-mail addresses, telephone, card and account numbers, addresses of machines. Numbers
//! with a check digit are held to it, so that not every long number is taken for a card.

mod account;
mod card;
mod machine;

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::scan::{Finding, Scanner};

const KINDS: [Kind; 5] = [
    Kind { what: "email", reach: 350, find: email },
    Kind { what: "phone", reach: 52, find: phone },
    Kind { what: "card", reach: card::REACH, find: card::find },
    Kind { what: "iban", reach: account::REACH, find: account::find },
    Kind { what: "ip", reach: machine::REACH, find: machine::find },
];

#[derive(Clone, Copy)]
struct Kind {
    what: &'static str,
    /// Bytes from its begin that decide about one, the character behind it too.
    reach: usize,
    find: fn(&str, usize) -> Option<Range<usize>>,
}

/// See the module.
pub(super) struct PersonalData {
    kinds: Vec<Kind>,
}

impl PersonalData {
    /// Looks for these kinds; without any for all there are.
    pub(super) fn open(kinds: &[String]) -> Result<Self, String> {
        if kinds.is_empty() {
            return Ok(Self { kinds: KINDS.to_vec() });
        }
        let known = |name: &String| {
            let kind = KINDS.iter().find(|kind| kind.what == name).copied();
            kind.ok_or_else(|| format!("there is no kind {name:?} of personal data"))
        };
        Ok(Self { kinds: kinds.iter().map(known).collect::<Result<_, _>>()? })
    }
}

impl Scanner for PersonalData {
    fn kinds(&self) -> usize {
        self.kinds.len()
    }

    fn find_kind(&self, kind: usize, text: &str, from: usize) -> Option<Finding> {
        let kind = self.kinds.get(kind)?;
        let range = (kind.find)(text, from)?;
        Some(Finding { range, what: kind.what })
    }

    fn reach(&self) -> Option<usize> {
        self.kinds.iter().map(|kind| kind.reach).max()
    }
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}").expect("a fixed pattern")
});

fn email(text: &str, from: usize) -> Option<Range<usize>> {
    EMAIL.find_at(text, from).map(|found| found.range())
}

/// International ones, and those of North America. Others can't be told from other numbers.
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    let international = r"(?:\+|00)[1-9][0-9]{0,2}(?:[ .\-/]?\(?[0-9]{1,4}\)?){2,6}";
    let american = r"\(?[2-9][0-9]{2}\)?[ .\-][2-9][0-9]{2}[ .\-][0-9]{4}";
    Regex::new(&format!("{international}|{american}")).expect("a fixed pattern")
});

fn phone(text: &str, from: usize) -> Option<Range<usize>> {
    let mut at = from;
    while let Some(found) = PHONE.find_at(text, at) {
        let digits = found.as_str().bytes().filter(u8::is_ascii_digit).count();
        if (8..=17).contains(&digits) && stands_alone(text, &found.range()) {
            return Some(found.range());
        }
        at = found.start() + 1;
    }
    None
}

/// It is no part of a longer word or number.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let goes_on = |character: char| character.is_alphanumeric() || character == '+';
    let before = text[..range.start].chars().next_back().is_some_and(goes_on);
    let after = text[range.end..].chars().next().is_some_and(char::is_alphanumeric);
    !before && !after
}

/// The places from `from` on where a word or number that begins with such a byte could stand.
fn starts(text: &str, from: usize, begins: fn(u8) -> bool) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    (from..bytes.len())
        .filter(move |&at| begins(bytes[at]) && !text[..at].chars().next_back().is_some_and(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::super::scan::redacted;
    use super::*;

    #[test]
    fn what_tells_of_a_person_is_found_and_other_numbers_are_not() {
        let all = PersonalData::open(&[]).unwrap();
        let cases = [
            ("write to jo.doe+news@mail.example.co.uk.", "write to [email]."),
            ("call +49 30 1234567 or (415) 555-2671", "call [phone] or [phone]"),
            ("call 0049-30-1234567!", "call [phone]!"),
            ("card 4111 1111 1111 1111 12/27", "card [card] 12/27"),
            ("card 4111111111111111, 378282246310005", "card [card], [card]"),
            ("5555-5555-5555-4444", "[card]"),
            ("pay DE89 3704 0044 0532 0130 00 please", "pay [iban] please"),
            ("pay GB29NWBK60161331926819.", "pay [iban]."),
            ("from 192.0.2.7:8080, [2001:db8::7] and ::1.", "from [ip]:8080, [[ip]] and [ip]."),
            // None of these is one.
            ("4111 1111 1111 1112", "4111 1111 1111 1112"),
            ("DE89370400440532013001", "DE89370400440532013001"),
            ("order 20261125-000123 at 12:30:45", "order 20261125-000123 at 12:30:45"),
            ("std::fmt and a::b", "std::fmt and a::b"),
            ("version 1.2.3, 300.1.1.1, user@host", "version 1.2.3, 300.1.1.1, user@host"),
            ("8888888888888888888888888888", "8888888888888888888888888888"),
        ];
        for (text, expected) in cases {
            assert_eq!(redacted(&all, text), expected);
        }
    }

    #[test]
    fn only_the_kinds_that_were_asked_for_are_found() {
        let cards = PersonalData::open(&["card".to_owned()]).unwrap();
        assert_eq!(redacted(&cards, "a@b.example 4111111111111111"), "a@b.example [card]");
        assert_eq!(cards.reach(), Some(card::REACH));
        assert!(PersonalData::open(&["shoe-size".to_owned()]).is_err());
    }
}
