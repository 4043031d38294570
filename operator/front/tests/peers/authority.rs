//! The operator's part: an authority, and certificates of it.

use croft_serve::tls::{PeerRole, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// The files of one program, whose certificate is good for these host names.
    pub(crate) fn issue(&self, role: &PeerRole, hosts: &[&str]) -> TlsFiles {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.subject_alt_names.push(SanType::URI(role.uri().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap().pem().into_bytes();
        TlsFiles { cert, key: key.serialize_pem().into_bytes(), ca: self.0.pem().into_bytes() }
    }

    pub(crate) fn front(&self) -> TlsFiles {
        self.issue(&PeerRole::Front, &["croft-front.croft-system.svc"])
    }

    pub(crate) fn worker(&self, tenant: &str) -> TlsFiles {
        let role = PeerRole::Worker { tenant: tenant.to_owned() };
        self.issue(&role, &[&format!("workers.tenant-{tenant}.svc")])
    }
}
