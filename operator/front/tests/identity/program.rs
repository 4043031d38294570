//! The program as it is started takes what its flags name, and says what is wrong with them.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use croft_front::identity::Role;
use croft_front::store::Stores;
use croft_proto::id::TenantId;
use croft_proto::v1::ListSessionsRequest;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_serve::Tasks;
use rcgen::{CertificateParams, KeyPair};
use secrecy::ExposeSecret;
use serde_json::json;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::database::{Database, FRONT_ROLE};
use crate::issuer::{Issuer, Signer};
use crate::port::Port;
use crate::scene::{CLUSTER, PATIENCE, with_token};

fn front(arguments: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_croft-front"));
    command.args(arguments).env_clear();
    command
}

fn complaint(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// All that a front can't be without, and these flags.
fn serve(folder: &Path, postgres_url: &str, port: u16, flags: &[String]) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut arguments = vec![
        "serve".to_owned(),
        "--metrics-addr=127.0.0.1:0".into(),
        format!("--grpc-addr=127.0.0.1:{port}"),
        "--http-addr=127.0.0.1:0".into(),
        "--internal-addr=127.0.0.1:0".into(),
        format!("--postgres-url={postgres_url}"),
        // Nothing listens there: a front without Redis or operator serves, though nobody's tenant is known.
        "--redis-url=redis://127.0.0.1:1".into(),
        "--operator-url=https://127.0.0.1:1".into(),
        format!("--tls-cert={}", file("tls.crt")),
        format!("--tls-key={}", file("tls.key")),
        format!("--tls-ca={}", file("tls.crt")),
    ];
    arguments.extend_from_slice(flags);
    arguments
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn each_mistake_about_issuers_ends_it_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let providers = folder.path().join("providers.yaml");
    std::fs::write(&providers, "providers: [{ name: staff, issuer: 'https://a', audiences: [], tenantClaim: t }]")
        .unwrap();
    let flags = [
        format!("--identity-providers={}", providers.display()),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
    ];
    let output = front(&serve(folder.path(), "postgres://a:b@c/d", 0, &flags)).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = complaint(&output);
    for part in ["--identity-providers (CROFT_IDENTITY_PROVIDERS)", "providers[0].audiences", "must be set together"] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn it_asks_the_issuers_that_its_flags_name() {
    let (database, folder, tasks) = (Database::migrated().await, tempfile::tempdir().unwrap(), Tasks::new());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.path().join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.path().join("tls.key"), key.serialize_pem()).unwrap();
    let (people, cluster) = (Signer::ec("people-1"), Signer::rsa("cluster-1"));
    let issuer = Issuer::start(&tasks, &[&people]).await;
    let (providers, jwks) = (folder.path().join("providers.yaml"), folder.path().join("jwks.json"));
    let provider = json!({
        "name": "staff", "issuer": issuer.url, "audiences": ["croft"], "tenantClaim": "tenant",
        "roles": { "agents": "user" },
    });
    std::fs::write(&providers, json!({ "providers": [provider] }).to_string()).unwrap();
    std::fs::write(&jwks, json!({ "keys": [cluster.jwk()] }).to_string()).unwrap();
    let kept = Port::free();
    let port = kept.number();
    let flags = [
        format!("--identity-providers={}", providers.display()),
        format!("--service-account-issuer={CLUSTER}"),
        format!("--service-account-jwks={}", jwks.display()),
        "--service-account-audience=croft-e2e".to_owned(),
    ];
    let arguments = serve(folder.path(), &database.url_of(FRONT_ROLE), port, &flags);
    let running = Running(front(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy();
    let client = LifecycleServiceClient::new(channel);
    let ask = async |token: &str| -> Status {
        let answered = async {
            loop {
                let request = with_token(ListSessionsRequest::default(), token);
                match client.clone().list_sessions(request).await {
                    // It is not there yet, or has not yet had the keys.
                    Err(status) if status.code() != Code::Unavailable || status.message().contains("tenants") => {
                        return status;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Ok(listed) => panic!("sessions of nobody were listed: {listed:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("it never answers")
    };
    let exp = jsonwebtoken::get_current_timestamp() + 600;
    let person = json!({
        "iss": issuer.url, "aud": "croft", "sub": "u-17", "exp": exp, "tenant": "heron", "roles": ["agents"],
    });
    let account = json!({
        "iss": CLUSTER, "aud": ["croft-e2e"], "sub": "system:serviceaccount:tenant-heron:builder", "exp": exp,
    });
    // Whoever is let in that far is only held up by nobody knowing the tenants.
    for good in [people.sign(&person), cluster.sign(&account)] {
        let status = ask(&good).await;
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "the list of tenants is not available"));
    }
    assert!(issuer.fetches() >= 1);
    for bad in [Signer::ec("people-1").sign(&person), people.sign(&account), "bad".to_owned()] {
        assert_eq!(ask(&bad).await.code(), Code::Unauthenticated);
    }
    drop(running);
    database.end().await;
}

#[tokio::test]
async fn a_key_is_made_for_the_role_that_is_named() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    stores.tenants.upsert(TenantId::generate(), "heron").await.unwrap();
    let create = |flags: &[&str]| {
        let url = format!("--postgres-url={}", database.admin_url().expose_secret());
        let base = ["api-key", "create", "--tenant=heron", &url];
        front(&[&base[..], flags].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()).output().unwrap()
    };
    for (flags, role) in [(&["--role=viewer"][..], Role::Viewer), (&[][..], Role::Admin)] {
        let output = create(flags);
        assert!(output.status.success(), "{}", complaint(&output));
        let key = String::from_utf8(output.stdout).unwrap();
        let kept = stores.keys.find(&key["ck_".len()..][..8]).await.unwrap().unwrap();
        assert_eq!(kept.role, role);
    }
    let output = create(&["--role=owner"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("--role"), "{}", complaint(&output));
    database.end().await;
}

#[tokio::test]
async fn a_key_is_listed_and_revoked_and_all_of_it_recorded() {
    let database = Database::migrated().await;
    let postgres = database.front().await;
    let stores = Stores::postgres(&postgres, &Tasks::new());
    let heron = TenantId::generate();
    stores.tenants.upsert(heron, "heron").await.unwrap();
    let run = |arguments: &[&str]| {
        let url = format!("--postgres-url={}", database.admin_url().expose_secret());
        let all = [&["api-key"], arguments, &["--tenant=heron", &url]].concat();
        front(&all.into_iter().map(str::to_owned).collect::<Vec<_>>()).output().unwrap()
    };
    let said = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{}", complaint(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let key = said(&["create", "--role=user", "--expires=90d"]);
    let shown = &key["ck_".len()..][..8];
    let prefix = format!("--prefix=ck_{shown}");
    let listed = said(&["list"]);
    assert!(listed.contains(shown) && listed.lines().count() == 2 && listed.ends_with("Z  -\n"), "{listed}");
    let kept = &stores.keys.list(heron).await.unwrap()[0];
    let good_for = kept.expire_time.unwrap().seconds - kept.create_time.seconds;
    assert!((90 * 86_400 - 60..=90 * 86_400).contains(&good_for), "{good_for} s");

    // Twice is harmless; of a key that there is none of it is an error, and what is no prefix is a mistake.
    for _ in 0..2 {
        said(&["revoke", &prefix]);
        assert_eq!(stores.keys.find(shown).await.unwrap(), None);
    }
    let unknown = run(&["revoke", "--prefix=00000000"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(complaint(&unknown).contains("no API key ck_00000000"), "{}", complaint(&unknown));
    assert_eq!(run(&["revoke", "--prefix=%"]).status.code(), Some(2));
    assert_eq!(run(&["create", "--expires=yesterday"]).status.code(), Some(2));

    let records = stores.audit.list(heron, 0, 10).await.unwrap();
    let recorded: Vec<_> =
        records.iter().map(|record| (&*record.action, &*record.resource, &*record.outcome)).collect();
    let resource = format!("api-keys/ck_{shown}");
    assert_eq!(
        recorded,
        [
            ("api_key.create", &*resource, "ok"),
            ("api_key.revoke", &resource, "ok"),
            ("api_key.revoke", &resource, "ok")
        ]
    );
    database.end().await;
}
