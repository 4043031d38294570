//! What an MCP tool gave, as what the model may read.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use croft_proto::media_type;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{ContentBlock, Image, Text};
use rmcp::model::{self, CallToolResult, ResourceContents};

use crate::tools::{Error, RESULT_TEXT_BYTES_MAX};

/// Blocks of one result. What is beyond is left out, and the model is told so.
const BLOCKS_MAX: usize = 64;
/// Bytes of the images of one result, before which the same.
const IMAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The result as content, or as the tool's own error. All texts together are within the bound of one.
pub(super) fn content(result: CallToolResult) -> Result<Vec<ContentBlock>, Error> {
    let CallToolResult { content, structured_content, is_error, .. } = result;
    let mut taken = Taken::default();
    let blocks = content.len();
    for block in content.into_iter().take(BLOCKS_MAX) {
        taken.block(block);
    }
    if blocks > BLOCKS_MAX {
        taken.left_out += blocks - BLOCKS_MAX;
    }
    // Servers should say what is structured as text too; some don't.
    if let Some(structured) = structured_content.filter(|_| !taken.has_text) {
        taken.text(&structured.to_string());
    }
    let content = taken.finish();
    if is_error != Some(true) {
        return Ok(content);
    }
    let texts: Vec<_> = content
        .iter()
        .filter_map(|block| match &block.block {
            Some(Block::Text(text)) if !text.text.trim().is_empty() => Some(text.text.as_str()),
            _ => None,
        })
        .collect();
    Err(Error(if texts.is_empty() { "The tool failed and did not say why.".to_owned() } else { texts.join("\n") }))
}

#[derive(Default)]
struct Taken {
    content: Vec<ContentBlock>,
    has_text: bool,
    text_bytes: usize,
    image_bytes: usize,
    /// Bytes of text that were cut off, and blocks that were left out.
    cut: usize,
    left_out: usize,
}

impl Taken {
    fn block(&mut self, block: model::ContentBlock) {
        match block {
            model::ContentBlock::Text(text) => self.text(&text.text),
            model::ContentBlock::Image(image) => self.image(&image.data),
            model::ContentBlock::Resource(embedded) => match embedded.resource {
                ResourceContents::TextResourceContents { text, .. } => self.text(&text),
                _ => self.left_out += 1,
            },
            model::ContentBlock::ResourceLink(link) => self.text(&link.uri),
            _ => self.left_out += 1,
        }
    }

    fn text(&mut self, text: &str) {
        self.has_text = true;
        let end = text.floor_char_boundary(RESULT_TEXT_BYTES_MAX.saturating_sub(self.text_bytes));
        self.cut += text.len() - end;
        self.text_bytes += end;
        if end > 0 {
            self.push(Block::Text(Text { text: text[..end].to_owned() }));
        }
    }

    /// With the media type of its data, whatever the server says of it. One that no provider takes would be part of each later
    /// request, and be refused with it.
    fn image(&mut self, data: &str) {
        if self.image_bytes + data.len() / 4 * 3 > IMAGE_BYTES_MAX {
            return self.no_image("the images of one result have no room for it");
        }
        let data = BASE64_STANDARD.decode(data).unwrap_or_default();
        let Some(media_type) = media_type::of_image(&data) else {
            return self.no_image("it is no PNG, JPEG, GIF, WebP, HEIC or HEIF");
        };
        self.image_bytes += data.len();
        let (media_type, source) = (media_type.to_owned(), Some(Source::Data(data.into())));
        self.push(Block::Image(Image { media_type, source }));
    }

    fn no_image(&mut self, why: &str) {
        self.left_out += 1;
        self.push(Block::Text(Text { text: format!("[an image is left out: {why}]") }));
    }

    fn push(&mut self, block: Block) {
        self.content.push(ContentBlock { block: Some(block) });
    }

