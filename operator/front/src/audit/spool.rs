//! Where audit records wait on disk while the store is away: a folder of files, each a batch in the order in which it came. They
//! outlive the process, and are replayed by the next.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

use super::{Action, Place, journal};

/// Records of a batch that is made of what a journal held.
const BATCH_MAX: usize = 500;
/// Batches that may wait, whatever room there is. At either bound no more are taken, and actions wait as they do without a spool.
const BATCHES_MAX: usize = 100_000;
/// What a file takes of a volume is made of these, in bytes.
const BLOCK: u64 = 4_096;
const ENDING: &str = "jsonl";
/// Of files that somebody has to look at.
const UNREADABLE: &str = "unreadable";

/// Where batches wait, and how many bytes of them. What was set aside in it, and journals, which the writer's queue bounds, come on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    pub path: PathBuf,
    /// What their files take, in whole blocks of 4 KiB.
    pub bytes_max: u64,
}

/// The folder in use. It belongs to one writer.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    bytes_max: u64,
    next: u64,
    /// The first that is this process's own.
    own: u64,
    waiting: Vec<Waiting>,
    /// Records of earlier processes' journals that can't be read.
    unreadable: u64,
}

/// A batch. Its file's name says all of this but what the file takes.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    number: u64,
    place: Place,
    bytes: u64,
}

/// Whether what is wrong with a batch will be wrong with it at the next look as well, as it is with no file that can't be opened for now.
pub fn is_for_good(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}

impl Spool {
    /// Makes the folder if it is not there, and finds what an earlier process has left: its batches, and behind them what its journal
    /// holds. What was not wholly written is no record: whoever wrote it had not been told that it is kept.
    ///
    /// What is in the folder already is kept, beyond the bound too: to refuse it would make no room.
    pub async fn open(Folder { path: folder, bytes_max }: &Folder) -> io::Result<Self> {
        fs::create_dir_all(folder).await?;
        let mut entries = fs::read_dir(folder).await?;
        let mut waiting = Vec::new();
        while let Some(entry) = entries.next_entry().await? {
            if let Some((number, place)) = named(&entry.path()) {
                waiting.push(Waiting { number, place, bytes: taken(entry.metadata().await?.len()) });
            }
        }
        waiting.sort_unstable_by_key(|waiting: &Waiting| waiting.number);
        let next = waiting.last().map_or(1, |last| last.number + 1);
        let (folder, bytes_max) = (folder.clone(), *bytes_max);
        let mut spool = Self { folder, bytes_max, next, own: next, waiting, unreadable: 0 };
        for journal::Left { path, stretches, unreadable } in journal::left(&spool.folder)? {
            for (mut place, actions) in stretches {
                for batch in actions.chunks(BATCH_MAX) {
                    spool.add(place, &lines(batch)?).await?;
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

    /// Keeps a batch. It is on the disk when this returns. Fails where there would be more than may wait.
    pub async fn keep(&mut self, place: Place, batch: &[Action]) -> io::Result<()> {
        if self.waiting.len() >= BATCHES_MAX {
            return Err(io::Error::other(format!("{BATCHES_MAX} batches wait already")));
        }
        let (lines, bytes_max) = (lines(batch)?, self.bytes_max);
        if self.bytes() + taken(lines.len() as u64) > bytes_max {
            return Err(io::Error::other(format!("more than {bytes_max} bytes of them would wait")));
        }
        self.add(place, &lines).await
    }

    /// What the files of all that waits take.
    fn bytes(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.bytes).sum()
    }

    async fn add(&mut self, place: Place, lines: &[u8]) -> io::Result<()> {
        let unfinished = self.folder.join(format!("{:020}.unfinished", self.next));
        let mut file = File::create(&unfinished).await?;
        file.write_all(lines).await?;
        file.sync_all().await?;
        let waiting = Waiting { number: self.next, place, bytes: taken(lines.len() as u64) };
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

    fn path(&self, Waiting { number, place, .. }: Waiting) -> PathBuf {
        let Place { journal, first } = place;
        self.folder.join(format!("{number:020}.{}.{first}.{ENDING}", journal.simple()))
    }
}

/// A record a line.
fn lines(batch: &[Action]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for action in batch {
        serde_json::to_writer(&mut lines, action)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// What a file of this length takes of its volume.
fn taken(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

/// A batch's number and place, by its file's name.
fn named(path: &Path) -> Option<(u64, Place)> {
    let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?.strip_suffix('.')?;
    let (number, place) = name.split_once('.')?;
    let (journal, first) = place.split_once('.')?;
    let place = Place { journal: journal.parse().ok()?, first: first.parse().ok()? };
    Some((number.parse().ok()?, place))
}
