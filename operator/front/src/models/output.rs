//! How much output a call may ask of a model. A provider refuses a call that asks for more than its model gives, and some refuse one whose
//! output would not fit the context beside the conversation.

use croft_proto::v1::ModelCapabilities;

/// What is asked for where nobody names a bound: a model that thinks does so at the cost of its output.
const TOKENS_DEFAULT: u32 = 16_384;
/// So much is asked for however full the context seems: it is reckoned, and an answer of a few words helps nobody. Should there be no
/// room indeed, the provider says so and the conversation is shortened.
const TOKENS_BESIDE_CONTEXT: i64 = 4_096;

/// Tokens of output for a call with so much input, of which `asked` are wanted; 0 wants the default.
pub fn bound(can: &ModelCapabilities, input_tokens: i64, asked: u32) -> i64 {
    let mut output = i64::from(if asked == 0 { TOKENS_DEFAULT } else { asked });
    if can.output_tokens_max > 0 {
        output = output.min(can.output_tokens_max);
    }
    if can.context_tokens_max > 0 {
        let room = can.context_tokens_max.saturating_sub(input_tokens);
        output = output.min(room.max(TOKENS_BESIDE_CONTEXT));
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
            (can(0, 0), 1_000, 0, 16_384),
            (can(0, 0), 1_000, 77, 77),
            (can(8_192, 200_000), 1_000, 16_384, 8_192),
            (can(64_000, 200_000), 1_000, 16_384, 16_384),
            (can(64_000, 200_000), 190_000, 16_384, 10_000),
            (can(64_000, 200_000), 199_990, 16_384, 4_096),
            (can(64_000, 200_000), 199_990, 99, 99),
            (can(0, 8_192), 5_000, 0, 4_096),
            (can(0, 32_768), 20_000, 0, 12_768),
        ] {
            assert_eq!(bound(&can, input_tokens, asked), expected, "{can:?}, {input_tokens}, {asked}");
        }
    }
}
