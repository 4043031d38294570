//! Mutual TLS from PEM files, and who the peer's certificate says it is.

use std::path::Path;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::{Mistakes, TlsArgs};

mod expiry;
mod peer;
mod renewal;

pub use peer::{PeerRole, only, peer_role};

/// A peer that hasn't finished its handshake by then is hung up on.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Makes aws-lc-rs this process' one source of cryptography. ring is linked too, so rustls would refuse to guess.
pub fn install_provider() {
    // An error means that it has been done before.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// A certificate with its key, and the authority that peers must come from, as PEM.
#[derive(Clone, PartialEq, Eq)]
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A folder with a usable set of files, and the arguments that name them.
    fn files() -> (TempDir, TlsArgs) {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let [tls_cert, tls_key, tls_ca] = ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.path().join(name));
        std::fs::write(&tls_cert, cert.pem()).unwrap();
        std::fs::write(&tls_key, key.serialize_pem()).unwrap();
        std::fs::write(&tls_ca, cert.pem()).unwrap();
        (folder, TlsArgs { tls_cert, tls_key, tls_ca })
    }

    /// Puts another usable set into the place of these.
    fn renew(args: &TlsArgs) {
        let (_folder, other) = files();
        for (from, to) in
            [(other.tls_cert, &args.tls_cert), (other.tls_key, &args.tls_key), (other.tls_ca, &args.tls_ca)]
        {
            std::fs::copy(from, to).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_goes_on_until_its_files_are_another_usable_set() {
        let (_folder, args) = files();
        let (day, stopping) = (Duration::from_hours(24), CancellationToken::new());
        let read = TlsFiles::read(&args).unwrap();
        let mut task = std::pin::pin!(read.until_renewed(args.clone(), Duration::ZERO, stopping.clone()));
        assert!(tokio::time::timeout(day, &mut task).await.is_err(), "nothing has changed");

        let key = std::fs::read(&args.tls_key).unwrap();
        std::fs::write(&args.tls_key, "half").unwrap();
        assert!(tokio::time::timeout(day, &mut task).await.is_err(), "not usable");
        std::fs::write(&args.tls_key, key).unwrap();

        renew(&args);
        let told = task.await.unwrap_err().to_string();
        assert!(told.contains("renewed"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_begin_anew_at_moments_of_their_own_or_with_their_shutdown() {
        let (_folder, args) = files();
        let (hour, stopping) = (Duration::from_hours(1), CancellationToken::new());
        let read = TlsFiles::read(&args).unwrap();
        renew(&args);
        let began = Instant::now();
        let ends = (0..16).map(|_| {
            let task = read.clone().until_renewed(args.clone(), hour, stopping.clone());
            async move { (task.await.is_err(), began.elapsed()) }
        });
        let ends = futures::future::join_all(ends).await;
        let grain = Duration::from_secs(10);
        assert!(ends.iter().all(|(failed, after)| *failed && *after <= hour + grain), "{ends:?}");
        let moments: HashSet<_> = ends.iter().map(|(_, after)| after.as_secs() / 10).collect();
        assert!(moments.len() > 8, "{moments:?}");

        stopping.cancel();
        read.until_renewed(args, hour, stopping).await.unwrap();
    }

    fn mistakes(args: &TlsArgs) -> Vec<String> {
        TlsFiles::read(args).err().expect("they should not be usable").0
    }

    #[test]
    fn good_files_are_read() {
        let (_folder, args) = files();
        let read = TlsFiles::read(&args).unwrap();
        assert_eq!(read.ca, std::fs::read(&args.tls_ca).unwrap());
    }

    #[test]
    fn each_unusable_file_has_a_sentence_that_names_it_and_its_flag() {
        let (_folder, args) = files();
        std::fs::remove_file(&args.tls_cert).unwrap();
        std::fs::write(&args.tls_key, "not a key, hunter2").unwrap();
        std::fs::write(&args.tls_ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let told = mistakes(&args);
        let expected = [
            format!("{} of --tls-cert (CROFT_TLS_CERT) is not usable: No such file", args.tls_cert.display()),
            format!(
                "{} of --tls-key (CROFT_TLS_KEY) is not usable: it holds no PEM private key.",
                args.tls_key.display()
            ),
            format!(
                "{} of --tls-ca (CROFT_TLS_CA) is not usable: it holds a garbled certificate.",
                args.tls_ca.display()
            ),
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(&expected) {
            assert!(told.starts_with(expected), "{told:?} should begin with {expected:?}");
        }
        assert!(!told.concat().contains("hunter2"));
    }

    #[test]
    fn anothers_key_is_found_out_at_start_rather_than_by_the_first_peer() {
        let ((_folder, args), (_other_folder, other)) = (files(), files());
        let told = mistakes(&TlsArgs { tls_key: other.tls_key, ..args });
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("of --tls-key (CROFT_TLS_KEY) does not fit"), "{told:?}");
    }

    #[test]
    fn an_empty_authority_is_no_authority() {
        let (_folder, args) = files();
        std::fs::write(&args.tls_ca, "").unwrap();
        assert!(mistakes(&args)[0].ends_with("it holds no PEM certificate."));
    }
}
