//! An issuer of tokens: its keys, and the server that it publishes them by.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use croft_serve::Tasks;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A pair of keys with an id.
pub(crate) struct Signer {
    pub(crate) kid: String,
    algorithm: Algorithm,
    key: EncodingKey,
    /// As anyone can have it from the JWKS.
    pub(crate) public_pem: String,
}

impl Signer {
    pub(crate) fn ec(kid: &str) -> Self {
        let pair = KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_der(pair.serialized_der());
        Self { kid: kid.to_owned(), algorithm: Algorithm::ES256, key, public_pem: pair.public_key_pem() }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self { kid: kid.to_owned(), algorithm: Algorithm::RS256, key, public_pem: pair.public_key_pem() }
    }

    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.clone());
        serde_json::to_value(jwk).unwrap()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.kid, claims)
    }

    /// Under the id of some other key.
    pub(crate) fn sign_as(&self, kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }

    pub(crate) fn sign_without_kid(&self, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(self.algorithm), claims, &self.key).unwrap()
    }
}

/// The server. It counts who asks for its keys.
#[derive(Clone)]
pub(crate) struct Issuer {
    pub(crate) url: String,
    published: Arc<Published>,
}

struct Published {
    url: String,
    jwks: Mutex<Result<Value, StatusCode>>,
    fetches: AtomicUsize,
    delay_ms: AtomicU64,
}

impl Issuer {
    pub(crate) async fn start(tasks: &Tasks, signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let published = Arc::new(Published {
            url: url.clone(),
            jwks: Mutex::new(Ok(jwks(signers))),
            fetches: AtomicUsize::new(0),
            delay_ms: AtomicU64::new(0),
        });
        let router = Router::new()
            .route("/keys", get(keys))
            .route("/.well-known/openid-configuration", get(discovery))
            .with_state(Arc::clone(&published));
        let stopping = tasks.stopping().cancelled_owned();
        drop(tasks.spawn("issuer", async move {
            axum::serve(listener, router).with_graceful_shutdown(stopping).await.unwrap();
        }));
        Self { url, published }
    }

    /// From now on it has these keys.
    pub(crate) fn publish(&self, signers: &[&Signer]) {
        *self.published.jwks.lock().unwrap() = Ok(jwks(signers));
    }

    /// From now on it answers so.
    pub(crate) fn fail(&self, status: StatusCode) {
        *self.published.jwks.lock().unwrap() = Err(status);
    }

    /// From now on it takes so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.published.delay_ms.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }

    pub(crate) fn fetches(&self) -> usize {
        self.published.fetches.load(Ordering::Relaxed)
    }
}

fn jwks(signers: &[&Signer]) -> Value {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() })
}

async fn keys(State(published): State<Arc<Published>>) -> Result<Json<Value>, StatusCode> {
    published.fetches.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(published.delay_ms.load(Ordering::Relaxed))).await;
    published.jwks.lock().unwrap().clone().map(Json)
}

async fn discovery(State(published): State<Arc<Published>>) -> Json<Value> {
    Json(json!({ "issuer": published.url, "jwks_uri": format!("{}/keys", published.url) }))
}
