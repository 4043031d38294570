//! The operator's program.

use std::process::{Command, Stdio};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

use crate::world::{LONG, kubeconfig_path};

/// One replica, which is killed when this is dropped.
pub(crate) struct Operator {
    child: Child,
    /// Where its metrics are.
    ops_addr: String,
    /// Takes its log: a pipe that is full would hold it up.
    _log: AbortOnDropHandle<()>,
}

/// What its gauges tell.
pub(crate) struct Rollouts {
    pub(crate) under_way: usize,
    pub(crate) waiting: usize,
}

impl Operator {
    /// Starts one that wants this image of workers, and waits until it has its copies of the cluster.
    pub(crate) async fn start(namespace: &str, image: &str) -> Self {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_croft-operator"))
            .env_clear()
            .env("KUBECONFIG", kubeconfig_path())
            .args(["--metrics-addr=127.0.0.1:0", "--routes-addr=127.0.0.1:0", "--front-url=https://localhost:9"])
            // One that crashed leads again at once under its own name, and none loses the Lease while the machine stands still.
            .args(["--identity=only", "--lease-seconds=300"])
            .args([format!("--namespace={namespace}"), format!("--worker-image={image}")])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program can be run");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut ops_addr = None;
        let ready = async {
            while let Some(line) = lines.next_line().await.expect("it can be read") {
                let line: serde_json::Value = serde_json::from_str(&line).expect("a log line is JSON");
                if let Some(told) = line["ops_addr"].as_str() {
                    ops_addr = Some(told.to_owned());
                }
                if line["check"] == "cluster" && line["message"] == "ready" {
                    return;
                }
            }
            panic!("it ended");
        };
        tokio::time::timeout(LONG, ready).await.expect("it is ready in time");
        let log = async move { while let Ok(Some(_)) = lines.next_line().await {} };
        let log = croft_serve::Tasks::new().spawn("log", log);
        Self { child, ops_addr: ops_addr.expect("it said where it listens"), _log: AbortOnDropHandle::new(log) }
    }

    pub(crate) async fn rollouts(&self) -> Rollouts {
        let mut connection = tokio::net::TcpStream::connect(&self.ops_addr).await.expect("it listens");
        let request = b"GET /metrics HTTP/1.1\r\nhost: croft\r\nconnection: close\r\n\r\n";
        connection.write_all(request).await.expect("it can be asked");
        let mut metrics = String::new();
        connection.read_to_string(&mut metrics).await.expect("it answers");
        let gauge = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.expect("it tells of it").trim().parse().expect("it is a number")
        };
        Rollouts {
            under_way: gauge("croft_operator_rollouts_under_way"),
            waiting: gauge("croft_operator_rollouts_waiting"),
        }
    }

    /// Tells it to end, upon which another may lead at once.
    pub(crate) async fn stop(mut self) {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(Command::new("kill").arg(&pid).status().expect("kill can be run").success());
        let left = tokio::time::timeout(LONG, self.child.wait()).await;
        assert!(left.expect("it leaves").expect("it was ours").success());
    }

    pub(crate) async fn crash(mut self) {
        self.child.kill().await.expect("it was ours");
    }
}
