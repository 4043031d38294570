//! The service tier: how a provider served a call, which is part of what the call costs.
//!
//! Providers say it in their answers, each in its own words: `service_tier` of Anthropic's usage and of OpenAI's chunks and
//! responses, `serviceTier` of Gemini's usage. What was asked for says little: a call for `priority` may be served, and charged, as a
//! standard one.

use crate::delta::Delta;

/// Longer words are cut.
const CHARACTERS_MAX: usize = 32;

/// What the events of one answer said so far. Empty stands for the provider's standard, and for no word at all.
#[derive(Default)]
pub(crate) struct Told(String);

impl Told {
    /// Takes in what an event says. What it amounts to, where that is another tier than before.
    pub(crate) fn take(&mut self, word: Option<&str>) -> Option<Delta> {
        let tier = neutral(word?)?;
        (tier != self.0).then(|| {
            self.0.clone_from(&tier);
            Delta::ServiceTier(tier)
        })
    }
}

/// The word in lower case, empty for what is a provider's standard; `None` where the provider has not decided yet.
fn neutral(word: &str) -> Option<String> {
    let known = |character: &char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    let word: String = word.to_ascii_lowercase().chars().filter(known).take(CHARACTERS_MAX).collect();
    // Gemini's enumeration repeats its name.
    match word.strip_prefix("service_tier_").unwrap_or(&word) {
        "" | "auto" | "unspecified" => None,
        "standard" | "default" | "on_demand" => Some(String::new()),
        tier => Some(tier.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_told_once_and_again_when_it_turns_out_to_be_another() {
        let mut told = Told::default();
        assert_eq!(told.take(None), None);
        assert_eq!(told.take(Some("default")), None, "what nobody says is the same");
        assert_eq!(told.take(Some("priority")), Some(Delta::ServiceTier("priority".into())));
        assert_eq!(told.take(Some("priority")), None);
        assert_eq!(told.take(Some("auto")), None, "not decided yet");
        assert_eq!(told.take(Some("standard")), Some(Delta::ServiceTier(String::new())), "it was too busy for more");
    }

    #[test]
    fn every_provider_s_word_comes_to_the_same() {
        for (word, tier) in [
            ("SERVICE_TIER_FLEX", Some("flex")),
            ("Flex", Some("flex")),
            ("SERVICE_TIER_UNSPECIFIED", None),
            ("SERVICE_TIER_STANDARD", Some("")),
            ("on_demand", Some("")),
            ("", None),
            ("\u{0}pri\u{0}ority\n", Some("priority")),
        ] {
            assert_eq!(neutral(word).as_deref(), tier, "{word:?}");
        }
        assert_eq!(neutral(&"x".repeat(1_000)).unwrap().len(), CHARACTERS_MAX);
    }
}
