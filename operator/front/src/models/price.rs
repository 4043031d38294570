//! What models cost: a call before it is made, what an attempt used, and what all that was used would have cost with another model.

use croft_proto::v1::{Model, ModelAttempt, ModelPrice, TokenUsage, UsageTotals};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

/// Dollars for a million tokens that a price may be at most: a hundred thousand times what models cost. One that is larger is none.
pub(crate) const USD_MAX: u32 = 1_000_000;
/// How a provider serves a call of which nothing else is known.
const STANDARD: &str = "";

/// What a call of a model costs at a time: its input, and each token of its output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quote {
    /// Billionths of a US dollar for a token.
    input: Decimal,
    output: Decimal,
}

impl Quote {
    /// Of a call with so much input at this time (seconds since 1970). It is taken to be served as the provider's standard, and its
    /// input to be written to a cache where that is dearer. `None` when no price is known.
    pub fn of(model: &Model, input_tokens: i64, at_seconds: i64) -> Option<Self> {
        let usage = TokenUsage { input_uncached_tokens: input_tokens, ..TokenUsage::default() };
        let rates = Rates::of(&model.provider, price_at(&model.prices, &usage, STANDARD, at_seconds)?)?;
        Some(Self { input: rates.input.max(rates.cache_write_5m), output: rates.output })
    }

    /// Of so many tokens, rounded up.
    pub fn nano_usd(&self, input_tokens: i64, output_tokens: i64) -> i64 {
        let nano = self.input * Decimal::from(input_tokens.max(0)) + self.output * Decimal::from(output_tokens.max(0));
        nano.ceil().to_i64().unwrap_or(i64::MAX)
    }

    /// How much output so much money buys beside the input; below 0 when it does not even buy that.
    pub fn output_for(&self, nano_usd: i64, input_tokens: i64) -> i64 {
        let left = Decimal::from(nano_usd) - self.input * Decimal::from(input_tokens.max(0));
        if left.is_sign_negative() && !left.is_zero() {
            return -1;
        }
        // Of what costs next to nothing, more than can be counted.
        left.checked_div(self.output).and_then(|tokens| tokens.floor().to_i64()).unwrap_or(i64::MAX)
    }
}

/// What so much usage costs with a model at a time (seconds since 1970), in billionths of a US dollar, each attempt taken to be as long as
/// the average. `None` when no price is known.
pub fn reckon(model: &Model, totals: &UsageTotals, at_seconds: i64) -> Option<i64> {
    let usage = totals.tokens.unwrap_or_default();
    let input_uncached_tokens = prompt_tokens(&usage) / totals.attempts.max(1);
    let average = TokenUsage { input_uncached_tokens, ..TokenUsage::default() };
    let price = price_at(&model.prices, &average, STANDARD, at_seconds)?;
    Rates::of(&model.provider, price)?.cost(&usage)
}

/// What an attempt at a model cost at a time (seconds since 1970), in billionths of a US dollar; `None` when no price is known, be it for
/// the way in which the provider served it.
pub fn cost_nano_usd(model: &Model, attempt: &ModelAttempt, at_seconds: i64) -> Option<i64> {
    let usage = attempt.usage.unwrap_or_default();
    let price = price_at(&model.prices, &usage, &attempt.service_tier, at_seconds)?;
    Rates::of(&model.provider, price)?.cost(&usage)
}

fn prompt_tokens(usage: &TokenUsage) -> i64 {
    usage.input_uncached_tokens + usage.cache_read_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
}

/// Of those for a service tier, the newest price in effect whose size of prompt the whole prompt reaches: a request moves as a whole.
fn price_at<'a>(
    prices: &'a [ModelPrice],
    usage: &TokenUsage,
    service_tier: &str,
    at_seconds: i64,
) -> Option<&'a ModelPrice> {
    let since = |price: &ModelPrice| price.effective_from.as_ref().map_or(0, |time| time.seconds);
    let of_tier = || prices.iter().filter(|price| price.service_tier == service_tier);
    let newest = of_tier().map(since).filter(|since| *since <= at_seconds).max()?;
    of_tier()
        .filter(|price| since(price) == newest)
        .filter(|price| price.above_input_tokens == 0 || prompt_tokens(usage) > price.above_input_tokens)
        .max_by_key(|price| price.above_input_tokens)
}

/// Billionths of a US dollar for a token of each class.
struct Rates {
    input: Decimal,
    cache_read: Decimal,
    cache_write_5m: Decimal,
    cache_write_1h: Decimal,
    output: Decimal,
}

impl Rates {
    /// `None` without a price of input or output. What a cache costs may be left out, and is then taken for the most that the provider
    /// is known to ask: a cost that is somewhat too high keeps a budget, an unknown one keeps none.
    fn of(provider: &str, price: &ModelPrice) -> Option<Self> {
        // A dollar for a million tokens is a thousand billionths for one.
        let nano = |usd: &str| dollars(usd).map(|usd| usd * Decimal::from(1_000));
        let input = nano(&price.input_usd)?;
        let (short, long) = cache_write_ratios(provider);
        Some(Self {
            input,
            // Nobody asks more for it than for input.
            cache_read: nano(&price.cache_read_usd).unwrap_or(input),
            cache_write_5m: nano(&price.cache_write_5m_usd).unwrap_or(input * short),
            cache_write_1h: nano(&price.cache_write_1h_usd).unwrap_or(input * long),
            output: nano(&price.output_usd)?,
        })
    }

