//! The limiter: which windows hold for whom.

use std::sync::Arc;
use std::time::Duration;

use croft_front::Error;
use croft_front::limits::rates::{ProviderRates, Rates};
use croft_front::limits::{Limiter, SPAN};
use croft_front::tenants::Tenants;
use croft_proto::id::TenantId;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteDelta, TenantLimits, TenantRoute, WatchRoutesResponse};
use prometheus::Registry;

use crate::{in_memory, in_redis};

struct Scene {
    limiter: Limiter,
    tenants: Tenants,
    registry: Registry,
}

impl Scene {
    fn new(counters: Arc<dyn croft_front::counters::Counters>, defaults: Rates, providers: &str) -> Self {
        let (tenants, registry) = (Tenants::new(), Registry::new());
        let providers = ProviderRates::parse(providers).unwrap();
        let limiter = Limiter::new(counters, tenants.clone(), defaults, providers, 3, &registry).unwrap();
        Self { limiter, tenants, registry }
    }

    fn tell(&self, tenant: TenantId, tier: &str, limits: TenantLimits) {
        let route = TenantRoute {
            tenant_id: tenant.to_string(),
            name: tenant.to_string(),
            tier: tier.into(),
            limits: Some(limits),
            ..TenantRoute::default()
        };
        let delta = RouteDelta { upserts: vec![route], removed_tenant_ids: Vec::new() };
        self.tenants.apply(WatchRoutesResponse { version: 1, change: Some(Change::Delta(delta)) });
    }
}

fn requests(requests_per_minute: u32) -> TenantLimits {
    TenantLimits { requests_per_minute, ..TenantLimits::default() }
}

