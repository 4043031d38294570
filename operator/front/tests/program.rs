//! The program as it is started: mistakes and missing servers end it with a sentence and an exit code, and no secret in either.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

use rcgen::{CertificateParams, KeyPair};

fn front(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_croft-front")).args(arguments).env_clear().output().unwrap()
}

fn complaint(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// A certificate, its key and itself as the authority.
fn certificate(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("ca.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
}

fn serve(folder: &Path, postgres_url: &str, redis_url: &str) -> Output {
    let file = |name: &str| folder.join(name).display().to_string();
    front(&[
        "serve",
        "--metrics-addr=127.0.0.1:0",
        &format!("--postgres-url={postgres_url}"),
        &format!("--redis-url={redis_url}"),
        "--operator-url=https://localhost:50053",
        &format!("--tls-cert={}", file("tls.crt")),
        &format!("--tls-key={}", file("tls.key")),
        &format!("--tls-ca={}", file("ca.crt")),
    ])
}

#[test]
fn each_missing_flag_is_named() {
    let output = front(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    for flag in
        ["--postgres-url (CROFT_POSTGRES_URL)", "--redis-url (CROFT_REDIS_URL)", "--operator-url (CROFT_OPERATOR_URL)"]
    {
        assert!(complaint(&output).contains(flag), "{}", complaint(&output));
    }
}

#[test]
fn a_missing_certificate_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = serve(folder.path(), "postgres://front@localhost/croft", "redis://localhost");
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("--tls-cert (CROFT_TLS_CERT)"), "{}", complaint(&output));
}

#[test]
fn a_missing_database_is_named_and_its_password_is_not() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    // Nothing listens on port 1.
    let output = serve(folder.path(), "postgres://front:hunter2@127.0.0.1:1/croft", "redis://127.0.0.1:1");
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("--postgres-url (CROFT_POSTGRES_URL)"), "{}", complaint(&output));
    assert!(!complaint(&output).contains("hunter2"), "{}", complaint(&output));
}

/// Redis carries events fast, and no more: a front starts without it, says so, and is not ready until it is there.
#[test]
fn a_missing_redis_is_told_and_its_password_is_not() {
    let database = std::env::var("CROFT_TEST_POSTGRES_URL")
        .expect("CROFT_TEST_POSTGRES_URL is not set: `make test-services` starts what it names");
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let output = serve(folder.path(), &database, "redis://:hunter2@127.0.0.1:1");
    let said = complaint(&output);
    assert!(said.contains("starting without Redis"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    // This database has never been migrated, and that is what ends it.
    assert_eq!(output.status.code(), Some(1), "{said}");
}

#[test]
fn a_migration_without_a_database_says_so() {
    let output = front(&["migrate", "--postgres-url=postgres://admin:hunter2@127.0.0.1:1/croft"]);
    assert_eq!(output.status.code(), Some(1));
    let said = complaint(&output);
    assert!(said.contains("PostgreSQL") && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_key_for_an_unknown_tenant_is_refused() {
    let admin = std::env::var("CROFT_TEST_POSTGRES_URL")
        .expect("CROFT_TEST_POSTGRES_URL is not set: `make test-services` starts what it names");
    // Its `postgres` database has no schema of ours.
    let output = front(&["api-key", "create", "--tenant=nobody", &format!("--postgres-url={admin}")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "a key was printed");
}
