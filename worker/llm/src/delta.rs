//! The pieces of an answer, in the order in which they arrive.

use croft_proto::v1::{NativeBlock, TokenUsage};

/// One piece of an answer. `block` numbers the content blocks of the answer and only grows; pieces of different blocks
/// may interleave.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// The provider took the call. Comes first, and only once.
    Opened {
        response_id: String,
        /// The model that answers, as the provider names it.
        model: String,
    },
    Text {
        block: u32,
        text: String,
    },
    Thinking {
        block: u32,
        text: String,
    },
    /// Opaque proof that the thinking of this block is the provider's own.
    Signature {
        block: u32,
        signature: String,
    },
    /// Thinking that the provider hides.
    RedactedThinking {
        block: u32,
        data: String,
    },
    ToolCallStarted {
        block: u32,
        tool_call_id: String,
        name: String,
    },
    ToolArguments {
        block: u32,
        partial_json: String,
    },
    /// The call is whole. `arguments_json` is all of its arguments: `{}` where the provider sent none, and whatever the
    /// model wrote where that is no JSON, since telling the model is the caller's business.
    ToolCallStopped {
        block: u32,
        arguments_json: String,
    },
    /// A block that has no neutral form, whole.
    Native {
        block: u32,
        native: NativeBlock,
    },
    /// All that was used so far: it replaces what was told before.
    Usage(TokenUsage),
    /// How the provider serves the call, which is part of what it costs: its word in lower case, empty for its standard. It
    /// replaces what was told before.
    ServiceTier(String),
    /// Why the model would not go on, where its provider tells. Comes before [`Stop::Refusal`]; no part of the answer.
    Refused(String),
    /// The end of an answer that is whole. Nothing follows.
    Stop(Stop),
}

impl Delta {
    /// The model began to answer: this is what "first token" means.
    pub fn is_output(&self) -> bool {
        match self {
            Self::Opened { .. } | Self::Usage(_) | Self::ServiceTier(_) | Self::Refused(_) | Self::Stop(_) => false,
            Self::Text { .. }
            | Self::Thinking { .. }
            | Self::Signature { .. }
            | Self::RedactedThinking { .. }
            | Self::ToolCallStarted { .. }
            | Self::ToolArguments { .. }
            | Self::ToolCallStopped { .. }
            | Self::Native { .. } => true,
        }
    }
}

/// Why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    EndTurn,
    /// It waits for the results of its tool calls.
    ToolUse,
    /// The bound on the output; the last tool call may be cut.
    MaxTokens,
    /// The conversation no longer fits the model.
    ContextFull,
    /// The model or the provider's filter would not go on.
    Refusal,
    /// It tried to call a tool, and the provider could not make sense of it.
    BadToolCall,
    /// The provider wants the conversation back as it is, to go on.
    Pause,
}

impl Stop {
    /// The fixed word for events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::ToolUse => "tool_use",
            Self::MaxTokens => "max_tokens",
            Self::ContextFull => "context_full",
            Self::Refusal => "refusal",
            Self::BadToolCall => "bad_tool_call",
            Self::Pause => "pause",
        }
    }

    /// The reason with this word, if there is one.
    pub fn parse(word: &str) -> Option<Self> {
        let all = [
            Self::EndTurn,
            Self::ToolUse,
            Self::MaxTokens,
            Self::ContextFull,
            Self::Refusal,
            Self::BadToolCall,
            Self::Pause,
        ];
        all.into_iter().find(|stop| stop.as_str() == word)
    }
}
