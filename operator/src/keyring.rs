//! Looks at provider keys without keeping them: what stays is a fingerprint, by which a change is seen.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use secrecy::zeroize::Zeroize as _;
use secrecy::{ExposeSecret as _, SecretSlice};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::authority::Authority;
use crate::secrets::{SecretId, Secrets};

/// Tells one key from another, and nothing about either: it is made with a key that only the operator has, so that
/// nobody who reads it can try guesses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fingerprint(String);

#[cfg(test)]
impl Fingerprint {
    /// One that a test chooses.
    pub(crate) fn of_test(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Fingerprint({:.8})", self.0)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// What a Secret holds, by key.
pub(crate) type Prints = BTreeMap<String, Print>;

/// What there is to know of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Print {
    Usable(Fingerprint),
    /// It can't be put into a header, which is what it is for.
    Unusable,
}

/// Reads keys, for as long as it takes to look at them or to hand them on.
pub struct Keyring {
    client: Client,
    secrets: Arc<Secrets>,
    salt: [u8; 32],
    /// By Secret, with the version that was looked at. Never more than there are Secrets, twice over.
    seen: Mutex<HashMap<SecretId, (String, Arc<Prints>)>>,
}

impl Keyring {
    /// Reads what `secrets` knows of.
    pub fn new(client: Client, secrets: Arc<Secrets>, authority: &Authority) -> Self {
        Self { client, secrets, salt: salt(authority), seen: Mutex::default() }
    }

    /// Waits until all Secrets are known.
    pub(crate) async fn synced(&self) {
        self.secrets.synced().await;
    }

    /// All Secrets that there are.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// What a Secret holds, or `None` if there is no such Secret. The API server is asked once a version.
    pub(crate) async fn prints(&self, id: &SecretId) -> kube::Result<Option<Arc<Prints>>> {
        // One that the watch has not told of yet wakes the tenant when it does.
        let Some(version) = self.secrets.version(id) else { return Ok(None) };
        if let Some((seen, prints)) = self.seen().get(id)
            && *seen == version
        {
            return Ok(Some(Arc::clone(prints)));
        }
        let Some(secret) = self.read(id).await? else { return Ok(None) };
        let version = secret.resource_version().unwrap_or_default();
        let values = secret.data.unwrap_or_default();
        let prints = Arc::new(values.iter().map(|(key, value)| (key.clone(), self.print(&value.0))).collect());
        wipe(values);
        self.remember(id.clone(), version, Arc::clone(&prints));
        Ok(Some(prints))
    }

    /// One value itself, or `None` if it is not there. Whoever asks hands it on and forgets it.
    pub(crate) async fn value(&self, id: &SecretId, key: &str) -> kube::Result<Option<SecretSlice<u8>>> {
        let Some(secret) = self.read(id).await? else { return Ok(None) };
        let mut values = secret.data.unwrap_or_default();
        let value = values.remove(key).map(|value| SecretSlice::from(value.0));
        wipe(values);
        Ok(value)
    }

    /// Remembers what we have written ourselves.
    pub(crate) fn remember(&self, id: SecretId, version: String, prints: Arc<Prints>) {
        let mut seen = self.seen();
        if seen.len() == seen.capacity() {
            seen.retain(|id, _| self.secrets.version(id).is_some());
        }
        seen.insert(id, (version, prints));
    }

    /// What there is to know of a value.
    pub(crate) fn print(&self, value: &[u8]) -> Print {
        let key = value.trim_ascii();
        if key.is_empty() || !key.iter().all(u8::is_ascii_graphic) {
            return Print::Unusable;
        }
        Print::Usable(Fingerprint(hex::encode(Sha256::new_with_prefix(self.salt).chain_update(key).finalize())))
    }

    /// [`Keyring::print`] of a value that is secret.
    pub(crate) fn print_of(&self, value: &SecretSlice<u8>) -> Print {
        self.print(value.expose_secret())
    }

    async fn read(&self, (namespace, name): &SecretId) -> kube::Result<Option<Secret>> {
        Api::<Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<SecretId, (String, Arc<Prints>)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn salt(authority: &Authority) -> [u8; 32] {
    Sha256::new_with_prefix("croft key fingerprints").chain_update(authority.key_pem()).finalize().into()
}

fn wipe(values: BTreeMap<String, k8s_openapi::ByteString>) {
    for (_, mut value) in values {
        value.0.zeroize();
    }
}
