//! What is no credential, and what the bearer learns of it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use croft_front::Error;
use croft_front::identity::Role;
use croft_proto::v1::ListSessionsRequest;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt;

use crate::issuer::Signer;
use crate::scene::{CLUSTER, Scene, is_refused, with_token};

fn base64(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Signed with what everybody knows, in the hope that it is taken for a shared secret.
fn confused(scene: &Scene, secret: &[u8]) -> String {
    let header = Header { kid: Some(scene.people.kid.clone()), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, &scene.claims(), &EncodingKey::from_secret(secret)).unwrap()
}

fn unsigned(scene: &Scene, alg: &str) -> String {
    let header = json!({ "alg": alg, "typ": "JWT", "kid": scene.people.kid });
    format!("{}.{}.", base64(&header), base64(&scene.claims()))
}

/// With other claims under the same signature.
fn tampered(scene: &Scene) -> String {
    let token = scene.changed("tenant", json!("heron"));
    let parts: Vec<_> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], base64(&scene.changed_claims("tenant", json!("plover"))), parts[2])
}

#[tokio::test]
async fn every_bad_token_is_refused_in_the_same_words() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    let (now, good) = (jsonwebtoken::get_current_timestamp(), scene.people.sign(&scene.claims()));
    let (stranger, rsa) = (Signer::ec("people-1"), Signer::rsa("people-1"));
    let critical = json!({ "alg": "ES256", "kid": "people-1", "crit": ["b64"], "b64": false });
    let refused = [
        ("not yet valid", scene.changed("nbf", json!(now + 300))),
        ("no expiry", scene.changed("exp", Value::Null)),
        ("expiry that is no number", scene.changed("exp", json!("tomorrow"))),
        ("foreign audience", scene.changed("aud", json!("kubernetes"))),
        ("foreign audiences", scene.changed("aud", json!(["kubernetes", "https://croft"]))),
        ("no audience", scene.changed("aud", Value::Null)),
        ("foreign issuer", scene.changed("iss", json!("https://login.example.com"))),
        ("issuer with a slash more", scene.changed("iss", json!(format!("{}/", scene.issuer.url)))),
        ("several issuers", scene.changed("iss", json!([scene.issuer.url]))),
        ("no issuer", scene.changed("iss", Value::Null)),
        ("the cluster's name", scene.changed("iss", json!(CLUSTER))),
        ("no subject", scene.changed("sub", Value::Null)),
        ("unknown tenant", scene.changed("tenant", json!("curlew"))),
        ("no tenant claim", scene.changed("tenant", Value::Null)),
        ("several tenants", scene.changed("tenant", json!(["heron", "plover"]))),
        ("another's key under the id", stranger.sign(&scene.claims())),
        ("another family's key under the id", rsa.sign(&scene.claims())),
        ("no key id", scene.people.sign_without_kid(&scene.claims())),
        ("unknown key id", scene.people.sign_as("people-2", &scene.claims())),
        ("HS256 with the public key as PEM", confused(&scene, scene.people.public_pem.as_bytes())),
        ("HS256 with the public key as JWK", confused(&scene, scene.people.jwk()["x"].as_str().unwrap().as_bytes())),
        ("HS256 with a guess", confused(&scene, b"secret")),
        ("alg none", unsigned(&scene, "none")),
        ("alg None", unsigned(&scene, "None")),
        ("ES256 without a signature", unsigned(&scene, "ES256")),
        ("tampered", tampered(&scene)),
        ("a part less", good.rsplit_once('.').unwrap().0.to_owned()),
        ("a part more", format!("{good}.AAAA")),
        ("unknown critical header", format!("{}.{}.AAAA", base64(&critical), base64(&scene.claims()))),
        ("no JSON", "e30.bm8.bm8".to_owned()),
        ("nothing", String::new()),
        ("10 MB", "a".repeat(10 * 1024 * 1024)),
        ("10 MB of claims", scene.changed("padding", json!("a".repeat(10 * 1024 * 1024)))),
    ];
    let mut words = Vec::new();
    for (what, token) in refused {
        let outcome = scene.identify(&token).await;
        assert!(is_refused(&outcome), "{what}: {outcome:?}");
        words.push(outcome.unwrap_err().to_string());
    }
    words.dedup();
    assert_eq!(words.len(), 1, "{words:?}");
    let expired = scene.identify(&scene.changed("exp", json!(now - 1))).await.unwrap_err();
    assert_eq!(expired.to_string(), "no valid credential: the token has expired");
    // But only to whom it belonged.
    let forged = stranger.sign(&scene.changed_claims("exp", json!(now - 1)));
    assert_eq!(scene.identify(&forged).await.unwrap_err().to_string(), words[0]);
    // None of it has done harm.
    assert_eq!(scene.identify(&good).await.unwrap().tenant, scene.heron);
}

