//! Where a long text is looked through: on a thread of its own, so that the step is heard and stopped meanwhile, other sessions go on, and
//! the process ends without waiting for it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::scan::{Finding, Scanner};

/// Bytes of a text that is looked through where the step runs. A longer one is looked through here.
pub(super) const ON_STEP_BYTES_MAX: usize = 64 * 1024;
/// Texts that are looked through at a time. Others wait for their turn.
pub(super) const AT_A_TIME_MAX: u32 = 4;
/// How long a text may wait for its turn. At the bound nobody looks at it.
const WAIT_MAX: Duration = Duration::from_secs(30);

pub(super) static PLACES: Semaphore = Semaphore::const_new(AT_A_TIME_MAX as usize);

/// A text was not looked through: its turn did not come, or there was no thread for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Late;

/// What comes of looking with a scanner, which takes time linear in the text. Once nobody waits for it any more the scanner finds nothing
/// further, so that its place is free again after one kind, or one finding.
pub(super) async fn aside<T: Send + 'static>(
    scanner: Arc<dyn Scanner>,
    look: impl FnOnce(&dyn Scanner) -> T + Send + 'static,
) -> Result<T, Late> {
    // One that is free is taken however late it is.
    let place = match PLACES.try_acquire() {
        Ok(place) => place,
        Err(_) => match tokio::time::timeout(WAIT_MAX, PLACES.acquire()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) | Err(_) => return Err(Late),
        },
    };
    let (end, outcome) = oneshot::channel();
    let looks = move || {
        let looked = catch_unwind(AssertUnwindSafe(|| look(&Awaited { scanner: scanner.as_ref(), end: &end })));
        drop(place);
        // Nobody may wait any more.
        drop(end.send(looked));
    };
    // One of the runtime's own would be waited for at the end of the process.
    thread::Builder::new().name("guardrail".to_owned()).spawn(looks).map_err(|_| Late)?;
    match outcome.await {
        Ok(Ok(looked)) => Ok(looked),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(Late),
    }
}

/// A scanner that finds nothing more once nobody waits for what comes of it.
struct Awaited<'look, T> {
    scanner: &'look dyn Scanner,
    end: &'look oneshot::Sender<T>,
}

impl<T: Send> Scanner for Awaited<'_, T> {
    fn kinds(&self) -> usize {
        self.scanner.kinds()
    }

    fn find_kind(&self, kind: usize, text: &str, from: usize) -> Option<Finding> {
        if self.end.is_closed() { None } else { self.scanner.find_kind(kind, text, from) }
    }

    fn reach(&self) -> Option<usize> {
        self.scanner.reach()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::super::scan::redacted;
    use super::*;

    /// How long a test waits for what comes if all is well.
    const PATIENCE: Duration = Duration::from_mins(1);

    /// Tells that it has begun with a kind, and finds a letter once it is let go on.
    struct Held {
        begins: Mutex<Sender<()>>,
        goes_on: Mutex<Receiver<()>>,
        looks: AtomicUsize,
    }

    impl Held {
        fn new() -> (Arc<Self>, Receiver<()>, Sender<()>) {
            let ((begins, begun), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
            let (begins, goes_on) = (Mutex::new(begins), Mutex::new(goes_on));
            (Arc::new(Self { begins, goes_on, looks: AtomicUsize::new(0) }), begun, go_on)
        }
    }

    impl Scanner for Held {
        fn kinds(&self) -> usize {
            3
        }

        fn find_kind(&self, _kind: usize, text: &str, from: usize) -> Option<Finding> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            self.begins.lock().unwrap().send(()).unwrap();
            // An error is that whoever held it is gone.
            let _gone = self.goes_on.lock().unwrap().recv();
            (from < text.len()).then(|| Finding { range: from..from + 1, what: "letter" })
        }

        fn reach(&self) -> Option<usize> {
            None
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
    }

    /// It was looked through to its end, in one of the few places that all sessions share.
    #[test]
    fn a_text_that_nobody_waits_for_is_not_looked_through_any_further() {
        let (scanner, begun, go_on) = Held::new();
        let (has_ended, ended) = mpsc::channel::<()>();
        let looks = aside(Arc::clone(&scanner) as Arc<dyn Scanner>, move |scanner| {
            let _has_ended = has_ended;
            redacted(scanner, "abc").into_owned()
        });
        let runtime = runtime();
        let looks = runtime.spawn(looks);
        begun.recv_timeout(PATIENCE).unwrap();
        looks.abort();
        assert!(runtime.block_on(looks).unwrap_err().is_cancelled());
        drop(go_on);
        assert_eq!(ended.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
        assert_eq!(scanner.looks.load(Ordering::Relaxed), 1, "neither another kind nor another finding");
    }

    #[test]
    fn a_process_ends_while_a_text_is_looked_through() {
        let (scanner, begun, go_on) = Held::new();
        let runtime = runtime();
        drop(runtime.spawn(aside(scanner, |scanner| scanner.find("abc", 0))));
        begun.recv_timeout(PATIENCE).unwrap();
        let (has_ended, ended) = mpsc::channel();
        let ends = thread::spawn(move || {
            drop(runtime);
            has_ended.send(()).unwrap();
        });
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(()), "the end waits for what is looked at");
        drop(go_on);
        ends.join().unwrap();
    }

    #[tokio::test]
    #[should_panic(expected = "a broken scanner")]
    async fn what_breaks_off_while_it_looks_breaks_off_whoever_waits() {
        let (scanner, ..) = Held::new();
        drop(aside(scanner, |_| -> String { panic!("a broken scanner") }).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_whose_turn_does_not_come_is_not_waited_for_without_an_end() {
        let held = PLACES.acquire_many(AT_A_TIME_MAX).await.unwrap();
        let (scanner, ..) = Held::new();
        assert_eq!(aside(scanner, |scanner| scanner.kinds()).await, Err(Late));
        drop(held);
    }
}
