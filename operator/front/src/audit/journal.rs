//! What this process was given to record, on disk before anyone is answered: a process that is killed loses none of it. A line is
//! written and not waited for to reach the disk itself: it survives the process, not the machine.
//!
//! A journal numbers its records from 1. The store notes up to which number it has one, with the records, so that what is given to it
//! again, by this process or the next, is stored once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::{Action, Place};

/// Bytes of a file at which another is begun, so that what is stored can go. As many files wait as the queue's records fill.
const FILE_MAX: u64 = 1 << 20;
const ENDING: &str = "journal";

/// The journal of one process. Without a folder it only numbers.
#[derive(Debug)]
pub struct Journal {
    folder: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    id: Uuid,
    /// Records that were noted, and how many of them, from the first on, are safe elsewhere.
    noted: u64,
    safe: u64,
    current: Option<Current>,
    /// Full files, each with the number of its last record.
    full: Vec<(PathBuf, u64)>,
}

#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// A file that an earlier process left.
#[derive(Debug)]
pub(super) struct Left {
    pub path: PathBuf,
    /// What can be read of it, each stretch with the place of its first record.
    pub stretches: Vec<(Place, Vec<Action>)>,
    /// Lines that can't be.
    pub unreadable: u64,
}

impl Journal {
    pub fn new(folder: Option<&Path>) -> Self {
        let state = State { id: Uuid::now_v7(), noted: 0, safe: 0, current: None, full: Vec::new() };
        Self { folder: folder.map(Path::to_owned), state: Mutex::new(state) }
    }

    pub fn id(&self) -> Uuid {
        self.lock().id
    }

    /// What is noted from now on is another journal's, whose numbers go on from here: somebody has given records as this one's.
    pub fn rename(&self) {
        let mut state = self.lock();
        state.turn_over();
        state.id = Uuid::now_v7();
    }

    /// Notes a record, and hands it on with its number, in the order of the numbers. One that can't be written is handed on all the
    /// same.
    pub fn note(&self, action: Action, hand_on: impl FnOnce(u64, Action)) {
        let mut state = self.lock();
        state.noted += 1;
        let number = state.noted;
        if let Some(folder) = &self.folder
            && let Err(error) = state.write(folder, &action)
        {
            tracing::error!(%error, "an audit record is not on the disk, and is lost should this process be killed now");
            // Half a line may stand at its end: what comes next must not follow it.
            state.turn_over();
        }
        hand_on(number, action);
    }

    /// Records up to this one are stored, or kept elsewhere on the disk.
    pub fn forget(&self, upto: u64) {
        let mut state = self.lock();
        state.safe = state.safe.max(upto);
        if let Err(error) = state.tidy() {
            tracing::warn!(%error, "what is stored of the audit journal can't be removed from the disk");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, folder: &Path, action: &Action) -> io::Result<()> {
        if self.current.as_ref().is_some_and(|current| current.bytes >= FILE_MAX) {
            let last = self.noted - 1;
            self.full.extend(self.current.take().map(|current| (current.path, last)));
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => {
                let path = folder.join(format!("{}.{:020}.{ENDING}", self.id.simple(), self.noted));
                let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
                none.insert(Current { path, file, bytes: 0 })
            }
        };
        let mut line = serde_json::to_vec(action)?;
        line.push(b'\n');
        current.bytes += line.len() as u64;
        current.file.write_all(&line)
    }

    fn turn_over(&mut self) {
        let last = self.noted;
        self.full.extend(self.current.take().map(|current| (current.path, last)));
    }

    fn tidy(&mut self) -> io::Result<()> {
        while let Some((path, _)) = self.full.first().filter(|(_, last)| *last <= self.safe) {
            fs::remove_file(path)?;
            self.full.remove(0);
        }
        if self.safe == self.noted
            && let Some(current) = self.current.take()
        {
            drop(current.file);
            fs::remove_file(current.path)?;
        }
        Ok(())
    }
}

/// What earlier processes left in the folder, oldest first. A last line that is not whole is none: whoever wrote it was not answered.
pub(super) fn left(folder: &Path) -> io::Result<Vec<Left>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(place) = place(&path) else { continue };
        let lines = fs::read(&path)?;
        let whole = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let actions: Vec<Option<Action>> = whole.map(|line| serde_json::from_slice(line).ok()).collect();
        let unreadable = actions.iter().filter(|action| action.is_none()).count() as u64;
        let mut stretches = Vec::new();
        let mut at = place;
        for stretch in actions.chunk_by(|one, next| one.is_some() == next.is_some()) {
            let readable: Vec<_> = stretch.iter().flatten().cloned().collect();
            if !readable.is_empty() {
                stretches.push((at, readable));
            }
            at = at.behind(stretch.len());
        }
        left.push((place, Left { path, stretches, unreadable }));
    }
    left.sort_by_key(|(place, _)| (place.journal, place.first));
    Ok(left.into_iter().map(|(_, left)| left).collect())
}

fn place(path: &Path) -> Option<Place> {
    let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?.strip_suffix('.')?;
    let (journal, first) = name.split_once('.')?;
    Some(Place { journal: journal.parse().ok()?, first: first.parse().ok()? })
}
