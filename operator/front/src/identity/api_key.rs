//! API keys: `ck_<prefix>_<secret>`. The prefix is public and finds the row; of the secret only the SHA-256 is kept.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use moka::future::Cache;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::NEEDED;
use super::role::Role;
use super::seldom::Seldom;
use crate::error::Error;

const PREFIX_BYTES: usize = 4;
const SECRET_BYTES: usize = 32;
/// In base64.
const SECRET_CHARS: usize = 43;
/// A key that is revoked or expires is good for this long at most.
const FOUND_TTL: Duration = Duration::from_secs(30);
/// A key that was tried too early is refused for this long at most.
const MISSING_TTL: Duration = Duration::from_secs(5);
/// Keys, and apart from them prefixes that are none, so that guessing pushes no key out. At the bound the ones used
/// least are asked for again.
const CACHED_MAX: u64 = 10_000;
/// Which prefixes are keys is remembered for longer than what they are good for, so that guesses keep no holder of a key waiting.
const KNOWN_TTL: Duration = Duration::from_hours(24);
/// Looks into the store at a time, for keys that were found before and as many for others.
const LOOKS_MAX: usize = 4;
/// Looks for prefixes never found that may wait behind those. At the bound there is no look, and [`Error::Unavailable`].
const WAITING_MAX: usize = 10_000;
/// When one that was not looked for may come again. The log tells of those seldom: whoever makes up keys would fill it.
const CROWDED_RETRY: Duration = Duration::from_secs(1);
const PART: &str = "the list of API keys";
/// How long one of them waits. Then it is as at the bound.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// An API key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// 8 hex digits.
    pub prefix: String,
    pub tenant: TenantId,
    pub tenant_name: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// What its holder may do.
    pub role: Role,
}

/// A key as its tenant's admins see it, be it good or not.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRecord {
    /// 8 hex digits.
    pub prefix: String,
    pub role: Role,
    pub create_time: Timestamp,
    /// From when on it is refused; `None` is never.
    pub expire_time: Option<Timestamp>,
    /// When it was revoked, first.
    pub revoke_time: Option<Timestamp>,
}

/// Where API keys live.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// Records a key, which is good until then; `None` is until it is revoked. Fails with [`Error::Invalid`] if its tenant is
    /// unknown, or is being removed.
    async fn insert(&self, key: &StoredKey, expire_time: Option<Timestamp>) -> Result<(), Error>;

    /// All keys of the tenant, newest first.
    async fn list(&self, tenant: TenantId) -> Result<Vec<KeyRecord>, Error>;

    /// Takes a key back; `false` if the tenant has none of this prefix. One that is revoked already stays as it is.
    async fn revoke(&self, tenant: TenantId, prefix: &str) -> Result<bool, Error>;

    /// The key of this prefix, if there is one that is neither revoked nor expired.
    async fn find(&self, prefix: &str) -> Result<Option<StoredKey>, Error>;
}

/// A new key of an admin's: what is stored of it, and the token, which nobody will see again. Fails when the system has no randomness.
pub fn generate(tenant: TenantId, tenant_name: &str) -> Result<(StoredKey, SecretString), Error> {
    let mut bytes = [0; PREFIX_BYTES + SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(Error::internal)?;
    let prefix = hex::encode(&bytes[..PREFIX_BYTES]);
    let secret = URL_SAFE_NO_PAD.encode(&bytes[PREFIX_BYTES..]);
    let token = SecretString::from(format!("ck_{prefix}_{secret}"));
    let secret_hash = hash(&secret);
    Ok((StoredKey { prefix, tenant, tenant_name: tenant_name.to_owned(), secret_hash, role: Role::Admin }, token))
}

/// What a token says of itself.
struct Claimed<'token> {
    prefix: &'token str,
    secret_hash: [u8; 32],
}

fn parse(token: &str) -> Option<Claimed<'_>> {
    let (prefix, secret) = token.strip_prefix("ck_")?.split_once('_')?;
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let fits = prefix.len() == PREFIX_BYTES * 2 && prefix.bytes().all(is_hex) && secret.len() == SECRET_CHARS;
    fits.then(|| Claimed { prefix, secret_hash: hash(secret) })
}

