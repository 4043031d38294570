//! Which provider a model surely needs, known before a grant says so.

use croft_llm::{Providers, anthropic, scripted};

use crate::refusal::Refusal;

/// Families of models by how their names begin. The registry, and with it the truth, is the front's; a name that fits
/// nothing here, such as an alias, waits for the grant.
const FAMILIES: [(&str, &str); 2] = [("scripted-", scripted::NAME), ("claude-", anthropic::NAME)];

/// Fails early when a model's provider is surely missing: the first turn would end with an error.
pub(crate) fn check(providers: &Providers, model: &str) -> Result<(), Refusal> {
    let family = FAMILIES.into_iter().find(|(prefix, _)| model.starts_with(prefix));
    match family {
        Some((_, provider)) if providers.get(provider).is_none() => {
            Err(Refusal::ProviderMissing { provider: provider.to_owned(), model: model.to_owned() })
        }
        _ => Ok(()),
    }
}
