//! A control plane of its own, without nodes: an API server, etcd and the controllers, with the chart on it when that is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};

use crate::bench::stage::NAMESPACE;
use crate::helm::root;

/// It goes with this, and all that was stored there.
pub struct ControlPlane {
    folder: PathBuf,
}

impl ControlPlane {
    /// Brings one up in a folder of `target`, which nobody else uses. What was left there goes first. Fails with what the starter
    /// complains of.
    pub fn up(folder: &str) -> anyhow::Result<Self> {
        let this = Self { folder: root().join("target").join(folder) };
        this.cluster("down")?;
        this.cluster("up")?;
        Ok(this)
    }

    fn cluster(&self, verb: &str) -> anyhow::Result<()> {
        let mut command = Command::new(root().join("e2e/cluster/cluster.sh"));
        succeeds(command.args(["control-plane", verb, "--dir"]).arg(&self.folder)).map(drop)
    }

    /// Where its files are, and a test's own may be.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// See [`crate::bench::audit::Audit`].
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// A program of the cluster's, such as kubectl, as the administrator calls it.
    pub fn tool(&self, name: &str) -> Command {
        let path =
            format!("{}:{}", root().join("target/croft/bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(name);
        command.env("PATH", path).env("KUBECONFIG", self.kubeconfig()).current_dir(root());
        command
    }

    /// `helm VERB croft …`, with what is needed to come up at all. Fails with Helm's complaint.
    pub fn helm(&self, verb: &str, chart: &Path) -> anyhow::Result<()> {
        let mut command = self.tool("helm");
        command.args([verb, "croft"]).arg(chart).args(["--namespace", NAMESPACE, "--values", "e2e/values.yaml"]);
        succeeds(&mut command).map(drop)
    }

    /// Makes the chart's namespace, installs the chart, and waits until its kinds are served. Fails with what was complained of.
    pub fn install(&self, chart: &Path) -> anyhow::Result<()> {
        succeeds(self.tool("kubectl").args(["create", "namespace", NAMESPACE]))?;
        self.helm("install", chart)?;
        for kind in ["agenttenants", "agentsessions"] {
            let kind = format!("crd/{kind}.croft.dev");
            succeeds(self.tool("kubectl").args(["wait", &kind, "--for=condition=Established", "--timeout=30s"]))?;
        }
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Err(error) = self.cluster("down") {
            eprintln!("{error:#}");
        }
    }
}

/// What the command printed. Fails with what it complained of.
pub fn succeeds(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}
