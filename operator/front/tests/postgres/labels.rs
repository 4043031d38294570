//! Lists of sessions by labels that few of very many carry.

use std::collections::BTreeMap;

use croft_front::session::store::{Filter, LOOKED_AT_MAX, NewSession};
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use sqlx::PgConnection;

use crate::contract::fixtures::{insert, new_session, tenant};
use crate::database::{Database, execute};

/// An id that is older than all that are made today.
fn old(number: u32) -> SessionId {
    SessionId(uuid::Uuid::from_u128(0x7000_8000_0000_0000_0000 + u128::from(number)))
}

/// Copies the one session that there is into so many that have ended, with ids from [`old`].
async fn copy(admin: &mut PgConnection, sessions: u32) {
    let copy = format!(
        "insert into sessions (
            tenant_id, session_id, state, agent, agent_name, config_hash, labels, create_time, update_time, last_seq
        )
        select tenant_id, ('00000000-0000-7000-8000-' || lpad(to_hex(number), 12, '0'))::uuid, 'terminated', agent, agent_name,
            config_hash, '{{}}', create_time, update_time, last_seq
        from sessions, generate_series(1, {sessions}) as number"
    );
    execute(admin, &copy).await.unwrap();
    execute(admin, "analyze sessions").await.unwrap();
}

async fn label(admin: &mut PgConnection, session: SessionId) {
    let label = format!(r#"update sessions set labels = '{{"ticket": "4711"}}' where session_id = '{session}'"#);
    assert_eq!(execute(admin, &label).await.unwrap(), 1);
}

/// The ids of each page, and behind which the next one begins.
async fn pages(stores: &Stores, tenant: TenantId, limit: u32) -> Vec<(Vec<SessionId>, Option<SessionId>)> {
    let filter = Filter { labels: [("ticket".into(), "4711".into())].into(), ..Filter::default() };
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = stores.sessions.list(tenant, &filter, after, limit).await.unwrap();
        after = page.next();
        pages.push((page.sessions.iter().map(|session| session.id).collect(), after));
        if after.is_none() {
            return pages;
        }
    }
}

/// With enough sessions a look at all of them took longer than a statement may, and there was no page to go on from.
#[tokio::test]
async fn a_list_by_a_rare_label_looks_at_so_many_sessions_and_says_where_to_go_on() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let labels = BTreeMap::from([("ticket".into(), "4711".into()), ("team".into(), "sails".into())]);
    let newest = insert(&stores, NewSession { labels, ..new_session(tenant) }).await.id;
    let mut admin = database.admin().await;
    let sessions = 2 * LOOKED_AT_MAX;
    copy(&mut admin, sessions).await;
    for number in [7, sessions - 7, sessions - 9] {
        label(&mut admin, old(number)).await;
    }
    // The newest one is among those that were looked at.
    let (first, second) = (old(sessions - (LOOKED_AT_MAX - 2)), old(sessions - (2 * LOOKED_AT_MAX - 2)));
    let all = [
        (vec![newest, old(sessions - 7), old(sessions - 9)], Some(first)),
        (vec![old(7)], Some(second)),
        (vec![], None),
    ];
    assert_eq!(pages(&stores, tenant, 10).await, all);
    // A page that is full begins the next one behind its last session.
    let by_two = pages(&stores, tenant, 2).await;
    assert_eq!(by_two[0], (vec![newest, old(sessions - 7)], Some(old(sessions - 7))));
    let shown: Vec<_> = by_two.iter().flat_map(|(ids, _)| ids).copied().collect();
    assert_eq!(shown, [newest, old(sessions - 7), old(sessions - 9), old(7)]);
    database.end().await;
}
