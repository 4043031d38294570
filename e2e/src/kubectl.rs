//! kubectl and helm, as a person would call them.

use std::process::Stdio;

use anyhow::{Context, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::helm::root;
use crate::system::System;

impl System {
    fn kubectl_command(&self, args: &[&str]) -> Command {
        self.command("kubectl", args)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", &self.kubeconfig).env("PATH", &self.path).kill_on_drop(true);
        command
    }

    /// What `helm args…` prints, in the repository's folder. Fails with what it complains of.
    pub async fn helm(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command("helm", args).current_dir(root()).output().await.context("cannot run helm")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm {}: {}", args.join(" "), complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What `kubectl args…` prints. Fails with what it complains of.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.kubectl_command(args).output().await.context("cannot run kubectl")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whether `kubectl args…` ends well, and all that it said.
    pub async fn kubectl_tries(&self, args: &[&str]) -> anyhow::Result<(bool, String)> {
        let output = self.kubectl_command(args).output().await.context("cannot run kubectl")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).trim().to_owned()))
    }

    /// `kubectl apply -f -`.
    pub async fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        let mut command = self.kubectl_command(&["apply", "-f", "-"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has no standard input")?;
        stdin.write_all(manifest.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl apply: {}", complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
