//! A provider's key, which may be exchanged for another while calls are made.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use secrecy::{ExposeSecret as _, SecretString};

/// The next number by which keys are told apart.
static ACCOUNTS: AtomicU64 = AtomicU64::new(1);

/// Clones share it: what one is given, all have. It prints nothing of the key.
#[derive(Clone)]
pub struct ApiKey {
    held: Arc<RwLock<Arc<Held>>>,
}

/// One key. A call that has begun goes on with it, whatever comes meanwhile.
pub(crate) struct Held {
    secret: Option<SecretString>,
    /// Tells this key from others, and tells nothing of it.
    pub(crate) account: u64,
}

impl ApiKey {
    /// One that is yet to come. Until it does, nobody can be asked with it.
    pub fn missing() -> Self {
        Self::of(None)
    }

    fn of(secret: Option<SecretString>) -> Self {
        Self { held: Arc::new(RwLock::new(Held::new(secret))) }
    }

    /// Calls that begin from now on are made with this one. Whatever was learnt of how the other fared is not held against it.
    pub fn replace(&self, secret: SecretString) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Held::new(Some(secret));
    }

    /// Whether it is this one.
    pub fn is(&self, secret: &SecretString) -> bool {
        self.held().secret.as_ref().is_some_and(|held| held.expose_secret() == secret.expose_secret())
    }

    /// It has come.
    pub fn is_there(&self) -> bool {
        self.held().secret.is_some()
    }

    pub(crate) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Held {
    fn new(secret: Option<SecretString>) -> Arc<Self> {
        Arc::new(Self { secret, account: ACCOUNTS.fetch_add(1, Ordering::Relaxed) })
    }

    /// The key itself, for a header. Empty where none is to be sent.
    pub(crate) fn expose(&self) -> &str {
        self.secret.as_ref().map(SecretString::expose_secret).unwrap_or_default()
    }
}

/// An empty one is not sent: a model that is served in the cluster may ask for none.
impl From<SecretString> for ApiKey {
    fn from(secret: SecretString) -> Self {
        Self::of(Some(secret))
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ApiKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_have_the_new_one_and_a_call_keeps_its_own() {
        let key = ApiKey::from(SecretString::from("old"));
        let (clone, call) = (key.clone(), key.held());
        clone.replace(SecretString::from("new"));
        assert!(key.is(&SecretString::from("new")) && !key.is(&SecretString::from("old")));
        assert_eq!((call.expose(), key.held().expose()), ("old", "new"));
        assert_ne!(call.account, key.held().account);
    }

    #[test]
    fn one_that_is_missing_is_not_the_same_as_none() {
        let key = ApiKey::missing();
        assert!(!key.is_there() && !key.is(&SecretString::default()));
        key.replace(SecretString::default());
        assert!(key.is_there());
    }
}