    /// `None` for more than can be counted.
    fn cost(&self, usage: &TokenUsage) -> Option<i64> {
        let classes = [
            (usage.input_uncached_tokens, self.input),
            (usage.cache_read_tokens, self.cache_read),
            (usage.cache_write_5m_tokens, self.cache_write_5m),
            (usage.cache_write_1h_tokens, self.cache_write_1h),
            (usage.output_tokens, self.output),
        ];
        let of_class = |(tokens, nano): (i64, Decimal)| Decimal::from(tokens.max(0)) * nano;
        classes.into_iter().map(of_class).sum::<Decimal>().round().to_i64()
    }
}

/// Of a million tokens, in dollars. `None` where it is no amount, or more than anybody asks: so none is too large to be reckoned with, of
/// however many tokens.
pub(crate) fn dollars(usd: &str) -> Option<Decimal> {
    let usd = usd.parse::<Decimal>().ok()?;
    (!usd.is_sign_negative() && usd <= Decimal::from(USD_MAX)).then_some(usd)
}

/// What is written to a cache for five minutes, and for an hour, by the price of input:
/// <https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing>. OpenAI asks the former, too:
/// <https://developers.openai.com/api/docs/models/gpt-5.6-luna>. Gemini asks for nothing but the input.
fn cache_write_ratios(provider: &str) -> (Decimal, Decimal) {
    match provider {
        "anthropic" | "openai" => (Decimal::new(125, 2), Decimal::TWO),
        _ => (Decimal::ONE, Decimal::ONE),
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::Timestamp;

    use super::*;

    fn price(from: i64, above: i64, input: &str, output: &str) -> ModelPrice {
        ModelPrice {
            effective_from: Some(Timestamp { seconds: from, nanos: 0 }),
            above_input_tokens: above,
            input_usd: input.into(),
            output_usd: output.into(),
            ..ModelPrice::default()
        }
    }

    fn attempt(input: i64, output: i64) -> ModelAttempt {
        let usage = TokenUsage { input_uncached_tokens: input, output_tokens: output, ..TokenUsage::default() };
        ModelAttempt { model: "tiny".into(), usage: Some(usage), ..ModelAttempt::default() }
    }

    fn model(prices: Vec<ModelPrice>) -> Model {
        Model { model_id: "tiny".into(), prices, ..Model::default() }
    }

    fn tiny() -> Model {
        model(vec![price(100, 0, "0.10", "0.50"), price(100, 100_000, "0.50", "2.50"), price(200, 0, "0.20", "1")])
    }

    #[test]
    fn a_price_holds_from_its_day_on() {
        assert_eq!(cost_nano_usd(&tiny(), &attempt(1_000, 100), 99), None);
        assert_eq!(cost_nano_usd(&tiny(), &attempt(1_000, 100), 100), Some(100_000 + 50_000));
        assert_eq!(cost_nano_usd(&tiny(), &attempt(1_000, 100), 500), Some(200_000 + 100_000));
    }

    /// Once, such a price ended the task that reckoned with it.
    #[test]
    fn no_price_and_no_count_is_too_much_to_be_reckoned_with() {
        let of = |usd: &str| Rates::of("anthropic", &price(0, 0, usd, usd));
        for usd in ["79228162514264337593543950335", "100000000000000000000000000", "1000001", "-1", "much"] {
            assert!(of(usd).is_none(), "{usd}");
        }
        let every = TokenUsage {
            input_uncached_tokens: i64::MAX,
            cache_read_tokens: i64::MAX,
            cache_write_5m_tokens: i64::MAX,
            cache_write_1h_tokens: i64::MAX,
            output_tokens: i64::MAX,
            reasoning_tokens: 0,
        };
        for usd in ["1000000", "999999.9999999999999999999999", "0.0000000000000000000000001"] {
            let rates = of(usd).unwrap();
            let quote = Quote { input: rates.input, output: rates.output };
            assert!(rates.cost(&every).is_none_or(|cost| cost >= 0), "{usd}");
            assert!(quote.output_for(i64::MAX, 0) > 0, "{usd}");
            assert!(quote.nano_usd(i64::MAX, i64::MAX) > 0, "{usd}");
            assert!(quote.output_for(i64::MIN, i64::MAX) < 0, "{usd}");
        }
    }

    #[test]
    fn a_long_prompt_moves_the_whole_request_to_its_tier() {
        assert_eq!(cost_nano_usd(&tiny(), &attempt(100_000, 0), 150), Some(10_000_000));
        assert_eq!(cost_nano_usd(&tiny(), &attempt(100_001, 0), 150), Some(50_000_500));
    }

    #[test]
    fn a_service_tier_has_prices_of_its_own_and_without_any_the_cost_is_unknown() {
        let model = model(vec![
            price(100, 0, "1", "1"),
            ModelPrice { service_tier: "priority".into(), ..price(100, 0, "2", "2") },
            ModelPrice { service_tier: "priority".into(), ..price(100, 100_000, "4", "4") },
            // Dated apart: a later word on one of them says nothing of the other.
            price(200, 0, "3", "3"),
        ]);
        let cost = |tier: &str, input, at| {
            let served = ModelAttempt { service_tier: tier.into(), ..attempt(input, 0) };
            cost_nano_usd(&model, &served, at)
        };
        assert_eq!([cost("", 1_000, 150), cost("", 1_000, 250)], [Some(1_000_000), Some(3_000_000)]);
        assert_eq!([cost("priority", 1_000, 150), cost("priority", 1_000, 250)], [Some(2_000_000); 2]);
        assert_eq!(cost("priority", 100_001, 250), Some(400_004_000));
        assert_eq!([cost("priority", 1_000, 99), cost("flex", 1_000, 250)], [None; 2]);
    }

    /// Anthropic's models read and write caches with nearly every call: without a price of them the first would end a session under a
    /// hard budget.
    #[test]
    fn what_a_cache_costs_is_never_unknown_where_input_has_a_price() {
        for (provider, written_5m, written_1h) in
            [("anthropic", 1_250, 2_000), ("openai", 1_250, 2_000), ("gemini", 1_000, 1_000)]
        {
            let costs = |price| {
                let model = Model { provider: provider.into(), ..model(vec![price]) };
                let cost = |usage| cost_nano_usd(&model, &ModelAttempt { usage: Some(usage), ..attempt(0, 0) }, 150);
                [
                    cost(TokenUsage { cache_read_tokens: 1, ..TokenUsage::default() }),
                    cost(TokenUsage { cache_write_5m_tokens: 1, ..TokenUsage::default() }),
                    cost(TokenUsage { cache_write_1h_tokens: 1, ..TokenUsage::default() }),
                    Quote::of(&model, 1, 150).map(|quote| quote.nano_usd(1, 0)),
                ]
            };
            let fallen_back = [Some(1_000), Some(written_5m), Some(written_1h), Some(written_5m)];
            assert_eq!(costs(price(0, 0, "1", "2")), fallen_back, "{provider}");
            let told = ModelPrice {
                cache_read_usd: "0.1".into(),
                cache_write_5m_usd: "3".into(),
                cache_write_1h_usd: "4".into(),
                ..price(0, 0, "1", "2")
            };
            assert_eq!(costs(told), [Some(100), Some(3_000), Some(4_000), Some(3_000)], "{provider}");
            assert_eq!(costs(price(200, 0, "1", "2")), [None; 4], "no price holds yet");
        }
    }

    #[test]
    fn a_quote_is_what_a_call_may_cost_and_what_money_buys() {
        let model = tiny();
        assert_eq!(Quote::of(&model, 1_000, 99), None);
        let quote = Quote::of(&model, 1_000, 150).unwrap();
        assert_eq!(quote.nano_usd(1_000, 100), 100_000 + 50_000);
        assert_eq!(quote.output_for(150_000, 1_000), 100);
        assert_eq!(quote.output_for(150_499, 1_000), 100);
        assert_eq!((quote.output_for(100_000, 1_000), quote.output_for(99_999, 1_000)), (0, -1));
        let long = Quote::of(&model, 200_000, 150).unwrap();
        assert_eq!(long.nano_usd(200_000, 1), 100_000_000 + 2_500, "the whole request is in the tier");
    }

    /// Workers ask for caches, and a hard budget must hold when one is written.
    #[test]
    fn a_quote_takes_the_input_for_written_to_a_cache_where_that_is_dearer() {
        let quoted = |cache_write_5m_usd: &str| {
            let price = ModelPrice { cache_write_5m_usd: cache_write_5m_usd.into(), ..price(0, 0, "1", "2") };
            Quote::of(&model(vec![price]), 1_000, 1).unwrap().nano_usd(1_000, 0)
        };
        assert_eq!([quoted("1.25"), quoted("0.50"), quoted("")], [1_250_000, 1_000_000, 1_000_000]);
    }

    /// Providers write to caches in classes of their own, or charge nothing for it.
    #[test]
    fn what_one_model_had_cached_is_input_for_another_without_a_price_for_it() {
        let price = ModelPrice { cache_read_usd: "0.1".into(), ..price(0, 0, "1", "2") };
        let tokens = TokenUsage { cache_read_tokens: 1_000, cache_write_5m_tokens: 1_000, ..TokenUsage::default() };
        let totals = UsageTotals { attempts: 1, tokens: Some(tokens), ..UsageTotals::default() };
        assert_eq!(reckon(&model(vec![price]), &totals, 1), Some(100_000 + 1_000_000));
    }
}
