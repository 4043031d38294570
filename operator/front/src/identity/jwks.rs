//! One issuer's public keys: fetched, kept, and looked at again when a token names one that isn't there.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use croft_serve::Tasks;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::refusal::{Failure, Metrics, Refusal};
use super::settings::Timing;
use super::source::Source;

/// Of one issuer. What comes beyond is left out.
const KEYS_MAX: usize = 100;

/// What RSA keys are used for that don't say.
const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// A public key, and the ways of signing that it is trusted for.
pub(super) struct Key {
    pub(super) decoding: DecodingKey,
    pub(super) algorithms: Vec<Algorithm>,
}

/// The usable keys of a JWKS, by key id.
pub(super) type KeySet = HashMap<String, Arc<Key>>;

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

/// Reads a JWKS. A key that we have no use for is left out, which may leave none.
pub(super) fn parse(text: &[u8]) -> anyhow::Result<KeySet> {
    let document: Document = serde_json::from_slice(text)?;
    let mut keys = KeySet::new();
    for value in document.keys.into_iter().take(KEYS_MAX) {
        let Some((kid, key)) = serde_json::from_value(value).ok().and_then(|jwk| usable(&jwk)) else { continue };
        keys.entry(kid).or_insert_with(|| Arc::new(key));
    }
    Ok(keys)
}

fn usable(jwk: &Jwk) -> Option<(String, Key)> {
    let kid = jwk.common.key_id.clone()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|used| *used != PublicKeyUse::Signature) {
        return None;
    }
    // A shared secret is no public key: whoever reads the JWKS could sign with it.
    let fitting: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &RSA,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        _ => return None,
    };
    let algorithms: Vec<_> = match jwk.common.key_algorithm {
        Some(said) => fitting.iter().copied().filter(|fits| KeyAlgorithm::from(*fits) == said).collect(),
        None => fitting.to_vec(),
    };
    let decoding = DecodingKey::from_jwk(jwk).ok()?;
    (!algorithms.is_empty()).then_some((kid, Key { decoding, algorithms }))
}

/// The keys of one issuer. Clones share them.
///
/// While the issuer is away, the keys that it had last go on being trusted; those of one that publishes none are not. Tokens that name an unknown key cause one fetch in
/// [`Timing::cooldown`] between them, however many they are: those that come during it wait for it, later ones are refused.
#[derive(Clone)]
pub(super) struct Jwks {
    inner: Arc<Inner>,
}

struct Inner {
    provider: String,
    source: Source,
    timing: Timing,
    tasks: Tasks,
    metrics: Metrics,
    known: RwLock<Known>,
    fetching: Arc<Mutex<()>>,
}

#[derive(Default)]
struct Known {
    /// `None` until a fetch has succeeded.
    keys: Option<Arc<KeySet>>,
    /// When the last fetch ended, and whether it failed.
    tried: Option<(Instant, bool)>,
}

impl Jwks {
    /// Fetches the keys, now and from time to time, in a task of its own. Nobody waits for it: an issuer that is away keeps
    /// no front from starting.
    pub(super) fn start(provider: String, source: Source, timing: Timing, tasks: &Tasks, metrics: Metrics) -> Self {
        let (known, fetching) = (RwLock::default(), Arc::default());
        let inner = Inner { provider, source, timing, tasks: tasks.clone(), metrics, known, fetching };
        let jwks = Self { inner: Arc::new(inner) };
        tasks.spawn_endless("jwks-refresh", jwks.clone().keep());
        jwks
    }

    /// The key of this id; asks the issuer if there is none.
    pub(super) async fn find(&self, kid: &str) -> Result<Arc<Key>, Failure> {
        if let Some(key) = self.known_key(kid) {
            return Ok(key);
        }
        self.refresh().await;
        if let Some(key) = self.known_key(kid) {
            return Ok(key);
        }
        match self.read().tried {
            Some((_, false)) => Err(Refusal::UnknownKey.into()),
            // It may be a new key, and nobody is there to tell.
            Some((_, true)) | None => Err(Failure::Missing("the list of the issuer's keys")),
        }
    }

    fn known_key(&self, kid: &str) -> Option<Arc<Key>> {
        self.read().keys.as_ref()?.get(kid).cloned()
    }

