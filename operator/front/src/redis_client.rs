//! How Redis is reached: by its URL, and with `rediss://` by TLS, to a server whose certificate is checked.

use redis::{Client, TlsCertificates};
use x509_parser::pem::Pem;

use crate::error::Error;

/// What reaches the Redis at this URL. It connects to nothing yet.
///
/// `authorities` are certificates in PEM. With them a server must be certified by one of them, without them by an authority that
/// browsers trust.
///
/// Fails with [`Error::Invalid`] when the URL is none, when the authorities hold no certificate or a garbled one, and when there are
/// some beside a URL without TLS.
pub fn open(url: &str, authorities: Option<&[u8]>) -> Result<Client, Error> {
    croft_serve::tls::install_provider();
    // The parser's complaint may quote the URL, and with it a password.
    let unreadable = |_| Error::invalid("the Redis URL", "can't be read");
    let Some(authorities) = authorities else { return Client::open(url).map_err(unreadable) };
    if !url.starts_with("rediss://") {
        return Err(Error::invalid("the Redis URL", "must begin with rediss:// beside an authority's certificate"));
    }
    let certificates = Pem::iter_from_buffer(authorities).flatten().filter(|pem| pem.label == "CERTIFICATE").count();
    if certificates == 0 {
        return Err(Error::invalid("the authority of Redis", "is no certificate in PEM"));
    }
    Client::open(url).map_err(unreadable)?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(authorities.to_vec()) };
    Client::build_with_tls(url, certificates).map_err(|_| Error::invalid("the authority of Redis", "can't be read"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::open;
    use crate::error::Error;

    fn refused(url: &str, authorities: Option<&[u8]>) -> String {
        let Err(error) = open(url, authorities) else { panic!("it is taken") };
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        let told = format!("{error} {error:?}");
        assert!(!told.contains("hunter2"), "{told}");
        told
    }

    #[test]
    fn a_bad_url_is_refused_without_being_quoted() {
        refused("redis://:hunter2@host:port", None);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["redis".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        refused("rediss://:hunter2@host:port", Some(certificate.as_bytes()));
        assert!(open("rediss://:hunter2@host:6379", Some(certificate.as_bytes())).is_ok());
        let told = refused("redis://:hunter2@host:6379", Some(certificate.as_bytes()));
        assert!(told.contains("rediss://"), "{told}");
    }

    #[test]
    fn authorities_must_be_certificates() {
        let key = KeyPair::generate().unwrap().serialize_pem();
        let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for authorities in ["", "redis", key.as_str(), garbled] {
            let told = refused("rediss://:hunter2@host:6379", Some(authorities.as_bytes()));
            assert!(told.contains("authority"), "{told}");
        }
    }
}
