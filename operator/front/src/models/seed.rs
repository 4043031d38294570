//! The models and prices that a new installation starts with: `seed.json`, in the protobuf JSON of
//! [`Model`]. They are data; a price that changes gets another row with a later `effective_from`.

use async_trait::async_trait;
use croft_proto::v1::Model;

use super::ModelStore;
use crate::error::Error;

/// Every model of the seed, by id, with its prices in the order that [`ModelStore::load`] promises.
pub fn seed() -> Vec<Model> {
    serde_json::from_str(include_str!("seed.json")).expect("a unit test reads the seed")
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
    fn seed_names_the_scripted_model_and_its_price() {
        let models = seed();
        let scripted = models.iter().find(|model| model.model_id == "scripted-1").unwrap();
        assert_eq!((&*scripted.prices[0].input_usd, &*scripted.prices[0].output_usd), ("1", "5"));
    }
}
