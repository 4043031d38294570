//! What the chart gives the cluster beside the programs: the kinds, the operator's rights, the policies.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// The chart, from this package's folder.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/croft");
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/values.yaml");

/// What is applied. The programs are not: they run as processes of this machine.
const KINDS: [&str; 9] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "CustomResourceDefinition",
    "Role",
    "RoleBinding",
    "ServiceAccount",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// Applies the chart's parts to `namespace`, which is made if it isn't there.
pub async fn install(namespace: &str) -> anyhow::Result<()> {
    let rendered = run("helm", &["template", "croft", CHART, "--namespace", namespace, "--values", VALUES], "").await?;
    let mut wanted = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n");
    for document in rendered.split("\n---") {
        let object: Value = serde_yaml::from_str(document).unwrap_or_default();
        if KINDS.contains(&object["kind"].as_str().unwrap_or_default()) {
            wanted.push_str("---\n");
            wanted.push_str(document.trim_start_matches('-'));
            wanted.push('\n');
        }
    }
    let apply = ["apply", "--server-side", "--force-conflicts", "--namespace", namespace, "-f", "-"];
    run("kubectl", &apply, &wanted).await?;
    let kinds = ["crd/agenttenants.croft.dev", "crd/agentsessions.croft.dev"];
    let established = [&["wait", "--for=condition=Established", "--timeout=30s"], &kinds[..]].concat();
    run("kubectl", &established, "").await?;
    Ok(())
}

/// What a program prints. Fails with what it complains of.
pub async fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("it has no standard input")?;
    let write = async {
        // A program that ends before it has read all says why.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
