//! How much output a call may ask of a model. A provider refuses a call that asks for more than its model gives, and some refuse one whose
//! output would not fit the context beside the conversation.

use croft_proto::v1::ModelCapabilities;

/// What is asked of a model of which it is known how much it gives, where nobody names a bound: one that thinks does so at the cost of
/// its output.
const TOKENS_DEFAULT: i64 = 16_384;
/// And of one of which nothing is known: many servers of models of one's own have no room for more, and refuse the call.
const TOKENS_OF_UNKNOWN: i64 = 4_096;
/// So much is asked for however full the context seems: it is reckoned, and an answer of a few words helps nobody. Should there be no
/// room indeed, the provider says so and the conversation is shortened. Of a small context a quarter is enough.
const TOKENS_BESIDE_CONTEXT: i64 = 4_096;

/// Tokens of output for a call with so much input, of which `asked` are wanted; 0 wants the default.
pub fn bound(can: &ModelCapabilities, input_tokens: i64, asked: u32) -> i64 {
    let default = if can.output_tokens_max > 0 { TOKENS_DEFAULT } else { TOKENS_OF_UNKNOWN };
    let mut output = if asked == 0 { default } else { i64::from(asked) };
    if can.output_tokens_max > 0 {
        output = output.min(can.output_tokens_max);
    }
    if can.context_tokens_max > 0 {
        let room = can.context_tokens_max.saturating_sub(input_tokens);
        output = output.min(room.max(TOKENS_BESIDE_CONTEXT.min(can.context_tokens_max / 4)));
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_asked_for_than_the_model_gives_and_its_context_holds() {
        let can = |output_tokens_max, context_tokens_max| ModelCapabilities {
            output_tokens_max,
            context_tokens_max,
            ..ModelCapabilities::default()
        };
        for (can, input_tokens, asked, expected) in [
            (can(0, 0), 1_000, 0, 4_096),
            (can(0, 0), 1_000, 16_384, 16_384),
            (can(128_000, 0), 1_000, 0, 16_384),
            (can(8_192, 0), 1_000, 0, 8_192),
            (can(0, 0), 1_000, 77, 77),
            (can(8_192, 200_000), 1_000, 16_384, 8_192),
            (can(64_000, 200_000), 1_000, 16_384, 16_384),
            (can(64_000, 200_000), 190_000, 16_384, 10_000),
            (can(64_000, 200_000), 199_990, 16_384, 4_096),
            (can(64_000, 200_000), 199_990, 99, 99),
            (can(0, 8_192), 1_000, 0, 4_096),
            (can(0, 8_192), 5_000, 0, 3_192),
            (can(0, 8_192), 8_000, 0, 2_048),
            (can(0, 32_768), 20_000, 16_384, 12_768),
            (can(0, 32_768), 30_000, 16_384, 4_096),
        ] {
            assert_eq!(bound(&can, input_tokens, asked), expected, "{can:?}, {input_tokens}, {asked}");
        }
    }
}
