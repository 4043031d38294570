//! `croft-front models apply`: takes models and dated prices in from a file. Fronts know of them within a minute.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};

use crate::models::entry::Entry;
use crate::models::price::{USD_MAX, dollars};
use crate::store::postgres::{SharedName, apply_models, shared_name};

/// Reads the file and applies it, all of it or nothing: nothing where a model of it would share a name with another. A price that is there already for its model, day and tier is replaced: what
/// it has cost so far is reckoned anew by `croft-front reprice --all` alone.
pub async fn apply(file: &Path, postgres_url: &SecretString) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let entries = parse(&text).with_context(|| format!("{} can't be used", file.display()))?;
    let mut admin = PgConnection::connect(postgres_url.expose_secret()).await.context("cannot reach PostgreSQL")?;
    let mut transaction = admin.begin().await?;
    apply_models(&mut transaction, &entries).await.context("cannot write the models")?;
    let shared = shared_name(&mut transaction, &entries).await.context("cannot read the models")?;
    if let Some(SharedName { name, model, other }) = shared {
        bail!(
            "nothing is applied: the alias {name} of {model} is an id or an alias of {other}, too; an entry of {model} \
            with the `aliases` that it keeps, `[]` for none, takes it away"
        );
    }
    transaction.commit().await?;
    let prices: usize = entries.iter().map(|entry| entry.model.prices.len()).sum();
    // The registry is no tenant's, so that no audit log has this: who runs the job keeps what it prints.
    writeln!(std::io::stdout(), "{} models and {prices} prices applied: {}", entries.len(), names(&entries))
        .context("cannot print what came of it")
}

fn names(entries: &[Entry]) -> String {
    entries.iter().map(|entry| entry.model.model_id.as_str()).collect::<Vec<_>>().join(", ")
}

/// The models of a file, in JSON or YAML. Fails with what is wrong in it.
pub fn parse(text: &str) -> anyhow::Result<Vec<Entry>> {
    // Through JSON, whose mapping of protobuf knows numbers as texts and times as RFC 3339.
    let entries: Vec<serde_json::Value> = serde_yaml::from_str(text)?;
    let entries = entries.into_iter().map(Entry::read).collect::<Result<Vec<_>, _>>()?;
    for Entry { model, .. } in &entries {
        let name = &model.model_id;
        if name.is_empty() || model.provider.is_empty() {
            bail!("a model lacks its modelId or its provider");
        }
        for price in &model.prices {
            if price.effective_from.is_none() || price.source.is_empty() {
                bail!("a price of {name} lacks its effectiveFrom or its source");
            }
            let tier = &price.service_tier;
            if *tier != tier.to_ascii_lowercase() || ["standard", "default"].contains(&tier.as_str()) {
                bail!("serviceTier {tier:?} in a price of {name}: it is in lower case, and left out for the standard");
            }
            let optional = [&price.cache_read_usd, &price.cache_write_5m_usd, &price.cache_write_1h_usd];
            let given = optional.into_iter().filter(|usd| !usd.is_empty());
            for usd in [&price.input_usd, &price.output_usd].into_iter().chain(given) {
                if dollars(usd).is_none() {
                    bail!("{usd:?} in a price of {name} is no amount of dollars up to {USD_MAX}");
                }
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
- modelId: house-1
  provider: openai
  aliases: [house]
  capabilities: { tools: true, contextTokensMax: "64000" }
  prices:
    - { effectiveFrom: "2026-11-01T00:00:00Z", inputUsd: "0.2", outputUsd: "0.8", source: contract }
"#;

    #[test]
    fn yaml_and_json_are_read_alike() {
        let entries = parse(GOOD).unwrap();
        let models: Vec<_> = entries.iter().map(|entry| entry.model.clone()).collect();
        assert_eq!((models[0].model_id.as_str(), models[0].prices[0].output_usd.as_str()), ("house-1", "0.8"));
        let json = serde_json::to_string(&models).unwrap();
        assert_eq!(parse(&json).unwrap(), entries);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (bad, told) in [
            (GOOD.replace("house-1", "''"), "lacks its modelId"),
            (GOOD.replace("source: contract", "source: ''"), "effectiveFrom or its source"),
            (GOOD.replace("\"0.8\"", "\"-1\""), "no amount of dollars"),
            (GOOD.replace("\"0.8\"", "much"), "no amount of dollars"),
            (GOOD.replace("0.8", "100000000000000000000000000"), "no amount of dollars up to 1000000"),
            (GOOD.replace("source:", "serviceTier: Flex, source:"), "in lower case"),
            (GOOD.replace("source:", "serviceTier: default, source:"), "left out for the standard"),
            ("{}".to_owned(), "sequence"),
        ] {
            let error = format!("{:#}", parse(&bad).unwrap_err());
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}