/// A secret is 256 random bits, so that a plain hash is as good as a slow one.
fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Verifies keys, and remembers for a short while which there are.
#[derive(Clone)]
pub(super) struct ApiKeys {
    store: Arc<dyn KeyStore>,
    found: Cache<String, Arc<StoredKey>>,
    missing: Cache<String, ()>,
    /// Prefixes that were keys when they were looked for last.
    known: Cache<String, ()>,
    /// Looks for those.
    looks: Arc<Semaphore>,
    /// Looks for prefixes of which nothing is known: who makes up keys has none of the others' looks, nor all of the store's connections.
    first_looks: Arc<Semaphore>,
    /// Those and who waits for one.
    asking: Arc<Semaphore>,
    /// Guesses that nobody looked for.
    crowded: Arc<Seldom>,
}

/// Why a look-up brought no key.
enum Miss {
    Unknown,
    /// Nobody has looked.
    Crowded,
    Failed(Error),
}

impl ApiKeys {
    pub(super) fn new(store: Arc<dyn KeyStore>) -> Self {
        Self::remembering(store, FOUND_TTL)
    }

    /// Remembers keys for so long.
    fn remembering(store: Arc<dyn KeyStore>, found_ttl: Duration) -> Self {
        let found = Cache::builder().max_capacity(CACHED_MAX).time_to_live(found_ttl).build();
        let missing = Cache::builder().max_capacity(CACHED_MAX).time_to_live(MISSING_TTL).build();
        let known = Cache::builder().max_capacity(CACHED_MAX).time_to_live(KNOWN_TTL).build();
        let [looks, first_looks, asking] =
            [LOOKS_MAX, LOOKS_MAX, LOOKS_MAX + WAITING_MAX].map(|max| Arc::new(Semaphore::new(max)));
        Self { store, found, missing, known, looks, first_looks, asking, crowded: Arc::default() }
    }

    /// The key that the token is.
    pub(super) async fn verify(&self, token: &str) -> Result<Arc<StoredKey>, Error> {
        let refused = Error::Unauthenticated { problem: NEEDED };
        let Some(claimed) = parse(token) else { return Err(refused) };
        match self.find(claimed.prefix).await? {
            Some(key) if bool::from(key.secret_hash.ct_eq(&claimed.secret_hash)) => Ok(key),
            _ => Err(refused),
        }
    }

    async fn find(&self, prefix: &str) -> Result<Option<Arc<StoredKey>>, Error> {
        if self.missing.contains_key(prefix) {
            return Ok(None);
        }
        // Calls that come together ask the store once.
        match self.found.try_get_with_by_ref(prefix, self.look(prefix)).await {
            Ok(key) => Ok(Some(key)),
            Err(miss) => match &*miss {
                Miss::Unknown => {
                    self.known.invalidate(prefix).await;
                    self.missing.insert(prefix.to_owned(), ()).await;
                    Ok(None)
                }
                Miss::Crowded => {
                    if let Some(refused) = self.crowded.happened() {
                        tracing::warn!(refused, "too many keys that nobody has seen before are being looked for");
                    }
                    Err(Error::Unavailable { part: PART, retry_after: CROWDED_RETRY, source: None })
                }
                Miss::Failed(error) => Err(Error::unavailable(PART, Shared(error.to_string()))),
            },
        }
    }

    /// Asks the store.
    async fn look(&self, prefix: &str) -> Result<Arc<StoredKey>, Miss> {
        let is_known = self.known.contains_key(prefix);
        let _place = if is_known { None } else { Some(self.asking.try_acquire().map_err(|_| Miss::Crowded)?) };
        let _look = if is_known {
            self.looks.acquire().await
        } else {
            tokio::time::timeout(WAIT_MAX, self.first_looks.acquire()).await.map_err(|_| Miss::Crowded)?
        };
        match self.store.find(prefix).await {
            Ok(Some(key)) => {
                self.known.insert(prefix.to_owned(), ()).await;
                Ok(Arc::new(key))
            }
            Ok(None) => Err(Miss::Unknown),
            Err(error) => Err(Miss::Failed(error)),
        }
    }
}

/// An error that several callers get, each its own copy.
#[derive(Debug)]
struct Shared(String);

