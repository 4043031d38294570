//! Whole numbers in the arguments of a call. What is read of JSON has 64 bits for one: a larger number would reach the tool as another
//! than people approved. And `12`, `12.0` and `1.2e1` are one number, which rules and checks know by one way to write it.

use std::borrow::Cow;

use serde_json::{Number, Value};

/// Has each whole number in it that 64 bits hold be one, however it was written.
pub(crate) fn settle(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(whole) = whole(number).and_then(|digits| integer(&digits)) {
                *number = whole;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(settle),
        Value::Object(fields) => fields.values_mut().for_each(settle),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// A number as rules and checks read it: as JSON, but a whole one in all its digits, also where 64 bits don't hold it.
pub(crate) fn read(number: &Number) -> String {
    whole(number).unwrap_or_else(|| number.to_string())
}

/// The digits of one that was read as a fraction, and is none.
fn whole(number: &Number) -> Option<String> {
    let fraction = number.as_f64().filter(|_| number.is_f64())?;
    (fraction.fract() == 0.0).then(|| format!("{fraction:.0}"))
}

fn integer(digits: &str) -> Option<Number> {
    let signed = digits.parse::<i64>().map(Number::from);
    signed.or_else(|_| digits.parse::<u64>().map(Number::from)).ok()
}

/// Whether there is a whole number in this JSON that 64 bits don't hold.
pub(super) fn are_beyond_64_bits(json: &str) -> bool {
    matches!(as_texts(json), Cow::Owned(_))
}

/// This JSON with a text of the same digits in place of each whole number that 64 bits don't hold, so that none is lost where it is
/// read. Borrowed if it has none.
pub(crate) fn as_texts(json: &str) -> Cow<'_, str> {
    replaced(json, |token, _| is_beyond(token).then(|| format!("\"{token}\"")))
}

/// Such JSON, as it is written without spaces, with the numbers. A text that was one before becomes a number, too.
pub(crate) fn as_numbers(json: &str) -> Cow<'_, str> {
    replaced(json, |token, behind| {
        let digits = token.strip_prefix('"')?.strip_suffix('"')?;
        let is_key = behind.starts_with(':');
        let is_number = !is_key && is_beyond(digits) && digits.parse::<Number>().is_ok();
        is_number.then(|| digits.to_owned())
    })
}

/// This JSON with what `becomes` says in place of a text or a number, of which it is told with all that comes behind.
fn replaced(json: &str, becomes: impl Fn(&str, &str) -> Option<String>) -> Cow<'_, str> {
    let mut written = String::new();
    let (mut rest, mut kept) = (json, json);
    while let Some(begin) = rest.find(|character: char| matches!(character, '"' | '-' | '0'..='9')) {
        rest = &rest[begin..];
        let end = if rest.starts_with('"') { text(rest) } else { number(rest) };
        let (token, behind) = rest.split_at(end);
        if let Some(new) = becomes(token, behind) {
            written.push_str(&kept[..kept.len() - rest.len()]);
            written.push_str(&new);
            kept = behind;
        }
        rest = behind;
    }
    if written.is_empty() { Cow::Borrowed(json) } else { Cow::Owned(written + kept) }
}

/// The bytes of the text that this begins with.
fn text(json: &str) -> usize {
    let mut is_escaped = true;
    let end = json.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        // The first one begins it.
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or(json.len(), |end| end + 1)
}

/// The bytes of the number that this begins with.
fn number(json: &str) -> usize {
    let is_of_number = |character: char| matches!(character, '-' | '+' | '.' | 'e' | 'E' | '0'..='9');
    json.find(|character| !is_of_number(character)).unwrap_or(json.len())
}

fn is_beyond(token: &str) -> bool {
    let is_whole = token.bytes().all(|byte| matches!(byte, b'-' | b'0'..=b'9'));
    is_whole && token.parse::<i64>().is_err() && token.parse::<u64>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_beyond_64_bits_or_it_is_not() {
        for json in [
            "{}",
            r#"{"a":18446744073709551615,"b":-9223372036854775808,"c":-0}"#,
            r#"{"a":1e400000,"b":123456789012345678901234567890.5,"c":1.0E+99}"#,
            r#"{"99999999999999999999":"99999999999999999999","b":"\\","c":"\"99999999999999999999"}"#,
            r#"{"a":"ü\\\"99999999999999999999"}"#,
        ] {
            assert!(!are_beyond_64_bits(json), "{json}");
        }
        for json in [
            r#"{"a":18446744073709551616}"#,
            r#"{"a":[1,{"b":-9223372036854775809}]}"#,
            r#"{"a":"\\","b":99999999999999999999}"#,
            "99999999999999999999",
        ] {
            assert!(are_beyond_64_bits(json), "{json}");
        }
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (written, settled, told) in [
            ("13", "13", "13"),
            ("13.0", "13", "13"),
            ("1.3e1", "13", "13"),
            ("-0.0", "0", "0"),
            ("-0", "0", "0"),
            ("0.130E2", "13", "13"),
            ("-7e2", "-700", "-700"),
            ("13.5", "13.5", "13.5"),
            ("1e-7", "1e-7", "1e-7"),
            ("9223372036854775808.0", "9223372036854775808", "9223372036854775808"),
            ("-9223372036854775808.0", "-9223372036854775808", "-9223372036854775808"),
            ("18446744073709551616.0", "1.8446744073709552e+19", "18446744073709551616"),
            ("1e21", "1e+21", "1000000000000000000000"),
        ] {
            let mut value: Value = serde_json::from_str(&format!(r#"{{"list":[{written}]}}"#)).unwrap();
            settle(&mut value);
            let Value::Number(number) = &value["list"][0] else { panic!("{value}") };
            assert_eq!(
                (value.to_string().as_str(), read(number).as_str()),
                (&*format!(r#"{{"list":[{settled}]}}"#), told)
            );
        }
        let far: Number = serde_json::from_str("-1e300").unwrap();
        assert_eq!(read(&far).len(), "-".len() + 301);
    }

    #[test]
    fn it_is_the_same_number_after_it_was_a_text() {
        let json = r#"{"a":[99999999999999999999,-9223372036854775809],"b":{"c":"ü","d":18446744073709551616}}"#;
        let texts = r#"{"a":["99999999999999999999","-9223372036854775809"],"b":{"c":"ü","d":"18446744073709551616"}}"#;
        assert_eq!((as_texts(json), as_numbers(texts)), (texts.into(), json.into()));
        for other in [
            r#"{"99999999999999999999":"2026-11-28","a":"","b":"-","c":"007","d":"18446744073709551615","e":" 1"}"#,
            r#"{"a":"\"99999999999999999999","b":"00000000000000000000000000000001e","c":"099999999999999999999"}"#,
        ] {
            assert_eq!(as_numbers(other), other);
        }
    }
}
