//! The workers' certificate, by which fronts know that they talk to this tenant's workers.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::wanted::Wanted;
use crate::authority::Authority;
use crate::certificate::{Issued, Subject};

/// The Secret's name.
pub(crate) const NAME: &str = "worker-tls";

/// See when it ends with `kubectl -n tenant-acme get secret worker-tls -o jsonpath='{.data.tls\.crt}' | base64 -d |
/// openssl x509 -noout -enddate`.
pub(crate) fn tls(wanted: &Wanted, authority: &Authority, issued: &Issued) -> Secret {
    Secret { metadata: wanted.child_meta(NAME), ..secret(authority, issued) }
}

/// A certificate as the other parts of Croft expect it in a folder.
pub(crate) fn secret(authority: &Authority, issued: &Issued) -> Secret {
    let data = [("ca.crt", authority.cert_pem()), ("tls.crt", &issued.cert), ("tls.key", &issued.key)]
        .map(|(file, pem)| (file.to_owned(), ByteString(pem.as_bytes().to_vec())));
    Secret { type_: Some("kubernetes.io/tls".to_owned()), data: Some(data.into()), ..Secret::default() }
}

/// The certificate in a Secret that [`secret`] made, while it holds for `subject` at `now`, in seconds since 1970.
pub(crate) fn holding(secret: &Secret, subject: &Subject, authority: &Authority, now: i64) -> Option<Issued> {
    read(secret, authority).filter(|issued| subject.still_holds(issued, authority, now))
}

/// If it is whole and trusts `authority`.
fn read(secret: &Secret, authority: &Authority) -> Option<Issued> {
    let data = secret.data.as_ref()?;
    let pem = |file: &str| String::from_utf8(data.get(file)?.0.clone()).ok();
    (pem("ca.crt")? == authority.cert_pem()).then_some(Issued { cert: pem("tls.crt")?, key: pem("tls.key")? })
}
