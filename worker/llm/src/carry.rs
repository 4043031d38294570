//! What of a conversation another model may see.

use croft_proto::v1::content_block::Block;
use croft_proto::v1::{Message, Role};

use crate::openai::chat::REASONING_CONTENT;

/// Takes out what only the model that wrote it understands, unless that is `model` of `provider`: thinking, which is proven
/// to one model alone, and native blocks. Text, calls and results stay. A message that nothing is left of goes.
pub fn strip(messages: &mut Vec<Message>, provider: &str, model: &str) {
    let foreign = |message: &Message| {
        message.role() == Role::Assistant && (message.provider != provider || message.model != model)
    };
    for message in messages.iter_mut().filter(|message| foreign(message)) {
        message.content.retain(|block| !matches!(block.block, Some(Block::Thinking(_) | Block::Native(_)) | None));
    }
    messages.retain(|message| !message.content.is_empty());
}

/// Takes out what holds only for the conversation as it was, of one of which parts are left out: thinking that is proven for all
/// before it, and native blocks. Thinking that goes back as mere text stays: its server may refuse an answer without it.
pub fn unbind(messages: &mut Vec<Message>) {
    for message in messages.iter_mut() {
        message.content.retain(|block| match &block.block {
            Some(Block::Thinking(thinking)) => thinking.signature == REASONING_CONTENT,
            Some(Block::Native(_)) | None => false,
            Some(Block::Text(_) | Block::Image(_) | Block::ToolUse(_) | Block::ToolOutput(_)) => true,
        });
    }
    messages.retain(|message| !message.content.is_empty());
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{ContentBlock, NativeBlock, Text, Thinking, ToolUse};

    use super::*;

    fn answer(provider: &str, model: &str) -> Message {
        let blocks = [
            Block::Thinking(Thinking { text: "hm".into(), signature: "sig".into(), redacted_data: String::new() }),
            Block::Native(NativeBlock { provider: provider.into(), json: "{}".into() }),
            Block::Text(Text { text: "noon".into() }),
            Block::ToolUse(ToolUse { tool_call_id: "a".into(), name: "clock".into(), arguments_json: "{}".into() }),
        ];
        Message {
            role: Role::Assistant.into(),
            content: blocks.map(|block| ContentBlock { block: Some(block) }).into(),
            provider: provider.into(),
            model: model.into(),
        }
    }

    #[test]
    fn its_own_model_gets_all_of_it_back() {
        let mut messages = vec![answer("anthropic", "claude-opus-5-5")];
        strip(&mut messages, "anthropic", "claude-opus-5-5");
        assert_eq!(messages[0].content.len(), 4);
    }

    #[test]
    fn another_model_gets_text_and_calls_even_of_the_same_provider() {
        for (provider, model) in [("anthropic", "claude-haiku-5-5"), ("openai", "gpt-6-sol")] {
            let mut messages = vec![answer("anthropic", "claude-opus-5-5"), answer(provider, model)];
            strip(&mut messages, provider, model);
            assert!(matches!(messages[0].content[0].block, Some(Block::Text(_))));
            assert!(matches!(messages[0].content[1].block, Some(Block::ToolUse(_))));
            assert_eq!((messages[0].content.len(), messages[1].content.len()), (2, 4));
        }
    }

    #[test]
    fn of_a_conversation_that_is_shortened_thinking_stays_where_it_is_mere_text() {
        let mut messages = vec![answer("openai", "deepseek-v4-pro"); 2];
        if let Some(Block::Thinking(thinking)) = &mut messages[0].content[0].block {
            thinking.signature = REASONING_CONTENT.into();
        }
        unbind(&mut messages);
        assert!(matches!(messages[0].content[0].block, Some(Block::Thinking(_))));
        assert_eq!((messages[0].content.len(), messages[1].content.len()), (3, 2), "no native block, and no proof");
    }

    #[test]
    fn a_message_that_nothing_is_left_of_goes() {
        let mut thought = answer("anthropic", "claude-opus-5-5");
        thought.content.truncate(2);
        let said = ContentBlock { block: Some(Block::Text(Text { text: "hello".into() })) };
        let user = Message { role: Role::User.into(), content: vec![said], ..Message::default() };
        let mut messages = vec![user.clone(), thought];
        strip(&mut messages, "openai", "gpt-6-sol");
        assert_eq!(messages, [user]);
    }
}
