//! Who gets which connection: the one that was used last takes the next append, and is kept from nobody.

use std::sync::Arc;
use std::time::Duration;

use croft_front::app::{Parts, assemble};
use croft_front::core::Options;
use croft_front::counters::memory::Memory;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::identity::{Identity, Role};
use croft_front::session::manager::Manager;
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_front::store::postgres::connections::Connections;
use croft_front::tenants::Tenants;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{ListSessionsRequest, SessionState};
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
        self.while_held(reads, async {}).await;
    }

    async fn while_held<T>(&self, reads: u32, then: impl Future<Output = T>) -> T {
        let read = |_| async { self.stores.budgets.list(self.tenant).await.unwrap() };
        self.while_locked("budgets", reads, join_all((0..reads).map(read)), then).await.0
    }

    /// What comes of both: `then` begins once so many of the `looks` wait for this table, which nobody has until it is done.
    async fn while_locked<T, L>(
        &self,
        table: &'static str,
        waiting: u32,
        looks: impl Future<Output = L>,
        then: impl Future<Output = T>,
    ) -> (T, L) {
        let (mut lock, mut observer) = (self.database.admin().await, self.database.admin().await);
        execute(&mut lock, &format!("begin; lock table {table} in access exclusive mode")).await.unwrap();
        let held = async {
            while waiting_for_the_lock(table, &mut observer).await < i64::from(waiting) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let done = then.await;
            execute(&mut lock, "rollback").await.unwrap();
            done
        };
        tokio::join!(held, looks)
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

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_told_of_by_whether_somebody_works_with_them() {
    let ground = ground(4).await;
    let at_rest = async || {
        let resting = async {
            // They go back to the pool behind their users' backs.
            while ground.postgres.connections() != (Connections { used: 0, idle: 4, max: 4 }) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(AT_ONCE, resting).await.expect("nobody works with them");
    };
    at_rest().await;
    let told = ground.while_held(3, async { ground.postgres.connections() }).await;
    assert_eq!(told, Connections { used: 3, idle: 1, max: 4 });
    // One that is kept for the next append is at rest.
    ground.say().await;
    at_rest().await;
    ground.database.end().await;
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
        let lists = (0..64).map(|_| manager.list(&identity, request.clone()));
        let renew = async { timeout(AT_ONCE, ground.stores.leases.renew_all(other, &[(running, epoch)], ttl)).await };
        let (renewed, _) = ground.while_locked("sessions", 2, join_all(lists), renew).await;
        assert_eq!(renewed.expect("there is a connection for it").unwrap(), []);
    }
    ground.database.end().await;
}
