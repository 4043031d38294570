//! The providers' keys, as files that may change: a mounted Secret's do, without a restart. Calls that begin afterwards are
//! made with the new key, sessions and calls that run notice nothing.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_llm::ApiKey;
use croft_serve::Tasks;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Between two looks at the files. They are looked at rather than watched: a mounted Secret is a link to a link to a folder
/// that is exchanged as a whole, of which a watch of the file itself hears nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The files that keys came from.
#[derive(Debug, Default)]
pub struct Keys {
    files: Vec<KeyFile>,
}

#[derive(Debug)]
struct KeyFile {
    provider: String,
    path: PathBuf,
    api_key: ApiKey,
    /// Another key that was there at the last look.
    seen: Option<SecretString>,
    /// What was wrong at the last look; it is told once.
    problem: Option<String>,
}

impl Keys {
    pub(crate) fn follow(&mut self, provider: &str, path: PathBuf, api_key: ApiKey) {
        self.files.push(KeyFile { provider: provider.to_owned(), path, api_key, seen: None, problem: None });
    }

    /// Looks at the files until `tasks` is stopping.
    pub fn spawn(self, tasks: &Tasks) {
        let stopping = tasks.stopping();
        tasks.spawn_vital("provider-keys", async move {
            self.look_until(stopping).await;
            Ok(())
        });
    }

    async fn look_until(mut self, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for file in &mut self.files {
                let path = file.path.clone();
                // A read that panics is none.
                let Ok(found) = tokio::task::spawn_blocking(move || read(&path)).await else { continue };
                file.take_in(found);
            }
        }
    }
}

impl KeyFile {
    /// Takes a key that was the same at two looks: one that is just being written is none yet. What can't be a key leaves
    /// the old one in use.
    fn take_in(&mut self, found: Result<Option<SecretString>, String>) {
        let (provider, path) = (&self.provider, self.path.display());
        let found = match found {
            Ok(Some(found)) => found,
            Ok(None) if !self.api_key.is_there() => return self.seen = None,
            Ok(None) => return self.keep("the file is not there".to_owned()),
            Err(problem) => return self.keep(problem),
        };
        self.problem = None;
        if self.api_key.is(&found) {
            self.seen = None;
        } else if self.seen.as_ref().is_some_and(|seen| seen.expose_secret() == found.expose_secret()) {
            self.seen = None;
            self.api_key.replace(found);
            tracing::info!(provider, %path, "the provider's key has changed; calls are made with the new one from now on");
        } else {
            self.seen = Some(found);
        }
    }

    fn keep(&mut self, problem: String) {
        self.seen = None;
        if self.problem.as_ref() != Some(&problem) {
            let provider = &self.provider;
            tracing::warn!(provider, problem, "the provider's key can't be read any more; the old one stays in use");
            self.problem = Some(problem);
        }
    }
}

/// The key in a file; `None` where there is no file: it may come later. A problem is told without anything of what the file
/// holds.
pub(crate) fn read(path: &Path) -> Result<Option<SecretString>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("api_key_file {}: {error}", path.display())),
    };
    let key = text.trim();
    // It goes into a header; the parser's own error could quote it.
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("api_key_file {} must hold one line of printable ASCII", path.display()));
    }
    Ok(Some(SecretString::from(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    fn file(api_key: ApiKey) -> KeyFile {
        KeyFile { provider: "anthropic".into(), path: "key".into(), api_key, seen: None, problem: None }
    }

    #[test]
    fn a_key_that_is_being_written_is_taken_once_it_stays_the_same() {
        let mut file = file(secret("old").into());
        for found in ["new", "new-and", "new-and-whole"] {
            file.take_in(Ok(Some(secret(found))));
            assert!(file.api_key.is(&secret("old")), "{found}");
        }
        file.take_in(Ok(Some(secret("new-and-whole"))));
        assert!(file.api_key.is(&secret("new-and-whole")));
    }

    #[test]
    fn what_is_no_key_leaves_the_old_one_and_is_told_once() {
        let mut file = file(secret("old").into());
        for found in [Err("empty".to_owned()), Ok(None), Ok(Some(secret("new"))), Ok(None), Ok(Some(secret("new")))] {
            file.take_in(found);
            assert!(file.api_key.is(&secret("old")));
        }
        file.take_in(Err("empty".to_owned()));
        assert_eq!((file.problem.as_deref(), file.seen.is_none()), (Some("empty"), true));
    }

    #[test]
    fn one_that_comes_later_is_taken() {
        let mut file = file(ApiKey::missing());
        file.take_in(Ok(None));
        assert_eq!(file.problem, None);
        file.take_in(Ok(Some(secret("first"))));
        file.take_in(Ok(Some(secret("first"))));
        assert!(file.api_key.is(&secret("first")));
    }
}
