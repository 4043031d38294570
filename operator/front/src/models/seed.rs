//! The models and prices that a new installation starts with: `seed.json`, in the protobuf JSON of
//! [`Model`]. They are data; a price that changes gets another row with a later `effective_from`, and those that are there keep their amounts: by
//! them the seed's own are told from an admin's.

use std::collections::HashSet;
use std::sync::LazyLock;

use async_trait::async_trait;
use croft_proto::v1::{Model, ModelPrice};
use rust_decimal::Decimal;

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

/// A price of the seed that the tables lack for its model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Missing<'seed> {
    pub price: &'seed ModelPrice,
    /// One that is not the seed's own, such as a contract's, would hold no longer than until it.
    pub ends_another: bool,
}

/// What of the seed's prices of a model `known` lacks, which is that model as it is in the tables. Any price there that is none of the seed's is
/// an admin's, be it one of an earlier seed's whose amounts an admin changed. Where a price was read, and how its amounts are written, says nothing.
pub fn missing_prices<'seed>(seed: &'seed Model, known: &Model) -> Vec<Missing<'seed>> {
    let is_there = |price: &ModelPrice| known.prices.iter().any(|known| place(known) == place(price));
    let admins: Vec<_> =
        known.prices.iter().filter(|known| !seed.prices.iter().any(|price| is_same(price, known))).collect();
    let ends = |price: &ModelPrice| {
        admins.iter().any(|admins| admins.service_tier == price.service_tier && since(admins) <= since(price))
    };
    let missing = seed.prices.iter().filter(|price| !is_there(price));
    missing.map(|price| Missing { price, ends_another: ends(price) }).collect()
}

/// In the place of the other, and with the same amounts.
fn is_same(price: &ModelPrice, other: &ModelPrice) -> bool {
    place(price) == place(other) && amounts(price) == amounts(other)
}

/// No two prices of a model have the same.
fn place(price: &ModelPrice) -> (&str, Option<(i64, i32)>, i64) {
    (&price.service_tier, since(price), price.above_input_tokens)
}

fn since(price: &ModelPrice) -> Option<(i64, i32)> {
    price.effective_from.map(|time| (time.seconds, time.nanos))
}

/// US dollars for a million tokens; `None` for what is not priced by itself.
fn amounts(price: &ModelPrice) -> [Option<Decimal>; 5] {
    let ModelPrice { input_usd, cache_read_usd, cache_write_5m_usd, cache_write_1h_usd, output_usd, .. } = price;
    [input_usd, cache_read_usd, cache_write_5m_usd, cache_write_1h_usd, output_usd].map(|usd| usd.parse().ok())
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
    use croft_proto::Timestamp;
    use croft_proto::v1::ModelCapabilities;

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
    fn what_is_missing_of_the_seeds_prices_ends_none_of_an_admins() {
        let price = |service_tier: &str, seconds, input_usd: &str| ModelPrice {
            service_tier: service_tier.into(),
            effective_from: Some(Timestamp { seconds, nanos: 0 }),
            input_usd: input_usd.into(),
            ..ModelPrice::default()
        };
        let of = |prices: &[ModelPrice]| Model { prices: prices.to_vec(), ..Model::default() };
        let [first, second, flex] = [price("", 10, "1"), price("", 20, "2"), price("flex", 20, "1")];
        let seed = of(&[first.clone(), second.clone(), flex.clone()]);
        let missing = |known: &[ModelPrice]| missing_prices(&seed, &of(known));
        let free = |price| Missing { price, ends_another: false };
        let ends = |price| Missing { price, ends_another: true };
        assert_eq!(missing(&seed.prices), []);
        assert_eq!(missing(std::slice::from_ref(&first)), [free(&second), free(&flex)]);
        // Each tier has prices of its own.
        let contract = |seconds| missing(&[first.clone(), price("", seconds, "0.5")]);
        assert_eq!(contract(15), [ends(&second), free(&flex)]);
        assert_eq!(contract(20), [free(&flex)], "it is in the place of the seed's");
        assert_eq!(contract(25), [free(&second), free(&flex)]);
        let reworded = ModelPrice { input_usd: "1.00".into(), source: "elsewhere".into(), ..first.clone() };
        assert_eq!(missing(&[reworded]), [free(&second), free(&flex)], "it is the seed's own");
        let changed = ModelPrice { input_usd: "0.5".into(), ..first.clone() };
        assert_eq!(missing(&[changed]), [ends(&second), free(&flex)]);
        let of_large_prompts = ModelPrice { above_input_tokens: 1_000, ..price("", 20, "0.5") };
        assert_eq!(missing(&[first.clone(), of_large_prompts]), [ends(&second), free(&flex)]);
        assert_eq!(missing(&[price("flex", 1, "0.1"), second.clone()]), [free(&first), ends(&flex)]);
    }

    /// A price of the seed that is changed or taken out is an admin's in the tables that have it, and keeps out each later one of its model and tier.
    /// `shipped.json` only grows: by the prices that the seed gets, in the order of the seed.
    #[test]
    fn every_price_that_was_ever_shipped_is_in_the_seed_still() {
        let shipped: Vec<Model> = serde_json::from_str(include_str!("shipped.json")).unwrap();
        let prices_of = |models: &[Model], model_id: &str| {
            let model = models.iter().find(|model| model.model_id == model_id);
            model.map(|model| model.prices.clone()).unwrap_or_default()
        };
        let seed = seed();
        for model in &shipped {
            let now = prices_of(&seed, &model.model_id);
            for price in &model.prices {
                assert!(now.iter().any(|now| is_same(now, price)), "{}: {price:?} is gone or changed", model.model_id);
            }
        }
        for model in &seed {
            let told = prices_of(&shipped, &model.model_id);
            for price in &model.prices {
                let is_told = told.iter().any(|told| is_same(told, price));
                assert!(is_told, "{}: {price:?} is to be added to shipped.json", model.model_id);
            }
        }
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
