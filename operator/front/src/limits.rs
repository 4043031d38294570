//! How often a tenant may do something: sliding windows of a minute over calls, sessions and tokens, of the tenant and of the tenant
//! at one provider.
//!
//! The windows are counted across replicas; a tenant whose tier changes keeps what it has used and gets the new limits.

pub mod rates;

use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TenantId;
use prometheus::{IntCounterVec, Opts, Registry};
use uuid::Uuid;

use crate::counters::{Ask, Counters, Settlement, Verdict, Window};
use crate::error::Error;
use crate::tenants::Tenants;
use rates::{ProviderRates, Rates};

/// What the windows span.
pub const SPAN: Duration = Duration::from_mins(1);
/// Streams that a tenant may resume in a minute, for each that it may have at a replica: of one that goes away all come back, some to one
/// that goes next.
const RESUMES_A_STREAM: i64 = 2;
/// A refused caller is told to come back within these bounds: not so soon that it hammers, and never later than the window spans.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(50), SPAN];

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Calls of the tenant's clients, and calls of its workers to one provider.
    Requests,
    /// Streams that clients go on with.
    Resumes,
    /// New sessions.
    Sessions,
    /// Tokens of all classes, that models use.
    Tokens,
}

impl Resource {
    /// As callers, metrics and quota violations name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Resumes => "resumes",
            Self::Sessions => "sessions",
            Self::Tokens => "tokens",
        }
    }
}

/// Limits of one tenant that an ask must keep, in the order of its windows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    resources: Vec<Resource>,
    pub windows: Vec<Window>,
}

impl Limits {
    /// No window for a rate of 0, which is none.
    fn add(&mut self, resource: Resource, provider: &str, rate: i64, amount: i64) {
        if rate > 0 {
            let name = match provider {
                "" => resource.as_str().to_owned(),
                provider => format!("{}:{}", resource.as_str(), provider.replace(char::is_whitespace, "_")),
            };
            // A session may come to nothing.
            let settles = matches!(resource, Resource::Tokens | Resource::Sessions);
            self.resources.push(resource);
            self.windows.push(Window { name, limit: rate, span: SPAN, amount, settles });
        }
    }

    /// The refusal of a window that is full.
    pub fn refusal(&self, window: usize, retry_after: Duration) -> Error {
        let resource = self.resources.get(window).map_or("requests", |resource| resource.as_str());
        let limit = self.windows.get(window).map_or(0, |window| window.limit);
        let [soonest, latest] = RETRY_AFTER;
        Error::RateLimited { resource, limit, retry_after: retry_after.clamp(soonest, latest) }
    }
}

/// A session that counts in windows, and is yet to be opened.
pub struct Counted {
    tenant: TenantId,
    /// Of the ask.
    id: String,
}

/// Knows each tenant's limits, and holds calls to them; cheap to clone.
#[derive(Clone)]
pub struct Limiter {
    counters: Arc<dyn Counters>,
    tenants: Tenants,
    defaults: Rates,
    providers: Arc<ProviderRates>,
    resumes: i64,
    refusals: IntCounterVec,
}

impl Limiter {
    /// `defaults` are for tenants that have no limit of their own, and `streams_max` is how many streams a tenant may have at a replica.
    /// Fails if its instrument is registered already.
    pub fn new(
        counters: Arc<dyn Counters>,
        tenants: Tenants,
        defaults: Rates,
        providers: ProviderRates,
        streams_max: usize,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let refusals = Opts::new("croft_rate_refusals_total", "Calls that were refused since a rate was used up");
        let refusals = IntCounterVec::new(refusals, &["resource"])?;
        registry.register(Box::new(refusals.clone()))?;
        let resumes = i64::try_from(streams_max).unwrap_or(i64::MAX).saturating_mul(RESUMES_A_STREAM);
        Ok(Self { counters, tenants, defaults, providers: Arc::new(providers), resumes, refusals })
    }

    /// A client calls. Fails with [`Error::RateLimited`].
    pub async fn request(&self, tenant: TenantId) -> Result<(), Error> {
        let mut limits = Limits::default();
        limits.add(Resource::Requests, "", self.rates(tenant).requests, 1);
        self.judge(tenant, limits).await.map(drop)
    }

    /// A client goes on with a stream of events that broke off: most often since a replica went away, and with all others of that replica.
    /// They have a window of their own, in which there is room for them, and take none from other calls. A tenant that may call without
    /// a limit may resume so. Fails with [`Error::RateLimited`].
    pub async fn resume(&self, tenant: TenantId) -> Result<(), Error> {
        let requests = self.rates(tenant).requests;
        let mut limits = Limits::default();
        limits.add(Resource::Resumes, "", if requests > 0 { requests.max(self.resumes) } else { 0 }, 1);
        self.judge(tenant, limits).await.map(drop)
    }

