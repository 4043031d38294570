//! What keeps a server's credential out of all that is told of the server, which may repeat what it was sent.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use croft_serve::log::chain;
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

/// Stands where the credential was.
const BLOT: &str = "***";
/// What is shorter may be a word of ordinary text, which must not be spoilt; it is left as it is.
const TOKEN_BYTES_MIN: usize = 8;

/// See the module. Without a credential it changes nothing.
#[derive(Clone, Default)]
pub(super) struct Blot {
    /// The credential as it is and as it stands within JSON, the longest first, since one may hold another.
    spellings: Vec<SecretString>,
}

impl Blot {
    pub(super) fn new(token: Option<&SecretString>) -> Self {
        let token = token.map(SecretString::expose_secret).filter(|token| token.len() >= TOKEN_BYTES_MIN);
        let Some(token) = token else { return Self::default() };
        let quoted = Value::from(token).to_string();
        let escaped = &quoted[1..quoted.len() - 1];
        // Some writers of JSON escape slashes too, which tokens in base64 have.
        let mut spellings = vec![escaped.replace('/', "\\/"), escaped.to_owned(), token.to_owned()];
        spellings.dedup();
        Self { spellings: spellings.into_iter().map(SecretString::from).collect() }
    }

    /// The text without the credential.
    pub(super) fn text(&self, text: &mut String) {
        for spelling in self.spellings() {
            if text.contains(spelling) {
                *text = text.replace(spelling, BLOT);
            }
        }
    }

    /// A result, whose parts that the model may read are without the credential.
    pub(super) fn result(&self, result: &mut CallToolResult) {
        if self.spellings.is_empty() {
            return;
        }
        for block in &mut result.content {
            match block {
                ContentBlock::Text(text) => self.text(&mut text.text),
                ContentBlock::Image(image) => {
                    self.text(&mut image.mime_type);
                    self.text(&mut image.data);
                    let picture = BASE64_STANDARD.decode(&image.data).unwrap_or_default();
                    if self.is_in(&String::from_utf8_lossy(&picture)) {
                        // No base64, so that the image is left out.
                        BLOT.clone_into(&mut image.data);
                    }
                }
                ContentBlock::Resource(embedded) => {
                    if let ResourceContents::TextResourceContents { text, .. } = &mut embedded.resource {
                        self.text(text);
                    }
                }
                ContentBlock::ResourceLink(link) => self.text(&mut link.uri),
                // Nobody is told what is in the others.
                _ => {}
            }
        }
        if let Some(structured) = &mut result.structured_content {
            // As it will be told, since the credential may be a name of a field, or a number.
            let mut text = structured.to_string();
            if self.is_in(&text) {
                self.text(&mut text);
                *structured = serde_json::from_str(&text).unwrap_or(Value::String(text));
            }
        }
    }

    /// An error with its causes, for a log line. The library cuts what it quotes, in the midst of the credential too.
    pub(super) fn error(&self, error: &dyn std::error::Error) -> String {
        let mut line = chain(error);
        self.text(&mut line);
        for spelling in self.spellings() {
            // A token is ASCII, so that every place in it is between two characters.
            let mut end = spelling.len();
            while end > TOKEN_BYTES_MIN && line.contains(&spelling[..TOKEN_BYTES_MIN]) {
                end -= 1;
                line = line.replace(&spelling[..end], BLOT);
            }
        }
        line
    }

    fn is_in(&self, text: &str) -> bool {
        self.spellings().any(|spelling| text.contains(spelling))
    }

    fn spellings(&self) -> impl Iterator<Item = &str> {
        self.spellings.iter().map(SecretString::expose_secret)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blot(token: &str) -> Blot {
        Blot::new(Some(&SecretString::from(token)))
    }

    fn text(token: &str, text: &str) -> String {
        let mut text = text.to_owned();
        blot(token).text(&mut text);
        text
    }

    fn result(token: &str, result: Value) -> Value {
        let mut result = serde_json::from_value(result).unwrap();
        blot(token).result(&mut result);
        serde_json::to_value(result).unwrap()
    }

    #[test]
    fn a_token_is_blotted_as_it_is_and_as_json_has_it() {
        assert_eq!(text("a-made-up-token", "Bearer a-made-up-token, a-made-up-token."), "Bearer ***, ***.");
        assert_eq!(
            text("aaaa/bbbb", r#"{"seen": "aaaa\/bbbb", "sent": "aaaa/bbbb"}"#),
            r#"{"seen": "***", "sent": "***"}"#
        );
        assert_eq!(text(r#""quoted\\"#, r#"{"seen": "\"quoted\\\\"}"#), r#"{"seen": "***"}"#);
    }

    #[test]
    fn a_token_that_may_be_a_word_spoils_no_text() {
        assert_eq!(text("village", "The village has a well."), "The village has a well.");
        let mut untouched = "Bearer ".to_owned();
        Blot::new(None).text(&mut untouched);
        assert_eq!(untouched, "Bearer ");
    }

    #[test]
    fn every_part_of_a_result_that_is_told_is_without_the_token() {
        let picture = BASE64_STANDARD.encode("<svg>a-made-up-token</svg>");
        let told = result(
            "a-made-up-token",
            json!({
                "content": [
                    {"type": "text", "text": "a-made-up-token"},
                    {"type": "image", "mimeType": "image/a-made-up-token", "data": "AAEC"},
                    {"type": "image", "mimeType": "image/svg+xml", "data": picture},
                    {"type": "resource", "resource": {"uri": "x:y", "text": "a-made-up-token"}},
                    {"type": "resource_link", "name": "x", "uri": "x:a-made-up-token"},
                ],
                "structuredContent": {"a-made-up-token": ["a-made-up-token", 7]},
            }),
        );
        assert!(!told.to_string().contains("made-up"), "{told}");
        assert_eq!(told["content"][1]["data"], "AAEC");
        assert_eq!(told["content"][2]["data"], "***", "which is no picture");
        assert_eq!(told["structuredContent"], json!({"***": ["***", 7]}));
        let number = result("1234567890", json!({"content": [], "structuredContent": {"token": 1_234_567_890}}));
        assert_eq!(number["structuredContent"], r#"{"token":***}"#);
    }

    #[test]
    fn a_token_that_was_cut_in_an_error_is_blotted_too() {
        let error = std::io::Error::other("HTTP 401: Bearer a-made-up-token; Bearer a-made-up-to, in a request");
        assert_eq!(blot("a-made-up-token").error(&error), "HTTP 401: Bearer ***; Bearer ***, in a request");
    }
}
