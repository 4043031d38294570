//! The programs that tests start.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

/// Their folder: beside the tests, as `cargo build --workspace --bins` leaves them. Fails when one of these is not there.
pub fn beside_tests(names: &[&str]) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("a test lies in a folder of folders")?.to_owned();
    for name in names {
        ensure!(folder.join(name).exists(), "{name} is not built: `cargo build --workspace --bins` builds it");
    }
    Ok(folder)
}
