//! The models of one turn: the agent's own, and those that take over when it can't answer, each tried once in their order.
//! The turn stays with the one that took over, since going back and forth would lose what each remembers of it.

use croft_llm::{Class, Stop};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{AgentSpec, ContentBlock, Message, Takeover};

/// Why another model takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It failed, and trying again did not help.
    Error,
    /// The conversation does not fit it.
    Context,
    /// It, or its provider's policy, would not go on.
    Content,
}

impl Cause {
    pub(super) fn of_error(class: Class) -> Self {
        match class {
            Class::Context => Self::Context,
            Class::Content => Self::Content,
            Class::Rate
            | Class::Quota
            | Class::Overload
            | Class::Auth
            | Class::Invalid
            | Class::Timeout
            | Class::Network
            | Class::Truncated => Self::Error,
        }
    }

    /// `None` for an answer that stands.
    pub(super) fn of_stop(stop: Stop) -> Option<Self> {
        match stop {
            Stop::ContextFull => Some(Self::Context),
            Stop::Refusal => Some(Self::Content),
            Stop::EndTurn | Stop::ToolUse | Stop::MaxTokens | Stop::BadToolCall | Stop::Pause => None,
        }
    }

    /// The fixed word for events and metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Context => "context",
            Self::Content => "content",
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    model: String,
    rest: std::vec::IntoIter<String>,
    has_tools: bool,
    /// From which model, and why, the one at hand took over.
    taken_over: Option<(String, Cause)>,
    /// One that the front chose in place of the one at hand could not answer: it is to choose none any more in this turn.
    as_asked: bool,
    /// The one at hand has answered in this turn.
    pub(super) has_answered: bool,
    /// What the failed model's own provider counted in the conversation that did not fit it.
    pub(super) input_tokens: Option<u32>,
}

impl Chain {
    pub(crate) fn new(agent: &AgentSpec) -> Self {
        Self {
            model: agent.model.clone(),
            rest: agent.fallback_models.clone().into_iter(),
            has_tools: !agent.tools.is_empty(),
            taken_over: None,
            as_asked: false,
            has_answered: false,
            input_tokens: None,
        }
    }

    /// The model at hand.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// There is one that could take over.
    pub(super) fn has_next(&self) -> bool {
        !self.rest.as_slice().is_empty()
    }

    /// Lets the next one take over; false when there is none.
    pub(super) fn hop(&mut self, cause: Cause) -> bool {
        let Some(next) = self.rest.next() else { return false };
        let from = std::mem::replace(&mut self.model, next);
        self.has_answered = false;
        self.taken_over = Some((from, cause));
        true
    }

    /// Passes over the one at hand, which can't take over, for the next; false when there is none.
    pub(super) fn skip(&mut self) -> bool {
        let Some(next) = self.rest.next() else { return false };
        self.model = next;
        self.has_answered = false;
        true
    }

    /// No other model is to be chosen for the one at hand.
    pub(super) fn as_asked(&self) -> bool {
        self.as_asked
    }

    /// The one that was chosen for the one at hand could not answer. False where that was known: then the front chooses all the
    /// same, and to ask it again would not end.
    pub(super) fn insist(&mut self) -> bool {
        !std::mem::replace(&mut self.as_asked, true)
    }

    /// Why another model than the agent's own is at hand; empty when it isn't.
    pub(super) fn reason(&self) -> &'static str {
        self.taken_over.as_ref().map_or("", |(_, cause)| cause.as_str())
    }

    /// What the one at hand must be able to do, if it took over.
    pub(super) fn takeover(&self, messages: &[Message]) -> Option<Takeover> {
        let (from_model, cause) = self.taken_over.as_ref()?;
        Some(Takeover {
            from_model: from_model.clone(),
            reason: cause.as_str().to_owned(),
            tools: self.has_tools,
            images: messages.iter().any(|message| has_image(&message.content)),
        })
    }
}

fn has_image(content: &[ContentBlock]) -> bool {
    content.iter().any(|block| match &block.block {
        Some(Block::Image(_)) => true,
        Some(Block::ToolOutput(output)) => has_image(&output.content),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{Image, Role, ToolOutput, ToolSpec};

    use super::*;

    fn chain() -> Chain {
        let models = ["b", "c"].map(str::to_owned);
        let tools = vec![ToolSpec::default()];
        Chain::new(&AgentSpec { model: "a".into(), fallback_models: models.into(), tools, ..AgentSpec::default() })
    }

    #[test]
    fn each_model_has_its_turn_once_and_the_last_has_none_behind_it() {
        let mut chain = chain();
        assert_eq!((chain.model(), chain.reason(), chain.takeover(&[])), ("a", "", None));
        assert!(chain.hop(Cause::Context));
        assert_eq!((chain.model(), chain.reason()), ("b", "context"));
        assert!(chain.hop(Cause::Error));
        assert_eq!((chain.model(), chain.reason()), ("c", "error"));
        assert!(!chain.has_next() && !chain.hop(Cause::Error));
        assert_eq!(chain.model(), "c");
    }

    #[test]
    fn one_that_is_passed_over_failed_nobody() {
        let mut chain = chain();
        chain.hop(Cause::Content);
        assert!(chain.skip());
        let takeover = chain.takeover(&[]).unwrap();
        assert_eq!((takeover.from_model.as_str(), takeover.reason.as_str(), chain.model()), ("a", "content", "c"));
    }

    #[test]
    fn what_is_needed_is_told_even_of_pictures_in_results() {
        let picture = |block| ContentBlock { block: Some(block) };
        let image = picture(Block::Image(Image::default()));
        let output = ToolOutput { content: vec![image], ..ToolOutput::default() };
        let content = vec![picture(Block::ToolOutput(output))];
        let messages = [Message { role: Role::Tool.into(), content, ..Message::default() }];
        let mut chain = chain();
        chain.hop(Cause::Error);
        let takeover = chain.takeover(&messages).unwrap();
        assert!(takeover.tools && takeover.images);
        assert!(!chain.takeover(&[]).unwrap().images);
    }
}
