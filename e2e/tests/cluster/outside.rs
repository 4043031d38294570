//! Hosts beyond the cluster, in a network namespace of the test's own: one process that listens has it, and it goes with that process.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use croft_e2e::system::System;
use tokio::process::{Child, Command};

/// The host's end of the pair, and its address there.
const LINK: &str = "croft-outside";
const GATEWAY: &str = "198.18.7.1";
/// On the public internet, as far as a fence can tell: a range for benchmarks, which is routed nowhere (RFC 2544).
pub(crate) const PUBLIC: &str = "198.18.7.7";
/// Where clouds keep the credentials of the node.
pub(crate) const METADATA: &str = "169.254.169.254";
/// Two private neighbours.
pub(crate) const LISTED: &str = "172.31.7.7";
pub(crate) const UNLISTED: &str = "172.31.7.8";
/// All of them listen on these.
pub(crate) const PORTS: [u16; 3] = [80, 8443, 9443];
/// And on this one they play a model provider.
pub(crate) const MODEL_PORT: u16 = 8080;

/// They listen as long as this lives.
pub(crate) struct Outside {
    _listeners: Vec<Child>,
}

impl Outside {
    pub(crate) async fn start(system: &System) -> Self {
        Self::try_start(system).await.expect("hosts outside of the cluster, which need root")
    }

    async fn try_start(system: &System) -> anyhow::Result<Self> {
        let probe = system.probe.to_str().context("a path in UTF-8")?;
        let first = listen(&["unshare", "--net", probe, "listen", &PORTS[0].to_string()])?;
        let pid = first.id().context("it has ended")?.to_string();
        let space = async |pid: &str| tokio::fs::read_link(format!("/proc/{pid}/ns/net")).await;
        let own = space("self").await?;
        while space(&pid).await? == own {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let within = ["nsenter", "--target", &pid, "--net"];
        let mut listeners = vec![first];
        for port in &PORTS[1..] {
            listeners.push(listen(&[&within[..], &[probe, "listen", &port.to_string()]].concat())?);
        }
        listeners.push(listen(&[&within[..], &[probe, "model", &MODEL_PORT.to_string()]].concat())?);
        run(&["ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", &pid]).await?;
        run(&["ip", "address", "add", &format!("{GATEWAY}/32"), "dev", LINK]).await?;
        run(&["ip", "link", "set", LINK, "up"]).await?;
        run(&[&within[..], &["ip", "link", "set", "eth0", "up"]].concat()).await?;
        for host in [PUBLIC, METADATA, LISTED, UNLISTED] {
            run(&["ip", "route", "add", host, "dev", LINK, "src", GATEWAY]).await?;
            run(&[&within[..], &["ip", "address", "add", &format!("{host}/32"), "dev", "eth0"]].concat()).await?;
        }
        run(&[&within[..], &["ip", "route", "add", GATEWAY, "dev", "eth0"]].concat()).await?;
        run(&[&within[..], &["ip", "route", "add", "default", "via", GATEWAY]].concat()).await?;
        Ok(Self { _listeners: listeners })
    }
}

/// Ends with the test, however that ends.
fn listen(words: &[&str]) -> anyhow::Result<Child> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(words).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("setpriv")
}

async fn run(words: &[&str]) -> anyhow::Result<()> {
    let done = Command::new(words[0]).args(&words[1..]).output().await?;
    ensure!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
