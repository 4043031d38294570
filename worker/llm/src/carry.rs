//! What of a conversation another model may see.

use croft_proto::media_type;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{ContentBlock, Image, Message, Role, Text};
use serde_json::{Map, Value};

use crate::gemini;
use crate::openai::chat::REASONING_CONTENT;

const UNSEEN: &str = "[an image, which this model can't see]";
const UNUSABLE: &str = "[an image that can't be shown: it is no PNG, JPEG, GIF, WebP, HEIC or HEIF]";
const FOREIGN: &str = "[an image of a format that this model can't see]";

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
    unbind_those(messages, |_| true);
}

/// The same for what `model` of `provider` wrote, which its provider does not take back any more. True when there was any.
pub fn unbind_of(messages: &mut Vec<Message>, provider: &str, model: &str) -> bool {
    unbind_those(messages, |message| message.provider == provider && message.model == model)
}

fn unbind_those(messages: &mut Vec<Message>, is_one: impl Fn(&Message) -> bool) -> bool {
    let mut any = false;
    for message in messages.iter_mut().filter(|message| is_one(message)) {
        let blocks = message.content.len();
        message.content.retain(|block| !is_bound(block));
        any |= message.content.len() < blocks;
    }
    messages.retain(|message| !message.content.is_empty());
    any
}

/// Some of it holds only for the conversation as it was.
pub(crate) fn has_bound(messages: &[Message]) -> bool {
    messages.iter().flat_map(|message| &message.content).any(is_bound)
}

fn is_bound(block: &ContentBlock) -> bool {
    match &block.block {
        Some(Block::Thinking(thinking)) => thinking.signature != REASONING_CONTENT,
        Some(Block::Native(_)) | None => true,
        Some(Block::Text(_) | Block::Image(_) | Block::ToolUse(_) | Block::ToolOutput(_)) => false,
    }
}

/// What the model thought, or proves that it did: no part of what it said.
pub fn is_thought(block: &ContentBlock) -> bool {
    match &block.block {
        Some(Block::Thinking(_)) | None => true,
        Some(Block::Native(native)) => serde_json::from_str(&native.json).is_ok_and(|whole: Map<String, Value>| {
            whole.get("type").is_some_and(|kind| kind == "reasoning")
                || whole.keys().all(|key| key == gemini::SIGNATURE)
        }),
        Some(Block::Text(_) | Block::Image(_) | Block::ToolUse(_) | Block::ToolOutput(_)) => false,
    }
}

/// Puts words in the place of each image that a model of `provider` could not take: of all for one that does not see, else of those of
/// a format that its provider does not take, or no provider, which an older release may have let in. The others get the media type of
/// their data.
pub fn show(messages: &mut [Message], provider: &str, sees: bool) {
    for message in messages {
        show_content(&mut message.content, provider, sees);
    }
}

fn show_content(content: &mut [ContentBlock], provider: &str, sees: bool) {
    for block in content.iter_mut().filter_map(|block| block.block.as_mut()) {
        match block {
            Block::Image(image) => {
                let unseen = if sees { unusable(image, provider) } else { Some(UNSEEN) };
                if let Some(told) = unseen {
                    *block = Block::Text(Text { text: told.to_owned() });
                }
            }
            Block::ToolOutput(output) => show_content(&mut output.content, provider, sees),
            Block::Text(_) | Block::Thinking(_) | Block::ToolUse(_) | Block::Native(_) => {}
        }
    }
}

/// Whether images of this type, as [`media_type::of_image`] has it, are taken.
fn takes(provider: &str, media_type: &str) -> bool {
    match media_type {
        "image/gif" => provider != gemini::NAME,
        "image/heic" | "image/heif" => provider == gemini::NAME,
        _ => true,
    }
}

