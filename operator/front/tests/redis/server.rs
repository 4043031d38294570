//! A Redis of a test's own, which can be stopped and started.

use std::process::Stdio;
use std::time::Duration;

use redis::Client;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::port::Port;

/// Killed when dropped.
pub(crate) struct Server {
    port: Port,
    folder: TempDir,
    process: Option<Child>,
}

impl Server {
    /// A server that runs.
    pub(crate) async fn start() -> Self {
        let mut server = Self::stopped();
        server.run().await;
        server
    }

    /// A server that does not run yet.
    pub(crate) fn stopped() -> Self {
        let port = Port::free();
        let folder = tempfile::tempdir().unwrap();
        let settings = format!("bind 127.0.0.1\nport {}\nsave \"\"\ndir {}\n", port.number(), folder.path().display());
        std::fs::write(folder.path().join("redis.conf"), settings).unwrap();
        Self { port, folder, process: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number())
    }

    /// With its settings of before, where it was told to write them down.
    pub(crate) async fn run(&mut self) {
        let process = Command::new("redis-server")
            .arg(self.folder.path().join("redis.conf"))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("redis-server is not installed: `make test-services` installs it");
        self.process = Some(process);
        let client = Client::open(self.url()).unwrap();
        let answers = async {
            while client.get_multiplexed_async_connection().await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(90), answers).await.expect("redis-server comes up");
    }

    pub(crate) async fn kill(&mut self) {
        self.process.take().expect("it runs").kill().await.unwrap();
    }

    /// Whoever comes from now on must know this password.
    pub(crate) async fn ask_for(&self, password: &str) {
        self.set_password(&self.url(), password).await;
    }

    /// Another password, by one who knows the one of before.
    pub(crate) async fn ask_for_another(&self, before: &str, password: &str) {
        self.set_password(&self.url_with(before), password).await;
    }

    async fn set_password(&self, url: &str, password: &str) {
        let mut connection = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let set = ["SET", "requirepass", password];
        redis::cmd("CONFIG").arg(&set).exec_async(&mut connection).await.unwrap();
    }

    /// For who knows the password.
    pub(crate) fn url_with(&self, password: &str) -> String {
        format!("redis://:{password}@127.0.0.1:{}", self.port.number())
    }

    /// The server keeps its connections and says nothing more, as one whose machine has vanished.
    pub(crate) async fn freeze(&self) {
        let id = self.process.as_ref().and_then(Child::id).expect("it runs");
        let status = Command::new("kill").args(["-STOP", &id.to_string()]).status().await.unwrap();
        assert!(status.success());
    }
}
