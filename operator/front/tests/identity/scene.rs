//! A front without workers behind its real ports, two tenants, an issuer of people and one of service accounts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use croft_front::Error;
use croft_front::app::{Parts, assemble, public_routes, seen, serve_public};
use croft_front::core::{Core, Options};
use croft_front::counters::memory::Memory;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::gateway;
use croft_front::identity::api_key::{StoredKey, generate};
use croft_front::identity::settings::{Provider, ServiceAccounts, Timing};
use croft_front::identity::{Identity, Role, Settings};
use croft_front::store::Stores;
use croft_front::tenants::Tenants;
use croft_proto::id::TenantId;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteSnapshot, TenantRoute, WatchRoutesResponse};
use croft_serve::connections::{Bounds, Connections};
use croft_serve::{Metrics, Readiness, Tasks};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::issuer::{Issuer, Signer};

/// Longer than anything here takes; what it bounds has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at whether the credential of a stream still holds.
const RECHECK: Duration = Duration::from_millis(50);
pub(crate) const CLUSTER: &str = "https://kubernetes.default.svc.cluster.local";

pub(crate) struct Scene {
    pub(crate) people: Signer,
    pub(crate) cluster: Signer,
    pub(crate) issuer: Issuer,
    pub(crate) core: Arc<Core>,
    pub(crate) heron: TenantId,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    _files: tempfile::TempDir,
}

/// Quick, and to the second.
pub(crate) fn timing() -> Timing {
    Timing {
        fetch_timeout: Duration::from_secs(20),
        cooldown: Duration::from_millis(200),
        refresh_every: Duration::from_hours(1),
        leeway: Duration::ZERO,
    }
}

pub(crate) fn provider(issuer: &Issuer) -> Provider {
    let provider = json!({
        "name": "staff", "issuer": issuer.url, "audiences": ["croft", "croft-staging"], "tenantClaim": "tenant",
    });
    serde_json::from_value(provider).unwrap()
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::with(timing(), |_| {}).await
    }

    /// `change` is done to the issuer before the front knows of it.
    pub(crate) async fn with(timing: Timing, change: impl FnOnce(&Issuer)) -> Self {
        Self::within(Options::default(), timing, change).await
    }

    pub(crate) async fn within(options: Options, timing: Timing, change: impl FnOnce(&Issuer)) -> Self {
        let (people, cluster, tasks) = (Signer::ec("people-1"), Signer::rsa("cluster-1"), Tasks::new());
        let issuer = Issuer::start(&tasks, &[&people]).await;
        change(&issuer);
        let files = tempfile::tempdir().unwrap();
        let jwks = files.path().join("jwks.json");
        std::fs::write(&jwks, json!({ "keys": [cluster.jwk()] }).to_string()).unwrap();
        let service_accounts = ServiceAccounts {
            issuer: CLUSTER.to_owned(),
            jwks: jwks.display().to_string(),
            ca_file: None,
            audience: "croft".to_owned(),
            role: Role::User,
        };
        let identity =
            Settings { providers: vec![provider(&issuer)], service_accounts: Some(service_accounts), timing };
        let (stores, tenants) = (Stores::memory(), Tenants::new());
        let heron = TenantId::generate();
        let mut routes = Vec::new();
        for (id, name) in [(heron, "heron"), (TenantId::generate(), "plover")] {
            stores.tenants.upsert(id, name).await.unwrap();
            let namespace = format!("tenant-{name}");
            routes.push(TenantRoute { tenant_id: id.to_string(), name: name.into(), namespace, ..Default::default() });
        }
        let change = Some(Change::Snapshot(RouteSnapshot { tenants: routes }));
        tenants.apply(WatchRoutesResponse { version: 1, change });
        let parts = Parts {
            replica: "front-0".into(),
            stores,
            relay: Arc::new(MemoryRelay::default()),
            counters: Arc::new(Memory::default()),
            tenants,
            tls: None,
            options: Options { identity, credential_recheck: RECHECK, ..options },
        };
        let (metrics, readiness) = (Metrics::new("croft-front").unwrap(), Readiness::new());
        let core = assemble(parts, &tasks, metrics.registry()).await.unwrap();
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (grpc, http) = (public.local_addr().unwrap(), web.local_addr().unwrap());
        let calls = seen(public_routes(&core, &readiness, false).await.unwrap(), &metrics);
        let [public, web] = [("grpc", public), ("http", web)]
            .map(|(port, listener)| Connections::new(listener, port, Bounds::default(), &metrics));
        serve_public(public, &core, calls.clone());
        gateway::serve(web, &core, calls, Vec::new(), &readiness, metrics.registry()).unwrap();
        Self { people, cluster, issuer, core, heron, grpc, http, _files: files }
    }

    /// What a good token of the issuer says.
    pub(crate) fn claims(&self) -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({
            "iss": self.issuer.url, "aud": "croft", "sub": "u-17", "iat": now, "nbf": now - 1, "exp": now + 600,
            "tenant": "heron", "roles": ["user"],
        })
    }

    /// A token that differs from a good one in this claim; `null` takes it away.
    pub(crate) fn changed(&self, claim: &str, value: Value) -> String {
        self.people.sign(&self.changed_claims(claim, value))
    }

    pub(crate) fn changed_claims(&self, claim: &str, value: Value) -> Value {
        let mut claims = self.claims();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
            value => claims[claim] = value,
        }
        claims
    }

    /// As the API server signs it for a pod.
    #[expect(clippy::unused_self, reason = "it reads like the other claims")]
    pub(crate) fn service_account(&self, namespace: &str) -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({
            "iss": CLUSTER, "aud": ["croft"], "iat": now, "nbf": now, "exp": now + 600,
            "sub": format!("system:serviceaccount:{namespace}:builder"),
            "kubernetes.io": { "namespace": namespace, "serviceaccount": { "name": "builder", "uid": "c0ffee" } },
        })
    }

    pub(crate) async fn api_key(&self, role: Role) -> String {
        let (made, key) = generate(self.heron, "heron").unwrap();
        self.core.stores.keys.insert(&StoredKey { role, ..made }, None).await.unwrap();
        key.expose_secret().to_owned()
    }

    pub(crate) async fn identify(&self, token: &str) -> Result<Identity, Error> {
        self.core.authenticator.authenticate_bearer(token).await
    }

    /// Waits until the token is taken.
    pub(crate) async fn taken(&self, token: &str) -> Identity {
        let trying = async {
            loop {
                if let Ok(identity) = self.identify(token).await {
                    return identity;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.expect("the token is never taken")
    }

    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap().connect_lazy()
    }
}

/// A request with a bearer token.
pub(crate) fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub(crate) fn is_refused(outcome: &Result<Identity, Error>) -> bool {
    matches!(outcome, Err(Error::Unauthenticated { .. }))
}

pub(crate) fn is_unavailable(outcome: &Result<Identity, Error>) -> bool {
    matches!(outcome, Err(Error::Unavailable { .. }))
}
