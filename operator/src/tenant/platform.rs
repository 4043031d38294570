//! The model providers whose keys the platform lends to its tenants.

use std::collections::BTreeMap;

use croft_crds::tenant::ProviderName;
use croft_serve::settings::Release;
use serde::{Deserialize, Serialize};

use crate::settings_file;

/// The providers, by name. The keys themselves lie in Secrets of the operator's namespace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlatformProviders {
    by_name: BTreeMap<ProviderName, PlatformProvider>,
}

/// Where the platform's key for one provider lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PlatformProvider {
    pub(crate) name: ProviderName,
    /// The Secret, in the operator's namespace.
    pub(crate) secret_name: String,
    /// The key within it.
    pub(crate) key: String,
    /// Where the provider is, if not at its own public address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base_url: Option<String>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct File {
    providers: Vec<PlatformProvider>,
}

impl PlatformProviders {
    /// Reads the text of a file of our own release. Fails with every mistake in it, each as a sentence.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        Self::parse_of(text, &Release::Own)
    }

    /// As [`Self::parse`], of this release.
    pub(crate) fn parse_of(text: &str, release: &Release) -> Result<Self, Vec<String>> {
        let file: File = settings_file::parse(text, release)?;
        let mut mistakes = Vec::new();
        let mut by_name = BTreeMap::new();
        for provider in file.providers {
            let name = provider.name;
            let mut mistake = |told: &str| mistakes.push(format!("{}: {told}.", name.as_str()));
            if provider.secret_name.is_empty() || provider.key.is_empty() {
                mistake("secretName and key must name the platform's key");
            }
            if let Some(problem) = provider.base_url.as_deref().and_then(|url| croft_serve::config::http_url(url).err())
            {
                mistake(&format!("baseUrl: {problem}"));
            }
            if by_name.insert(name, provider).is_some() {
                mistake("it is there twice");
            }
        }
        if mistakes.is_empty() { Ok(Self { by_name }) } else { Err(mistakes) }
    }

    /// Where the key for a provider lies, if the platform has one.
    pub(crate) fn get(&self, name: ProviderName) -> Option<&PlatformProvider> {
        self.by_name.get(&name)
    }

    /// Whether a Secret of the operator's namespace holds one of the keys.
    pub(crate) fn lies_in(&self, secret_name: &str) -> bool {
        self.by_name.values().any(|provider| provider.secret_name == secret_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_where_the_keys_lie() {
        let providers = PlatformProviders::parse(
            "providers: [{ name: anthropic, secretName: lent, key: api, baseUrl: 'https://proxy.example.com' }]",
        )
        .unwrap();
        let anthropic = providers.get(ProviderName::Anthropic).unwrap();
        assert_eq!((anthropic.secret_name.as_str(), anthropic.key.as_str()), ("lent", "api"));
        assert!(providers.lies_in("lent") && !providers.lies_in("croft-ca"));
        assert_eq!(PlatformProviders::parse("providers: []"), Ok(PlatformProviders::default()));
    }

    #[test]
    fn every_mistake_in_a_file_is_told_in_a_sentence() {
        let entry = |more: &str| format!("{{ name: anthropic, secretName: lent, key: ''{more} }}");
        let text = format!("providers: [{}, {}]", entry(", baseUrl: 'ftp://x'"), entry(""));
        let told = PlatformProviders::parse(&text).unwrap_err();
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0], "anthropic: secretName and key must name the platform's key.");
        assert!(told[1].starts_with("anthropic: baseUrl: "), "{told:?}");
        assert_eq!(told[3], "anthropic: it is there twice.");
        let unknown = PlatformProviders::parse("providers: [{ name: oracle, secretName: a, key: b }]").unwrap_err();
        assert!(unknown[0].contains("oracle"), "{unknown:?}");
    }
}
