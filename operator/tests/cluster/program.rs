//! The program itself, from its arguments to its exit code.

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use croft_serve::Tasks;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::world::{LONG, World, kubeconfig_path};

const PROGRAM: &str = env!("CARGO_BIN_EXE_croft-operator");

fn run(kubeconfig: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("KUBECONFIG", kubeconfig).args(arguments).output().expect("the program can be run")
}

#[test]
fn a_mistake_in_the_flags_is_a_sentence_and_exit_code_2() {
    let output = run("/nowhere", &["--lease-seconds=1", "--routes-addr=127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "--lease-seconds (CROFT_LEASE_SECONDS) must be at least 5.\n");
}

#[test]
fn a_missing_kubeconfig_is_a_sentence_and_exit_code_1() {
    let output = run("/nowhere/kubeconfig", &["--metrics-addr=127.0.0.1:0", "--routes-addr=127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    let sentence = "cannot find the cluster: neither KUBECONFIG nor a service account leads to one";
    assert!(told.starts_with(sentence), "{told:?}");
    assert_eq!(told.lines().count(), 1, "{told:?}");
}

/// Starts the program, which is killed when this is dropped.
pub(crate) fn spawn(kubeconfig: &str, namespace: &str, arguments: &[String], log: Stdio) -> Child {
    tokio::process::Command::new(PROGRAM)
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .args(["--metrics-addr=127.0.0.1:0", "--routes-addr=127.0.0.1:0"])
        .arg(format!("--namespace={namespace}"))
        .args(arguments)
        .stdout(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the program can be run")
}

/// One more replica, which stands by.
pub(crate) struct Replica {
    child: Child,
    /// Where its metrics and probes are.
    ops_addr: String,
    pub(crate) routes_port: u16,
}

impl Replica {
    /// Starts one and waits until it is ready. `tasks` takes its log from then on: a pipe that is full would hold it up.
    pub(crate) async fn start(kubeconfig: &str, namespace: &str, arguments: &[String], tasks: &Tasks) -> Self {
        let mut child = spawn(kubeconfig, namespace, arguments, Stdio::piped());
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let (mut ops_addr, mut routes_port) = (None, None);
        let ready = async {
            while let Some(line) = lines.next_line().await.expect("it can be read") {
                let line: serde_json::Value = serde_json::from_str(&line).expect("a log line is JSON");
                if let Some(told) = line["ops_addr"].as_str() {
                    ops_addr = Some(told.to_owned());
                }
                if let Some(told) = line["routes_addr"].as_str() {
                    routes_port = told.parse::<SocketAddr>().ok().map(|told| told.port());
                }
                if line["check"] == "cluster" && line["message"] == "ready" {
                    return;
                }
            }
            panic!("it ended");
        };
        tokio::time::timeout(LONG, ready).await.expect("it is ready in time");
        drop(tasks.spawn("log", async move { while let Ok(Some(_)) = lines.next_line().await {} }));
        let told = "it said where it listens";
        Self { child, ops_addr: ops_addr.expect(told), routes_port: routes_port.expect(told) }
    }

    /// What it answers on its port of metrics and probes, with the head.
    pub(crate) async fn get(&self, path: &str) -> String {
        get(&self.ops_addr, path).await
    }
}

#[tokio::test]
async fn a_second_replica_stands_by_with_routes_and_leaves_when_told() {
    let session = World::shared().await;
    let mut replica = Replica::start(&kubeconfig_path(), &session.world.namespace, &[], &Tasks::new()).await;
    let metrics = replica.get("/metrics").await;
    assert!(metrics.contains("croft_operator_leader 0"), "another one leads");

    let pid = replica.child.id().expect("it runs").to_string();
    assert!(Command::new("kill").arg(&pid).status().expect("kill can be run").success());
    let left = tokio::time::timeout(LONG, replica.child.wait()).await;
    assert_eq!(left.expect("it leaves").expect("it was ours").code(), Some(0));
}

async fn get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut connection = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: croft\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("it can be asked");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("it answers");
    answer
}
