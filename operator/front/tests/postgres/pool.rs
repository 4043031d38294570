//! Who gets which connection: the one that was used last takes the next append, and is kept from nobody.

use std::time::Duration;

use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use futures::future::join_all;
use sqlx::PgConnection;
use tokio::time::timeout;

use crate::contract::fixtures::{append, appended, said, session, tenant};
use crate::database::{Database, FRONT_ROLE, execute};

/// Below what a call waits for a connection before it is refused.
const AT_ONCE: Duration = Duration::from_secs(3);

struct Ground {
    database: Database,
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
    let ground = Ground { database, stores, tenant, session };
    ground.hold(connections).await;
    ground
}

impl Ground {
    /// So many reads at the same time, which wait for a lock until each has a connection.
    async fn hold(&self, reads: u32) {
        self.while_held(reads, async {}).await;
    }

    async fn while_held<T>(&self, reads: u32, then: impl Future<Output = T>) -> T {
        let (mut lock, mut observer) = (self.database.admin().await, self.database.admin().await);
        execute(&mut lock, "begin; lock table budgets in access exclusive mode").await.unwrap();
        let held = async {
            while waiting_for_the_lock(&mut observer).await < i64::from(reads) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let done = then.await;
            execute(&mut lock, "rollback").await.unwrap();
            done
        };
        let read = |_| async { self.stores.budgets.list(self.tenant).await.unwrap() };
        tokio::join!(held, join_all((0..reads).map(read))).0
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

async fn waiting_for_the_lock(observer: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_locks l join pg_database d on d.oid = l.database
        where d.datname = current_database() and l.relation = 'budgets'::regclass and not l.granted",
    )
    .fetch_one(observer)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_one_after_the_other_use_one_connection() {
    let ground = ground(8).await;
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
    let read = async { timeout(AT_ONCE, ground.stores.sessions.get(ground.tenant, ground.session)).await };
    let read = ground.while_held(3, read).await.expect("the fourth is at rest");
    assert_eq!(read.unwrap().unwrap().id, ground.session);
    ground.database.end().await;
}