impl fmt::Display for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Shared {}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use secrecy::ExposeSecret;

    use super::*;

    #[derive(Default)]
    struct Keys {
        key: Mutex<Option<StoredKey>>,
        asked: AtomicUsize,
        asking: AtomicUsize,
        asking_most: AtomicUsize,
        is_down: bool,
        /// It never answers about keys that are not there.
        is_stuck: bool,
        /// It answers once this has room.
        gate: Option<Semaphore>,
    }

    #[async_trait]
    impl KeyStore for Keys {
        async fn insert(&self, key: &StoredKey, _expire_time: Option<Timestamp>) -> Result<(), Error> {
            *self.key.lock().unwrap() = Some(key.clone());
            Ok(())
        }

        async fn list(&self, _tenant: TenantId) -> Result<Vec<KeyRecord>, Error> {
            Ok(Vec::new())
        }

        async fn revoke(&self, _tenant: TenantId, prefix: &str) -> Result<bool, Error> {
            Ok(self.key.lock().unwrap().take_if(|key| key.prefix == prefix).is_some())
        }

        async fn find(&self, prefix: &str) -> Result<Option<StoredKey>, Error> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let asking = self.asking.fetch_add(1, Ordering::Relaxed) + 1;
            self.asking_most.fetch_max(asking, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.asking.fetch_sub(1, Ordering::Relaxed);
            if let Some(gate) = &self.gate {
                drop(gate.acquire().await);
            }
            if self.is_down {
                return Err(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
            }
            let key = self.key.lock().unwrap().clone().filter(|key| key.prefix == prefix);
            if key.is_none() && self.is_stuck {
                std::future::pending::<()>().await;
            }
            Ok(key)
        }
    }

    fn guess(number: usize) -> String {
        format!("ck_{number:08x}_{}", "A".repeat(SECRET_CHARS))
    }

    fn is_refused<T>(outcome: &Result<T, Error>) -> bool {
        matches!(outcome, Err(Error::Unauthenticated { problem }) if problem.contains("authorization"))
    }

    #[tokio::test]
    async fn a_generated_key_is_of_the_documented_form_and_good() {
        let keys = Arc::new(Keys::default());
        let (stored, token) = generate(TenantId::generate(), "heron").unwrap();
        let token = token.expose_secret();
        assert_eq!(token.len(), "ck_".len() + 8 + "_".len() + 43);
        assert!(token.starts_with(&format!("ck_{}_", stored.prefix)));
        keys.insert(&stored, None).await.unwrap();
        assert_eq!(*ApiKeys::new(keys).verify(token).await.unwrap(), stored);
    }

    #[tokio::test]
    async fn every_bad_token_is_refused_alike() {
        let keys = Arc::new(Keys::default());
        let (stored, token) = generate(TenantId::generate(), "heron").unwrap();
        keys.insert(&stored, None).await.unwrap();
        let keys = ApiKeys::new(keys);
        let (_, other) = generate(TenantId::generate(), "heron").unwrap();
        let other_secret = other.expose_secret().rsplit_once('_').unwrap().1.to_owned();
        let wrong_secret = format!("ck_{}_{}", stored.prefix, "A".repeat(SECRET_CHARS));
        let upper_case = token.expose_secret().replace(&stored.prefix, &stored.prefix.to_uppercase());
        let mut bad = vec!["", "ck_", "ck__", "Bearer", "ck_zzzzzzzz_", wrong_secret.as_str(), other.expose_secret()];
        bad.push(&other_secret);
        if upper_case != token.expose_secret() {
            bad.push(&upper_case);
        }
        for token in bad {
            assert!(is_refused(&keys.verify(token).await), "{token}");
        }
    }

    #[tokio::test]
    async fn a_known_key_and_an_unknown_one_are_looked_up_once() {
        let store = Arc::new(Keys::default());
        let (stored, token) = generate(TenantId::generate(), "heron").unwrap();
        store.insert(&stored, None).await.unwrap();
        let keys = ApiKeys::new(Arc::clone(&store) as _);
        let verified = futures::future::join_all((0..50).map(|_| keys.verify(token.expose_secret()))).await;
        assert!(verified.iter().all(Result::is_ok));
        assert_eq!(store.asked.load(Ordering::Relaxed), 1);

        let (_, unknown) = generate(TenantId::generate(), "heron").unwrap();
        for _ in 0..3 {
            assert!(is_refused(&keys.verify(unknown.expose_secret()).await));
        }
        assert_eq!(store.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_key_that_is_revoked_is_refused_once_it_is_forgotten() {
        let store = Arc::new(Keys::default());
        let (stored, token) = generate(TenantId::generate(), "heron").unwrap();
        store.insert(&stored, None).await.unwrap();
        let keys = ApiKeys::remembering(Arc::clone(&store) as _, Duration::from_millis(100));
        keys.verify(token.expose_secret()).await.unwrap();
        assert!(store.revoke(stored.tenant, &stored.prefix).await.unwrap());
        let refused = async {
            while keys.verify(token.expose_secret()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), refused).await.expect("it stays good");
        assert!(is_refused(&keys.verify(token.expose_secret()).await));
    }

    #[tokio::test]
    async fn who_makes_up_keys_has_few_looked_for_at_a_time() {
        let store = Arc::new(Keys::default());
        let keys = ApiKeys::new(Arc::clone(&store) as _);
        let guesses = (0..100).map(guess);
        let outcomes = futures::future::join_all(guesses.map(|guess| {
            let keys = keys.clone();
            async move { keys.verify(&guess).await }
        }));
        assert!(outcomes.await.iter().all(is_refused));
        assert_eq!(store.asked.load(Ordering::Relaxed), 100);
        assert_eq!(store.asking_most.load(Ordering::Relaxed), LOOKS_MAX);
    }

    /// Once, whoever made up enough keys locked everybody else out, within the half minute for which a key is believed.
    #[tokio::test]
    async fn who_makes_up_keys_keeps_nobody_with_a_key_waiting() {
        let store = Arc::new(Keys { is_stuck: true, ..Keys::default() });
        let (stored, token) = generate(TenantId::generate(), "heron").unwrap();
        store.insert(&stored, None).await.unwrap();
        let keys = ApiKeys::remembering(Arc::clone(&store) as _, Duration::from_millis(1));
        keys.verify(token.expose_secret()).await.unwrap();

        let guesses = (0..LOOKS_MAX + WAITING_MAX).map(|number| {
            let keys = keys.clone();
            async move { keys.verify(&guess(number)).await }
        });
        let mut guessing = std::pin::pin!(futures::future::join_all(guesses));
        // Not all of them come to it at the first poll.
        while keys.asking.available_permits() > 0 {
            assert!(futures::poll!(guessing.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        while keys.found.contains_key(&stored.prefix) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (asked, again) = (store.asked.load(Ordering::Relaxed), keys.verify(token.expose_secret()));
        tokio::time::timeout(Duration::from_secs(30), again).await.expect("it waits behind guesses").unwrap();
        assert!(store.asked.load(Ordering::Relaxed) > asked, "it is looked for anew");

        // One that nobody has seen before finds out that nobody looks.
        let crowded = tokio::time::timeout(Duration::from_secs(30), keys.verify(&guess(usize::from(u16::MAX)))).await;
        assert!(matches!(crowded.expect("no further guess waits"), Err(Error::Unavailable { source: None, .. })));
    }

    /// Once, 260 guesses under way refused every key that this front had not seen: behind a restart, every key.
    #[tokio::test(start_paused = true)]
    async fn a_key_that_nobody_has_seen_waits_behind_guesses_and_is_served() {
        let store = Arc::new(Keys { gate: Some(Semaphore::new(0)), ..Keys::default() });
        let (stored, token) = generate(TenantId::generate(), "heron").unwrap();
        store.insert(&stored, None).await.unwrap();
        let keys = ApiKeys::new(Arc::clone(&store) as _);
        let tokens = (0..300).map(guess).chain([token.expose_secret().to_owned()]).map(|token| {
            let keys = keys.clone();
            async move { keys.verify(&token).await }
        });
        let mut verifying = std::pin::pin!(futures::future::join_all(tokens));
        while keys.asking.available_permits() > LOOKS_MAX + WAITING_MAX - 301 {
            assert!(futures::poll!(verifying.as_mut()).is_pending(), "no guess is answered");
            tokio::task::yield_now().await;
        }
        store.gate.as_ref().unwrap().add_permits(LOOKS_MAX);
        let mut outcomes = verifying.await;
        assert_eq!(*outcomes.pop().unwrap().unwrap(), stored);
        assert!(outcomes.iter().all(is_refused));
    }

    /// Behind looks that don't come to an end.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_look_waits_for_two_seconds() {
        let keys = ApiKeys::new(Arc::new(Keys { is_stuck: true, ..Keys::default() }));
        let stuck = futures::future::join_all((0..LOOKS_MAX).map(|number| {
            let keys = keys.clone();
            async move { keys.verify(&guess(number)).await }
        }));
        let mut stuck = std::pin::pin!(stuck);
        while keys.first_looks.available_permits() > 0 {
            assert!(futures::poll!(stuck.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        let began = tokio::time::Instant::now();
        assert!(matches!(keys.verify(&guess(LOOKS_MAX)).await, Err(Error::Unavailable { .. })));
        assert_eq!(began.elapsed().as_secs(), WAIT_MAX.as_secs());
    }

    #[tokio::test]
    async fn a_store_that_is_down_refuses_nobody_for_good() {
        let keys = ApiKeys::new(Arc::new(Keys { is_down: true, ..Default::default() }));
        let (_, token) = generate(TenantId::generate(), "heron").unwrap();
        assert!(matches!(keys.verify(token.expose_secret()).await, Err(Error::Unavailable { .. })));
    }
}
