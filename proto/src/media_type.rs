//! What an image is, by the bytes that it begins with. What is said of it may be wrong, and a model's provider refuses a conversation
//! with an image that is not what it says: now and with each later message.
//!
//! Patterns: <https://mimesniff.spec.whatwg.org/#matching-an-image-type-pattern>.

/// The media type of an image of a format that some provider takes: PNG, JPEG or WebP, which all take; GIF, which Gemini does not; HEIC
/// or HEIF, which Gemini alone does. `None` for all else.
/// <https://platform.claude.com/docs/en/build-with-claude/vision>, <https://platform.openai.com/docs/guides/images-vision>,
/// <https://ai.google.dev/gemini-api/docs/image-understanding>
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
    if is_webp { Some("image/webp") } else { of_iso_file(data) }
}

/// By the brands of an ISO base media file: its size, `ftyp`, the major brand, a version, and the brands that it goes by as well.
/// <https://nokiatech.github.io/heif/technical.html>
fn of_iso_file(data: &[u8]) -> Option<&'static str> {
    if data.get(4..8) != Some(b"ftyp") {
        return None;
    }
    let media_type = match data.get(8..12)? {
        b"heic" | b"heix" | b"hevc" => "image/heic",
        b"mif1" | b"msf1" => "image/heif",
        _ => return None,
    };
    let end = usize::try_from(u32::from_be_bytes(*data.first_chunk()?)).ok()?;
    let others = data.get(16..end.min(data.len())).unwrap_or_default();
    // An AVIF, whose major brand may be the one of all such files.
    let is_avif = others.chunks_exact(4).any(|brand| matches!(brand, b"avif" | b"avis"));
    (!is_avif).then_some(media_type)
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
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\x01\xc0meta", Some("image/heic")),
            (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix", Some("image/heic")),
            (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", Some("image/heic")),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", Some("image/heif")),
            (b"\0\0\0\x18ftypmsf1\0\0\0\0", Some("image/heif")),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", None),
            (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", None),
            (b"\0\0\0\x18ftypisom\0\0\0\0mp41", None),
            (b"\0\0\0\x18ftyphe", None),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
            (b"\x89PNG", None),
            (b"BM\x46\0", None),
            (b"", None),
        ] {
            assert_eq!(of_image(data), expected, "{}", data.escape_ascii());
        }
    }
}
