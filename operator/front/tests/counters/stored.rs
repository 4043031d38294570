//! What is kept in Redis, and what becomes of it.

use std::time::Duration;

use croft_front::counters::{Ask, Counters, Verdict};
use croft_proto::id::TenantId;
use redis::aio::MultiplexedConnection;
use redis::{Client, cmd};

use crate::server::Server;
use crate::{admit, ask, bound, in_redis, is_granted, known, settle, url, window};
use croft_front::counters::redis::RedisCounters;

async fn connection(url: &str) -> MultiplexedConnection {
    Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn keys(connection: &mut MultiplexedConnection, tenant: TenantId) -> Vec<String> {
    let mut keys: Vec<String> = cmd("KEYS").arg(format!("croft:{{{tenant}}}:*")).query_async(connection).await.unwrap();
    keys.sort();
    keys
}

#[tokio::test]
async fn keys_begin_with_the_tenant_and_go_by_themselves() {
    let (counters, tenant) = (in_redis(), TenantId::generate());
    let mut connection = connection(&url()).await;
    let ask = ask(tenant, vec![window("requests", 5, 50)], vec![known(bound("tenant::2026-11", 100, None), 1, 0, 0)]);
    assert!(is_granted(&admit(&*counters, &ask).await));
    let root = format!("croft:{{{tenant}}}");
    let kept = ["amounts:requests", "held", "spent:tenant::2026-11", "terms", "times:requests"];
    assert_eq!(keys(&mut connection, tenant).await, kept.map(|key| format!("{root}:{key}")));
    for key in ["amounts:requests", "times:requests", "spent:tenant::2026-11"] {
        let left: i64 = cmd("PTTL").arg(format!("{root}:{key}")).query_async(&mut connection).await.unwrap();
        assert!(left > 0, "{key} is kept for ever");
    }
    settle(&*counters, &ask, None, vec![]).await;
    let gone = async {
        while keys(&mut connection, tenant).await.iter().any(|key| !key.contains(":spent:")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("nothing but the copy of the ledger is left");
}

#[tokio::test]
async fn moments_from_the_future_count_as_of_now() {
    let (counters, tenant) = (in_redis(), TenantId::generate());
    let mut connection = connection(&url()).await;
    let next = || ask(tenant, vec![window("requests", 3, 100)], vec![]);
    assert!(is_granted(&admit(&*counters, &next()).await));
    // As a clock that was an hour ahead leaves it.
    let (times, amounts) =
        (format!("croft:{{{tenant}}}:times:requests"), format!("croft:{{{tenant}}}:amounts:requests"));
    let ahead = 9_000_000_000_000_i64;
    let _: () = cmd("ZADD").arg(&times).arg(ahead).arg(ahead).query_async(&mut connection).await.unwrap();
    let _: () = cmd("HSET").arg(&amounts).arg(ahead).arg(2).query_async(&mut connection).await.unwrap();
    let _: () = cmd("HINCRBY").arg(&amounts).arg("sum").arg(2).query_async(&mut connection).await.unwrap();
    let refused = admit(&*counters, &next()).await;
    let Verdict::Full { retry_after, .. } = refused else { panic!("they count: {refused:?}") };
    assert!(retry_after <= Duration::from_millis(100), "and no longer than others: {retry_after:?}");
    tokio::time::sleep(Duration::from_millis(110)).await;
    for _ in 0..3 {
        assert!(is_granted(&admit(&*counters, &next()).await));
    }
}

#[tokio::test]
async fn a_flush_is_made_up_for_by_the_ledger_and_by_who_still_runs() {
    let server = Server::start().await;
    let counters = RedisCounters::connect(&server.url(), Duration::from_secs(20)).unwrap();
    let tenant = TenantId::generate();
    let running = ask(tenant, vec![], vec![known(bound("tenant", 30, None), 7, 10, 0)]);
    assert!(is_granted(&admit(&counters, &running).await));
    let mut connection = connection(&server.url()).await;
    let _: () = cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    let next = ask(tenant, vec![], vec![bound("tenant", 30, None)]);
    assert_eq!(admit(&counters, &next).await, Verdict::Unknown(vec![0]));
    assert!(is_granted(&counters.hold(&running).await.unwrap().verdict));
    assert!(is_granted(&admit(&counters, &next).await));
    let third = Ask { id: "third".into(), ..next };
    assert!(matches!(admit(&counters, &third).await, Verdict::Spent { .. }), "ten are spent, and twenty reserved");
}
