//! What an image is, by the bytes that it begins with. What is said of it may be wrong, and a model's provider refuses a conversation
//! with an image that is not what it says: now and with each later message.
//!
//! Patterns: <https://mimesniff.spec.whatwg.org/#matching-an-image-type-pattern>.

/// The media type of an image of a format that all providers take: PNG, JPEG, GIF or WebP. `None` for all else.
/// <https://platform.claude.com/docs/en/build-with-claude/vision>, <https://platform.openai.com/docs/guides/images-vision>
pub fn of_image(data: &[u8]) -> Option<&'static str> {
    if data.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Some("image/png");
    }
    if data.starts_with(b"\xff\xd8\xff") {
        return Some("image/jpeg");
    }
    if data.starts_with(b"GIF87a") || data.starts_with(b"GIF89a") {
        return Some("image/gif");
    }
    // With the size of the file in between.
    let is_webp = data.starts_with(b"RIFF") && data.get(8..14) == Some(b"WEBPVP");
    is_webp.then_some("image/webp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_what_it_begins_with() {
        for (data, expected) in [
            (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], Some("image/png")),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", Some("image/jpeg")),
            (b"GIF89a\x01\0\x01\0", Some("image/gif")),
            (b"GIF87a\x01\0\x01\0", Some("image/gif")),
            (b"RIFF\x24\0\0\0WEBPVP8 ", Some("image/webp")),
            (b"RIFF\x24\0\0\0WAVEfmt ", None),
            (b"RIFF\x24\0\0\0WEB", None),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
            (b"\x89PNG", None),
            (b"BM\x46\0", None),
            (b"", None),
        ] {
            assert_eq!(of_image(data), expected, "{}", data.escape_ascii());
        }
    }
}
