//! Who gets which connection: the one that was used last takes the next append, and is kept from nobody.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use croft_front::Error;
use croft_front::app::{Parts, assemble};
use croft_front::core::Options;
use croft_front::counters::memory::Memory;
use croft_front::events::log::Append;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::identity::{Identity, Role};
use croft_front::session::manager::Manager;
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_front::store::postgres::connections::Connections;
use croft_front::tenants::Tenants;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{ListSessionsRequest, Message, SessionCheckpoint, SessionState};
use croft_serve::Tasks;
use futures::future::{join_all, try_join_all};
use prost::Message as _;
use sqlx::PgConnection;
use tokio::time::timeout;

use crate::contract::fixtures::{append, appended, said, session, tenant};
use crate::database::{Database, FRONT_ROLE, execute};

/// Set for a test that runs in a process of its own.
const MEASURED: &str = "CROFT_TEST_MEASURED";
/// Longer than anything here takes; what it bounds has failed.
const PATIENCE: Duration = Duration::from_secs(30);

struct Ground {
    database: Database,
    postgres: Postgres,
    stores: Stores,
    tenant: TenantId,
    session: SessionId,
}

/// Stores over a pool of so many connections, all of which are open.
async fn ground(connections: u32) -> Ground {
    let database = Database::migrated().await;
    let postgres = Postgres::connect(&database.url_of(FRONT_ROLE), connections).await.unwrap();
    let stores = Stores::postgres(&postgres, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    let ground = Ground { database, postgres, stores, tenant, session };
    ground.hold(connections).await;
    ground
}

impl Ground {
    /// So many reads at the same time, which wait for a lock until each has a connection.
    async fn hold(&self, reads: u32) {
        self.while_held(reads, async || ()).await;
    }

    async fn while_held<T>(&self, reads: u32, then: impl AsyncFn() -> T) -> T {
        let read = |_| self.stores.budgets.list(self.tenant);
        self.while_locked("budgets", reads, async || try_join_all((0..reads).map(read)).await, then).await.0
    }

    /// What comes of both: `then` begins once so many of the `looks` wait for this table, which nobody has until it is done. Both begin
    /// anew, at most five times, when a look was refused: the machine stalled for longer than a lock is waited for, and what `then` saw
    /// may have come of that.
    async fn while_locked<T, L>(
        &self,
        table: &'static str,
        waiting: u32,
        looks: impl AsyncFn() -> Result<L, Error>,
        then: impl AsyncFn() -> T,
    ) -> (T, L) {
        let (mut lock, mut observer) = (self.database.admin().await, self.database.admin().await);
        let mut last = None;
        for _ in 0..5 {
            execute(&mut lock, &format!("begin; lock table {table} in access exclusive mode")).await.unwrap();
            let mut looks = pin!(looks());
            let all_wait = async {
                while waiting_for_the_lock(table, &mut observer).await < i64::from(waiting) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let refused = tokio::select! {
                looked = &mut looks => looked.err(),
                () = all_wait => {
                    let held = async {
                        let done = then().await;
                        execute(&mut lock, "rollback").await.unwrap();
                        done
                    };
                    match tokio::join!(held, looks) {
                        (done, Ok(looked)) => return (done, looked),
                        (_, Err(refused)) => Some(refused),
                    }
                }
            };
            execute(&mut lock, "rollback").await.unwrap();
            last = refused;
        }
        panic!("looks are refused each time: {last:?}");
    }

    /// Waits until nobody works with the connections: they go back to the pool behind their users' backs.
    async fn rests(&self, connections: u64) {
        let resting = async {
            while self.postgres.connections() != (Connections { used: 0, idle: connections, max: connections }) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, resting).await.expect("nobody works with them");
    }

    async fn say(&self) {
        appended(&self.stores, append(self.tenant, self.session, vec![said("a word")])).await;
    }

    /// Connections whose last statement was an append.
    async fn appenders(&self) -> i64 {
        sqlx::query_scalar(
            "select count(*) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and query like '%croft_append%'",
        )
        .fetch_one(&mut self.database.admin().await)
        .await
        .unwrap()
    }
}

async fn waiting_for_the_lock(table: &str, observer: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_locks l join pg_database d on d.oid = l.database
        where d.datname = current_database() and l.relation = $1::regclass and not l.granted",
    )
    .bind(table)
    .fetch_one(observer)
    .await
    .unwrap()
}

/// Fronts with more to do than connections for it were taken for such without a database, one behind the other.
#[tokio::test]
async fn a_look_at_the_database_waits_for_no_connection_of_calls() {
    let ground = ground(4).await;
    ground.while_held(4, async || ground.postgres.check().await).await.unwrap();
    ground.database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_one_after_the_other_use_one_connection() {
    let ground = ground(8).await;
    ground.rests(8).await;
    for _ in 0..20 {
        ground.say().await;
    }
    assert_eq!(ground.appenders().await, 1);
    ground.database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_is_given_to_a_reader_that_finds_no_other() {
    let ground = ground(4).await;
    ground.say().await;
    // It would wait for as long as the others have theirs, and they have them until it is back.
    let read = ground.while_held(3, async || ground.stores.sessions.get(ground.tenant, ground.session).await).await;
    assert_eq!(read.expect("the fourth is at rest").unwrap().id, ground.session);
    ground.database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_told_of_by_whether_somebody_works_with_them() {
    let ground = ground(4).await;
    ground.rests(4).await;
    let told = ground.while_held(3, async || ground.postgres.connections()).await;
    assert_eq!(told, Connections { used: 3, idle: 1, max: 4 });
    // One that is kept for the next append is at rest.
    ground.say().await;
    ground.rests(4).await;
    ground.database.end().await;
}

/// A front's memory grew with the number of its connections times the largest conversation that it had ever read.
#[test]
fn what_a_connection_once_carried_it_does_not_keep() {
    // In a process of its own, whose allocator gives back at once what is large: nobody else's memory is measured.
    if std::env::var_os(MEASURED).is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(carry_much_and_then_little());
        return;
    }
    let test = ["--exact", "pool::what_a_connection_once_carried_it_does_not_keep", "--nocapture"];
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    // https://man7.org/linux/man-pages/man3/mallopt.3.html
    command.env("MALLOC_MMAP_THRESHOLD_", "65536").env("MALLOC_ARENA_MAX", "1").env(MEASURED, "1").args(test);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&output.stderr));
}

async fn carry_much_and_then_little() {
    const LARGE: usize = 16 * 1024 * 1024;
    const CONNECTIONS: u32 = 4;
    let ground = ground(CONNECTIONS).await;
    for _ in 0..20 {
        ground.say().await;
    }
    let before = resident();
    let message = Message { model: "x".repeat(LARGE), ..Message::default() };
    let checkpoint = SessionCheckpoint { messages: vec![message], ..SessionCheckpoint::default() };
    let large = Append {
        checkpoint: Some(checkpoint),
        ..append(ground.tenant, ground.session, vec![said("all that was ever said")])
    };
    appended(&ground.stores, large).await;
    let read = |_| ground.stores.events.checkpoint(ground.tenant, ground.session);
    let reads = async || try_join_all((0..CONNECTIONS).map(read)).await;
    let ((), read) = ground.while_locked("checkpoints", CONNECTIONS, reads, async || ()).await;
    assert!(read.iter().flatten().filter(|read| read.checkpoint.encoded_len() > LARGE).count() == read.len());
    drop(read);
    let little = async {
        while resident() > before + LARGE {
            ground.say().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let shrunk = timeout(PATIENCE, little).await;
    assert!(shrunk.is_ok(), "{} bytes are held, before it were {before}", resident());
    ground.database.end().await;
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1_024
}

/// They had all connections, so that the leases of turns that run could not be renewed, and every tenant's turns were given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_lists_that_hang_keep_nobodys_leases_from_being_renewed() {
    let (ground, tasks) = (ground(8).await, Tasks::new());
    let other = tenant(&ground.stores, "theirs").await;
    let running = session(&ground.stores, other).await;
    let ttl = Duration::from_mins(1);
    let epoch = ground.stores.leases.acquire(other, running, "front-0", ttl).await.unwrap().unwrap();
    let parts = Parts {
        replica: "front-0".into(),
        stores: ground.stores.clone(),
        relay: Arc::new(MemoryRelay::default()),
        counters: Arc::new(Memory::default()),
        tenants: Tenants::new(),
        tls: None,
        options: Options::default(),
    };
    let core = assemble(parts, &tasks, &prometheus::Registry::new()).await.unwrap();
    let identity = Identity {
        tenant: ground.tenant,
        tenant_name: "ours".into(),
        actor: "api-key/ck_1a2b3c4d".into(),
        roles: Role::User.into(),
    };
    let manager = Manager::new(core);
    let by_label = ListSessionsRequest { labels: [("team".into(), "nobody".into())].into(), ..Default::default() };
    let by_state = ListSessionsRequest { states: vec![SessionState::Running.into()], ..Default::default() };
    for request in [by_label, by_state] {
        let lists = async || {
            let lists = join_all((0..64).map(|_| manager.list(&identity, request.clone()))).await;
            lists.into_iter().collect::<Result<Vec<_>, _>>()
        };
        let renew = async || ground.stores.leases.renew_all(other, &[(running, epoch)], ttl).await;
        let (renewed, _) = ground.while_locked("sessions", 2, lists, renew).await;
        assert_eq!(renewed.expect("there is a connection for it"), []);
    }
    ground.database.end().await;
}
