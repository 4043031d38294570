//! Whole numbers in the arguments of a call. What is read of JSON has 64 bits for one: a larger number would reach the tool as another
//! than people approved.

/// Whether there is a whole number in this JSON that 64 bits don't hold.
pub(super) fn are_beyond_64_bits(json: &str) -> bool {
    let mut rest = json;
    while let Some(begin) = rest.find(|character: char| matches!(character, '"' | '-' | '0'..='9')) {
        rest = &rest[begin..];
        let end = if rest.starts_with('"') { text(rest) } else { number(rest) };
        let (token, behind) = rest.split_at(end);
        if is_beyond(token) {
            return true;
        }
        rest = behind;
    }
    false
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
}
