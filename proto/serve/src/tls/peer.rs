//! Who a peer is, by the URI in its certificate.

use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;

/// The trust domain of every certificate that the operator issues.
const TRUST_DOMAIN: &str = "spiffe://croft.dev/";

/// A part of Croft, as its certificate's URI says: `spiffe://croft.dev/operator`, `…/front` or `…/tenant/<name>/worker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRole {
    Operator,
    Front,
    Worker { tenant: String },
}

impl PeerRole {
    /// The role that a certificate's URI names.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let path: Vec<&str> = uri.strip_prefix(TRUST_DOMAIN)?.split('/').collect();
        match path[..] {
            ["operator"] => Some(Self::Operator),
            ["front"] => Some(Self::Front),
            ["tenant", tenant, "worker"] if !tenant.is_empty() => Some(Self::Worker { tenant: tenant.to_owned() }),
            _ => None,
        }
    }

    /// The URI that a certificate of this role holds.
    pub fn uri(&self) -> String {
        match self {
            Self::Operator => format!("{TRUST_DOMAIN}operator"),
            Self::Front => format!("{TRUST_DOMAIN}front"),
            Self::Worker { tenant } => format!("{TRUST_DOMAIN}tenant/{tenant}/worker"),
        }
    }
}

/// Who calls, by the certificate that the handshake has verified. `None` without TLS, without a certificate, and for a
/// certificate that names no role or more than one.
pub fn peer_role<T>(request: &Request<T>) -> Option<PeerRole> {
    let certificates = request.peer_certs()?;
    certificate_role(certificates.first()?)
}

/// An interceptor that lets only calls of this role through; others get `PERMISSION_DENIED`.
pub fn only(role: PeerRole) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| {
        if peer_role(&request).as_ref() == Some(&role) {
            Ok(request)
        } else {
            Err(Status::permission_denied("this certificate may not make this call"))
        }
    }
}

fn certificate_role(der: &[u8]) -> Option<PeerRole> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut roles = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => PeerRole::from_uri(uri),
        _ => None,
    });
    match (roles.next(), roles.next()) {
        (Some(role), None) => Some(role),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|&uri| SanType::URI(uri.try_into().unwrap())));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_role_survives_the_way_through_its_uri() {
        for role in [PeerRole::Operator, PeerRole::Front, PeerRole::Worker { tenant: "acme".into() }] {
            assert_eq!(certificate_role(&certificate(&[&role.uri()])), Some(role));
        }
    }

    #[test]
    fn what_is_not_exactly_one_role_is_none() {
        assert_eq!(certificate_role(&certificate(&[])), None);
        assert_eq!(certificate_role(&certificate(&["spiffe://croft.dev/front", "spiffe://croft.dev/operator"])), None);
        assert_eq!(certificate_role(b"garbled"), None);
        for uri in [
            "spiffe://croft.dev/",
            "spiffe://croft.dev/front/",
            "spiffe://croft.dev/tenant//worker",
            "spiffe://croft.dev/tenant/a/b/worker",
            "spiffe://croft.dev.example/front",
            "https://croft.dev/front",
        ] {
            assert_eq!(PeerRole::from_uri(uri), None, "{uri}");
        }
    }

    #[test]
    fn a_call_without_tls_is_nobodys() {
        assert_eq!(peer_role(&Request::new(())), None);
        let refused = only(PeerRole::Front)(Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
}
