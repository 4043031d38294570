use std::path::PathBuf;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use futures::future::join_all;
use prometheus::Registry;
use tempfile::TempDir;

use super::*;
use crate::audit::{Known, Place};
use crate::error::Error;
use crate::store::memory::Memory;

/// A resource whose records the store does not take, now or later.
const REFUSED: &str = "refused";

/// A store that can be taken away, and tells what it was given.
#[derive(Default)]
struct Fickle {
    away: AtomicBool,
    /// It answers nothing any more.
    hangs: AtomicBool,
    batches: Mutex<Vec<Vec<String>>>,
}

impl Fickle {
    fn go_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// All records, in the order in which they were stored.
    fn records(&self) -> Vec<String> {
        self.batches.lock().unwrap().iter().flatten().cloned().collect()
    }
}

#[async_trait]
impl AuditStore for Fickle {
    async fn append(&self, Place { first, .. }: Place, actions: Vec<Action>) -> Result<u64, Error> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::unavailable("postgres", anyhow::anyhow!("away")));
        }
        if actions.iter().any(|action| action.resource == REFUSED) {
            return Err(Error::invalid("records", "are not to its taste"));
        }
        self.batches.lock().unwrap().push(actions.into_iter().map(|action| action.resource).collect());
        Ok(first - 1)
    }

    async fn list(&self, _: TenantId, _: u64, _: u32) -> Result<Vec<AuditRecord>, Error> {
        Ok(Vec::new())
    }

    async fn verify(&self, _: TenantId, _: Option<Known>) -> Result<VerifyAuditLogResponse, Error> {
        Ok(VerifyAuditLogResponse::default())
    }
}

fn action(resource: impl Into<String>) -> Action {
    Action {
        tenant: TenantId::generate(),
        actor: "test".into(),
        action: "session.create".into(),
        resource: resource.into(),
        outcome: "ok".into(),
        act_micros: None,
    }
}

async fn writer(store: &Arc<Fickle>, folder: Option<&TempDir>, tasks: &Tasks) -> AuditWriter {
    writer_over(Arc::clone(store) as _, folder, tasks).await
}

async fn writer_over(store: Arc<dyn AuditStore>, folder: Option<&TempDir>, tasks: &Tasks) -> AuditWriter {
    let metrics = Metrics::register(&Registry::new()).unwrap();
    AuditWriter::start(store, folder.map(ample).as_ref(), metrics, tasks).await.unwrap()
}

/// With more room than any test fills.
fn ample(folder: &TempDir) -> Folder {
    Folder { path: folder.path().to_owned(), bytes_max: 1 << 30 }
}