/// What is said in the place of an image that the provider does not take; `None` for another.
fn unusable(image: &mut Image, provider: &str) -> Option<&'static str> {
    match &image.source {
        Some(Source::Url(_)) => None,
        Some(Source::Data(data)) if let Some(media_type) = media_type::of_image(data) => {
            media_type.clone_into(&mut image.media_type);
            (!takes(provider, media_type)).then_some(FOREIGN)
        }
        Some(Source::Data(_)) | None => Some(UNUSABLE),
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{NativeBlock, Thinking, ToolOutput, ToolUse};

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
    fn what_a_model_thought_is_told_from_what_it_said() {
        let native = |json: &str| {
            let native = NativeBlock { provider: "a".into(), json: json.into() };
            ContentBlock { block: Some(Block::Native(native)) }
        };
        for json in [r#"{"type":"reasoning","summary":[]}"#, r#"{"thoughtSignature":"c2ln"}"#] {
            assert!(is_thought(&native(json)), "{json}");
        }
        for json in [r#"{"type":"web_search_call"}"#, r#"{"thoughtSignature":"c2ln","inlineData":{}}"#, "[]"] {
            assert!(!is_thought(&native(json)), "{json}");
        }
        let whole = answer("a", "a").content;
        assert_eq!([0, 2, 3].map(|place: usize| is_thought(&whole[place])), [true, false, false]);
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
    fn what_one_model_wrote_is_unbound_and_what_others_wrote_stays_bound() {
        let (ours, theirs) = (answer("openai", "gpt-6-sol"), answer("anthropic", "claude-opus-5-5"));
        let mut thought = ours.clone();
        thought.content.truncate(2);
        let mut messages = vec![ours, thought, theirs.clone()];
        assert!(has_bound(&messages));
        assert!(unbind_of(&mut messages, "openai", "gpt-6-sol"));
        assert!(!unbind_of(&mut messages, "openai", "gpt-6-sol"), "nothing is left of it");
        assert_eq!((messages.len(), messages[0].content.len()), (2, 2), "text and call stay");
        assert_eq!(messages[1], theirs);
        assert!(!has_bound(&messages[..1]) && has_bound(&messages));
    }

    #[test]
    fn an_image_that_the_model_cannot_take_is_told_of_in_words() {
        let image = |media_type: &str, source| ContentBlock {
            block: Some(Block::Image(Image { media_type: media_type.into(), source })),
        };
        let data = |data: &'static [u8]| Some(Source::Data(data.into()));
        let text = |text: &str| ContentBlock { block: Some(Block::Text(Text { text: text.into() })) };
        let output = |content| {
            let output = ToolOutput { tool_call_id: "a".into(), content, is_error: false };
            ContentBlock { block: Some(Block::ToolOutput(output)) }
        };
        let url = || image("", Some(Source::Url("https://pictures.test/1".into())));
        let gif = |media_type| image(media_type, data(b"GIF89a"));
        let conversation = || {
            let message = |content| Message { content, ..Message::default() };
            vec![
                message(vec![gif("image/png"), url()]),
                message(vec![output(vec![gif(""), image("image/png", data(b""))])]),
            ]
        };
        let contents = |messages: Vec<Message>| messages.into_iter().map(|one| one.content).collect::<Vec<_>>();
        let mut seen = conversation();
        show(&mut seen, "anthropic", true);
        let (gif, unusable) = (gif("image/gif"), text(UNUSABLE));
        assert_eq!(contents(seen), [vec![gif.clone(), url()], vec![output(vec![gif, unusable])]]);
        let mut unseen = conversation();
        show(&mut unseen, "anthropic", false);
        let told = || vec![text(UNSEEN), text(UNSEEN)];
        assert_eq!(contents(unseen), [told(), vec![output(told())]]);
    }

    #[test]
    fn an_image_of_a_format_that_the_provider_does_not_take_is_told_of_in_words() {
        let formats =
            [&b"\x89PNG\r\n\x1a\n\0"[..], b"GIF89a", b"\0\0\0\x10ftypheic\0\0\0\0", b"\0\0\0\x10ftypmif1\0\0\0\0"];
        let image = |data: &'static [u8]| {
            let image = Image { media_type: String::new(), source: Some(Source::Data(data.into())) };
            ContentBlock { block: Some(Block::Image(image)) }
        };
        let heic = ["image/png", FOREIGN, "image/heic", "image/heif"];
        let gif = ["image/png", "image/gif", FOREIGN, FOREIGN];
        for (provider, expected) in [("gemini", heic), ("anthropic", gif), ("openai", gif), ("scripted", gif)] {
            let mut messages = [Message { content: formats.map(image).into(), ..Message::default() }];
            show(&mut messages, provider, true);
            let seen = messages[0].content.iter().map(|block| match &block.block {
                Some(Block::Image(image)) => image.media_type.as_str(),
                Some(Block::Text(text)) => text.text.as_str(),
                _ => "",
            });
            assert_eq!(seen.collect::<Vec<_>>(), expected, "{provider}");
        }
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
