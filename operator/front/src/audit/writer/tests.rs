use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use futures::future::join_all;
use prometheus::Registry;
use tempfile::TempDir;

use super::*;
use crate::error::Error;

/// A store that can be taken away, and tells what it was given.
#[derive(Default)]
struct Fickle {
    away: AtomicBool,
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
    async fn append(&self, actions: Vec<Action>) -> Result<(), Error> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::unavailable("postgres", anyhow::anyhow!("away")));
        }
        self.batches.lock().unwrap().push(actions.into_iter().map(|action| action.resource).collect());
        Ok(())
    }

    async fn list(&self, _: TenantId, _: u64, _: u32) -> Result<Vec<AuditRecord>, Error> {
        Ok(Vec::new())
    }

    async fn verify(&self, _: TenantId) -> Result<VerifyAuditLogResponse, Error> {
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
    }
}

async fn writer(store: &Arc<Fickle>, folder: Option<&TempDir>, tasks: &Tasks) -> AuditWriter {
    let metrics = Metrics::register(&Registry::new()).unwrap();
    AuditWriter::start(Arc::clone(store) as _, folder.map(TempDir::path), metrics, tasks).await.unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);

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
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left on the disk");
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

#[tokio::test]
async fn a_batch_that_cannot_be_read_is_set_aside_and_holds_up_no_other() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("00000000000000000007.jsonl"), "half a rec").unwrap();
    std::fs::write(folder.path().join("00000000000000000008.unfinished"), "half").unwrap();
    let (store, tasks) = (Arc::new(Fickle::default()), Tasks::new());
    let writer = writer(&store, Some(&folder), &tasks).await;
    writer.record(action("whole")).await;
    assert_eq!(writer.unwritten(PATIENCE).await, 0);
    assert_eq!(store.records(), ["whole"]);
    assert!(folder.path().join("00000000000000000007.unreadable").exists());
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
