//! P5: the program as it is started, with a database, a Redis and an operator of this test's own. `/readyz` tells of each that is away,
//! and of it alone; `/servingz` and the gRPC health service tell of those without which nobody is served; `/healthz` tells of none, since a
//! restart would bring none of them back.

#![expect(clippy::unwrap_used, reason = "a test may")]

#[path = "../peers/authority.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod authority;
#[path = "../postgres/database.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod database;
mod link;
mod operator;
#[path = "../redis/port.rs"]
mod port;
#[path = "../redis/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use authority::Authority;
use croft_serve::tls::PeerRole;
use database::{Database, FRONT_ROLE, execute};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::link::Link;
use crate::operator::Operator;
use crate::port::Port;
use crate::server::Server;

/// Longer than anything here takes; what it bounds has failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// The status and the problems: as lines at the metrics' port, as JSON at the clients'.
async fn asked(port: u16, path: &str) -> Option<(u16, Vec<String>)> {
    let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.ok()?;
    let status = answer.status().as_u16();
    let text = answer.text().await.ok()?;
    let problems = match serde_json::from_str::<Value>(&text) {
        Ok(mut body) => serde_json::from_value(body["problems"].take()).unwrap(),
        Err(_) if status == 200 => Vec::new(),
        Err(_) => text.lines().map(str::to_owned).collect(),
    };
    Some((status, problems))
}

