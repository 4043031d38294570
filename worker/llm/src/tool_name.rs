//! The name of a tool call on its way back to a model.

use std::borrow::Cow;

/// Providers refuse longer ones.
const CHARACTERS_MAX: usize = 64;
/// Stands for no name at all.
const UNKNOWN: &str = "unknown";

/// The name as providers take it: 1 to 64 of `a-z A-Z 0-9 _ -`. Agents' tools have such names, but models make up others
/// (`functions.search`), and a call that stands in the conversation would be refused with every request from then on.
pub(crate) fn tool_name(name: &str) -> Cow<'_, str> {
    let of_alphabet = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    if name.is_empty() {
        return Cow::Borrowed(UNKNOWN);
    }
    if name.len() <= CHARACTERS_MAX && name.chars().all(of_alphabet) {
        return Cow::Borrowed(name);
    }
    let safe = |character| if of_alphabet(character) { character } else { '_' };
    Cow::Owned(name.chars().take(CHARACTERS_MAX).map(safe).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_providers_take_stays_and_another_becomes_one() {
        let long = "x".repeat(CHARACTERS_MAX);
        for (name, expected) in [
            ("search_it-2", "search_it-2"),
            ("multi_tool_use.parallel", "multi_tool_use_parallel"),
            ("käse <b>", "k_se__b_"),
            ("", "unknown"),
            (&long, &long),
            (&format!("{long}y"), &long),
            (&"ä".repeat(CHARACTERS_MAX + 1), &"_".repeat(CHARACTERS_MAX)),
        ] {
            assert_eq!(tool_name(name), expected, "{name:?}");
        }
    }
}
