//! Where audit records wait on disk while the store is away: a folder of files, each a batch in the order in which it came. They
//! outlive the process, and are replayed by the next.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

use super::Action;

/// Batches that may wait. At the bound no more are taken, and actions wait as they do without a spool.
const BATCHES_MAX: usize = 100_000;
const ENDING: &str = "jsonl";

/// The folder. It belongs to one writer.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    next: u64,
    /// The first that is this process's own.
    own: u64,
    waiting: Vec<u64>,
}

impl Spool {
    /// Makes the folder if it is not there, and finds what an earlier process has left. What was not wholly written is no
    /// record: whoever wrote it had not been told that it is kept.
    pub async fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder).await?;
        let mut entries = fs::read_dir(folder).await?;
        let mut waiting = Vec::new();
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            if let Some(number) = number.filter(|_| path.extension().is_some_and(|ending| ending == ENDING)) {
                waiting.push(number);
            }
        }
        waiting.sort_unstable();
        let next = waiting.last().map_or(1, |last| last + 1);
        Ok(Self { folder: folder.to_owned(), next, own: next, waiting })
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Keeps a batch. It is on the disk when this returns.
    pub async fn keep(&mut self, batch: &[Action]) -> io::Result<()> {
        if self.waiting.len() >= BATCHES_MAX {
            return Err(io::Error::other(format!("{BATCHES_MAX} batches wait already")));
        }
        let mut lines = Vec::new();
        for action in batch {
            serde_json::to_writer(&mut lines, action)?;
            lines.push(b'\n');
        }
        let unfinished = self.folder.join(format!("{:020}.unfinished", self.next));
        let mut file = File::create(&unfinished).await?;
        file.write_all(&lines).await?;
        file.sync_all().await?;
        fs::rename(&unfinished, self.path(self.next)).await?;
        // The name is on the disk when its folder is.
        File::open(&self.folder).await?.sync_all().await?;
        self.waiting.push(self.next);
        self.next += 1;
        Ok(())
    }

    /// The batch that has waited longest comes from an earlier process.
    pub fn is_oldest_inherited(&self) -> bool {
        self.waiting.first().is_some_and(|number| *number < self.own)
    }

    /// The batch that has waited longest.
    pub async fn oldest(&self) -> io::Result<Option<Vec<Action>>> {
        let Some(number) = self.waiting.first() else { return Ok(None) };
        let lines = fs::read_to_string(self.path(*number)).await?;
        lines
            .lines()
            .map(|line| serde_json::from_str(line).map_err(io::Error::from))
            .collect::<io::Result<_>>()
            .map(Some)
    }

    /// It is stored now.
    pub async fn forget_oldest(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            let number = self.waiting.remove(0);
            fs::remove_file(self.path(number)).await?;
        }
        Ok(())
    }

    /// It can't be read. Out of the way, it is kept for somebody to look at.
    pub async fn set_oldest_aside(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            let number = self.waiting.remove(0);
            let path = self.path(number);
            fs::rename(&path, path.with_extension("unreadable")).await?;
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:020}.{ENDING}"))
    }
}