    /// A session is to be opened, whose model is this provider's. What it counts is to be [kept](Self::keep) or [given
    /// back](Self::give_back); `None` without a rate. Fails with [`Error::RateLimited`].
    pub async fn session(&self, tenant: TenantId, provider: &str) -> Result<Option<Counted>, Error> {
        let mut limits = Limits::default();
        limits.add(Resource::Sessions, "", self.rates(tenant).sessions, 1);
        limits.add(Resource::Sessions, provider, self.provider_rates(tenant, provider).sessions, 1);
        self.judge(tenant, limits).await
    }

    /// The session has a worker: it counts for as long as a window spans.
    pub async fn keep(&self, counted: Counted) {
        self.settle(counted, None).await;
    }

    /// No worker has taken the session: it counts no longer.
    pub async fn give_back(&self, counted: Counted) {
        self.settle(counted, Some(0)).await;
    }

    /// Never fails: what could not be done, the session's moment makes up for as it leaves its windows.
    async fn settle(&self, counted: Counted, amount: Option<i64>) {
        let Counted { tenant, id } = counted;
        if let Err(error) = self.counters.settle(&Settlement { tenant, id, tokens: amount, bounds: Vec::new() }).await {
            tracing::debug!(%tenant, %error, "a session that counts in a rate is not settled");
        }
    }

    /// What a model call of so many tokens must keep.
    pub fn of_model_call(&self, tenant: TenantId, provider: &str, tokens: i64) -> Limits {
        let at_provider = self.provider_rates(tenant, provider);
        let mut limits = Limits::default();
        limits.add(Resource::Tokens, "", self.rates(tenant).tokens, tokens);
        limits.add(Resource::Tokens, provider, at_provider.tokens, tokens);
        limits.add(Resource::Requests, provider, at_provider.requests, 1);
        limits
    }

    /// Takes a refusal down.
    pub fn refused(&self, error: &Error) {
        if let Error::RateLimited { resource, .. } = error {
            self.refusals.with_label_values(&[resource]).inc();
        }
    }

    /// For what counts as one. `None` without a window.
    async fn judge(&self, tenant: TenantId, limits: Limits) -> Result<Option<Counted>, Error> {
        if limits.windows.is_empty() {
            return Ok(None);
        }
        let ask = Ask {
            tenant,
            id: Uuid::now_v7().to_string(),
            ttl: SPAN,
            nano_usd: 0,
            // What a settlement corrects.
            tokens: 1,
            windows: limits.windows.clone(),
            bounds: Vec::new(),
        };
        match self.counters.admit(&ask).await?.verdict {
            Verdict::Full { window, retry_after } => {
                let error = limits.refusal(window, retry_after);
                self.refused(&error);
                Err(error)
            }
            // Without bounds there is nothing to be spent or unknown.
            Verdict::Granted(_) | Verdict::Spent { .. } | Verdict::Unknown(_) => {
                Ok(Some(Counted { tenant, id: ask.id }))
            }
        }
    }

    /// The tenant's own rates, and where it has none the defaults.
    fn rates(&self, tenant: TenantId) -> Rates {
        let told = self.tenants.get(tenant).map(|tenant| tenant.limits).unwrap_or_default();
        let or = |own: i64, default: i64| if own > 0 { own } else { default };
        Rates {
            requests: or(i64::from(told.requests_per_minute), self.defaults.requests),
            sessions: self.defaults.sessions,
            tokens: or(told.tokens_per_minute, self.defaults.tokens),
        }
    }

    fn provider_rates(&self, tenant: TenantId, provider: &str) -> Rates {
        let tier = self.tenants.get(tenant).map(|tenant| tenant.tier.clone()).unwrap_or_default();
        self.providers.of(provider, &tier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_comes_back_neither_at_once_nor_later_than_the_window_spans() {
        let told = |after: Duration| match Limits::default().refusal(0, after) {
            Error::RateLimited { retry_after, .. } => retry_after,
            other => panic!("{other:?}"),
        };
        let [least, most] = [Duration::from_millis(50), Duration::from_mins(1)];
        assert_eq!(told(Duration::ZERO), least);
        assert_eq!(told(Duration::from_millis(51)), Duration::from_millis(51));
        assert_eq!(told(most * 2), most);
    }
}
