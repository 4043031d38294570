//! The fence around a tenant: deny everything, then let the front in, and DNS, the public internet unless it is denied, the listed
//! ranges, the models of the cluster and the platform's collectors out. In an emergency nothing is let through.

use std::collections::BTreeMap;

use croft_crds::labels;
use croft_crds::tenant::{AllowedPort, AllowedRange, ModelServiceSpec, clouds_addresses_in, parse_range};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use super::surroundings::{Peer, Surroundings};
use super::wanted::Wanted;
use super::workers::GRPC_PORT;

/// What "the public internet" leaves out: every range that could be a neighbour, the node, or the cloud's own hand.
const NOT_PUBLIC_IPV4: [&str; 11] = [
    "0.0.0.0/8",        // this host
    "10.0.0.0/8",       // private
    "100.64.0.0/10",    // shared, and pod ranges of some clouds; Alibaba's metadata is in it
    "127.0.0.0/8",      // loopback
    "168.63.129.16/32", // Azure's own services
    "169.254.0.0/16",   // link-local, where clouds keep the node's credentials
    "172.16.0.0/12",    // private
    "192.0.0.0/24",     // protocol assignments; Oracle's metadata is in it
    "192.168.0.0/16",   // private
    "224.0.0.0/4",      // multicast
    "240.0.0.0/4",      // reserved, and broadcast
];
const DNS_PORT: i32 = 53;
/// Of OTLP over gRPC: <https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-default-port>
const OTLP_PORT: i32 = 4317;
/// Global unicast is all of `2000::/3`; these two wrap IPv4 addresses, private ones too.
const NOT_PUBLIC_IPV6: [&str; 2] = ["2001::/32", "2002::/16"];

/// What the network policy is called.
pub(crate) const NAME: &str = "fence";

/// See it with `kubectl -n tenant-acme get networkpolicy fence -o yaml`.
pub(crate) fn fence(wanted: &Wanted) -> NetworkPolicy {
    if wanted.is_stopped {
        return shut(wanted.child_meta(NAME));
    }
    let mut egress = to_dns(&wanted.surroundings);
    if wanted.has_internet {
        egress.push(to_public_internet(&wanted.surroundings));
    }
    egress.extend(to_listed(wanted));
    egress.extend(to_models(wanted));
    if wanted.workers.otlp_endpoint.is_some() {
        egress.extend(wanted.surroundings.collectors.iter().map(to_collector));
    }
    with_rules(wanted.child_meta(NAME), vec![from_front(wanted)], egress)
}

/// As it is in an emergency.
pub(crate) fn shut(metadata: ObjectMeta) -> NetworkPolicy {
    with_rules(metadata, Vec::new(), Vec::new())
}

/// Both directions are named, so without a rule both are shut.
fn with_rules(
    metadata: ObjectMeta,
    ingress: Vec<NetworkPolicyIngressRule>,
    egress: Vec<NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    NetworkPolicy {
        metadata,
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector::default()), // every pod in the namespace
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress),
            egress: Some(egress),
        }),
    }
}

/// The kubelet's probes need no rule: traffic from a pod's own node is always let in.
fn from_front(wanted: &Wanted) -> NetworkPolicyIngressRule {
    let front = BTreeMap::from([
        (labels::NAME.to_owned(), "croft".to_owned()),
        (labels::COMPONENT.to_owned(), labels::COMPONENT_FRONT.to_owned()),
    ]);
    NetworkPolicyIngressRule {
        from: Some(vec![pods_in(&wanted.front_namespace, front)]),
        ports: Some(vec![port("TCP", GRPC_PORT)]),
    }
}

/// The cluster's own servers, where the platform names no others; a rule each, as each may have a port of its own.
fn to_dns(surroundings: &Surroundings) -> Vec<NetworkPolicyEgressRule> {
    if surroundings.dns.is_empty() {
        let own = BTreeMap::from([("k8s-app".to_owned(), "kube-dns".to_owned())]);
        return vec![dns_at(pods_in("kube-system", own), DNS_PORT)];
    }
    let rule = |server: &Peer| dns_at(named(server), server.port.map_or(DNS_PORT, i32::from));
    surroundings.dns.iter().map(rule).collect()
}

