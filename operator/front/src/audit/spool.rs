//! Where audit records wait on disk while the store is away: a folder of files, each a batch in the order in which it came. They
//! outlive the process, and are replayed by the next.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

use super::{Action, Place, journal};

/// Records of a batch that is made of what a journal held.
const BATCH_MAX: usize = 500;
/// Batches that may wait. At the bound no more are taken, and actions wait as they do without a spool.
const BATCHES_MAX: usize = 100_000;
const ENDING: &str = "jsonl";
/// Of files that somebody has to look at.
const UNREADABLE: &str = "unreadable";

/// The folder. It belongs to one writer.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    next: u64,
    /// The first that is this process's own.
    own: u64,
    waiting: Vec<Waiting>,
    /// Records of earlier processes' journals that can't be read.
    unreadable: u64,
}

/// A batch. Its file's name says all of this.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    number: u64,
    place: Place,
}

/// Whether what is wrong with a batch will be wrong with it at the next look as well, as it is with no file that can't be opened for now.
pub fn is_for_good(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}

impl Spool {
    /// Makes the folder if it is not there, and finds what an earlier process has left: its batches, and behind them what its journal
    /// holds. What was not wholly written is no record: whoever wrote it had not been told that it is kept.
    pub async fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder).await?;
        let mut entries = fs::read_dir(folder).await?;
        let mut waiting = Vec::new();
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            waiting.extend(waiting_in(&path));
        }
        waiting.sort_unstable_by_key(|waiting: &Waiting| waiting.number);
        let next = waiting.last().map_or(1, |last| last.number + 1);
        let mut spool = Self { folder: folder.to_owned(), next, own: next, waiting, unreadable: 0 };
        for journal::Left { path, stretches, unreadable } in journal::left(folder)? {
            for (mut place, actions) in stretches {
                for batch in actions.chunks(BATCH_MAX) {
                    spool.keep(place, batch).await?;
                    place = place.behind(batch.len());
                }
            }
            // Should it stay, its batches are stored once all the same.
            if unreadable == 0 {
                fs::remove_file(path).await?;
                continue;
            }
            let aside = path.with_extension(UNREADABLE);
            tracing::error!(unreadable, kept = %aside.display(), "audit records of an earlier process can't be read");
            fs::rename(path, aside).await?;
            spool.unreadable += unreadable;
        }
        spool.own = spool.next;
        Ok(spool)
    }

    /// Records that were found in journals when it was opened and can't be read. Their files are kept aside.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Keeps a batch. It is on the disk when this returns.
    pub async fn keep(&mut self, place: Place, batch: &[Action]) -> io::Result<()> {
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
        let waiting = Waiting { number: self.next, place };
        fs::rename(&unfinished, self.path(waiting)).await?;
        // The name is on the disk when its folder is.
        File::open(&self.folder).await?.sync_all().await?;
        self.waiting.push(waiting);
        self.next += 1;
        Ok(())
    }

    /// The batch that has waited longest comes from an earlier process.
    pub fn is_oldest_inherited(&self) -> bool {
        self.waiting.first().is_some_and(|waiting| waiting.number < self.own)
    }

    /// The batch that has waited longest.
    pub async fn oldest(&self) -> io::Result<Option<(Place, Vec<Action>)>> {
        let Some(waiting) = self.waiting.first() else { return Ok(None) };
        let lines = fs::read_to_string(self.path(*waiting)).await?;
        let actions = lines.lines().map(|line| serde_json::from_str(line).map_err(io::Error::from));
        Ok(Some((waiting.place, actions.collect::<io::Result<_>>()?)))
    }

    /// It is stored now.
    pub async fn forget_oldest(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            let waiting = self.waiting.remove(0);
            fs::remove_file(self.path(waiting)).await?;
        }
        Ok(())
    }

    /// It can't be read. Out of the way, it is kept for somebody to look at.
    pub async fn set_oldest_aside(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            let waiting = self.waiting.remove(0);
            let path = self.path(waiting);
            fs::rename(&path, path.with_extension(UNREADABLE)).await?;
        }
        Ok(())
    }

    /// The store refuses this one. As a dead letter, it is kept for somebody to look at.
    pub async fn set_aside(&self, place: Place, action: &Action) -> io::Result<()> {
        let Place { journal, first } = place;
        fs::write(self.folder.join(format!("{}.{first}.refused", journal.simple())), serde_json::to_vec(action)?).await
    }

    fn path(&self, Waiting { number, place }: Waiting) -> PathBuf {
        let Place { journal, first } = place;
        self.folder.join(format!("{number:020}.{}.{first}.{ENDING}", journal.simple()))
    }
}

fn waiting_in(path: &Path) -> Option<Waiting> {
    let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?.strip_suffix('.')?;
    let (number, place) = name.split_once('.')?;
    let (journal, first) = place.split_once('.')?;
    let place = Place { journal: journal.parse().ok()?, first: first.parse().ok()? };
    Some(Waiting { number: number.parse().ok()?, place })
}
