//! The one trait of all model providers, and the set of those that a worker has.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::breaker::Breakers;
use crate::delta::Delta;
use crate::error::Error;
use crate::refusals::Refusals;
use crate::request::Request;

/// An answer as it comes: ends after [`Delta::Stop`] or the first error, never silently in between. Dropping it ends
/// the call at the provider.
pub type DeltaStream = BoxStream<'static, Result<Delta, Error>>;

/// Something that answers like a model. One value serves many calls at a time.
pub trait Provider: Send + Sync {
    /// The word by which grants, native blocks and metrics name it.
    fn name(&self) -> &'static str;

    /// Tells the key that it uses from another of the same provider, and tells nothing of it.
    fn account(&self) -> u64 {
        0
    }

    /// False until there is a key to call it with.
    fn has_key(&self) -> bool {
        true
    }

    /// Whether a failure of one call says something of the next.
    fn fails_together(&self) -> bool {
        true
    }

    /// Makes one call, once: retrying is the caller's. Nothing happens until the stream is polled.
    fn stream(&self, request: Request) -> DeltaStream;

    /// The input tokens of a request by the provider's own count, which is quick and free of charge; `None` where it
    /// offers none.
    fn count_tokens(&self, request: Request) -> BoxFuture<'_, Result<Option<u32>, Error>> {
        drop(request);
        std::future::ready(Ok(None)).boxed()
    }
}

/// The providers of one worker, by name. Clones share what is known of their models.
#[derive(Clone, Default)]
pub struct Providers {
    by_name: BTreeMap<&'static str, Arc<dyn Provider>>,
    breakers: Breakers,
    refusals: Refusals,
}

impl Providers {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a provider, in place of an older one of that name.
    pub fn with(mut self, provider: impl Provider + 'static) -> Self {
        self.add(provider);
        self
    }

    /// Adds a provider, in place of an older one of that name.
    pub fn add(&mut self, provider: impl Provider + 'static) {
        self.by_name.insert(provider.name(), Arc::new(provider));
    }

    /// The provider of that name, if there is one with a key.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Provider>> {
        self.by_name.get(name).filter(|provider| provider.has_key()).cloned()
    }

    /// Who is left alone for a while.
    pub fn breakers(&self) -> &Breakers {
        &self.breakers
    }

    /// What their models refuse of a request.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.by_name.keys().copied()
    }
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.by_name.keys()).finish()
    }
}
