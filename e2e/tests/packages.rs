//! What each program is made of, as `cargo tree` tells it: a worker has no way to a database and none to the cluster, since what a
//! tenant's code may reach there is not linked.

use std::collections::BTreeSet;
use std::process::Command;

/// The packages that are linked into this one, itself included.
fn linked(package: &str) -> BTreeSet<String> {
    let arguments =
        ["tree", "--locked", "--offline", "--edges=normal", "--prefix=none", "--format={p}", "--package", package];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let told = Command::new(cargo).args(arguments).output().unwrap_or_else(|error| panic!("cargo tree: {error}"));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let lines = String::from_utf8_lossy(&told.stdout);
    lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn assert_without(package: &str, absent: &[&str]) {
    let linked = linked(package);
    assert!(linked.contains("tokio") || linked.contains("serde"), "{package} is told without its packages: {linked:?}");
    let found: Vec<_> = absent.iter().filter(|name| linked.contains(**name)).collect();
    assert!(found.is_empty(), "{package} links {found:?}");
}

const DATABASE: [&str; 2] = ["sqlx", "sqlx-postgres"];
const CLUSTER: [&str; 3] = ["kube", "kube-client", "k8s-openapi"];

#[test]
fn a_worker_has_no_way_to_a_database_or_the_cluster() {
    assert_without(
        "croft-worker",
        &[&DATABASE[..], &CLUSTER, &["redis", "croft-front", "croft-operator", "croft-crds"]].concat(),
    );
}

#[test]
fn a_front_has_no_way_to_the_cluster_or_a_provider() {
    assert_without("croft-front", &[&CLUSTER[..], &["croft-llm", "croft-worker", "croft-operator"]].concat());
}

#[test]
fn an_operator_has_no_way_to_a_database() {
    assert_without("croft-operator", &[&DATABASE[..], &["redis", "croft-front", "croft-worker", "croft-llm"]].concat());
}

#[test]
fn kinds_and_contract_stand_alone() {
    for package in ["croft-crds", "croft-proto"] {
        let ours: Vec<_> = linked(package).into_iter().filter(|name| name.starts_with("croft-")).collect();
        assert_eq!(ours, [package]);
    }
}
