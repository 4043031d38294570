//! Numbers of payment cards: 13 to 19 digits, in groups or not, with the check digit of Luhn (ISO/IEC 7812-1).

use std::ops::Range;

const DIGITS_MIN: usize = 13;
const DIGITS_MAX: usize = 19;
/// A separator before each digit at most, and the character behind.
pub(super) const REACH: usize = 2 * DIGITS_MAX + 4;

pub(super) fn find(text: &str, from: usize) -> Option<Range<usize>> {
    // The schemes that people pay with begin with 2 to 6.
    super::starts(text, from, |byte| (b'2'..=b'6').contains(&byte)).find_map(|start| {
        let end = end(text, start)?;
        Some(start..end)
    })
}

/// Where a card number that begins at `start` ends. It may be followed by other digits, such as the month it is good for.
fn end(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut digits = Vec::with_capacity(DIGITS_MAX);
    let mut at = start;
    loop {
        let digit = bytes.get(at).filter(|byte| byte.is_ascii_digit())?;
        if digits.len() == DIGITS_MAX {
            return None;
        }
        digits.push(digit - b'0');
        at += 1;
        if bytes.get(at).is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let goes_on = text[at..].chars().next().is_some_and(char::is_alphanumeric);
        if digits.len() >= DIGITS_MIN && !goes_on && passes_luhn(&digits) {
            return Some(at);
        }
        if !matches!(bytes.get(at), Some(b' ' | b'-')) {
            return None;
        }
        at += 1;
    }
}

fn passes_luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| match (place % 2, u32::from(digit)) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => 2 * digit - 9,
            (_, digit) => 2 * digit,
        })
        .sum();
    sum.is_multiple_of(10)
}
