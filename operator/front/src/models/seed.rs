//! The models and prices that a new installation starts with: `seed.json`, in the protobuf JSON of
//! [`Model`]. They are data; a price that changes gets another row with a later `effective_from`.

use std::collections::HashSet;
use std::sync::LazyLock;

use async_trait::async_trait;
use croft_proto::v1::Model;

use super::ModelStore;
use crate::error::Error;

/// Every model of the seed, by id, with its prices in the order that [`ModelStore::load`] promises.
pub fn seed() -> Vec<Model> {
    serde_json::from_str(include_str!("seed.json")).expect("a unit test reads the seed")
}

/// Models of the seed that see no images, by id.
static BLIND: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let blind = seed().into_iter().filter(|model| !model.capabilities.unwrap_or_default().images);
    blind.map(|model| model.model_id).collect()
});

/// Whether a model sees images; `None` where nobody knows. Left out, `images` is false in the table too, so that it says something of
/// the seed's own models alone: one that an admin added without it may see.
pub fn sees(model: &Model) -> Option<bool> {
    if model.capabilities.is_some_and(|can| can.images) {
        return Some(true);
    }
    BLIND.contains(&model.model_id).then_some(false)
}

/// A registry that holds the seed and nothing else.
pub struct SeedModels;

#[async_trait]
impl ModelStore for SeedModels {
    async fn load(&self) -> Result<Vec<Model>, Error> {
        Ok(seed())
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::ModelCapabilities;
    use rust_decimal::Decimal;

    use super::*;

    #[test]
    fn seed_is_sorted_and_every_price_is_a_number_with_a_source() {
        let models = seed();
        assert!(models.is_sorted_by(|left, right| left.model_id < right.model_id));
        for model in &models {
            assert!(!model.provider.is_empty(), "{}", model.model_id);
            assert!(model.prices.is_sorted_by_key(|price| {
                let since = price.effective_from.expect("dated").seconds;
                (price.service_tier.clone(), since, price.above_input_tokens)
            }));
            assert!(
                model.prices.iter().any(|price| price.above_input_tokens == 0 && price.service_tier.is_empty()),
                "{}",
                model.model_id
            );
            for price in &model.prices {
                assert!(!price.source.is_empty(), "{}", model.model_id);
                for usd in [&price.input_usd, &price.output_usd] {
                    usd.parse::<Decimal>().unwrap();
                }
                for usd in [&price.cache_read_usd, &price.cache_write_5m_usd, &price.cache_write_1h_usd] {
                    assert!(usd.is_empty() || usd.parse::<Decimal>().is_ok(), "{}: {usd}", model.model_id);
                }
            }
        }
    }

    #[test]
    fn only_of_a_model_of_the_seed_is_it_known_that_it_sees_nothing() {
        let sees = |model_id: &str, images| {
            let capabilities = Some(ModelCapabilities { tools: true, images, ..ModelCapabilities::default() });
            super::sees(&Model { model_id: model_id.into(), capabilities, ..Model::default() })
        };
        assert_eq!((sees("house-1", false), sees("house-1", true)), (None, Some(true)));
        assert_eq!((sees("scripted-1", false), sees("scripted-1", true)), (Some(false), Some(true)));
        // Of the seed, and blind in an admin's table: an older seed's word, or the admin's.
        assert_eq!((sees("claude-haiku-4-5", false), super::sees(&Model::default())), (None, None));
    }

    #[test]
    fn no_name_of_the_seed_is_two_models() {
        let models = seed();
        let names = models.iter().flat_map(|model| model.aliases.iter().chain([&model.model_id]));
        let mut seen = HashSet::new();
        names.for_each(|name| assert!(seen.insert(name), "{name}"));
    }

    #[test]
    fn seed_names_the_scripted_model_and_its_price() {
        let models = seed();
        let scripted = models.iter().find(|model| model.model_id == "scripted-1").unwrap();
        assert_eq!((&*scripted.prices[0].input_usd, &*scripted.prices[0].output_usd), ("1", "5"));
    }
}
