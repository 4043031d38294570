//! Redis by TLS: its certificate is checked, for whatever is sent to it.

use std::net::Ipv4Addr;
use std::time::Duration;

use croft_front::counters::redis::RedisCounters;
use croft_front::counters::{Ask, Counters, Verdict, Window};
use croft_front::error::Error;
use croft_front::events::relay::Relay;
use croft_front::events::relay::redis::RedisRelay;
use croft_front::redis_client::open;
use croft_serve::Tasks;
use redis::{Client, cmd};
use tempfile::TempDir;

use crate::authority::Authority;
use crate::port::Port;
use crate::relay::{ids, next, numbered};
use crate::server::Server;

const LONG: Duration = Duration::from_secs(90);

/// A Redis that is reached by TLS alone, as `127.0.0.1`.
struct Guarded {
    authority: Authority,
    port: Port,
    _server: Server,
    _files: TempDir,
}

impl Guarded {
    async fn start() -> Self {
        let (authority, server) = (Authority::new(), Server::start().await);
        let files = tempfile::tempdir().unwrap();
        let tls = authority.server(&[Ipv4Addr::LOCALHOST.to_string()]);
        let path = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (cert, key, ca) = (path("cert", &tls.cert), path("key", &tls.key), path("ca", &authority.pem()));
        let port = Port::free();
        let mut plain = Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
        let tls_port = port.number().to_string();
        let settings =
            [("tls-cert-file", &cert), ("tls-key-file", &key), ("tls-ca-cert-file", &ca), ("tls-port", &tls_port)];
        let mut command = cmd("CONFIG");
        command.arg("SET").arg("tls-auth-clients").arg("no");
        for (name, value) in settings {
            command.arg(name).arg(value);
        }
        let _: () = command.query_async(&mut plain).await.unwrap();
        let _: () = cmd("CONFIG").arg("SET").arg("port").arg("0").query_async(&mut plain).await.unwrap();
        Self { authority, port, _server: server, _files: files }
    }

    fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port.number())
    }
}

#[tokio::test]
async fn frames_and_counters_go_by_tls() {
    let server = Guarded::start().await;
    let client = open(&server.url(), Some(server.authority.pem().as_bytes())).unwrap();
    let tasks = Tasks::new();
    let ours = RedisRelay::connect(client.clone(), &tasks).await.unwrap();
    ours.check().await.unwrap();
    let theirs = RedisRelay::connect(client.clone(), &tasks).await.unwrap();
    let (tenant, session) = ids();
    let mut there = theirs.subscribe(tenant, session).await.unwrap();
    assert_eq!(ours.publish(tenant, session, &numbered(1)).await.unwrap(), 1);
    assert_eq!(next(&mut there).await, Some(numbered(1)));
    drop(there);
    assert_eq!(tasks.shutdown(LONG).await, 0, "tasks outlive the shutdown");

    let counters = RedisCounters::connect(&client, LONG).unwrap();
    let once = Window { name: "requests".into(), limit: 1, span: Duration::from_mins(10), amount: 1, settles: false };
    let ask = |id: &str| Ask {
        tenant,
        id: id.into(),
        ttl: LONG,
        nano_usd: 0,
        tokens: 0,
        windows: vec![once.clone()],
        bounds: vec![],
    };
    assert!(matches!(counters.admit(&ask("first")).await.unwrap().verdict, Verdict::Granted(_)));
    assert!(matches!(counters.admit(&ask("second")).await.unwrap().verdict, Verdict::Full { .. }));
}

#[tokio::test]
async fn a_redis_of_another_authority_or_name_is_refused() {
    let server = Guarded::start().await;
    let (ours, theirs) = (server.authority.pem(), Authority::new().pem());
    let by_another_name = format!("rediss://localhost:{}", server.port.number());
    let plain = format!("redis://127.0.0.1:{}", server.port.number());
    for (url, authorities) in [
        (&server.url(), Some(theirs.as_bytes())),
        (&server.url(), None),
        (&by_another_name, Some(ours.as_bytes())),
        (&plain, None),
    ] {
        let tasks = Tasks::new();
        let client = open(url, authorities).unwrap();
        let relay = RedisRelay::connect(client, &tasks).await.unwrap();
        let refused = relay.check().await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{url}: {refused:?}");
        let (tenant, session) = ids();
        assert!(relay.subscribe(tenant, session).await.is_err(), "{url}");
        drop(relay);
        assert_eq!(tasks.shutdown(LONG).await, 0, "tasks outlive the shutdown");
    }
}
