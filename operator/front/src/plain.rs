//! Text that callers, workers and providers make up, as it can be stored whatever they made up.

/// Characters that are kept. Longer texts are not ours: part of them is what somebody said. An index takes this much.
const CHARS_MAX: usize = 512;

/// The text without control characters, which no name of ours has and of which the database takes not all, cut where it gets long.
pub(crate) fn plain(text: String) -> String {
    // Seldom, and else the text is as it was.
    if text.len() <= CHARS_MAX && !text.contains(char::is_control) {
        return text;
    }
    let letters = text.chars().take(CHARS_MAX);
    letters.map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_up_comes_out_plainly() {
        let cases = [
            ("sessions/1".to_owned(), "sessions/1".to_owned()),
            ("sessions/\0\n".to_owned(), "sessions/\u{fffd}\u{fffd}".to_owned()),
            ("é".repeat(200), "é".repeat(200)),
            ("é".repeat(600), "é".repeat(512)),
        ];
        for (given, expected) in cases {
            assert_eq!(plain(given), expected);
        }
    }
}
