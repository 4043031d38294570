//! A PostgreSQL and a Redis of a test's own, which can be killed by their process id and come back.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use croft_e2e::bench::launch::Ports;
use sqlx::{Connection as _, PgConnection};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const LONG: Duration = Duration::from_mins(2);
const PASSWORD: &str = "croft-test";

/// One that stays its own while it is killed: the kernel gives those below to no connection.
fn free_port() -> u16 {
    Ports::default().take().unwrap()
}

/// A server as a process. Killed when dropped.
struct Server {
    command: Box<dyn Fn() -> Command + Send + Sync>,
    process: Child,
}

impl Server {
    fn start(command: impl Fn() -> Command + Send + Sync + 'static) -> Self {
        let process = spawn(&command);
        Self { command: Box::new(command), process }
    }

    async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Starts it until it answers: what the killed one left may stand in its way for a moment.
    async fn run(&mut self, answers: impl AsyncFn() -> bool) {
        let up = async {
            while !answers().await {
                if self.process.try_wait().unwrap().is_some() {
                    self.process = spawn(&self.command);
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(LONG, up).await.expect("the server comes up");
    }
}

fn spawn(command: &(impl Fn() -> Command + ?Sized)) -> Child {
    let mut command = command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("PostgreSQL and Redis are installed: `make test-services` installs them")
}

/// As Croft asks for it: what is committed is on the disk.
pub(crate) struct Postgres {
    server: Server,
    pub(crate) url: String,
    folder: PathBuf,
}

impl Postgres {
    pub(crate) async fn start() -> Self {
        let (programs, owner) = (postgres_programs(), postgres_user().await);
        let folder = std::env::temp_dir().join(format!("croft-ledgers-{}", Uuid::now_v7()));
        std::fs::create_dir_all(&folder).unwrap();
        let password = folder.join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        if let Some((user, group)) = owner {
            for path in [&folder, &password] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
            }
        }
        let data = folder.join("data");
        let mut init = as_owner(&programs.join("initdb"), owner, &folder);
        init.arg("-D").arg(&data).arg("--pwfile").arg(&password).args([
            "-U",
            "croft",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]);
        let made = init.output().await.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let (program, home) = (programs.join("postgres"), folder.clone());
        let server = Server::start(move || {
            let mut command = as_owner(&program, owner, &home);
            command.arg("-D").arg(&data).args([
                "-p",
                &port.to_string(),
                "-h",
                "127.0.0.1",
                "-c",
                "max_connections=200",
            ]);
            command.arg("-c").arg(format!("unix_socket_directories={}", home.display()));
            command
        });
        let url = format!("postgres://croft:{PASSWORD}@127.0.0.1:{port}/postgres");
        let mut postgres = Self { server, url, folder };
        postgres.run().await;
        postgres
    }

    pub(crate) async fn kill(&mut self) {
        self.server.kill().await;
    }

    pub(crate) async fn run(&mut self) {
        let url = self.url.clone();
        self.server.run(async || PgConnection::connect(&url).await.is_ok()).await;
    }

    /// Takes it down. A test that fails leaves its files to be looked at.
    pub(crate) async fn strike(mut self) {
        self.server.kill().await;
        // Its own processes see that it is gone, and end; only then is nothing written any more.
        let removed = async {
            while std::fs::remove_dir_all(&self.folder).is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(LONG, removed).await.expect("its files can be removed");
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

/// Debian keeps them off the path.
fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.max_by_key(|version| version.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    newest.expect("PostgreSQL is installed: `make test-services` installs it").path().join("bin")
}

/// User and group that it runs as: root must not run it.
async fn postgres_user() -> Option<(u32, u32)> {
    let id = async |arguments: &[&str]| {
        let told = Command::new("id").args(arguments).output().await.unwrap();
        String::from_utf8(told.stdout).unwrap().trim().parse::<u32>().unwrap()
    };
    if id(&["-u"]).await != 0 {
        return None;
    }
    Some((id(&["-u", "postgres"]).await, id(&["-g", "postgres"]).await))
}

/// With nothing kept on disk: what it holds is gone when it is killed.
pub(crate) struct Redis {
    server: Server,
    port: u16,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let port = free_port();
        let server = Server::start(move || {
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
            command
        });
        let mut redis = Self { server, port };
        redis.run().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn kill(&mut self) {
        self.server.kill().await;
    }

    pub(crate) async fn run(&mut self) {
        let port = self.port;
        self.server.run(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
    }
}
