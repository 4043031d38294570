//! The chart as Helm renders it, with the values of `make up`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `helm template` says with these arguments of its own, such as `--set` and `front.replicas=3`. Fails when there is no Helm.
pub fn template(arguments: &[&str]) -> anyhow::Result<Output> {
    let own = root().join("target/croft/bin");
    let path = format!("{}:{}", own.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("helm");
    command.env("PATH", path).current_dir(root());
    command.args(["template", "croft", "charts/croft", "--namespace", "croft-system", "--values", "e2e/values.yaml"]);
    command.args(arguments).output().context("helm is not there: `e2e/cluster/cluster.sh tools helm` builds it")
}

/// The objects. Fails with Helm's complaint.
pub fn rendered(arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let output = template(arguments)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let documents = text.split("\n---").map(|document| serde_yaml::from_str(document.trim_start_matches('-')));
    let objects: Vec<Value> = documents.collect::<Result<_, _>>()?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

/// The one of this kind and name. Fails when there is none, or more than one.
pub fn one<'all>(objects: &'all [Value], kind: &str, name: &str) -> anyhow::Result<&'all Value> {
    let mut named = objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let found = named.next().with_context(|| format!("there is no {kind} {name}"))?;
    ensure!(named.next().is_none(), "{kind} {name} is there twice");
    Ok(found)
}
