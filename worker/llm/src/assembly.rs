//! What a stream of deltas adds up to: the content of the answer, what it used, and how it ended.

use std::collections::BTreeMap;

use croft_proto::estimate::tokens;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, NativeBlock, Text, Thinking, TokenUsage, ToolUse};

use crate::delta::{Delta, Stop};
use crate::estimate::content_weight;

/// An answer under construction.
#[derive(Debug, Clone, Default)]
pub struct Assembly {
    blocks: BTreeMap<u32, Part>,
    /// The last snapshot the provider told.
    pub usage: Option<TokenUsage>,
    pub stop: Option<Stop>,
    /// How the provider serves the call; empty for its standard.
    pub service_tier: String,
    /// Why the model would not go on, where its provider tells; else empty.
    pub refusal: String,
    /// Empty until the provider took the call.
    pub response_id: String,
    /// The model that answers, as the provider calls it; empty until the provider took the call.
    pub response_model: String,
}

/// A tool call that the model asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedCall {
    pub tool_call_id: String,
    pub name: String,
    pub arguments_json: String,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Thinking(Thinking),
    /// `complete` only once the provider said that the arguments are all there.
    Call {
        call: RequestedCall,
        complete: bool,
    },
    Native(NativeBlock),
}

impl Assembly {
    /// Takes in the next piece.
    pub fn push(&mut self, delta: &Delta) {
        match delta {
            Delta::Opened { response_id, model } => {
                self.response_id.clone_from(response_id);
                self.response_model.clone_from(model);
            }
            Delta::Text { block, text } => {
                if let Part::Text(whole) = self.blocks.entry(*block).or_insert_with(|| Part::Text(String::new())) {
                    whole.push_str(text);
                }
            }
            Delta::Thinking { block, text } => self.thinking(*block, |thinking| thinking.text.push_str(text)),
            Delta::Signature { block, signature } => {
                self.thinking(*block, |thinking| thinking.signature.push_str(signature));
            }
            Delta::RedactedThinking { block, data } => {
                self.thinking(*block, |thinking| thinking.redacted_data.push_str(data));
            }
            Delta::ToolCallStarted { block, tool_call_id, name } => {
                let call = RequestedCall {
                    tool_call_id: tool_call_id.clone(),
                    name: name.clone(),
                    arguments_json: String::new(),
                };
                self.blocks.insert(*block, Part::Call { call, complete: false });
            }
            Delta::ToolArguments { block, partial_json } => {
                if let Some(Part::Call { call, .. }) = self.blocks.get_mut(block) {
                    call.arguments_json.push_str(partial_json);
                }
            }
            Delta::ToolCallStopped { block, arguments_json } => {
                if let Some(Part::Call { call, complete }) = self.blocks.get_mut(block) {
                    call.arguments_json.clone_from(arguments_json);
                    *complete = true;
                }
            }
            Delta::Native { block, native } => {
                self.blocks.insert(*block, Part::Native(native.clone()));
            }
            Delta::Usage(usage) => self.usage = Some(*usage),
            Delta::ServiceTier(tier) => self.service_tier.clone_from(tier),
            Delta::Refused(why) => self.refusal.clone_from(why),
            Delta::Stop(stop) => self.stop = Some(*stop),
        }
    }

    fn thinking(&mut self, block: u32, change: impl FnOnce(&mut Thinking)) {
        if let Part::Thinking(thinking) =
            self.blocks.entry(block).or_insert_with(|| Part::Thinking(Thinking::default()))
        {
            change(thinking);
        }
    }

    /// The id of the tool call in that block.
    pub fn tool_call_id(&self, block: u32) -> Option<&str> {
        match self.blocks.get(&block) {
            Some(Part::Call { call, .. }) => Some(&call.tool_call_id),
            _ => None,
        }
    }

    /// The whole answer, for a stream that ended in order. Blocks without content are left out: providers refuse them
    /// when they come back.
    pub fn content(&self) -> Vec<ContentBlock> {
        self.blocks
            .values()
            .filter_map(|part| match part {
                Part::Text(text) if text.is_empty() => None,
                Part::Text(text) => Some(Block::Text(Text { text: text.clone() })),
                Part::Thinking(thinking) => Some(Block::Thinking(thinking.clone())),
                Part::Call { call, .. } => Some(Block::ToolUse(ToolUse {
                    tool_call_id: call.tool_call_id.clone(),
                    name: call.name.clone(),
                    arguments_json: call.arguments_json.clone(),
                })),
                Part::Native(native) => Some(Block::Native(native.clone())),
            })
            .map(|block| ContentBlock { block: Some(block) })
            .collect()
    }

