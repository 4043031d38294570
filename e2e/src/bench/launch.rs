//! Starts the programs as Kubernetes would: each with its own certificate, rights and addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde_json::json;
use tokio::process::Command;

use super::process::Program;
use super::stage::{NAMESPACE, Place, TENANT, until};
use super::{api, kubelet};

/// The port of workers is the same everywhere.
const WORKER_PORT: u16 = 50052;

/// The ports of one operator.
#[derive(Debug, Clone, Copy)]
pub struct OperatorPorts {
    routes: u16,
    ops: u16,
}

/// As the cluster's administrator.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    Ok(Client::try_from(config(kubeconfig).await?)?)
}

/// As one whom the chart's policies let change tenants' parts: so does drift come about.
pub(super) async fn trusted_client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.auth_info.impersonate = Some("system:kube-controller-manager".to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
    Ok(Client::try_from(config)?)
}

async fn config(kubeconfig: &Path) -> anyhow::Result<Config> {
    let config = Kubeconfig::read_from(kubeconfig).context("KUBECONFIG does not lead to a cluster")?;
    Ok(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)
}

/// The operator comes as its service account, with the chart's rights and no more, and under the API server's rules for
/// fairness, from which administrators are exempt. The administrator's kubeconfig `admin` gives the rest of what is written to `path`;
/// returned is the token, another one each time.
pub async fn operator_kubeconfig(client: &Client, admin: &Path, path: &Path) -> anyhow::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let spec = TokenRequestSpec { expiration_seconds: Some(6 * 60 * 60), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let issued = accounts.create_token_request("croft-operator", &PostParams::default(), &request).await?;
    let token = issued.status.and_then(|status| status.token).context("the API server gives no token")?;
    let mut config = serde_json::to_value(Kubeconfig::read_from(admin)?)?;
    for user in config["users"].as_array_mut().into_iter().flatten() {
        user["user"] = json!({ "token": token });
    }
    write_private(path, serde_yaml::to_string(&config)?.as_bytes())?;
    Ok(token)
}

pub(super) fn start_operator(
    place: &Place,
    identity: &str,
    ports: OperatorPorts,
    front_internal: u16,
) -> anyhow::Result<Program> {
    let mut command = command(&place.programs, "croft-operator");
    command.env("KUBECONFIG", place.scratch.join("operator.kubeconfig")).args([
        format!("--namespace={NAMESPACE}"),
        format!("--identity={identity}"),
        format!("--metrics-addr=127.0.0.1:{}", ports.ops),
        format!("--routes-addr=127.0.0.1:{}", ports.routes),
        format!("--front-url=https://localhost:{front_internal}"),
    ]);
    Program::start(identity, command, loopback(ports.ops), &place.scratch.join(format!("{identity}.log")))
}

pub(super) async fn start_front(
    place: &Place,
    tls: &Path,
    operator: OperatorPorts,
    internal: u16,
    ports: &mut Ports,
) -> anyhow::Result<Program> {
    let migrated = command(&place.programs, "croft-front")
        .args(["migrate", "--front-role=croft_front"])
        .env("CROFT_POSTGRES_URL", &place.postgres_admin_url)
        .output()
        .await?;
    ensure!(
        migrated.status.success(),
        "croft-front migrate: {}",
        String::from_utf8_lossy(&[migrated.stderr, migrated.stdout].concat())
    );
    let ops = ports.take()?;
    let mut command = command(&place.programs, "croft-front");
    command
        .env("CROFT_POSTGRES_URL", &place.postgres_front_url)
        .env("CROFT_REDIS_URL", &place.redis_url)
        .arg("serve")
        .args(tls_flags(tls))
        .args([
            "--replica=front-0".to_owned(),
            format!("--operator-url=https://localhost:{}", operator.routes),
            format!("--metrics-addr=127.0.0.1:{ops}"),
            format!("--grpc-addr=127.0.0.1:{}", ports.take()?),
            format!("--http-addr=127.0.0.1:{}", ports.take()?),
            format!("--internal-addr=127.0.0.1:{internal}"),
        ]);
    Program::start("front", command, loopback(ops), &place.scratch.join("front.log"))
}

