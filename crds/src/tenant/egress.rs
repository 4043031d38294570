//! Where a tenant's workers may connect to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::is_default;

/// Ways out of the namespace beyond cluster DNS and models in the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressSpec {
    /// Whether the workers may connect to the public internet, at any address and port of it. With `Deny` no provider, MCP server or guardrail
    /// there is reached whose address is not in a range of `allow`.
    #[serde(default)]
    pub internet: InternetAccess,
    /// Ranges that the workers may connect to although they are private, for example a database's, or although `internet` is `Deny`.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 32))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["cidr".into()]),
        validation = Rule::new("self.all(a, !isCIDR(a.cidr) || self.filter(b, isCIDR(b.cidr) && cidr(a.cidr).containsCIDR(b.cidr)).size() == 1)")
            .message("two ranges overlap: list each address once, with all of its ports"),
    )]
    pub allow: Vec<AllowedRange>,
}

/// What becomes of connections to the public internet.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InternetAccess {
    #[default]
    Allow,
    Deny,
}

/// One range, and the ports in it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AllowedRange {
    /// For example `10.20.0.0/16`, or `192.0.2.7/32` for one address.
    #[schemars(length(min = 1, max = 43))]
    #[x_kube(
        validation = Rule::new("isCIDR(self)")
            .message("a range must be a CIDR, for example 192.0.2.0/24 or 2001:db8::/32"),
        validation = Rule::new("!isCIDR(self) || cidr(self).masked() == cidr(self)")
            .message("a range has bits set after its prefix: write 192.0.2.0/24, not 192.0.2.7/24"),
        validation = Rule::new("!isCIDR(self) || (!cidr('169.254.0.0/16').containsCIDR(self) && !cidr(self).containsCIDR('169.254.0.0/16'))")
            .message("a range reaches 169.254.0.0/16, where clouds keep the credentials of the node"),
        validation = Rule::new("!isCIDR(self) || (!cidr('fe80::/10').containsCIDR(self) && !cidr(self).containsCIDR('fe80::/10'))")
            .message("a range reaches fe80::/10, the addresses of the node's own link"),
        validation = Rule::new("!isCIDR(self) || !cidr(self).containsIP('fd00:ec2::254')")
            .message("a range reaches fd00:ec2::254, where a cloud keeps the credentials of the node"),
        validation = Rule::new("!isCIDR(self) || !['168.63.129.16/32', '100.100.100.200/32', '192.0.0.192/32', 'fd20:ce::254/128', 'fd00:c1::a9fe:a9fe/128'].exists(address, cidr(address) == cidr(self))")
            .message("a range is an address of a cloud's own, which no worker may reach; a wider range is open but for it"),
    )]
    pub cidr: String,
    /// The ports that are open there; every port if there are none here.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 32))]
    pub ports: Vec<AllowedPort>,
}

/// A port, or all ports from one to another.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.endPort) || self.endPort >= self.port")
        .message("endPort is less than port")
)]
pub struct AllowedPort {
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// The last one, if more than one is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub end_port: Option<u16>,
    #[serde(default)]
    pub protocol: Protocol,
}

/// What is spoken there.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Addresses of clouds' own, each as a range, that a fence leaves out of whatever wider range is listed: Azure's
/// [host](https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16), and where nodes ask for their metadata at Alibaba,
/// Oracle (of old), [Google](https://cloud.google.com/compute/docs/metadata/querying-metadata) and
/// [Oracle](https://docs.oracle.com/iaas/Content/Compute/Tasks/gettingmetadata.htm). Those of others lie in ranges that [`parse_range`] refuses.
pub const CLOUDS_ADDRESSES: [&str; 5] =
    ["168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128"];

/// Those of [`CLOUDS_ADDRESSES`] that lie in a range. Of a text that is no range there are none.
pub fn clouds_addresses_in(range: &str) -> Vec<&'static str> {
    let Ok(range) = parse_range(range) else { return Vec::new() };
    let within = |address: &&str| parse_range(address).is_ok_and(|address| share_addresses(range, address));
    CLOUDS_ADDRESSES.into_iter().filter(within).collect()
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
        if share_addresses((address, prefix), (other, other_prefix)) {
            return Err(unusable("reaches addresses that lead to the node's own credentials"));
        }
    }
    Ok((address, prefix))
}

/// Two of `ranges` that share addresses, if there are such. What is no range is passed over: [`parse_range`] refuses it.
pub fn overlapping(ranges: &[AllowedRange]) -> Option<(&str, &str)> {
    let parsed: Vec<_> =
        ranges.iter().filter_map(|range| Some((range.cidr.as_str(), parse_range(&range.cidr).ok()?))).collect();
    parsed.iter().enumerate().find_map(|(index, (one, first))| {
        let other = parsed[index + 1..].iter().find(|(_, second)| share_addresses(*first, *second));
        other.map(|(other, _)| (*one, *other))
    })
}

/// Of two ranges one holds the other when they agree in the bits of the shorter prefix.
fn share_addresses((one, one_prefix): (IpAddr, u8), (other, other_prefix): (IpAddr, u8)) -> bool {
    let differing = bits(one) ^ bits(other);
    let shift = 128 - u32::from(one_prefix.min(other_prefix));
    one.is_ipv4() == other.is_ipv4() && differing.checked_shr(shift).unwrap_or(0) == 0
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
    fn ranges_that_share_addresses_are_found() {
        let ranges = |texts: &[&str]| -> Vec<AllowedRange> {
            texts.iter().map(|&cidr| AllowedRange { cidr: cidr.to_owned(), ports: Vec::new() }).collect()
        };
        assert_eq!(overlapping(&ranges(&["10.0.0.0/16", "10.1.0.0/16", "2001:db8::/32", "nonsense"])), None);
        let nested = ranges(&["192.0.2.0/24", "10.1.2.0/24", "10.0.0.0/8"]);
        assert_eq!(overlapping(&nested), Some(("10.1.2.0/24", "10.0.0.0/8")));
        assert_eq!(overlapping(&ranges(&["::1/128", "::1/128"])), Some(("::1/128", "::1/128")));
        assert_eq!(overlapping(&ranges(&["::/1", "0.0.0.0/1"])), None);
    }

    #[test]
    fn addresses_of_clouds_are_found_in_whatever_holds_them() {
        for (range, found) in [
            ("0.0.0.0/1", ["100.100.100.200/32"].as_slice()),
            ("100.64.0.0/10", &["100.100.100.200/32"]),
            ("192.0.0.0/24", &["192.0.0.192/32"]),
            ("168.63.129.16/32", &["168.63.129.16/32"]),
            ("fd20::/16", &["fd20:ce::254/128"]),
            ("fd00:c1::/32", &["fd00:c1::a9fe:a9fe/128"]),
            ("10.0.0.0/8", &[]),
            ("nonsense", &[]),
        ] {
            assert_eq!(clouds_addresses_in(range), found, "{range}");
        }
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