#[tokio::test]
async fn a_tenants_own_rate_goes_before_the_default() {
    let scene = Scene::new(in_redis(), Rates { requests: 1, ..Rates::default() }, "{}");
    let [own, default] = [TenantId::generate(), TenantId::generate()];
    scene.tell(own, "free", requests(3));
    scene.tell(default, "free", requests(0));
    for _ in 0..3 {
        scene.limiter.request(own).await.unwrap();
    }
    assert!(scene.limiter.request(own).await.is_err());
    scene.limiter.request(default).await.unwrap();
    let error = scene.limiter.request(default).await.unwrap_err();
    let Error::RateLimited { resource: "requests", limit: 1, retry_after } = error else { panic!("{error:?}") };
    assert!(retry_after > Duration::from_secs(1) && retry_after <= SPAN, "{retry_after:?}");
    let told = scene.registry.gather();
    let refusals = told.iter().find(|family| family.name() == "croft_rate_refusals_total").unwrap();
    assert!((refusals.get_metric()[0].get_counter().get_value() - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_tier_has_its_rate_at_each_provider() {
    let providers = "anthropic: { free: { sessionsPerMinute: 1 }, '*': { sessionsPerMinute: 2 } }";
    let scene = Scene::new(in_redis(), Rates::default(), providers);
    let [free, paying] = [TenantId::generate(), TenantId::generate()];
    scene.tell(free, "free", requests(0));
    scene.tell(paying, "standard", requests(0));
    scene.limiter.session(free, "anthropic").await.unwrap();
    assert!(scene.limiter.session(free, "anthropic").await.is_err());
    scene.limiter.session(free, "openai").await.unwrap();
    scene.limiter.session(paying, "anthropic").await.unwrap();
    scene.limiter.session(paying, "anthropic").await.unwrap();
    assert!(scene.limiter.session(paying, "anthropic").await.is_err());

    // Who pays from now on has used what he has used.
    scene.tell(free, "standard", requests(0));
    scene.limiter.session(free, "anthropic").await.unwrap();
    assert!(scene.limiter.session(free, "anthropic").await.is_err());
}

/// Who tried again until a worker had room for the session found that the rate had none by then.
#[tokio::test]
async fn a_session_that_no_worker_took_counts_no_longer_and_one_that_is_kept_does() {
    for counters in [in_memory(), in_redis()] {
        let providers = "anthropic: { free: { sessionsPerMinute: 3 } }";
        let scene = Scene::new(counters, Rates { sessions: 2, ..Rates::default() }, providers);
        let tenant = TenantId::generate();
        scene.tell(tenant, "free", requests(0));
        let open = async || scene.limiter.session(tenant, "anthropic").await;
        for _ in 0..5 {
            let [first, second] = [open().await.unwrap().unwrap(), open().await.unwrap().unwrap()];
            assert!(open().await.is_err(), "while it is not known, they count");
            scene.limiter.give_back(first).await;
            scene.limiter.give_back(second).await;
        }
        let [kept, given_back] = [open().await.unwrap().unwrap(), open().await.unwrap().unwrap()];
        scene.limiter.keep(kept).await;
        scene.limiter.give_back(given_back).await;
        open().await.unwrap();
        let error = open().await.err().unwrap();
        assert!(matches!(error, Error::RateLimited { resource: "sessions", limit: 2, .. }), "{error:?}");
    }
}

/// All watchers of a replica come back when it goes, and were refused, with all else that their tenant called.
#[tokio::test]
async fn streams_that_are_resumed_take_nothing_from_other_calls() {
    let scene = Scene::new(in_redis(), Rates::default(), "{}");
    let [few, many, unlimited] = [TenantId::generate(), TenantId::generate(), TenantId::generate()];
    scene.tell(few, "free", requests(2));
    scene.tell(many, "free", requests(8));
    scene.tell(unlimited, "free", requests(0));
    // Three streams at a replica, twice.
    for _ in 0..6 {
        scene.limiter.resume(few).await.unwrap();
    }
    let error = scene.limiter.resume(few).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { resource: "resumes", limit: 6, .. }), "{error:?}");
    for _ in 0..2 {
        scene.limiter.request(few).await.unwrap();
    }
    assert!(scene.limiter.request(few).await.is_err());
    for _ in 0..8 {
        scene.limiter.resume(many).await.unwrap();
    }
    assert!(scene.limiter.resume(many).await.is_err());
    for _ in 0..10 {
        scene.limiter.resume(unlimited).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_rate_nothing_is_counted() {
    let scene = Scene::new(in_memory(), Rates::default(), "{}");
    let tenant = TenantId::generate();
    for _ in 0..1_000 {
        scene.limiter.request(tenant).await.unwrap();
        scene.limiter.session(tenant, "anthropic").await.unwrap();
    }
    assert!(scene.limiter.of_model_call(tenant, "anthropic", 1_000).windows.is_empty());
}

#[tokio::test]
async fn a_model_call_keeps_the_tenants_and_the_providers_rates() {
    let providers = "anthropic: { free: { tokensPerMinute: 50, requestsPerMinute: 9 } }";
    let scene = Scene::new(in_memory(), Rates::default(), providers);
    let tenant = TenantId::generate();
    scene.tell(tenant, "free", TenantLimits { tokens_per_minute: 80, ..TenantLimits::default() });
    let limits = scene.limiter.of_model_call(tenant, "anthropic", 30);
    let told: Vec<_> =
        limits.windows.iter().map(|window| (&*window.name, window.limit, window.amount, window.settles)).collect();
    let expected = [("tokens", 80, 30, true), ("tokens:anthropic", 50, 30, true), ("requests:anthropic", 9, 1, false)];
    assert_eq!(told, expected);
    let at_once = limits.refusal(1, Duration::ZERO);
    assert!(
        matches!(at_once, Error::RateLimited { resource: "tokens", limit: 50, retry_after } if !retry_after.is_zero())
    );
    let never = limits.refusal(0, Duration::from_hours(7));
    assert!(matches!(never, Error::RateLimited { retry_after, .. } if retry_after == SPAN));
}