/// The tenant of the sessions, and its one worker.
pub(super) async fn make_tenant(client: &Client, place: &Place, ports: &mut Ports) -> anyhow::Result<Program> {
    let spec = json!({
        "tier": "enterprise",
        "workers": { "replicas": 1, "sessionsPerWorker": 10_000 },
        "limits": { "maxSessions": 1_000_000, "requestsPerMinute": 10_000_000 },
    });
    let tenants = api::all(client, &api::agent_tenants());
    tenants.create(&PostParams::default(), &api::tenant(TENANT, &spec)).await.context("the tenant is not taken")?;
    let namespace = format!("tenant-{TENANT}");
    let tls = tls_folder(client, place, &namespace, "worker-tls").await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let pod = until("the worker's pod", async || pods.list(&ListParams::default()).await.ok()?.items.pop()).await?;
    let (address, ops) = (own_address()?, ports.take()?);
    let mut command = command(&place.programs, "croft-worker");
    command.args(tls_flags(&tls)).args([
        format!("--tenant={TENANT}"),
        format!("--worker-name={}", pod.name_any()),
        format!("--metrics-addr=127.0.0.1:{ops}"),
        format!("--grpc-addr={}", SocketAddr::from((address, WORKER_PORT))),
        "--sessions-max=10000".to_owned(),
    ]);
    let mut worker = Program::start("worker", command, loopback(ops), &place.scratch.join("worker.log"))?;
    worker.ready().await?;
    kubelet::make_ready(client, &pod, address).await?;
    until("the tenant is ready", async || {
        let tenant = tenants.get(TENANT).await.ok()?;
        api::is_true(&tenant, "Ready").then_some(())
    })
    .await?;
    Ok(worker)
}

/// A program of ours, which sees nothing of the harness's own environment.
pub fn command(programs: &Path, program: &str) -> Command {
    let mut command = Command::new(programs.join(program));
    command.env_clear();
    command
}

/// A Secret's certificate as files, once it is there.
pub(super) async fn tls_folder(client: &Client, place: &Place, namespace: &str, name: &str) -> anyhow::Result<PathBuf> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = until(name, async || secrets.get_opt(name).await.ok()?).await?;
    let folder = place.scratch.join(name);
    std::fs::create_dir_all(&folder)?;
    for (file, bytes) in secret.data.into_iter().flatten() {
        write_private(&folder.join(file), &bytes.0)?;
    }
    Ok(folder)
}

pub fn tls_flags(folder: &Path) -> [String; 3] {
    [("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")]
        .map(|(flag, file)| format!("--tls-{flag}={}", folder.join(file).display()))
}

pub(super) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(bytes)?)
}

/// The machine's address towards others: a pod's may not be loopback. No packet is sent to find it.
fn own_address() -> anyhow::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).context("the machine has no address but loopback")?;
    Ok(socket.local_addr()?.ip())
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Ports below those that the kernel gives to outgoing connections, so that a program that is started again finds its
/// own still free.
pub struct Ports(u16);

impl Default for Ports {
    fn default() -> Self {
        Self(17_000)
    }
}

impl Ports {
    pub(super) fn of_operator(&mut self) -> anyhow::Result<OperatorPorts> {
        Ok(OperatorPorts { routes: self.take()?, ops: self.take()? })
    }

    pub(super) fn of_front(&mut self) -> anyhow::Result<u16> {
        self.take()
    }

    /// A free one.
    pub fn take(&mut self) -> anyhow::Result<u16> {
        loop {
            self.0 += 1;
            ensure!(self.0 < 20_000, "no free port between 17000 and 20000");
            if std::net::TcpListener::bind(loopback(self.0)).is_ok() {
                return Ok(self.0);
            }
        }
    }
}