    /// With a note of what is missing.
    fn finish(mut self) -> Vec<ContentBlock> {
        if self.cut > 0 || self.left_out > 0 {
            let note = format!("[cut: {} bytes of text and {} other parts left out]", self.cut, self.left_out);
            self.push(Block::Text(Text { text: note }));
        }
        self.content
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0";

    fn png() -> ContentBlock {
        let image = Image { media_type: "image/png".into(), source: Some(Source::Data(PNG.into())) };
        ContentBlock { block: Some(Block::Image(image)) }
    }

    fn read(result: Value) -> Result<Vec<ContentBlock>, Error> {
        content(serde_json::from_value(result).unwrap())
    }

    fn texts(content: &[ContentBlock]) -> Vec<&str> {
        let text = |block: &'_ ContentBlock| matches!(block.block, Some(Block::Text(_)));
        content
            .iter()
            .filter(|block| text(block))
            .map(|block| match &block.block {
                Some(Block::Text(text)) => text.text.as_str(),
                _ => "",
            })
            .collect()
    }

    #[test]
    fn texts_and_images_come_in_their_order_and_the_rest_is_told_to_be_missing() {
        let image = json!({"type": "image", "mimeType": "image/png", "data": BASE64_STANDARD.encode(PNG)});
        let audio = json!({"type": "audio", "mimeType": "audio/wav", "data": "AAEC"});
        let content = read(json!({"content": [{"type": "text", "text": "one"}, image, audio]})).unwrap();
        assert_eq!(texts(&content), ["one", "[cut: 0 bytes of text and 1 other parts left out]"]);
        assert_eq!(content[1], png());
    }

    #[test]
    fn an_image_is_what_its_bytes_say_and_one_that_no_provider_takes_is_told_to_be_left_out() {
        let image = |media_type: &str, data: &str| json!({"type": "image", "mimeType": media_type, "data": data});
        let of = |image: Value| read(json!({ "content": [image] })).unwrap();
        for media_type in ["image/jpg", "application/octet-stream", ""] {
            assert_eq!(of(image(media_type, &BASE64_STANDARD.encode(PNG))), [png()], "{media_type}");
        }
        let heic = of(image("image/heic", &BASE64_STANDARD.encode(b"\0\0\0\x10ftypheic\0\0\0\0")));
        assert!(
            matches!(&heic[..], [ContentBlock { block: Some(Block::Image(image)) }] if image.media_type == "image/heic")
        );
        let told = "[an image is left out: it is no PNG, JPEG, GIF, WebP, HEIC or HEIF]";
        for data in ["", "AAEC", "no base64 at all", &BASE64_STANDARD.encode("<svg/>")] {
            let expected = [told, "[cut: 0 bytes of text and 1 other parts left out]"];
            let content = of(image("image/png", data));
            assert_eq!((texts(&content), content.len()), (expected.into(), 2), "{data}");
        }
        let large = BASE64_STANDARD.encode([PNG, &vec![0; IMAGE_BYTES_MAX]].concat());
        assert!(texts(&of(image("image/png", &large)))[0].contains("no room for it"));
        // What is structured still stands in for text that there is none of.
        let content = [image("image/png", "")];
        let content = read(json!({"content": content, "structuredContent": {"seats": 3}})).unwrap();
        assert_eq!(texts(&content)[..2], [told, r#"{"seats":3}"#]);
    }

    #[test]
    fn all_texts_together_are_within_the_bound() {
        let half = "ä".repeat(RESULT_TEXT_BYTES_MAX / 3);
        let block = json!({"type": "text", "text": half});
        let content = read(json!({"content": [block, block, block]})).unwrap();
        let bytes: usize = texts(&content).iter().map(|text| text.len()).sum();
        assert!(bytes <= RESULT_TEXT_BYTES_MAX + 64, "{bytes}");
        assert!(texts(&content).last().unwrap().starts_with("[cut: "));
        let many: Vec<_> = (0..100).map(|_| json!({"type": "text", "text": "x"})).collect();
        assert_eq!(read(json!({ "content": many })).unwrap().len(), BLOCKS_MAX + 1);
    }

    #[test]
    fn an_error_is_told_and_structure_stands_in_for_text() {
        let failed = read(json!({"content": [{"type": "text", "text": "no seats"}], "isError": true}));
        assert_eq!(failed, Err(Error("no seats".into())));
        let silent = read(json!({"content": [{"type": "text", "text": " \n"}], "isError": true}));
        assert_eq!(silent, Err(Error("The tool failed and did not say why.".into())));
        let structured = read(json!({"content": [], "structuredContent": {"seats": 3}})).unwrap();
        assert_eq!(texts(&structured), [r#"{"seats":3}"#]);
    }
}
