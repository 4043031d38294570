//! What an agent's real usage would have cost with other models that can do its work: a recommendation, reckoned and not tried.

use std::sync::Arc;

use croft_proto::v1::{Model, ModelRecommendation, UsageSummary, UsageTotals};

use super::price;
use super::registry::Registry;

/// Recommendations for what was used with each model, the largest saving first. `summaries` are by model.
///
/// Every attempt is taken to be as long as the average, which decides the tier of a price.
pub fn recommend(registry: &Registry, summaries: &[UsageSummary], at_seconds: i64) -> Vec<ModelRecommendation> {
    let mut found: Vec<_> = summaries
        .iter()
        .filter_map(|summary| {
            let totals = summary.totals.as_ref()?;
            let used = registry.get(summary.keys.first()?).ok()?;
            best(registry, &used, totals, at_seconds)
        })
        .collect();
    found.sort_by(|left, right| {
        right.saving_nano_usd.cmp(&left.saving_nano_usd).then_with(|| left.used_model.cmp(&right.used_model))
    });
    found
}

/// The one that saves most; none where all cost as much or more.
fn best(registry: &Registry, used: &Arc<Model>, totals: &UsageTotals, at_seconds: i64) -> Option<ModelRecommendation> {
    let cost = cost(used, totals, at_seconds)?;
    let stand_ins =
        registry.list("").into_iter().filter(|model| model.model_id != used.model_id && can_do_as(model, used));
    let (least, model) = stand_ins.filter_map(|model| Some((self::cost(&model, totals, at_seconds)?, model))).min_by(
        |(left, left_model), (right, right_model)| {
            left.cmp(right).then_with(|| left_model.model_id.cmp(&right_model.model_id))
        },
    )?;
    (least < cost).then(|| ModelRecommendation {
        used_model: used.model_id.clone(),
        recommended_model: model.model_id.clone(),
        attempts: totals.attempts,
        cost_nano_usd: cost,
        recommended_cost_nano_usd: least,
        saving_nano_usd: cost - least,
        reason: format!(
            "{} attempts would have cost {} % less, and it can do all that {} can",
            totals.attempts,
            (i128::from(cost - least) * 100 / i128::from(cost)),
            used.model_id
        ),
    })
}

/// Whether a model can do all that another can, as far as is known.
fn can_do_as(model: &Model, used: &Model) -> bool {
    let (can, own) = (model.capabilities.unwrap_or_default(), used.capabilities.unwrap_or_default());
    let fits =
        can.context_tokens_max == 0 || own.context_tokens_max == 0 || can.context_tokens_max >= own.context_tokens_max;
    fits && can.tools >= own.tools && can.images >= own.images && can.thinking >= own.thinking
}

/// What all of it costs with a model at today's prices.
fn cost(model: &Model, totals: &UsageTotals, at_seconds: i64) -> Option<i64> {
    (totals.attempts > 0).then(|| price::reckon(model, totals, at_seconds)).flatten()
}

#[cfg(test)]
mod tests {
    use croft_proto::Timestamp;
    use croft_proto::v1::{ModelCapabilities, ModelPrice, TokenUsage};

    use super::*;

    fn model(id: &str, input: &str, output: &str, tools: bool) -> Model {
        let price = ModelPrice {
            effective_from: Some(Timestamp::default()),
            input_usd: input.into(),
            output_usd: output.into(),
            ..ModelPrice::default()
        };
        let capabilities = Some(ModelCapabilities { tools, ..ModelCapabilities::default() });
        Model { model_id: id.into(), provider: "p".into(), prices: vec![price], capabilities, ..Model::default() }
    }

    fn used(model: &str, attempts: i64, input: i64, output: i64) -> UsageSummary {
        let tokens = TokenUsage { input_uncached_tokens: input, output_tokens: output, ..TokenUsage::default() };
        let totals = UsageTotals { attempts, tokens: Some(tokens), ..UsageTotals::default() };
        UsageSummary { keys: vec![model.into()], totals: Some(totals) }
    }

    #[test]
    fn the_cheapest_that_can_do_the_work_is_recommended_by_how_it_was_used() {
        // One is cheap to read to, the other to listen to.
        let registry = Registry::of(vec![
            model("big", "10", "10", true),
            model("listener", "1", "20", true),
            model("talker", "20", "1", true),
            model("handless", "0.1", "0.1", false),
        ]);
        let recommended = recommend(&registry, &[used("big", 5, 1_000_000, 1_000)], 1);
        assert_eq!(recommended.len(), 1);
        assert_eq!(recommended[0].recommended_model, "listener");
        assert_eq!(recommended[0].cost_nano_usd, 10_010_000_000);
        assert_eq!(recommended[0].saving_nano_usd, 10_010_000_000 - 1_020_000_000);
        assert!(recommended[0].reason.contains("89 % less"), "{}", recommended[0].reason);
        let recommended = recommend(&registry, &[used("big", 5, 1_000, 1_000_000)], 1);
        assert_eq!(recommended[0].recommended_model, "talker");
    }

    #[test]
    fn where_nothing_is_cheaper_or_known_nothing_is_recommended() {
        let registry = Registry::of(vec![model("small", "1", "1", true), model("big", "10", "10", true)]);
        assert_eq!(recommend(&registry, &[used("small", 5, 1_000, 1_000)], 1), []);
        assert_eq!(recommend(&registry, &[used("unknown", 5, 1_000, 1_000)], 1), []);
        assert_eq!(recommend(&registry, &[used("big", 0, 0, 0)], 1), []);
    }

    #[test]
    fn the_largest_saving_comes_first() {
        let registry =
            Registry::of(vec![model("a", "10", "10", true), model("b", "5", "5", true), model("c", "1", "1", true)]);
        let recommended = recommend(&registry, &[used("b", 1, 1_000, 0), used("a", 1, 1_000, 0)], 1);
        let models: Vec<_> = recommended.iter().map(|one| (&*one.used_model, &*one.recommended_model)).collect();
        assert_eq!(models, [("a", "c"), ("b", "c")]);
    }
}