const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until nothing is left on the disk: what is stored is told of before.
async fn tidied(folder: &TempDir) {
    let empty = async {
        while std::fs::read_dir(folder.path()).unwrap().next().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("something is left on the disk");
}

#[tokio::test]
async fn a_full_batch_is_stored_at_once_and_the_rest_right_behind_it() {
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    let writer = writer(&store, None, &tasks).await;
    for number in 0..=BATCH_MAX {
        writer.record(action(number.to_string())).await;
    }
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    let sizes: Vec<_> = store.batches.lock().unwrap().iter().map(Vec::len).collect();
    assert!(sizes.iter().all(|size| *size <= BATCH_MAX), "{sizes:?}");
    assert_eq!(store.records().len(), BATCH_MAX + 1);
}

#[tokio::test]
async fn a_single_record_waits_for_no_other() {
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    let writer = writer(&store, None, &tasks).await;
    writer.record(action("alone")).await;
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    assert_eq!(store.records(), ["alone"]);
}

#[tokio::test]
async fn records_that_wait_are_told_as_a_lag() {
    let (store, tasks, folder) = (Arc::new(Fickle::default()), Tasks::new(), TempDir::new().unwrap());
    store.go_away(true);
    let writer = writer(&store, Some(&folder), &tasks).await;
    for number in 0..3 {
        writer.record(action(number.to_string())).await;
    }
    assert_eq!(writer.unwritten(Duration::ZERO).await, 3);
    assert_eq!(writer.lag.waiting(), 3);
    store.go_away(false);
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    assert_eq!(writer.lag.waiting(), 0);
}

/// As of a batch whose other half could not be stored: all of it is tried again.
#[tokio::test]
async fn what_is_given_to_the_store_twice_counts_once() {
    let (storing, stored) = watch::channel(0);
    let (metrics, journal) = (Metrics::register(&Registry::new()).unwrap(), Arc::new(Journal::new(None)));
    let lag = metrics.audit_lag.clone();
    let mut work = Writing { store: Arc::new(Fickle::default()), journal, spool: None, metrics, storing, sent: 0 };
    (1..=4).for_each(|number| lag.given(number));
    let place = Place { journal: work.journal.id(), first: 1 };
    for _ in 0..2 {
        assert!(work.store(place, &[action("one"), action("two")], true).await);
    }
    assert_eq!((*stored.borrow(), lag.waiting()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn records_in_a_journal_wait_for_others_unless_somebody_waits_for_them() {
    let (store, tasks, folder) = (Arc::new(Fickle::default()), Tasks::new(), TempDir::new().unwrap());
    let writer = writer(&store, Some(&folder), &tasks).await;
    for number in 0..10 {
        writer.record(action(number.to_string())).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(store.records().is_empty(), "they are on the disk: there is time");
    tokio::time::sleep(GATHER).await;
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    let sizes: Vec<_> = store.batches.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10]);

    writer.record(action("looked for")).await;
    let asked = Instant::now();
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    assert!(asked.elapsed() < GATHER, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_stop_drains_what_waits() {
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    let writer = writer(&store, None, &tasks).await;
    for number in 0..2_000 {
        writer.record(action(number.to_string())).await;
    }
    assert_eq!(tasks.shutdown(PATIENCE).await, 0);
    assert_eq!(store.records(), (0..2_000).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_call_that_is_being_drained_does_is_recorded() {
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    let writer = writer(&store, None, &tasks).await;
    let stopping = tasks.stopping();
    drop(tasks.spawn("call", async move {
        stopping.cancelled().await;
        // By then the writer has seen that nothing waits.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        writer.record(action("late")).await;
    }));
    assert_eq!(tasks.shutdown(PATIENCE).await, 0);
    assert_eq!(store.records(), ["late"]);
}

/// Found by whoever calls with a name that the database does not take: it held up all records behind it, of all tenants.
#[tokio::test]
async fn a_record_that_is_refused_for_good_stands_in_nobodys_way() {
    for away_at_first in [false, true] {
        let (store, tasks, folder) = (Arc::new(Fickle::default()), Tasks::new(), TempDir::new().unwrap());
        let writer = writer(&store, Some(&folder), &tasks).await;
        store.go_away(away_at_first);
        let names = (0..40).map(|number| if number % 13 == 7 { REFUSED.to_owned() } else { number.to_string() });
        for name in names.clone() {
            writer.record(action(name)).await;
        }
        store.go_away(false);
        assert_eq!(writer.unwritten(PATIENCE).await, 0);
        assert_eq!(store.records(), names.filter(|name| name != REFUSED).collect::<Vec<_>>(), "in their order");
        let set_aside = || std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut set_aside = set_aside().filter(|path| path.extension().is_some_and(|ending| ending == "refused"));
        let letter = std::fs::read_to_string(set_aside.next().expect("a dead letter")).unwrap();
        assert!(letter.contains("session.create"), "{letter}");
        assert_eq!(set_aside.count(), 2);
        assert_eq!(tasks.shutdown(PATIENCE).await, 0);
    }
}

#[tokio::test]
async fn a_store_that_is_away_neither_blocks_nor_loses() {
    let (store, tasks, folder) = (Arc::new(Fickle::default()), Tasks::new(), TempDir::new().unwrap());
    let writer = writer(&store, Some(&folder), &tasks).await;
    store.go_away(true);
    // More than the queue holds: without the disk, the last would wait for the store.
    let all = async {
        for number in 0..QUEUE_MAX + 5_000 {
            writer.record(action(number.to_string())).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("nobody waits");
    assert!(store.records().is_empty());
    store.go_away(false);
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    let expected: Vec<_> = (0..QUEUE_MAX + 5_000).map(|number| number.to_string()).collect();
    assert_eq!(store.records(), expected, "each once, in its order");
    tidied(&folder).await;
}

#[tokio::test]
async fn what_an_earlier_process_kept_is_replayed_before_anything_else() {
    let folder = TempDir::new().unwrap();
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    store.go_away(true);
    let earlier = writer(&store, Some(&folder), &tasks).await;
    for number in 0..3 {
        earlier.record(action(number.to_string())).await;
    }
    assert_eq!(tasks.shutdown(PATIENCE).await, 0, "it ends although the store is away");

    store.go_away(false);
    let tasks = Tasks::new();
    let later = writer(&store, Some(&folder), &tasks).await;
    later.record(action("new")).await;
    assert_eq!(later.unwritten(PATIENCE).await, 0);
    assert_eq!(store.records(), ["0", "1", "2", "new"]);
}

/// As after a `kill -9`: the first writer never comes to store, to keep or to tidy up anything.
#[tokio::test]
async fn what_a_killed_process_was_given_is_stored_by_the_next() {
    let folder = TempDir::new().unwrap();
    let (stuck, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    stuck.hangs.store(true, Ordering::SeqCst);
    let killed = writer(&stuck, Some(&folder), &tasks).await;
    // In several files of the journal.
    let long = "r".repeat(400);
    for number in 0..5_000 {
        killed.record(action(format!("{number} {long}"))).await;
    }
    assert!(std::fs::read_dir(folder.path()).unwrap().count() > 1);
    // It was killed while it wrote: nobody was answered for this one.
    let mut last: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    last.sort();
    let mut file = std::fs::OpenOptions::new().append(true).open(last.last().unwrap()).unwrap();
    std::io::Write::write_all(&mut file, br#"{"tenant":"0198"#).unwrap();

    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    let next = writer(&store, Some(&folder), &tasks).await;
    next.record(action("new")).await;
    assert_eq!(next.unwritten(PATIENCE).await, 0);
    let expected = (0..5_000).map(|number| format!("{number} {long}")).chain(["new".to_owned()]).collect::<Vec<_>>();
    assert_eq!(store.records(), expected);
    tasks.shutdown(PATIENCE).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left on the disk");
}

#[tokio::test]
async fn what_was_stored_already_is_not_stored_again() {
    let folder = TempDir::new().unwrap();
    let (memory, tenant) = (Arc::new(Memory::default()), TenantId::generate());
    let of_tenant = |resource: &str| Action { tenant, ..action(resource) };
    // Its process was killed after the store had them, and before it could tell its journal.
    let journal = Journal::new(Some(folder.path()));
    let given: Vec<_> = ["1", "2", "3"].map(of_tenant).to_vec();
    for action in &given {
        journal.note(action.clone(), |_, _| {});
    }
    let place = Place { journal: journal.id(), first: 1 };
    memory.append(place, given[..2].to_vec()).await.unwrap();
    drop(journal);

    let tasks = Tasks::new();
    let next = writer_over(Arc::clone(&memory) as _, Some(&folder), &tasks).await;
    next.record(of_tenant("4")).await;
    assert_eq!(next.unwritten(PATIENCE).await, 0);
    let records = memory.list(tenant, 0, 10).await.unwrap();
    assert_eq!(records.into_iter().map(|record| record.resource).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
    tasks.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_is_set_aside_and_holds_up_no_other() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("00000000000000000007.0123456789abcdef0123456789abcdef.1.jsonl"), "half a rec")
        .unwrap();
    std::fs::write(folder.path().join("00000000000000000008.unfinished"), "half").unwrap();
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    let writer = writer(&store, Some(&folder), &tasks).await;
    writer.record(action("whole")).await;
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    assert_eq!(store.records(), ["whole"]);
    assert!(folder.path().join("00000000000000000007.0123456789abcdef0123456789abcdef.1.unreadable").exists());
}

/// Once, such a line took everything behind it along, and the file was removed.
#[tokio::test]
async fn a_line_of_a_journal_that_cannot_be_read_takes_no_other_along() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::new(Some(folder.path()));
    for resource in ["1", "2", "3", "4", "5"] {
        journal.note(action(resource), |_, _| {});
    }
    let only_file = || std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let path = only_file();
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    (lines[1], lines[2]) = ("\0\0\0", "half a rec");
    // The last line is not whole: whoever wrote it was not answered.
    std::fs::write(&path, lines.join("\n")).unwrap();

    let mut spool = Spool::open(&ample(&folder)).await.unwrap();
    assert_eq!(spool.unreadable(), 2);
    let place = |first| Place { journal: journal.id(), first };
    for (first, resource) in [(1, "1"), (4, "4")] {
        let (at, actions) = spool.oldest().await.unwrap().unwrap();
        assert_eq!(at, place(first), "its number is that of its line");
        assert_eq!(actions.iter().map(|action| &*action.resource).collect::<Vec<_>>(), [resource]);
        spool.forget_oldest().await.unwrap();
    }
    assert!(spool.is_empty());
    assert_eq!(only_file(), path.with_extension("unreadable"));

    // With a writer it is counted, and found once.
    std::fs::rename(only_file(), &path).unwrap();
    let (store, tasks, metrics) =
        (Arc::new(Fickle::default()), Tasks::new(), Metrics::register(&Registry::new()).unwrap());
    let room = ample(&folder);
    let start = || AuditWriter::start(Arc::clone(&store) as _, Some(&room), metrics.clone(), &tasks);
    start().await.unwrap();
    assert_eq!(metrics.audit_refused.get(), 2);
    tasks.shutdown(PATIENCE).await;
    assert_eq!(store.records(), ["1", "4"]);
    assert_eq!(only_file(), path.with_extension("unreadable"));
    Spool::open(&ample(&folder)).await.unwrap();
    assert_eq!(only_file(), path.with_extension("unreadable"), "it is somebody's to look at");
}

/// What the files of batches take of the disk.
fn taken(folder: &TempDir) -> u64 {
    let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
    let batches = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "jsonl"));
    batches.map(|batch| batch.metadata().unwrap().len().next_multiple_of(4_096)).sum()
}

/// A pod whose volume was full was evicted, and all that waited there was lost.
#[tokio::test]
async fn what_would_take_more_than_the_bound_is_not_kept() {
    let folder = TempDir::new().unwrap();
    let room = Folder { bytes_max: 4 * 4_096, ..ample(&folder) };
    let mut spool = Spool::open(&room).await.unwrap();
    let journal = Place::start().journal;
    let place = |first| Place { journal, first };
    // However small a file is, it takes a block; two blocks are taken by one that is somewhat larger.
    spool.keep(place(1), &[action("1")]).await.unwrap();
    spool.keep(place(2), &[action("2"), action("r".repeat(4_096))]).await.unwrap();
    let larger = spool.keep(place(4), &[action("r".repeat(4_096))]).await.unwrap_err();
    assert!(larger.to_string().contains("16384 bytes"), "{larger}");
    spool.keep(place(4), &[action("4")]).await.unwrap();
    spool.keep(place(5), &[action("5")]).await.unwrap_err();
    assert_eq!(taken(&folder), room.bytes_max);

    // The next process counts what it finds, and takes a journal beyond the bound: it is on the disk already.
    drop(spool);
    let journal = Journal::new(Some(folder.path()));
    journal.note(action("noted"), |_, _| {});
    let mut spool = Spool::open(&room).await.unwrap();
    spool.keep(place(5), &[action("5")]).await.unwrap_err();
    let mut found = Vec::new();
    while let Some((_, actions)) = spool.oldest().await.unwrap() {
        found.extend(actions.into_iter().map(|action| action.resource));
        spool.forget_oldest().await.unwrap();
    }
    assert_eq!(found, ["1", "2", &"r".repeat(4_096), "4", "noted"]);
    spool.keep(place(5), &[action("5")]).await.unwrap();
}

#[tokio::test]
async fn where_no_more_can_be_kept_actions_wait_for_the_store_and_none_is_lost() {
    let (store, tasks, folder) = (Arc::new(Fickle::default()), Tasks::new(), TempDir::new().unwrap());
    let room = Folder { bytes_max: 4_096, ..ample(&folder) };
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let writer = AuditWriter::start(Arc::clone(&store) as _, Some(&room), metrics, &tasks).await.unwrap();
    store.go_away(true);
    writer.record(action("0")).await;
    kept(&folder, 1).await;
    // One more than the next batch and the queue hold.
    let last = BATCH_MAX + QUEUE_MAX + 1;
    let mut others = pin!(async {
        for number in 1..=last {
            writer.record(action(number.to_string())).await;
        }
    });
    assert!(
        timeout(2 * RETRY, &mut others).await.is_err(),
        "they are answered, though there is no room for one of them"
    );
    assert_eq!(taken(&folder), room.bytes_max);
    store.go_away(false);
    timeout(PATIENCE, others).await.expect("there is room again");
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    assert_eq!(store.records(), (0..=last).map(|number| number.to_string()).collect::<Vec<_>>());
    tidied(&folder).await;
}

/// Waits until the batch that begins with this record is kept, and tells where.
async fn kept(folder: &TempDir, first: u64) -> PathBuf {
    let ending = format!(".{first}.jsonl");
    let look = async {
        loop {
            let mut files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
            if let Some(path) = files.find(|path| path.to_str().unwrap().ends_with(&ending)) {
                return path;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("it is not kept")
}

/// As where a process has all files open that it may have.
#[tokio::test]
async fn a_batch_that_cannot_be_read_for_now_is_stored_later_and_in_its_order() {
    let (store, tasks, folder) = (Arc::new(Fickle::default()), Tasks::new(), TempDir::new().unwrap());
    let writer = writer(&store, Some(&folder), &tasks).await;
    store.go_away(true);
    writer.record(action("kept")).await;
    let first = kept(&folder, 1).await;
    let elsewhere = TempDir::new().unwrap();
    std::fs::rename(&first, elsewhere.path().join("kept")).unwrap();
    std::fs::create_dir(&first).unwrap();
    // Once this one is kept, no look at the other is under way from before.
    writer.record(action("behind")).await;
    kept(&folder, 2).await;
    store.go_away(false);
    assert_eq!(writer.unwritten(2 * RETRY).await, 2, "nothing goes before it");
    std::fs::remove_dir(&first).unwrap();
    std::fs::copy(elsewhere.path().join("kept"), &first).unwrap();
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    assert_eq!(store.records(), ["kept", "behind"]);
}

#[tokio::test]
async fn who_goes_away_before_there_is_room_is_not_waited_for() {
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    store.hangs.store(true, Ordering::SeqCst);
    let writer = writer(&store, None, &tasks).await;
    let fill = async {
        loop {
            let waits = tokio::time::timeout(Duration::from_millis(200), writer.record(action("waits"))).await.is_err();
            if waits && writer.queue.capacity() == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, fill).await.expect("the queue is full in the end");
    let given = writer.given.load(Ordering::SeqCst);
    assert!(tokio::time::timeout(Duration::from_millis(50), writer.record(action("gone"))).await.is_err());
    assert_eq!(writer.given.load(Ordering::SeqCst), given);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_at_the_same_time_lose_nothing() {
    let (store, tasks, folder) = (Arc::new(Fickle::default()), Tasks::new(), TempDir::new().unwrap());
    let writer = writer(&store, Some(&folder), &tasks).await;
    let writers = (0..50).map(|writer_number| {
        let (writer, store) = (writer.clone(), Arc::clone(&store));
        async move {
            for number in 0..40 {
                store.go_away((writer_number + number) % 7 == 0);
                writer.record(action(format!("{writer_number}-{number}"))).await;
            }
        }
    });
    join_all(writers).await;
    store.go_away(false);
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    let mut records = store.records();
    records.sort();
    records.dedup();
    assert_eq!(records.len(), 2_000);
}

/// A store in which somebody else has written to the journal that it is given first, and which is away from then on.
#[derive(Default)]
struct Poisoned(Mutex<Option<uuid::Uuid>>);

#[async_trait]
impl AuditStore for Poisoned {
    async fn append(&self, Place { journal, .. }: Place, _: Vec<Action>) -> Result<u64, Error> {
        let mut poisoned = self.0.lock().unwrap();
        if poisoned.is_none() {
            *poisoned = Some(journal);
            return Ok(1 << 40);
        }
        Err(Error::unavailable("postgres", anyhow::anyhow!("away")))
    }

    async fn list(&self, _: TenantId, _: u64, _: u32) -> Result<Vec<AuditRecord>, Error> {
        Ok(Vec::new())
    }

    async fn verify(&self, _: TenantId, _: Option<Known>) -> Result<VerifyAuditLogResponse, Error> {
        Ok(VerifyAuditLogResponse::default())
    }
}

/// It waited under the name of the journal that was written to, and the next process would have taken it for stored.
#[tokio::test]
async fn what_somebody_else_would_have_taken_for_stored_waits_under_another_name() {
    let (store, tasks, folder) = (Arc::new(Poisoned::default()), Tasks::new(), TempDir::new().unwrap());
    let writer = writer_over(Arc::clone(&store) as _, Some(&folder), &tasks).await;
    writer.record(action("1")).await;
    drop(writer);
    assert_eq!(tasks.shutdown(PATIENCE).await, 0);
    let next = Spool::open(&ample(&folder)).await.unwrap();
    let (place, batch) = next.oldest().await.unwrap().unwrap();
    assert_eq!(batch.iter().map(|action| &*action.resource).collect::<Vec<_>>(), ["1"]);
    let poisoned = store.0.lock().unwrap().unwrap();
    assert_ne!(place.journal, poisoned);
}