/// Out alone: over a collector, which is the platform's, no two tenants meet.
fn to_collector(collector: &Peer) -> NetworkPolicyEgressRule {
    let at = collector.port.map_or(OTLP_PORT, i32::from);
    NetworkPolicyEgressRule { to: Some(vec![named(collector)]), ports: Some(vec![port("TCP", at)]) }
}

fn named(peer: &Peer) -> NetworkPolicyPeer {
    match &peer.cidr {
        Some(cidr) => range(cidr, &[]),
        None => pods_in(peer.namespace.as_deref().unwrap_or_default(), peer.pod_labels.clone()),
    }
}

fn dns_at(peer: NetworkPolicyPeer, at: i32) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule { to: Some(vec![peer]), ports: Some(vec![port("UDP", at), port("TCP", at)]) }
}

fn to_public_internet(surroundings: &Surroundings) -> NetworkPolicyEgressRule {
    let closed = |is_ipv6: bool| {
        surroundings.closed.iter().map(String::as_str).filter(move |cidr| cidr.contains(':') == is_ipv6)
    };
    let ipv4: Vec<_> = NOT_PUBLIC_IPV4.into_iter().chain(closed(false)).collect();
    let ipv6: Vec<_> = NOT_PUBLIC_IPV6.into_iter().chain(closed(true)).collect();
    NetworkPolicyEgressRule { to: Some(vec![range("0.0.0.0/0", &ipv4), range("2000::/3", &ipv6)]), ports: None }
}

/// A rule a range: to Kubernetes an empty `to` means "anywhere", so no ranges must build no rule. What is a cloud's own in a range stays
/// closed. A range that is nothing else, which the kind took once, has no rule: to Kubernetes, what is left out must be less than the whole.
fn to_listed(wanted: &Wanted) -> impl Iterator<Item = NetworkPolicyEgressRule> {
    wanted.ranges.iter().filter_map(|AllowedRange { cidr, ports }| {
        let clouds = clouds_addresses_in(cidr);
        let is_clouds = clouds.iter().any(|address| parse_range(address) == parse_range(cidr));
        (!is_clouds).then(|| NetworkPolicyEgressRule {
            to: Some(vec![range(cidr, &clouds)]),
            // No ports must build no list: an empty one means every port too, but is read back as none.
            ports: (!ports.is_empty()).then(|| ports.iter().map(allowed_port).collect()),
        })
    })
}

fn allowed_port(allowed: &AllowedPort) -> NetworkPolicyPort {
    NetworkPolicyPort {
        end_port: allowed.end_port.map(i32::from),
        ..port(allowed.protocol.as_str(), allowed.port.into())
    }
}

/// To the pods that serve a model, on the port that they listen on: a Service's own port is gone when a policy looks.
fn to_models(wanted: &Wanted) -> impl Iterator<Item = NetworkPolicyEgressRule> {
    let models = wanted.providers.iter().filter_map(|provider| provider.model.as_ref());
    models.map(|model| {
        let ModelServiceSpec { namespace, pod_selector, .. } = model;
        NetworkPolicyEgressRule {
            to: Some(vec![pods_in(namespace, pod_selector.clone())]),
            ports: Some(vec![port("TCP", model.pod_port().into())]),
        }
    })
}

/// Pods with these labels in the namespace of that name, which the API server itself vouches for by a label.
fn pods_in(namespace: &str, pods: BTreeMap<String, String>) -> NetworkPolicyPeer {
    let namespaces = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector { match_labels: Some(namespaces), ..LabelSelector::default() }),
        pod_selector: Some(LabelSelector { match_labels: Some(pods), ..LabelSelector::default() }),
        ip_block: None,
    }
}

fn range(cidr: &str, except: &[&str]) -> NetworkPolicyPeer {
    let except: Vec<_> = except.iter().map(|&cidr| cidr.to_owned()).collect();
    let ip_block = IPBlock { cidr: cidr.to_owned(), except: (!except.is_empty()).then_some(except) };
    NetworkPolicyPeer { ip_block: Some(ip_block), ..NetworkPolicyPeer::default() }
}

