//! Of how many parts a JSON text is: objects, lists and what stands in them, counted before anything is made of it.

use super::shape::PARTS_MAX;

/// Fails when there are more than [`PARTS_MAX`]. What is no JSON has parts too: whoever reads it finds out.
pub(super) fn parts(text: &str) -> Result<usize, &'static str> {
    let (mut found, mut is_quoted, mut is_escaped) = (0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'{' | b'[' | b',' if !is_quoted => found += 1,
            _ => {}
        }
    }
    if found > PARTS_MAX { Err("has too many parts") } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_what_stands_in_an_object_or_a_list_and_not_in_a_text() {
        assert_eq!(parts(r#"{"ping":{}}"#), Ok(2));
        assert_eq!(parts(r#"{"send":{"sessionId":"a","content":[{"text":{"text":"a {\"[,\\"}},{}]}}"#), Ok(8));
        let blocks = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
        assert_eq!(parts(&blocks(PARTS_MAX / 2)), Ok(PARTS_MAX));
        assert!(parts(&blocks(PARTS_MAX / 2 + 1)).is_err());
        assert!(parts(&"[".repeat(PARTS_MAX + 1)).is_err());
        assert_eq!(parts(&format!("\"{}\"", ",".repeat(PARTS_MAX + 1))), Ok(0));
    }
}
