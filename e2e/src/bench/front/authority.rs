//! A throw-away certificate authority, in place of the operator's.

use std::path::{Path, PathBuf};

use croft_serve::tls::{PeerRole, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use crate::bench::launch::write_private;

/// Signs what the operator would sign.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate of this role that is good for these host names.
    pub fn issue(&self, role: &PeerRole, hosts: &[String]) -> anyhow::Result<TlsFiles> {
        let mut params = CertificateParams::new(hosts)?;
        params.subject_alt_names.push(SanType::URI(role.uri().try_into()?));
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.0)?.pem().into_bytes();
        Ok(TlsFiles { cert, key: key.serialize_pem().into_bytes(), ca: self.0.pem().into_bytes() })
    }

    /// The same as files, as a Secret is mounted.
    pub fn issue_to(&self, folder: &Path, role: &PeerRole, hosts: &[String]) -> anyhow::Result<PathBuf> {
        let files = self.issue(role, hosts)?;
        std::fs::create_dir_all(folder)?;
        for (name, bytes) in [("tls.crt", &files.cert), ("tls.key", &files.key), ("ca.crt", &files.ca)] {
            write_private(&folder.join(name), bytes)?;
        }
        Ok(folder.to_owned())
    }
}
