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