    /// What can be kept of an answer that broke off: its text. A tool call may be cut in the middle and must not be
    /// made, and thinking without its signature would be refused.
    pub fn text_only(&self) -> Vec<ContentBlock> {
        self.blocks
            .values()
            .filter_map(|part| match part {
                Part::Text(text) if !text.is_empty() => {
                    Some(ContentBlock { block: Some(Block::Text(Text { text: text.clone() })) })
                }
                _ => None,
            })
            .collect()
    }

    /// The complete tool calls, in the model's order.
    pub fn calls(&self) -> Vec<RequestedCall> {
        self.blocks
            .values()
            .filter_map(|part| match part {
                Part::Call { call, complete: true } => Some(call.clone()),
                _ => None,
            })
            .collect()
    }

    /// What an attempt used that did not end in order: what the provider told, with the output reckoned from what
    /// arrived, since the first snapshot of most providers only knows the input.
    pub fn estimated_usage(&self, input_tokens: u32) -> TokenUsage {
        let mut usage = self.usage.unwrap_or_default();
        // No model answers to nothing: a provider that tells of none has not counted it.
        if usage.input_uncached_tokens
            + usage.cache_read_tokens
            + usage.cache_write_5m_tokens
            + usage.cache_write_1h_tokens
            == 0
        {
            usage.input_uncached_tokens = i64::from(input_tokens);
        }
        let received = tokens(content_weight(&self.content()));
        usage.output_tokens = usage.output_tokens.max(i64::from(received));
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(deltas: &[Delta]) -> Assembly {
        let mut assembly = Assembly::default();
        for delta in deltas {
            assembly.push(delta);
        }
        assembly
    }

    fn text(block: u32, text: &str) -> Delta {
        Delta::Text { block, text: text.into() }
    }

    #[test]
    fn interleaved_blocks_come_out_in_the_order_of_their_numbers() {
        let assembly = assembled(&[
            text(0, "one "),
            Delta::ToolCallStarted { block: 1, tool_call_id: "a".into(), name: "clock".into() },
            text(2, "three"),
            Delta::ToolArguments { block: 1, partial_json: "{\"x\"".into() },
            text(0, "more"),
            Delta::ToolArguments { block: 1, partial_json: ":1}".into() },
            Delta::ToolCallStopped { block: 1, arguments_json: "{\"x\":1}".into() },
        ]);
        let kinds: Vec<_> = assembly.content().into_iter().filter_map(|block| block.block).collect();
        let call = ToolUse { tool_call_id: "a".into(), name: "clock".into(), arguments_json: "{\"x\":1}".into() };
        assert_eq!(
            kinds,
            [
                Block::Text(Text { text: "one more".into() }),
                Block::ToolUse(call),
                Block::Text(Text { text: "three".into() }),
            ]
        );
        assert_eq!(assembly.calls().len(), 1);
    }

    #[test]
    fn a_call_that_was_cut_is_not_among_the_calls_and_not_in_what_is_kept() {
        let assembly = assembled(&[
            text(0, "let me see"),
            Delta::ToolCallStarted { block: 1, tool_call_id: "a".into(), name: "clock".into() },
            Delta::ToolArguments { block: 1, partial_json: "{\"x\"".into() },
        ]);
        assert!(assembly.calls().is_empty());
        assert_eq!(assembly.text_only().len(), 1);
    }

    #[test]
    fn a_usage_snapshot_replaces_the_one_before() {
        let usage = |output_tokens| TokenUsage { input_uncached_tokens: 7, output_tokens, ..TokenUsage::default() };
        let assembly = assembled(&[Delta::Usage(usage(1)), Delta::Usage(usage(9))]);
        assert_eq!(assembly.usage, Some(usage(9)));
    }

    #[test]
    fn a_broken_answer_is_reckoned_from_what_arrived() {
        let assembly = assembled(&[text(0, "twelve chars")]);
        let usage = assembly.estimated_usage(40);
        assert_eq!((usage.input_uncached_tokens, usage.output_tokens), (40, 3));
        let told = TokenUsage { output_tokens: 1, ..TokenUsage::default() };
        let usage = assembled(&[Delta::Usage(told), text(0, "twelve chars")]).estimated_usage(40);
        assert_eq!((usage.input_uncached_tokens, usage.output_tokens), (40, 3), "the input was not counted");
        let cached = TokenUsage { cache_read_tokens: 30, ..TokenUsage::default() };
        let usage = assembled(&[Delta::Usage(cached), text(0, "twelve chars")]).estimated_usage(40);
        assert_eq!((usage.input_uncached_tokens, usage.cache_read_tokens), (0, 30));
    }
}
