//! Files that have been renewed while the program runs. Its servers and channels keep the certificate that they began with, so it has to
//! begin anew before that runs out.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

use super::TlsFiles;
use crate::TlsArgs;

/// Between two looks at the files. They are looked at rather than watched, as a mounted Secret is exchanged as a whole.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl TlsFiles {
    /// For [`crate::Tasks::spawn_vital`]: fails, so that the program shuts down in order and is started again, once the files that
    /// `args` name are another usable set than this one. Before that it waits for a moment within `spread`, so that replicas
    /// don't go together. Files that can't be used are told of, and the old ones stay in use.
    pub async fn until_renewed(
        self,
        args: TlsArgs,
        spread: Duration,
        stopping: CancellationToken,
    ) -> anyhow::Result<()> {
        let renewed = async {
            self.renewed(&args).await;
            let wait = moment_within(spread);
            tracing::info!(wait_seconds = wait.as_secs(), "the certificate was renewed, the program will begin anew");
            tokio::time::sleep(wait).await;
        };
        match stopping.run_until_cancelled(renewed).await {
            Some(()) => bail!("the certificate was renewed, which takes a restart"),
            None => Ok(()),
        }
    }

    async fn renewed(&self, args: &TlsArgs) {
        let mut problem = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let named = args.clone();
            // A read that panics is none.
            let Ok(read) = tokio::task::spawn_blocking(move || Self::read(&named)).await else { continue };
            match read {
                Ok(files) if files == *self => problem = None,
                Ok(_) => return,
                Err(mistakes) => {
                    let told = mistakes.to_string();
                    if problem.as_ref() != Some(&told) {
                        tracing::warn!(problem = told, "the certificate's files have changed and are not usable");
                        problem = Some(told);
                    }
                }
            }
        }
    }
}

fn moment_within(spread: Duration) -> Duration {
    let milliseconds = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
    // Its keys are random, which is all that is asked here.
    Duration::from_millis(RandomState::new().hash_one(0_u8) % milliseconds.saturating_add(1))
}
