//! The tokens of a text, reckoned where no provider has counted them: before a call, while it runs, and after one that broke off.
//!
//! Tokenizers of today's models make a token of some four characters of English prose or code, of about two of other alphabets, and of
//! one Han character, kana or syllable of Hangul. Texts are weighed in quarters of a token, so that pieces of one add up to the whole.

/// What a token weighs.
pub const TOKEN: usize = 4;

/// What a text weighs.
pub fn weight(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().map(weight_of).sum() }
}

/// The tokens of what weighs so much, rounded up.
pub fn tokens(weight: usize) -> u32 {
    u32::try_from(weight.div_ceil(TOKEN)).unwrap_or(u32::MAX)
}

fn weight_of(character: char) -> usize {
    match character {
        '\0'..='\u{7f}' => 1,
        // Hangul, radicals, kana and Han, wide forms, and beyond the basic plane emoji and rarer Han.
        '\u{1100}'..='\u{11ff}'
        | '\u{2e80}'..='\u{9fff}'
        | '\u{a960}'..='\u{a97f}'
        | '\u{ac00}'..='\u{d7ff}'
        | '\u{f900}'..='\u{faff}'
        | '\u{ff00}'..='\u{ffef}'
        | '\u{10000}'.. => TOKEN,
        _ => TOKEN / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_started_token_counts_whole() {
        for (weight, reckoned) in [(0, 0), (1, 1), (4, 1), (5, 2), (usize::MAX, u32::MAX)] {
            assert_eq!(tokens(weight), reckoned, "{weight}");
        }
    }

    #[test]
    fn scripts_differ_in_what_a_token_holds() {
        for (text, reckoned) in [
            ("", 0),
            ("eight ch", 2),
            ("восемьбу", 4),
            ("grün", 2),
            ("今日は良い天気", 7),
            ("안녕하세요", 5),
            ("👍👍", 2),
        ] {
            assert_eq!(tokens(weight(text)), reckoned, "{text}");
        }
    }

    #[test]
    fn pieces_weigh_what_the_whole_does() {
        let text = "Each 字 weighs что it weighs: ü, 한, 👍.";
        let pieces: usize = text.chars().map(|piece| weight(&piece.to_string())).sum();
        assert_eq!(pieces, weight(text));
    }
}
