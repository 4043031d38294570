//! The operator's own certificate, with which the program begins and which it has to its end.

use std::sync::Arc;
use std::time::Duration;

use croft_serve::tls::TlsFiles;
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, Error};
use crate::certificate::{Issued, Subject};

/// Between two looks at whether it holds. A sleep until it ends would miss that the clock was set, or that the machine slept too.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// It sees the operator begin anew at a time within so long: replicas are usually started together.
const RESTARTS_WITHIN_SECONDS: f64 = 24.0 * 60.0 * 60.0;

/// What this replica shows to fronts, and how it knows them.
pub(crate) struct OwnCertificate {
    subject: Subject,
    issued: Issued,
    authority: Arc<Authority>,
    /// So much sooner than it must be renewed it is.
    sooner_seconds: i64,
}

impl OwnCertificate {
    /// Makes one from `now`, in seconds since 1970, on. Replicas that were started together must not all end together, so `chance`, from 0 to
    /// 1, takes some of its time off.
    #[expect(clippy::cast_possible_truncation, reason = "it is a day at most")]
    pub(crate) fn issue(namespace: &str, authority: &Arc<Authority>, now: i64, chance: f64) -> Result<Self, Error> {
        let subject = Subject::operator(namespace);
        let issued = subject.issue(authority, now)?;
        let sooner_seconds = (RESTARTS_WITHIN_SECONDS * chance) as i64;
        Ok(Self { subject, issued, authority: Arc::clone(authority), sooner_seconds })
    }

    /// For the program's servers and clients.
    pub(crate) fn files(&self) -> TlsFiles {
        let Issued { cert, key } = self.issued.clone();
        TlsFiles { cert: cert.into(), key: key.into(), ca: self.authority.cert_pem().into() }
    }

    /// Ends well at `stopping`, and fails once it holds no more by `now`: servers keep the one that they began with, so the program begins anew
    /// before it ends.
    pub(crate) async fn keep(self, now: impl Fn() -> i64, stopping: CancellationToken) -> anyhow::Result<()> {
        let held = async {
            while self.holds(now()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match stopping.run_until_cancelled(held).await {
            Some(()) => anyhow::bail!("the operator's own certificate must be renewed, which takes a restart"),
            None => Ok(()),
        }
    }

    fn holds(&self, now: i64) -> bool {
        let at = |time| self.subject.still_holds(&self.issued, &self.authority, time);
        at(now) && at(now + self.sooner_seconds)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::certificate::renew_at;
    use crate::controller::chance;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 24 * 60 * 60;

    fn own(chance: f64) -> OwnCertificate {
        let authority = Arc::new(Authority::generate(NOW).unwrap());
        OwnCertificate::issue("croft-system", &authority, NOW, chance).unwrap()
    }

    /// The first second in which it holds no more.
    fn ends(own: &OwnCertificate) -> i64 {
        let (mut first, mut last) = (NOW, renew_at(NOW));
        assert!(own.holds(first) && !own.holds(last));
        while last - first > 1 {
            let middle = i64::midpoint(first, last);
            if own.holds(middle) { first = middle } else { last = middle }
        }
        last
    }

    #[test]
    fn replicas_that_began_together_end_one_after_another_and_none_too_late() {
        assert_eq!(ends(&own(0.0)), NOW + 60 * DAY);
        assert_eq!(ends(&own(1.0)) + DAY, NOW + 60 * DAY);
        let mut ends: Vec<_> = (0..8).map(|_| self::ends(&own(chance()))).collect();
        ends.sort_unstable();
        assert!(ends[7] > ends[0] + 60, "{ends:?}");
    }

    /// Once, it was a sleep of days: a certificate of a clock that was ahead was shown, and refused by all, for as long.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_ends_it_within_a_minute_whichever_way() {
        for set in [NOW - DAY, NOW + 60 * DAY] {
            let (clock, stopping) = (AtomicI64::new(NOW), CancellationToken::new());
            let keep = own(0.0).keep(|| clock.load(Ordering::SeqCst), stopping.clone());
            let story = async {
                tokio::time::sleep(Duration::from_hours(5)).await;
                clock.store(set, Ordering::SeqCst);
                Instant::now()
            };
            let kept = async {
                let outcome = timeout(Duration::from_hours(7), keep).await.expect("it ends");
                (outcome, Instant::now())
            };
            let ((outcome, ended), set_at) = tokio::join!(kept, story);
            assert!(outcome.is_err() && ended - set_at <= Duration::from_mins(1), "{:?}", ended - set_at);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_well_when_the_program_does() {
        let stopping = CancellationToken::new();
        let keep = own(0.0).keep(|| NOW, stopping.clone());
        let stop = async {
            tokio::time::sleep(Duration::from_hours(5)).await;
            stopping.cancel();
        };
        let (outcome, ()) = tokio::join!(keep, stop);
        assert!(outcome.is_ok());
    }
}
