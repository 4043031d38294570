//! PostgreSQL by TLS: its certificate is checked, by migrations as by the front.

use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use croft_front::migrate;
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_serve::Tasks;
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::authority::Authority;
use crate::contract::fixtures::{append, appended, said, session, tenant};
use crate::database::{FRONT_ROLE, execute};
use crate::port::Port;

const PASSWORD: &str = "croft-test";
/// Whoever comes, comes by TLS.
const TLS_ALONE: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n";

/// A server that is reached by TLS alone, as `127.0.0.1`. Killed when dropped.
struct Guarded {
    port: Port,
    folder: TempDir,
    _process: Child,
}

impl Guarded {
    async fn start() -> Self {
        let (programs, owner, folder) = (programs(), owner().await, tempfile::tempdir().unwrap());
        let authority = Authority::new();
        let shown = authority.server(&[Ipv4Addr::LOCALHOST.to_string()]);
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            owned(&path, owner);
            path
        };
        let [password, access] = [file("password", PASSWORD), file("access", TLS_ALONE)];
        let [cert, key] = [file("cert", &shown.cert), file("key", &shown.key)];
        file("ca", &authority.pem());
        file("another-ca", &Authority::new().pem());
        owned(folder.path(), owner);
        let data = folder.path().join("data");
        let mut init = as_owner(&programs.join("initdb"), owner, folder.path());
        init.arg("-D").arg(&data).arg("--pwfile").arg(&password);
        let made = init.args(["-U", "croft", "--auth=scram-sha-256", "--no-sync", "--locale=C.UTF-8"]).output().await;
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

        let port = Port::free();
        let mut run = as_owner(&programs.join("postgres"), owner, folder.path());
        run.arg("-D").arg(&data).args(["-p", &port.number().to_string(), "-h", "127.0.0.1", "-c", "ssl=on"]);
        for (name, path) in [("ssl_cert_file", &*cert), ("ssl_key_file", &key), ("hba_file", &access)] {
            run.arg("-c").arg(format!("{name}={}", path.display()));
        }
        run.arg("-c").arg(format!("unix_socket_directories={}", folder.path().display()));
        run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let server = Self { port, _process: run.spawn().unwrap(), folder };
        let answers = async {
            while PgConnection::connect(&server.url("croft", "127.0.0.1", "ca")).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(90), answers).await.expect("PostgreSQL comes up, and shows its certificate");
        server
    }

    /// With the certificate checked by this authority.
    fn url(&self, role: &str, host: &str, ca: &str) -> String {
        let ca = self.folder.path().join(ca);
        self.with(role, host, &format!("sslmode=verify-full&sslrootcert={}", ca.display()))
    }

    fn with(&self, role: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{role}:{PASSWORD}@{host}:{}/postgres?{parameters}", self.port.number())
    }
}

fn as_owner(program: &Path, owner: Option<(u32, u32)>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder);
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

fn owned(path: &Path, owner: Option<(u32, u32)>) {
    if let Some((user, group)) = owner {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Debian keeps them off the path.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.max_by_key(|version| version.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    newest.expect("PostgreSQL is installed: `make test-services` installs it").path().join("bin")
}

/// User and group that it runs as: root must not run it.
async fn owner() -> Option<(u32, u32)> {
    let id = async |arguments: &[&str]| {
        let told = Command::new("id").args(arguments).output().await.unwrap();
        String::from_utf8(told.stdout).unwrap().trim().parse::<u32>().unwrap()
    };
    if id(&["-u"]).await != 0 {
        return None;
    }
    Some((id(&["-u", "postgres"]).await, id(&["-g", "postgres"]).await))
}

#[tokio::test]
async fn a_database_is_migrated_and_used_by_tls() {
    let server = Guarded::start().await;
    let admin_url = server.url("croft", "127.0.0.1", "ca");
    let mut admin = PgConnection::connect(&admin_url).await.unwrap();
    execute(&mut admin, &format!("create role {FRONT_ROLE} login password '{PASSWORD}'")).await.unwrap();
    migrate::run(&SecretString::from(admin_url), FRONT_ROLE).await.unwrap();
    let front = Postgres::connect(&server.url(FRONT_ROLE, "127.0.0.1", "ca"), 2).await.unwrap();
    front.check().await.unwrap();
    let stores = Stores::postgres(&front, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    let told = appended(&stores, append(tenant, session, vec![said("by TLS")])).await;
    assert_eq!(stores.events.read(tenant, session, 0, 10).await.unwrap().last(), told.last());
    let plain = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where usename is not null
        and client_addr is not null and not ssl";
    assert_eq!(sqlx::query_scalar::<_, i64>(plain).fetch_one(&mut admin).await.unwrap(), 0, "all go by TLS");

    for refused in [
        server.url(FRONT_ROLE, "127.0.0.1", "another-ca"),
        server.url(FRONT_ROLE, "localhost", "ca"),
        server.with(FRONT_ROLE, "127.0.0.1", "sslmode=verify-full"),
        server.with(FRONT_ROLE, "127.0.0.1", "sslmode=disable"),
    ] {
        assert!(Postgres::connect(&refused, 1).await.is_err(), "{refused}");
        assert!(PgConnection::connect(&refused).await.is_err(), "{refused}");
    }

    // Who reads why is told the way out.
    let strange = server.url("croft", "127.0.0.1", "another-ca");
    let migrating = migrate::run(&SecretString::from(strange.clone()), FRONT_ROLE).await.unwrap_err();
    let serving = anyhow::Error::from(Postgres::connect(&strange, 1).await.unwrap_err());
    for error in [migrating, serving] {
        let told = format!("{error:#}");
        assert!(told.contains("TLS handshake") && told.contains("sslmode=disable"), "{told}");
        assert!(!told.contains(PASSWORD), "{told}");
    }
}
