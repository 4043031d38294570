//! Rates that hold for every tenant of a tier at one provider: a file, since they follow the platform's contract with the provider.

use std::collections::BTreeMap;

use croft_serve::settings::Release;
use serde::Deserialize;

/// So many in a minute; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rates {
    #[serde(rename = "requestsPerMinute")]
    pub requests: i64,
    #[serde(rename = "sessionsPerMinute")]
    pub sessions: i64,
    #[serde(rename = "tokensPerMinute")]
    pub tokens: i64,
}

/// By provider, then by tier. The tier `*` stands for those that are not named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ProviderRates(BTreeMap<String, BTreeMap<String, Rates>>);

impl ProviderRates {
    /// Reads YAML of our own release, such as `anthropic: { free: { tokensPerMinute: 20000 } }`. Fails with a sentence that says what is
    /// wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_of(text, &Release::Own)
    }

    /// As [`Self::parse`], of this release.
    pub(crate) fn parse_of(text: &str, release: &Release) -> Result<Self, String> {
        let rates: Self = release.read(text)?;
        for (provider, tiers) in &rates.0 {
            for (tier, Rates { requests, sessions, tokens }) in tiers {
                if [requests, sessions, tokens].into_iter().any(|rate| *rate < 0) {
                    return Err(format!("{provider}.{tier} has a rate below 0"));
                }
            }
        }
        Ok(rates)
    }

    /// The rates of a tier at a provider.
    pub fn of(&self, provider: &str, tier: &str) -> Rates {
        let tiers = self.0.get(provider);
        tiers.and_then(|tiers| tiers.get(tier).or_else(|| tiers.get("*"))).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_has_its_own_rates_and_others_the_star() {
        let text =
            "anthropic: { free: { tokensPerMinute: 20000 }, '*': { requestsPerMinute: 60, sessionsPerMinute: 5 } }";
        let rates = ProviderRates::parse(text).unwrap();
        assert_eq!(rates.of("anthropic", "free"), Rates { tokens: 20_000, ..Rates::default() });
        assert_eq!(rates.of("anthropic", "enterprise"), Rates { requests: 60, sessions: 5, tokens: 0 });
        assert_eq!(rates.of("openai", "free"), Rates::default());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(
            ProviderRates::parse("anthropic: { free: { tokensPerHour: 1 } }").unwrap_err().contains("tokensPerHour")
        );
        assert!(ProviderRates::parse("anthropic: { free: { tokensPerMinute: -1 } }").unwrap_err().contains("below 0"));
        assert!(ProviderRates::parse("[]").is_err());
    }

    #[test]
    fn a_file_of_another_release_may_say_more_than_is_known_here() {
        let another = Release::Another("7.0.0".to_owned());
        let text = "anthropic: { free: { tokensPerHour: 1, tokensPerMinute: 7 } }";
        let rates = ProviderRates::parse_of(text, &another).unwrap();
        assert_eq!(rates.of("anthropic", "free"), Rates { tokens: 7, ..Rates::default() });
        assert!(ProviderRates::parse_of("anthropic: { free: { tokensPerMinute: -1 } }", &another).is_err());
    }
}
