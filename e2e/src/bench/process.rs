//! A program under test.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::load::{self, Load};
use super::scrape::Scrape;

/// Nothing here takes that long unless it is broken.
const LONG: Duration = Duration::from_mins(1);

/// A program that runs. It ends with this.
pub struct Program {
    child: Child,
    pid: u32,
    name: String,
    ops: SocketAddr,
    http: reqwest::Client,
    /// When it was started.
    pub started: Instant,
}

impl Program {
    /// Starts `command`, whose metrics and health are at `ops`. What it prints goes to `log`.
    pub fn start(name: &str, mut command: Command, ops: SocketAddr, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().context("it has ended")?;
        Ok(Self { child, pid, name: name.to_owned(), ops, http: reqwest::Client::new(), started })
    }

    /// Its metrics now.
    pub async fn scrape(&self) -> anyhow::Result<Scrape> {
        Scrape::of(&self.http, self.ops).await.with_context(|| self.name.clone())
    }

    /// What it has used.
    pub fn load(&self) -> anyhow::Result<Load> {
        load::of(self.pid)
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        self.until_readiness(true).await
    }

    /// Waits until it says that it is not.
    pub async fn unready(&mut self) -> anyhow::Result<()> {
        self.until_readiness(false).await
    }

    async fn until_readiness(&mut self, wanted: bool) -> anyhow::Result<()> {
        let url = format!("http://{}/readyz", self.ops);
        let http = self.http.clone();
        self.until(async || {
            let answer = http.get(&url).send().await.ok()?;
            (answer.status().is_success() == wanted).then_some(())
        })
        .await
    }

    /// Asks until there is an answer. Fails when the program ends, or when it takes too long.
    pub async fn until<T>(&mut self, mut ask: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return Ok(answer);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} has ended: {status}", self.name);
            }
            ensure!(begun.elapsed() < LONG, "{} takes too long", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to end, as Kubernetes does first. Says when it was asked.
    pub async fn terminate(&self) -> anyhow::Result<Instant> {
        self.signal("-TERM").await
    }

    /// Has it stand still, as a machine does that is short of time. Says when it was asked.
    pub async fn pause(&self) -> anyhow::Result<Instant> {
        self.signal("-STOP").await
    }

    /// Has it go on where it stood still. Says when it was asked.
    pub async fn resume(&self) -> anyhow::Result<Instant> {
        self.signal("-CONT").await
    }

    async fn signal(&self, signal: &str) -> anyhow::Result<Instant> {
        let now = Instant::now();
        let sent = Command::new("kill").arg(signal).arg(self.pid.to_string()).status().await?;
        ensure!(sent.success(), "cannot signal {}", self.name);
        Ok(now)
    }

    /// Ends it, as a crash does. Says when.
    pub fn kill(&mut self) -> anyhow::Result<Instant> {
        let now = Instant::now();
        self.child.start_kill()?;
        Ok(now)
    }

    /// Asks for its metrics until they are such, and says when.
    pub async fn until_scraped(&mut self, is_such: impl Fn(&Scrape) -> bool) -> anyhow::Result<Instant> {
        let (http, ops) = (self.http.clone(), self.ops);
        self.until(async || {
            let scrape = Scrape::of(&http, ops).await.ok()?;
            is_such(&scrape).then(Instant::now)
        })
        .await
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> anyhow::Result<()> {
        let ended = tokio::time::timeout(LONG, self.child.wait()).await;
        ended.with_context(|| format!("{} does not end", self.name))??;
        Ok(())
    }
}