fn port(protocol: &str, port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(port)),
        ..NetworkPolicyPort::default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use croft_crds::AgentTenant;
    use croft_crds::tenant::InternetAccess;

    use super::*;
    use crate::tenant::fixtures;
    use crate::tenant::wanted::Settings;

    fn spec_of(ranges: &[&str]) -> NetworkPolicySpec {
        let mut tenant = fixtures::minimal();
        tenant.spec.egress.allow =
            ranges.iter().map(|&cidr| AllowedRange { cidr: cidr.to_owned(), ports: Vec::new() }).collect();
        fence(&Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap()).spec.unwrap()
    }

    /// Whether an address is within a range.
    fn holds(cidr: &str, address: IpAddr) -> bool {
        let (network, prefix) = cidr.split_once('/').unwrap();
        let bits = |address| match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
            IpAddr::V6(address) => (address.to_bits(), false),
        };
        let ((network, network_v4), (address, address_v4)) = (bits(network.parse().unwrap()), bits(address));
        let shift = 128 - prefix.parse::<u32>().unwrap();
        network_v4 == address_v4 && (network ^ address).checked_shr(shift).unwrap_or(0) == 0
    }

    /// Whether the fence lets a connection out to an address outside the cluster's pods.
    fn lets_out(spec: &NetworkPolicySpec, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        spec.egress.iter().flatten().any(|rule| {
            assert!(rule.to.as_ref().is_some_and(|to| !to.is_empty()), "an empty `to` opens everything");
            rule.to.iter().flatten().filter_map(|peer| peer.ip_block.as_ref()).any(|block| {
                holds(&block.cidr, address) && !block.except.iter().flatten().any(|cidr| holds(cidr, address))
            })
        })
    }

    #[test]
    fn every_pod_is_fenced_in_both_directions() {
        let spec = spec_of(&[]);
        assert_eq!(spec.pod_selector, Some(LabelSelector::default()));
        assert_eq!(spec.policy_types, Some(vec!["Ingress".to_owned(), "Egress".to_owned()]));
    }

    #[test]
    fn only_fronts_come_in_and_only_to_the_worker_port() {
        let ingress = spec_of(&["10.20.0.0/16"]).ingress.unwrap();
        assert_eq!(ingress.len(), 1);
        assert_eq!(ingress[0].ports, Some(vec![port("TCP", 50052)]));
        let from = ingress[0].from.as_ref().unwrap();
        assert_eq!(from.len(), 1);
        assert_eq!(from[0].ip_block, None);
        let labels = |selector: &Option<LabelSelector>| selector.clone().unwrap().match_labels.unwrap();
        assert_eq!(labels(&from[0].namespace_selector)["kubernetes.io/metadata.name"], "croft-test-system");
        assert_eq!(labels(&from[0].pod_selector)["app.kubernetes.io/component"], "front");
    }

    #[test]
    fn nothing_near_is_reached_and_the_internet_is() {
        let spec = spec_of(&[]);
        for closed in [
            "10.0.0.1",
            "10.96.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "169.254.20.10",
            "127.0.0.1",
            "0.0.0.1",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "64:ff9b::a00:1",
            "::ffff:10.0.0.1",
            "2002:0a00:0001::",
            "2001:0:0a00:1::",
        ] {
            assert!(!lets_out(&spec, closed), "{closed} must be closed");
        }
        for open in ["1.1.1.1", "172.32.0.1", "172.15.0.1", "100.128.0.1", "198.18.0.1", "2606:4700::1", "2001:db8::1"]
        {
            assert!(lets_out(&spec, open), "{open} must be open");
        }
    }

    #[test]
    fn no_listed_ranges_opens_nothing_extra() {
        let around = Surroundings::default();
        let egress = [to_dns(&around), vec![to_public_internet(&around)]].concat();
        assert_eq!(egress.len(), 2);
        assert_eq!(spec_of(&[]).egress, Some(egress));
    }

    #[test]
    fn a_listed_range_opens_just_itself() {
        let spec = spec_of(&["10.20.0.0/16", "fd12:3456::/32"]);
        assert!(lets_out(&spec, "10.20.255.255") && lets_out(&spec, "fd12:3456::1"));
        assert!(!lets_out(&spec, "10.21.0.0") && !lets_out(&spec, "fd12:3457::1"));
    }

    #[test]
    fn a_tenant_that_is_denied_the_internet_reaches_names_what_is_listed_and_its_models() {
        let mut tenant = fixtures::in_cluster();
        tenant.spec.egress.internet = InternetAccess::Deny;
        let spec = |tenant: &AgentTenant| {
            fence(&Wanted::parse(tenant, &fixtures::keys_of(tenant), &fixtures::settings()).unwrap()).spec.unwrap()
        };
        let bare = spec(&tenant);
        for closed in ["1.1.1.1", "203.0.113.7", "2606:4700::1", "10.20.0.1", "169.254.169.254"] {
            assert!(!lets_out(&bare, closed), "{closed} must be closed");
        }
        let egress = bare.egress.unwrap();
        assert_eq!(
            (&egress[..1], egress.len()),
            (&to_dns(&Surroundings::default())[..], 2),
            "the other is to the model"
        );
        tenant.spec.egress.allow = vec![AllowedRange { cidr: "203.0.113.7/32".to_owned(), ports: Vec::new() }];
        let listed = spec(&tenant);
        assert!(lets_out(&listed, "203.0.113.7") && !lets_out(&listed, "203.0.113.8"));
    }

    #[test]
    fn what_is_a_clouds_own_stays_closed_in_whatever_range_is_listed() {
        let spec = spec_of(&["0.0.0.0/1", "168.0.0.0/8", "192.0.0.0/24", "fd20::/16", "fd00:c1:0::/48"]);
        for closed in ["100.100.100.200", "168.63.129.16", "192.0.0.192", "fd20:ce::254", "fd00:c1::a9fe:a9fe"] {
            assert!(!lets_out(&spec, closed), "{closed} must be closed");
        }
        for open in ["100.100.100.201", "168.63.129.17", "192.0.0.193", "fd20:ce::253", "fd00:c1::a9fe:a9fd"] {
            assert!(lets_out(&spec, open), "{open} must be open");
        }
        assert_eq!(
            spec_of(&["168.63.129.16/32", "fd20:ce:0::254/128"]),
            spec_of(&[]),
            "and by itself it opens nothing"
        );
    }

    #[test]
    fn a_listed_port_opens_just_itself() {
        let mut tenant = fixtures::minimal();
        tenant.spec.egress.allow = serde_json::from_value(serde_json::json!([
            { "cidr": "10.20.0.0/16", "ports": [{ "port": 5432 }, { "port": 9000, "endPort": 9010, "protocol": "UDP" }] },
        ]))
        .unwrap();
        let wanted = Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap();
        let rule = fence(&wanted).spec.unwrap().egress.unwrap().pop().unwrap();
        let many = NetworkPolicyPort { end_port: Some(9010), ..port("UDP", 9000) };
        assert_eq!(rule.ports, Some(vec![port("TCP", 5432), many]));
        assert_eq!(rule.to, Some(vec![range("10.20.0.0/16", &[])]));
    }

    #[test]
    fn a_model_in_the_cluster_opens_its_pods_on_their_port() {
        let tenant = fixtures::in_cluster();
        let keys = fixtures::keys_of(&tenant);
        let egress =
            fence(&Wanted::parse(&tenant, &keys, &fixtures::settings()).unwrap()).spec.unwrap().egress.unwrap();
        assert_eq!(egress.len(), 3);
        assert_eq!(egress[2].ports, Some(vec![port("TCP", 8_000)]));
        let pods = BTreeMap::from([("app".to_owned(), "llama".to_owned())]);
        assert_eq!(egress[2].to, Some(vec![pods_in("models", pods)]));
    }

    #[test]
    fn in_an_emergency_nothing_goes_in_or_out() {
        let mut tenant = fixtures::full();
        tenant.spec.emergency_stop = true;
        let wanted = Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap();
        let spec = fence(&wanted).spec.unwrap();
        assert_eq!((spec.ingress, spec.egress), (Some(Vec::new()), Some(Vec::new())));
        assert_eq!(spec.policy_types, Some(vec!["Ingress".to_owned(), "Egress".to_owned()]));
    }

    #[test]
    fn what_the_platform_closes_is_closed_until_a_tenant_lists_it() {
        let mut settings = fixtures::settings();
        settings.surroundings = Surroundings::parse("closed: [203.0.113.0/24, '2a01:4f8::/32']").unwrap().into();
        let mut tenant = fixtures::minimal();
        let spec =
            |tenant: &AgentTenant| fence(&Wanted::parse(tenant, &fixtures::keys(), &settings).unwrap()).spec.unwrap();
        let before = spec(&tenant);
        for closed in ["203.0.113.7", "2a01:4f8::7", "10.0.0.1"] {
            assert!(!lets_out(&before, closed), "{closed} must be closed");
        }
        assert!(lets_out(&before, "203.0.114.7") && lets_out(&before, "2a01:4f9::7"));
        tenant.spec.egress.allow = vec![AllowedRange { cidr: "203.0.113.7/32".to_owned(), ports: Vec::new() }];
        assert!(lets_out(&spec(&tenant), "203.0.113.7") && !lets_out(&spec(&tenant), "203.0.113.8"));
    }

    #[test]
    fn names_are_asked_for_where_the_platform_says_and_nowhere_else() {
        let named = "dns: [{ cidr: 169.254.20.10/32 }, \
                     { namespace: openshift-dns, podLabels: { dns: default }, port: 5353 }]";
        let rules = to_dns(&Surroundings::parse(named).unwrap());
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].to, Some(vec![range("169.254.20.10/32", &[])]));
        assert_eq!(rules[0].ports, Some(vec![port("UDP", 53), port("TCP", 53)]));
        let pods = BTreeMap::from([("dns".to_owned(), "default".to_owned())]);
        assert_eq!(rules[1].to, Some(vec![pods_in("openshift-dns", pods)]));
        assert_eq!(rules[1].ports, Some(vec![port("UDP", 5353), port("TCP", 5353)]));
    }

    #[test]
    fn traces_go_to_the_platforms_collectors_once_there_is_an_endpoint() {
        let named = "collectors: [{ namespace: tracing, podLabels: { app: collector } }, \
                     { cidr: 10.9.8.7/32, port: 14317 }]";
        let mut settings = fixtures::settings();
        settings.surroundings = Surroundings::parse(named).unwrap().into();
        let spec = |settings: &Settings| {
            fence(&Wanted::parse(&fixtures::minimal(), &fixtures::keys(), settings).unwrap()).spec.unwrap()
        };
        assert_eq!(spec(&settings), spec_of(&[]), "nobody sends there");
        settings.worker_otlp_endpoint = Some("http://collector.tracing:4317".to_owned());
        let sending = spec(&settings);
        let rules = sending.egress.unwrap().split_off(2);
        let pods = BTreeMap::from([("app".to_owned(), "collector".to_owned())]);
        let to = |peer, at| NetworkPolicyEgressRule { to: Some(vec![peer]), ports: Some(vec![port("TCP", at)]) };
        assert_eq!(rules, [to(pods_in("tracing", pods), 4317), to(range("10.9.8.7/32", &[]), 14317)]);
        assert_eq!(sending.ingress, spec_of(&[]).ingress, "nothing more gets in");
    }

    #[test]
    fn dns_is_the_clusters_own_and_nothing_but_dns() {
        let dns = to_dns(&Surroundings::default()).pop().unwrap();
        assert_eq!(dns.ports, Some(vec![port("UDP", 53), port("TCP", 53)]));
        let peer = &dns.to.unwrap()[0];
        assert!(peer.pod_selector.is_some() && peer.namespace_selector.is_some() && peer.ip_block.is_none());
    }
}
