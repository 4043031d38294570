//! Mutual TLS from PEM files, and who the peer's certificate says it is.

use std::path::Path;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::{Mistakes, TlsArgs};

mod peer;

pub use peer::{PeerRole, only, peer_role};

/// A peer that hasn't finished its handshake by then is hung up on.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Makes aws-lc-rs this process' one source of cryptography. ring is linked too, so rustls would refuse to guess.
pub fn install_provider() {
    // An error means that it has been done before.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// A certificate with its key, and the authority that peers must come from, as PEM.
#[derive(Clone)]
pub struct TlsFiles {
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
    pub ca: Vec<u8>,
}

impl TlsFiles {
    /// Reads the three files. Fails with a sentence per file that is missing or isn't what its flag promises, and when
    /// the key is another certificate's.
    pub fn read(args: &TlsArgs) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut read = |path: &Path, flag: &str, check: fn(&[u8]) -> Result<(), String>| {
            let bytes = std::fs::read(path).map_err(|error| error.to_string());
            match bytes.and_then(|bytes| check(&bytes).map(|()| bytes)) {
                Ok(bytes) => bytes,
                Err(problem) => {
                    mistakes.push(format!("{} of {flag} is not usable: {problem}.", path.display()));
                    Vec::new()
                }
            }
        };
        let cert = read(&args.tls_cert, "--tls-cert (CROFT_TLS_CERT)", |pem| certificates(pem).map(drop));
        let key = read(&args.tls_key, "--tls-key (CROFT_TLS_KEY)", |pem| private_key(pem).map(drop));
        let ca = read(&args.tls_ca, "--tls-ca (CROFT_TLS_CA)", |pem| certificates(pem).map(drop));
        if mistakes.is_empty()
            && let Err(problem) = belong_together(&cert, &key)
        {
            let (cert, key) = (args.tls_cert.display(), args.tls_key.display());
            mistakes.push(format!(
                "{key} of --tls-key (CROFT_TLS_KEY) does not fit {cert} of --tls-cert (CROFT_TLS_CERT): {problem}."
            ));
        }
        if mistakes.is_empty() { Ok(Self { cert, key, ca }) } else { Err(Mistakes(mistakes)) }
    }

    /// For a server that takes calls only from clients with a certificate of our authority; see [`peer_role`] for which.
    pub fn server(&self) -> ServerTlsConfig {
        install_provider();
        ServerTlsConfig::new()
            .identity(self.identity())
            .client_ca_root(Certificate::from_pem(&self.ca))
            .timeout(HANDSHAKE_MAX)
    }

    /// For calls to the server whose certificate names `server_name`, whatever address it is dialled by.
    pub fn client(&self, server_name: &str) -> ClientTlsConfig {
        install_provider();
        ClientTlsConfig::new()
            .identity(self.identity())
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name(server_name)
            .timeout(HANDSHAKE_MAX)
    }

    fn identity(&self) -> Identity {
        Identity::from_pem(&self.cert, &self.key)
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = parsed.map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        return Err("it holds no PEM certificate".into());
    }
    for certificate in &certificates {
        x509_parser::parse_x509_certificate(certificate).map_err(|_| "it holds a garbled certificate".to_owned())?;
    }
    Ok(certificates)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    // The parser's own error may quote the file.
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| "it holds no PEM private key".into())
}

fn belong_together(cert: &[u8], key: &[u8]) -> Result<(), String> {
    let provider: CryptoProvider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(certificates(cert)?, private_key(key)?, &provider)
        .map(drop)
        .map_err(|error| error.to_string())
}
