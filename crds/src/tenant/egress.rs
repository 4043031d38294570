//! Where a tenant's workers may connect to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::is_default;

/// Ways out of the namespace beyond cluster DNS and the public internet.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressSpec {
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "cidrs_schema")]
    #[x_kube(
        validation = Rule::new("self.all(range, isCIDR(range))")
            .message("each range must be a CIDR, for example 192.0.2.0/24 or 2001:db8::/32"),
        validation = Rule::new("self.all(range, !isCIDR(range) || cidr(range).masked() == cidr(range))")
            .message("a range has bits set after its prefix: write 192.0.2.0/24, not 192.0.2.7/24"),
        validation = Rule::new("self.all(range, !isCIDR(range) || (!cidr('169.254.0.0/16').containsCIDR(range) && !cidr(range).containsCIDR('169.254.0.0/16')))")
            .message("a range reaches 169.254.0.0/16, where clouds keep the credentials of the node"),
        validation = Rule::new("self.all(range, !isCIDR(range) || (!cidr('fe80::/10').containsCIDR(range) && !cidr(range).containsCIDR('fe80::/10')))")
            .message("a range reaches fe80::/10, the addresses of the node's own link"),
        validation = Rule::new("self.all(range, !isCIDR(range) || !cidr(range).containsIP('fd00:ec2::254'))")
            .message("a range reaches fd00:ec2::254, where a cloud keeps the credentials of the node"),
    )]
    pub cidrs: Vec<String>,
}

fn cidrs_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Ranges that the workers may connect to although they are private, for example a database's.",
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "set",
        "items": { "type": "string", "maxLength": 43 }
    })
}

/// A listed range that must not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableRange {
    /// As it was written.
    pub range: String,
    /// What is wrong with it, as the end of a sentence.
    pub problem: &'static str,
}

/// Reads one range, by the same rules as the schema's.
///
/// The API server has checked them already, but a fence must not rest on that: rules were fewer in an older schema.
pub fn parse_range(text: &str) -> Result<(IpAddr, u8), UnusableRange> {
    let unusable = |problem| UnusableRange { range: text.to_owned(), problem };
    let (address, prefix) = text.split_once('/').ok_or_else(|| unusable("is no CIDR"))?;
    let address: IpAddr = address.parse().map_err(|_| unusable("is no CIDR"))?;
    let prefix: u8 = prefix.parse().map_err(|_| unusable("is no CIDR"))?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    if prefix > width {
        return Err(unusable("is no CIDR"));
    }
    if bits(address).checked_shl(prefix.into()).unwrap_or(0) != 0 {
        return Err(unusable("has bits set after its prefix"));
    }
    let closed = [
        (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
        (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
        (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)), 128),
    ];
    for (other, other_prefix) in closed {
        let same_family = address.is_ipv4() == other.is_ipv4();
        let differing = bits(address) ^ bits(other);
        // One holds the other when they agree in the bits of the shorter prefix.
        if same_family && differing.checked_shr(128 - u32::from(prefix.min(other_prefix))).unwrap_or(0) == 0 {
            return Err(unusable("reaches addresses that lead to the node's own credentials"));
        }
    }
    Ok((address, prefix))
}

/// The address in the highest bits of a number, whichever its family.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_written() {
        assert_eq!(parse_range("10.20.0.0/16"), Ok((IpAddr::from([10, 20, 0, 0]), 16)));
        assert!(parse_range("192.0.2.7/32").is_ok());
        assert!(parse_range("2001:db8::/32").is_ok());
        assert!(parse_range("2001:db8::1/128").is_ok());
        assert!(parse_range("169.253.0.0/16").is_ok());
    }

    #[test]
    fn what_would_open_too_much_is_refused() {
        for (text, problem) in [
            ("10.0.0.0", "is no CIDR"),
            ("10.0.0.0/33", "is no CIDR"),
            ("example.com/8", "is no CIDR"),
            ("10.0.0.1/8", "has bits set after its prefix"),
            ("2001:db8::1/32", "has bits set after its prefix"),
            ("0.0.0.0/0", "reaches addresses that lead to the node's own credentials"),
            ("169.254.169.254/32", "reaches addresses that lead to the node's own credentials"),
            ("169.254.0.0/16", "reaches addresses that lead to the node's own credentials"),
            ("::/0", "reaches addresses that lead to the node's own credentials"),
            ("fe80::/64", "reaches addresses that lead to the node's own credentials"),
            ("fd00::/8", "reaches addresses that lead to the node's own credentials"),
        ] {
            assert_eq!(parse_range(text).map_err(|error| error.problem), Err(problem), "{text}");
        }
    }
}