    /// Fetches, unless somebody has done so just now.
    async fn refresh(&self) {
        let turn = Arc::clone(&self.inner.fetching).lock_owned().await;
        if self.read().tried.is_some_and(|(ended, _)| ended.elapsed() < self.inner.timing.cooldown) {
            return;
        }
        let this = self.clone();
        // A task, or a caller who hangs up at once would have used up the one fetch that there is for all.
        let fetch = self.inner.tasks.spawn("jwks-fetch", async move {
            this.fetch().await;
            drop(turn);
        });
        if let Err(error) = fetch.await {
            tracing::error!(%error, "the fetch of an issuer's keys broke off");
        }
    }

    async fn fetch(&self) {
        let Inner { provider, source, metrics, .. } = &*self.inner;
        let fetched = source.read().await.and_then(|text| parse(&text));
        let is_usable = fetched.as_ref().is_ok_and(|keys| !keys.is_empty());
        let outcome = if is_usable { "ok" } else { "failed" };
        metrics.fetches.with_label_values(&[provider.as_str(), outcome]).inc();
        let mut known = self.inner.known.write().unwrap_or_else(PoisonError::into_inner);
        known.tried = Some((Instant::now(), fetched.is_err()));
        match fetched {
            Ok(keys) => {
                if !is_usable {
                    tracing::error!(provider, "the issuer publishes no usable key: none of its tokens is taken");
                }
                known.keys = Some(Arc::new(keys));
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(provider, error, kept = known.keys.is_some(), "cannot fetch the issuer's keys");
            }
        }
    }

    /// Keys that the issuer has taken back are forgotten, too.
    async fn keep(self) {
        let stopping = self.inner.tasks.stopping();
        let Timing { cooldown, refresh_every, .. } = self.inner.timing;
        loop {
            self.refresh().await;
            let failed = self.read().tried.is_none_or(|(_, failed)| failed);
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(if failed { cooldown } else { refresh_every }) => {}
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.inner.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Public keys of RFC 7517, appendix A.1, and RFC 8037, appendix A.2.
    fn documented() -> (Value, Value) {
        let ec = json!({
            "kty": "EC", "crv": "P-256", "kid": "ec",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        });
        let ed = json!({
            "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        });
        (ec, ed)
    }

    fn keys(keys: &Value) -> anyhow::Result<KeySet> {
        parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn a_key_is_trusted_for_what_it_says_or_else_for_what_fits_it() {
        let (ec, ed) = documented();
        let parsed = keys(&json!([ec, ed])).unwrap();
        assert_eq!(parsed["ec"].algorithms, [Algorithm::ES256]);
        assert_eq!(parsed["ed"].algorithms, [Algorithm::EdDSA]);
    }

    #[test]
    fn a_key_that_is_of_no_use_is_left_out_and_the_rest_is_taken() {
        let (good, _) = documented();
        let changed = |field: &str, value: &str| {
            let mut key = good.clone();
            key[field] = json!(value);
            key["kid"] = json!("bad");
            key
        };
        let (mut nameless, secret) =
            (good.clone(), json!({ "kty": "oct", "kid": "bad", "k": "c2VjcmV0", "alg": "HS256" }));
        nameless.as_object_mut().unwrap().remove("kid");
        for bad in [
            secret,
            nameless,
            changed("use", "enc"),
            changed("alg", "HS256"),
            changed("alg", "RS256"),
            changed("crv", "P-521"),
            changed("kty", "PQC"),
            changed("x", "!"),
            json!("no key"),
        ] {
            let parsed = keys(&json!([bad, good])).unwrap();
            assert_eq!(parsed.keys().collect::<Vec<_>>(), ["ec"], "{bad}");
            assert!(keys(&json!([bad])).unwrap().is_empty(), "{bad}");
        }
    }

    #[test]
    fn more_keys_than_anyone_needs_are_left_out() {
        let (good, _) = documented();
        let many: Vec<_> = (0..KEYS_MAX * 2)
            .map(|number| {
                let mut key = good.clone();
                key["kid"] = json!(number.to_string());
                key
            })
            .collect();
        assert_eq!(keys(&json!(many)).unwrap().len(), KEYS_MAX);
        assert!(parse(b"<html>").is_err());
    }
}
