//! The platform's keys that this tenant's workers may use, copied into its namespace.
//!
//! What is planned and compared holds fingerprints; the keys themselves are put in for the write, and dropped after it.

use std::collections::BTreeMap;

use croft_crds::tenant::SecretKeyRef;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use secrecy::zeroize::Zeroize as _;
use secrecy::{ExposeSecret as _, SecretSlice};

use super::wanted::Wanted;
use crate::keyring::Fingerprint;

/// What the Secret is called.
pub(crate) const NAME: &str = "platform-keys";

/// The Secret as it is planned.
#[derive(Debug, Clone)]
pub(crate) struct PlatformKeys {
    /// Everything but the keys.
    pub(crate) secret: Secret,
    /// By entry.
    pub(crate) entries: BTreeMap<String, Lent>,
}

/// One key.
#[derive(Debug, Clone)]
pub(crate) struct Lent {
    /// In the operator's namespace.
    pub(crate) from: SecretKeyRef,
    pub(crate) fingerprint: Fingerprint,
}

/// See which there are with `kubectl -n tenant-acme describe secret platform-keys`. None if no key is lent.
pub(crate) fn platform_keys(wanted: &Wanted) -> Option<PlatformKeys> {
    let lent = wanted.providers.iter().filter_map(|provider| {
        let key = provider.key.as_ref()?;
        let lent = Lent { from: key.lent_from.clone()?, fingerprint: key.fingerprint.clone() };
        Some((key.secret.key.clone(), lent))
    });
    let entries: BTreeMap<_, _> = lent.collect();
    let secret = Secret { metadata: wanted.child_meta(NAME), type_: Some("Opaque".to_owned()), ..Secret::default() };
    (!entries.is_empty()).then_some(PlatformKeys { secret, entries })
}

/// The Secret as it is written.
pub(crate) fn filled(secret: &Secret, keys: &BTreeMap<String, SecretSlice<u8>>) -> Secret {
    let data = keys.iter().map(|(entry, key)| (entry.clone(), ByteString(key.expose_secret().to_vec())));
    Secret { data: Some(data.collect()), ..secret.clone() }
}

/// Leaves nothing of the keys in memory.
pub(crate) fn wipe(secret: Secret) {
    for (_, mut value) in secret.data.unwrap_or_default() {
        value.0.zeroize();
    }
}