/// Waits until the front's ports say so at this path, and that it lives all the while.
async fn until_at(path: &str, ports: [u16; 2], what: &str, holds: impl Fn(u16, &[String]) -> bool) {
    let mut last = None;
    let reached = async {
        loop {
            let mut all = true;
            for port in ports {
                last = asked(port, path).await;
                all &= last.as_ref().is_some_and(|(status, problems)| holds(*status, problems));
                if last.is_some() {
                    assert_eq!(asked(port, "/healthz").await.unwrap().0, 200, "{what}: it is not alive");
                }
            }
            if all {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let is_reached = tokio::time::timeout(PATIENCE, reached).await.is_ok();
    assert!(is_reached, "{what}, at {path}: {last:?}");
}

async fn until(ports: [u16; 2], what: &str, holds: impl Fn(u16, &[String]) -> bool) {
    until_at("/readyz", ports, what, holds).await;
}

async fn until_ready(ports: [u16; 2], what: &str) {
    until(ports, what, |status, problems| status == 200 && problems.is_empty()).await;
}

async fn until_only(ports: [u16; 2], part: &str) {
    until_only_at("/readyz", ports, part).await;
}

async fn until_only_at(path: &str, ports: [u16; 2], part: &str) {
    let prefix = format!("{part}: ");
    let only = |status, problems: &[String]| status == 503 && problems.len() == 1 && problems[0].starts_with(&prefix);
    until_at(path, ports, part, only).await;
}

/// The program, with a certificate of its own.
struct Front {
    /// Of the metrics, and of HTTP.
    ports: [u16; 2],
    grpc: u16,
    _kept: [Port; 3],
    folder: TempDir,
    process: Child,
}

impl Front {
    fn start(ca: &Authority, postgres_url: &str, redis: &Server, operator_port: u16) -> Self {
        let (kept, folder) = ([(); 3].map(|()| Port::free()), tempfile::tempdir().unwrap());
        let [metrics, http, grpc] = kept.each_ref().map(Port::number);
        let file = |name: &str| folder.path().join(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_croft-front"));
        command.args([
            "serve".to_owned(),
            format!("--metrics-addr=127.0.0.1:{metrics}"),
            format!("--http-addr=127.0.0.1:{http}"),
            format!("--grpc-addr=127.0.0.1:{grpc}"),
            "--internal-addr=127.0.0.1:0".to_owned(),
            format!("--postgres-url={postgres_url}"),
            format!("--redis-url={}", redis.url()),
            format!("--operator-url=https://localhost:{operator_port}"),
            format!("--tls-cert={}", file("tls.crt")),
            format!("--tls-key={}", file("tls.key")),
            format!("--tls-ca={}", file("ca.crt")),
            "--renewal-spread-seconds=0".to_owned(),
        ]);
        write_certificate(ca, folder.path());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let errors = log.try_clone().unwrap();
        let process = command.env_clear().stdout(log).stderr(errors).kill_on_drop(true).spawn().unwrap();
        Self { ports: [metrics, http], grpc, _kept: kept, folder, process }
    }

    /// Waits until it is served, whatever else is away, and until who asks by gRPC hears so on a connection of its own.
    async fn until_serving(&self, what: &str) {
        until_at("/servingz", self.ports, what, |status, problems| status == 200 && problems.is_empty()).await;
        self.until_grpc(ServingStatus::Serving, what).await;
    }

    async fn until_grpc(&self, wanted: ServingStatus, what: &str) {
        let reached = async {
            loop {
                let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.grpc)).unwrap();
                let mut client = HealthClient::new(endpoint.connect().await.unwrap());
                if client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status() == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{what}: it never says {wanted:?}"));
    }

    fn renew(&self, ca: &Authority) {
        write_certificate(ca, self.folder.path());
    }

    /// Its log.
    async fn told(&self) -> String {
        tokio::fs::read_to_string(self.folder.path().join("log")).await.unwrap()
    }
}

fn write_certificate(ca: &Authority, folder: &Path) {
    let issued = ca.front();
    for (name, pem) in [("tls.crt", &issued.cert), ("tls.key", &issued.key), ("ca.crt", &issued.ca)] {
        std::fs::write(folder.join(name), pem).unwrap();
    }
}

#[tokio::test]
async fn each_part_that_is_away_is_named_and_the_program_lives() {
    let database = Database::migrated().await;
    let (mut redis, ca) = (Server::start().await, Authority::new());
    let mut operator = Operator::start(ca.issue(&PeerRole::Operator, &["localhost"])).await;

    let url = database.url_of(FRONT_ROLE);
    let (before, host) = url.split_once('@').unwrap();
    let (host, name) = host.split_once('/').unwrap();
    let link = Link::to(host.parse::<SocketAddr>().expect("CROFT_TEST_POSTGRES_URL names an address")).await;
    let front = Front::start(&ca, &format!("{before}@{}/{name}", link.address()), &redis, operator.port());
    let ports = front.ports;
    until_ready(ports, "all is there").await;
    front.until_serving("all is there").await;

    redis.kill().await;
    until_only(ports, "redis").await;
    front.until_serving("Redis is away, and there is a way without it").await;
    redis.run().await;
    until_ready(ports, "Redis is back").await;

    link.cut();
    until_only(ports, "postgres").await;
    until_only_at("/servingz", ports, "postgres").await;
    front.until_grpc(ServingStatus::NotServing, "postgres").await;
    link.mend();
    until_ready(ports, "PostgreSQL is back").await;

    let mut admin = database.admin().await;
    execute(&mut admin, "create table kept as select * from _sqlx_migrations order by version desc limit 1")
        .await
        .unwrap();
    execute(&mut admin, "delete from _sqlx_migrations where version in (select version from kept)").await.unwrap();
    until_only(ports, "postgres").await;
    execute(&mut admin, "insert into _sqlx_migrations select * from kept").await.unwrap();
    until_ready(ports, "the schema is current").await;

    operator.stop().await;
    until(ports, "routes that are old are good routes", |status, _| status == 200).await;
    operator.start_again().await;
    until_ready(ports, "the operator is back").await;
    database.end().await;
}

#[tokio::test]
async fn a_front_that_never_heard_of_tenants_is_not_ready() {
    let (database, redis) = (Database::migrated().await, Server::start().await);
    // Nobody is there.
    let operator_port = 1;
    let front = Front::start(&Authority::new(), &database.url_of(FRONT_ROLE), &redis, operator_port);
    until_only(front.ports, "routes").await;
    until_only_at("/servingz", front.ports, "routes").await;
    front.until_grpc(ServingStatus::NotServing, "routes").await;
    database.end().await;
}

/// A front that began while Redis was away was sent nobody, though those that ran before went on.
#[tokio::test]
async fn a_front_begins_without_redis_and_finds_it_when_it_comes() {
    let (database, mut redis, ca) = (Database::migrated().await, Server::stopped(), Authority::new());
    let operator = Operator::start(ca.issue(&PeerRole::Operator, &["localhost"])).await;
    let front = Front::start(&ca, &database.url_of(FRONT_ROLE), &redis, operator.port());
    until_only(front.ports, "redis").await;
    front.until_serving("it begins without Redis").await;
    redis.run().await;
    until_ready(front.ports, "Redis came").await;
    database.end().await;
}

#[tokio::test]
async fn a_front_whose_certificate_is_renewed_ends_in_order_to_begin_anew() {
    let (database, redis, ca) = (Database::migrated().await, Server::start().await, Authority::new());
    let operator = Operator::start(ca.issue(&PeerRole::Operator, &["localhost"])).await;
    let mut front = Front::start(&ca, &database.url_of(FRONT_ROLE), &redis, operator.port());
    until_ready(front.ports, "all is there").await;
    front.renew(&ca);
    let ended = tokio::time::timeout(PATIENCE, front.process.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(1));
    let told = front.told().await;
    assert!(told.contains("the certificate was renewed"), "{told}");
    assert!(told.contains("\"stopped\""), "not in order: {told}");

    let front = Front::start(&ca, &database.url_of(FRONT_ROLE), &redis, operator.port());
    until_ready(front.ports, "it began anew").await;
    database.end().await;
}
