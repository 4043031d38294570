//! International bank account numbers (ISO 13616), as long as their country's are, with their check digits (mod 97).

use std::ops::Range;

/// Characters of the longest there are.
const CHARACTERS_MAX: usize = 34;
/// A space before each character at most, and the character behind.
pub(super) const REACH: usize = 2 * CHARACTERS_MAX + 4;

/// How long a country's are, from the registry of SWIFT, by length.
const COUNTRIES: [(usize, &str); 18] = [
    (15, "NO"),
    (16, "BE"),
    (18, "DK FI FK FO GL NL SD"),
    (19, "MK SI"),
    (20, "AT BA EE KZ LT LU MN XK"),
    (21, "CH HR LI LV"),
    (22, "BG BH CR DE GB GE IE ME RS VA"),
    (23, "AE GI IL IQ OM SO TL"),
    (24, "AD CZ ES MD PK RO SA SE SK TN VG"),
    (25, "LY PT ST"),
    (26, "IS TR"),
    (27, "DJ FR GR IT MC MR SM"),
    (28, "AL AZ BY CY DO GT HU LB NI PL SV"),
    (29, "BR EG PS QA UA"),
    (30, "JO KW MU YE"),
    (31, "MT SC"),
    (32, "LC"),
    (33, "RU"),
];

pub(super) fn find(text: &str, from: usize) -> Option<Range<usize>> {
    super::starts(text, from, |byte| byte.is_ascii_alphabetic()).find_map(|start| {
        let end = end(text, start)?;
        Some(start..end)
    })
}

fn end(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let country = [bytes[start].to_ascii_uppercase(), bytes.get(start + 1)?.to_ascii_uppercase()];
    let of_country =
        |(_, countries): &&(usize, &str)| countries.as_bytes().chunks(3).any(|known| known[..2] == country);
    let length = COUNTRIES.iter().find(of_country)?.0;
    let mut characters = Vec::with_capacity(length);
    let mut at = start;
    while characters.len() < length {
        if !characters.is_empty() && bytes.get(at) == Some(&b' ') {
            at += 1;
        }
        characters.push(bytes.get(at).filter(|byte| byte.is_ascii_alphanumeric())?.to_ascii_uppercase());
        at += 1;
    }
    let goes_on = text[at..].chars().next().is_some_and(char::is_alphanumeric);
    let has_check_digits = characters[2..4].iter().all(u8::is_ascii_digit);
    (!goes_on && has_check_digits && remainder(&characters) == 1).then_some(at)
}

/// Of the number that the characters stand for, the first four moved to the end, by 97.
fn remainder(characters: &[u8]) -> u32 {
    characters[4..].iter().chain(&characters[..4]).fold(0, |remainder, byte| match byte {
        b'0'..=b'9' => (remainder * 10 + u32::from(byte - b'0')) % 97,
        _ => (remainder * 100 + u32::from(byte - b'A') + 10) % 97,
    })
}