#[tokio::test]
async fn a_service_account_speaks_for_the_tenant_of_its_namespace_alone() {
    let scene = Scene::new().await;
    let identity = scene.taken(&scene.cluster.sign(&scene.service_account("tenant-heron"))).await;
    assert_eq!((identity.tenant, identity.actor.as_str()), (scene.heron, "service-account/tenant-heron/builder"));
    assert_eq!(identity.roles, Role::User.into());

    let with = |claim: &str, value: Value| {
        let mut claims = scene.service_account("tenant-heron");
        claims[claim] = value;
        scene.cluster.sign(&claims)
    };
    for (what, token) in [
        ("another namespace", scene.cluster.sign(&scene.service_account("kube-system"))),
        ("no such tenant", scene.cluster.sign(&scene.service_account("tenant-curlew"))),
        ("for the API server", with("aud", json!([CLUSTER]))),
        ("no service account", with("sub", json!("system:node:tenant-heron:builder"))),
        ("two minds", with("kubernetes.io", json!({ "namespace": "tenant-plover" }))),
        ("the people's issuer", with("iss", json!(scene.issuer.url))),
        ("the people's key", scene.people.sign(&scene.service_account("tenant-heron"))),
        ("an HS256 of its own", confused(&scene, scene.cluster.public_pem.as_bytes())),
    ] {
        let outcome = scene.identify(&token).await;
        assert!(is_refused(&outcome), "{what}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_tenant_that_is_gone_takes_its_tokens_with_it() {
    use croft_proto::v1::watch_routes_response::Change;
    use croft_proto::v1::{RouteSnapshot, WatchRoutesResponse};

    let scene = Scene::new().await;
    let token = scene.people.sign(&scene.claims());
    scene.taken(&token).await;
    let change = Some(Change::Snapshot(RouteSnapshot::default()));
    scene.core.tenants.apply(WatchRoutesResponse { version: 2, change });
    assert!(is_refused(&scene.identify(&token).await));
}

/// Whoever made a namespace before its tenant was there could make service accounts in it, and spoke for the tenant.
#[tokio::test]
async fn nobody_in_a_namespace_that_is_not_the_tenants_speaks_for_it() {
    use croft_proto::v1::watch_routes_response::Change;
    use croft_proto::v1::{RouteSnapshot, TenantRoute, WatchRoutesResponse};

    let scene = Scene::new().await;
    let token = scene.cluster.sign(&scene.service_account("tenant-heron"));
    scene.taken(&token).await;
    let heron = TenantRoute { tenant_id: scene.heron.to_string(), name: "heron".into(), ..TenantRoute::default() };
    let change = Some(Change::Snapshot(RouteSnapshot { tenants: vec![heron] }));
    scene.core.tenants.apply(WatchRoutesResponse { version: 2, change });
    let outcome = scene.identify(&token).await;
    assert!(is_refused(&outcome), "{outcome:?}");
    scene.taken(&scene.people.sign(&scene.claims())).await;
}

#[tokio::test]
async fn a_good_token_without_a_role_is_good_for_nothing() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    for roles in [Value::Null, json!([]), json!(["owner"]), json!({ "admin": true })] {
        let outcome = scene.identify(&scene.changed("roles", roles.clone())).await;
        assert!(matches!(outcome, Err(Error::Forbidden { action: "any call" })), "{roles}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_typed_on_the_wire_and_10_mb_harm_nobody() {
    let scene = Scene::new().await;
    let good = scene.people.sign(&scene.claims());
    scene.taken(&good).await;
    let mut client = LifecycleServiceClient::new(scene.channel());
    let refused =
        client.list_sessions(with_token(ListSessionsRequest::default(), &tampered(&scene))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "UNAUTHENTICATED");
    assert_eq!(
        refused.message(),
        "no valid credential: the authorization header must be `Bearer` and a valid API key or token"
    );

    let huge = with_token(ListSessionsRequest::default(), &"a".repeat(10 * 1024 * 1024));
    let outcome = tokio::time::timeout(crate::scene::PATIENCE, client.list_sessions(huge)).await.unwrap();
    assert!(outcome.is_err());
    let mut anew = LifecycleServiceClient::new(scene.channel());
    anew.list_sessions(with_token(ListSessionsRequest::default(), &good)).await.unwrap();
}
