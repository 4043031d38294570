//! Addresses of machines, IPv4 and IPv6.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

/// Bytes of the longest there are, an IPv6 address that ends in an IPv4 one.
const BYTES_MAX: usize = 45;
/// With a port, and the character behind.
pub(super) const REACH: usize = BYTES_MAX + 7;

pub(super) fn find(text: &str, from: usize) -> Option<Range<usize>> {
    let begins = |byte: u8| byte.is_ascii_hexdigit() || byte == b':';
    super::starts(text, from, begins).find_map(|start| {
        let before = text.as_bytes()[..start].last();
        if matches!(before, Some(b'.' | b':')) {
            return None;
        }
        Some(start..end(text, start)?)
    })
}

fn end(text: &str, start: usize) -> Option<usize> {
    let rest = &text.as_bytes()[start..];
    let belongs = |byte: &&u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    let run = rest.iter().take(REACH - 4).take_while(belongs).count();
    if text[start + run..].chars().next().is_some_and(char::is_alphanumeric) {
        return None;
    }
    // A full stop or a colon behind it is the sentence's.
    let word = text[start..start + run].trim_end_matches('.');
    let word = if word.ends_with("::") { word } else { word.trim_end_matches(':') };
    let is_address = |word: &str| {
        // `a::b` is one too, and mostly a path in a program.
        let is_v6 = word.bytes().any(|byte| byte.is_ascii_digit()) && word.parse::<Ipv6Addr>().is_ok();
        is_v6 || word.parse::<Ipv4Addr>().is_ok()
    };
    if is_address(word) {
        return Some(start + word.len());
    }
    let (address, port) = word.rsplit_once(':')?;
    (port.parse::<u16>().is_ok() && address.parse::<Ipv4Addr>().is_ok()).then_some(start + address.len())
}
