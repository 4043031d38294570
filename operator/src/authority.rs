//! The certificate authority of one installation of Croft: made once, kept in a Secret, known to the operator alone.

use std::collections::BTreeMap;

use croft_crds::labels;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use crate::writes::Writer;

/// The Secret that holds it, in the operator's namespace.
pub const SECRET: &str = "croft-ca";
/// Ten years: every part trusts it by a file that is not exchanged while it runs.
const LIFETIME_SECONDS: i64 = 10 * 365 * 24 * 60 * 60;

/// Why there is no authority, or why it could not sign.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read or create the Secret {SECRET}")]
    Store(#[source] kube::Error),
    #[error("the Secret {SECRET} has no usable {entry}")]
    Garbled { entry: &'static str },
    #[error("cannot make a certificate")]
    Sign(#[from] rcgen::Error),
    #[error("cannot write a time into a certificate")]
    Time(#[from] x509_parser::error::X509Error),
}

/// An authority that can sign.
pub struct Authority {
    cert_pem: String,
    cert_der: Vec<u8>,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, from `now` (seconds since 1970) on.
    pub fn generate(now: i64) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Croft");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = ASN1Time::from_timestamp(now - 300)?.to_datetime();
        params.not_after = ASN1Time::from_timestamp(now + LIFETIME_SECONDS)?.to_datetime();
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?;
        Self::parse(cert.pem(), key.serialize_pem())
    }

    /// The one in the Secret; made first if there is none. Replicas that start together end up with the same.
    pub async fn load_or_create(
        secrets: &Api<Secret>,
        writer: &Writer,
        namespace: &str,
        now: i64,
    ) -> Result<Self, Error> {
        if let Some(secret) = secrets.get_opt(SECRET).await.map_err(Error::Store)? {
            return Self::from_secret(&secret);
        }
        let made = Self::generate(now)?;
        match writer.create(&made.secret(namespace)).await {
            Ok(_) => Ok(made),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Self::from_secret(&secrets.get(SECRET).await.map_err(Error::Store)?)
            }
            Err(error) => Err(Error::Store(error)),
        }
    }

    /// Its own certificate, as PEM: what peers trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Its private key, as PEM (PKCS #8).
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Whether this authority has signed `certificate`.
    pub(crate) fn signed(&self, certificate: &X509Certificate<'_>) -> bool {
        X509Certificate::from_der(&self.cert_der)
            .is_ok_and(|(_, own)| certificate.verify_signature(Some(own.public_key())).is_ok())
    }

    /// The one that a Secret holds.
    pub fn from_secret(secret: &Secret) -> Result<Self, Error> {
        let entry = |entry: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(entry)).ok_or(Error::Garbled { entry })?;
            String::from_utf8(bytes.0.clone()).map_err(|_| Error::Garbled { entry })
        };
        Self::parse(entry("tls.crt")?, entry("tls.key")?)
    }

    fn parse(cert_pem: String, key_pem: String) -> Result<Self, Error> {
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(|_| Error::Garbled { entry: "tls.crt" })?;
        let key = KeyPair::from_pem(&key_pem).map_err(|_| Error::Garbled { entry: "tls.key" })?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(|_| Error::Garbled { entry: "tls.crt" })?;
        Ok(Self { cert_pem, cert_der: pem.contents, key_pem, issuer })
    }

    fn secret(&self, namespace: &str) -> Secret {
        let data = [("tls.crt", &self.cert_pem), ("tls.key", &self.key_pem)]
            .map(|(entry, pem)| (entry.to_owned(), ByteString(pem.clone().into_bytes())));
        Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(BTreeMap::from([(labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_CROFT.to_owned())])),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data.into()),
            ..Secret::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_the_way_through_its_secret() {
        let made = Authority::generate(1_800_000_000).unwrap();
        let read = Authority::from_secret(&made.secret("croft-system")).unwrap();
        assert_eq!(read.cert_pem(), made.cert_pem());
        assert_eq!(read.key_pem(), made.key_pem());
    }

    #[test]
    fn a_garbled_secret_is_refused_without_telling_what_is_in_it() {
        let mut secret = Authority::generate(1_800_000_000).unwrap().secret("croft-system");
        secret.data.as_mut().unwrap().insert("tls.key".into(), ByteString(b"hunter2".to_vec()));
        let error = Authority::from_secret(&secret).err().unwrap();
        assert_eq!(error.to_string(), "the Secret croft-ca has no usable tls.key");
    }
}
