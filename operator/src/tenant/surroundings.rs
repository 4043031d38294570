//! What every tenant's fence must know of the cluster and the network around it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use croft_crds::tenant::parse_range;
use croft_serve::settings::Release;
use serde::{Deserialize, Serialize};

use crate::settings_file;

/// Ranges and peers that a file may name; more are a mistake, as each is in every tenant's network policy.
const ENTRIES_MAX: usize = 64;

/// Read once, at the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Surroundings {
    /// Public ranges that are the platform's own, such as those of nodes: closed unless a tenant's `egress.allow` lists them.
    pub(crate) closed: Vec<String>,
    /// Where workers ask for names; the cluster's own pods where none is named.
    pub(crate) dns: Vec<Peer>,
    /// Where workers may send traces, if they are told to; none need be named where that is the public internet.
    pub(crate) collectors: Vec<Peer>,
}

/// Pods of a namespace, or an address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Peer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) pod_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cidr: Option<String>,
    /// The port that the pods listen on, which need not be their Service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
}

impl Surroundings {
    /// Reads the text of a file of our own release. Fails with every mistake in it, each as a sentence.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        Self::parse_of(text, &Release::Own)
    }

    /// As [`Self::parse`], of this release.
    pub(crate) fn parse_of(text: &str, release: &Release) -> Result<Self, Vec<String>> {
        let read: Self = settings_file::parse(text, release)?;
        let mut mistakes = Vec::new();
        if [read.closed.len(), read.dns.len(), read.collectors.len()].iter().any(|entries| *entries > ENTRIES_MAX) {
            mistakes.push(format!("closed, dns and collectors have at most {ENTRIES_MAX} entries each."));
        }
        for cidr in &read.closed {
            match parse_range(cidr) {
                // To Kubernetes it must lie within what it is left out of.
                Ok((IpAddr::V6(address), prefix)) if prefix < 4 || address.segments()[0] >> 13 != 1 => {
                    mistakes.push(format!("closed: {cidr} is not within 2000::/3, and all else is closed anyway."));
                }
                Ok((IpAddr::V4(_), 0)) => mistakes.push(format!("closed: {cidr} is everything.")),
                Ok(_) => {}
                Err(unusable) => mistakes.push(format!("closed: {cidr} {}.", unusable.problem)),
            }
        }
        for (list, peers) in [("dns", &read.dns), ("collectors", &read.collectors)] {
            mistakes.extend(peers.iter().enumerate().filter_map(|(index, peer)| {
                let problem = peer.problem()?;
                Some(format!("{list}[{index}]: {problem}."))
            }));
        }
        if mistakes.is_empty() { Ok(read) } else { Err(mistakes) }
    }
}

impl Peer {
    fn problem(&self) -> Option<String> {
        let Self { namespace, pod_labels, cidr, port } = self;
        if *port == Some(0) {
            return Some("port is 0".to_owned());
        }
        match (namespace, pod_labels.is_empty(), cidr) {
            (Some(_), false, None) => None,
            // A resolver on each node has a link-local address, which no tenant may list; so may an agent that collects.
            (None, true, Some(cidr)) => {
                let (address, prefix) = cidr.split_once('/').unwrap_or((cidr, ""));
                let whole = match address.parse().ok() {
                    Some(IpAddr::V4(_)) => "32",
                    Some(IpAddr::V6(_)) => "128",
                    None => "no address",
                };
                (prefix != whole).then(|| format!("{cidr} is not one address, such as 169.254.20.10/32"))
            }
            _ => Some("it has either namespace and podLabels, or cidr".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_is_closed_and_where_names_are_asked_for() {
        let read = Surroundings::parse(
            "closed: [203.0.113.0/24, '2a01:4f8::/32']\n\
             dns: [{ cidr: 169.254.20.10/32 }, { namespace: openshift-dns, podLabels: { a: b }, port: 5353 }]\n\
             collectors: [{ namespace: tracing, podLabels: { app: collector } }]",
        )
        .unwrap();
        assert_eq!(read.closed.len(), 2);
        assert_eq!((read.dns[0].cidr.as_deref(), read.dns[1].port), (Some("169.254.20.10/32"), Some(5353)));
        assert_eq!(read.collectors[0].namespace.as_deref(), Some("tracing"));
        assert_eq!(Surroundings::parse("{}"), Ok(Surroundings::default()));
    }

    #[test]
    fn every_mistake_in_a_file_is_told_in_a_sentence() {
        for (text, told) in [
            ("closed: [0.0.0.0/0]", "closed: 0.0.0.0/0 "),
            ("closed: [203.0.113.7/24]", "closed: 203.0.113.7/24 has bits set after its prefix."),
            ("closed: ['fd00::/8']", "closed: fd00::/8 "),
            ("dns: [{}]", "dns[0]: it has either namespace and podLabels, or cidr."),
            ("dns: [{ namespace: kube-system }]", "dns[0]: it has either"),
            ("dns: [{ cidr: 0.0.0.0/0 }]", "dns[0]: 0.0.0.0/0 is not one address"),
            ("dns: [{ cidr: 10.0.0.1 }]", "dns[0]: 10.0.0.1 is not one address"),
            ("dns: [{ cidr: 10.0.0.1/32, port: 0 }]", "dns[0]: port is 0."),
            ("collectors: [{ cidr: 10.0.0.0/8 }]", "collectors[0]: 10.0.0.0/8 is not one address"),
            ("open: []", "it can't be read"),
        ] {
            let mistakes = Surroundings::parse(text).unwrap_err();
            assert!(mistakes[0].starts_with(told), "{text}: {mistakes:?}");
        }
    }
}
