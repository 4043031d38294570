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
    let kept = ["bound:tenant::2026-11", "held", "reservations", "window:requests"];
    assert_eq!(keys(&mut connection, tenant).await, kept.map(|key| format!("{root}:{key}")));
    for key in ["window:requests", "bound:tenant::2026-11"] {
        let left: i64 = cmd("PTTL").arg(format!("{root}:{key}")).query_async(&mut connection).await.unwrap();
        assert!(left > 0, "{key} is kept for ever");
    }
    settle(&*counters, &ask, None, vec![]).await;
    let gone = async {
        while keys(&mut connection, tenant).await.iter().any(|key| !key.contains(":bound:")) {
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
    // As a clock that was an hour ahead leaves it, with one moment of that time: first and last number, sum, first and last moment.
    let key = format!("croft:{{{tenant}}}:window:requests");
    let told: Vec<u8> = cmd("HGET").arg(&key).arg("m").query_async(&mut connection).await.unwrap();
    let mut told: Vec<_> = told.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect();
    let (next_number, ahead) = (told[1] + 1.0, 9_000_000_000_000_i64);
    (told[1], told[2], told[4]) = (next_number, told[2] + 2.0, 9e12);
    let meta: Vec<u8> = told.into_iter().flat_map(f64::to_le_bytes).collect();
    let (moment, amount) = (format!("{next_number}"), format!("a{next_number}"));
    let mut write = cmd("HSET");
    write.arg(&key).arg(moment).arg(ahead).arg(amount).arg(2).arg("m").arg(meta);
    let _: () = write.query_async(&mut connection).await.unwrap();
    let refused = admit(&*counters, &next()).await;
    let Verdict::Full { retry_after, .. } = refused else { panic!("they count: {refused:?}") };
    assert!(retry_after <= Duration::from_millis(100), "and no longer than others: {retry_after:?}");
    tokio::time::sleep(Duration::from_millis(110)).await;
    for _ in 0..3 {
        assert!(is_granted(&admit(&*counters, &next()).await));
    }
}

#[tokio::test]
async fn reservations_do_not_outlive_a_clock_that_was_ahead() {
    let (counters, tenant) = (in_redis(), TenantId::generate());
    let mut connection = connection(&url()).await;
    let next = |ttl_ms| {
        let bound = known(bound("tenant", 10, None), 1, 0, 0);
        Ask { ttl: Duration::from_millis(ttl_ms), ..ask(tenant, vec![], vec![bound]) }
    };
    let gone = next(100);
    assert!(is_granted(&admit(&*counters, &gone).await));
    // As it stands there when the clock was an hour ahead.
    let (now, _): (i64, i64) = cmd("TIME").query_async(&mut connection).await.unwrap();
    let held = format!("croft:{{{tenant}}}:held");
    let _: () =
        cmd("ZADD").arg(&held).arg((now + 3_600) * 1_000).arg(&gone.id).query_async(&mut connection).await.unwrap();
    assert!(matches!(admit(&*counters, &next(100)).await, Verdict::Spent { .. }));
    let granted = async {
        while !is_granted(&admit(&*counters, &next(100)).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), granted).await.expect("what nobody holds is free again");
}

/// The clock jumps ahead: every reservation seems to have run out, and whoever is still there has theirs again.
#[tokio::test]
async fn a_clock_that_jumps_ahead_costs_nobody_who_is_there_a_reservation() {
    let (counters, tenant) = (in_redis(), TenantId::generate());
    let mut connection = connection(&url()).await;
    let ledger = || vec![known(bound("tenant", 20, None), 1, 0, 0)];
    let running = ask(tenant, vec![], ledger());
    assert!(is_granted(&admit(&*counters, &running).await));
    let held = format!("croft:{{{tenant}}}:held");
    let _: () = cmd("ZADD").arg(&held).arg(1).arg(&running.id).query_async(&mut connection).await.unwrap();
    let other = ask(tenant, vec![], vec![bound("tenant", 20, None)]);
    assert_eq!(admit(&*counters, &other).await, Verdict::Unknown(vec![0]), "the ledger is asked what became of it");
    assert!(is_granted(&counters.hold(&running).await.unwrap().verdict));
    assert!(is_granted(&admit(&*counters, &Ask { bounds: ledger(), ..other }).await));
    let third = ask(tenant, vec![], ledger());
    assert!(matches!(admit(&*counters, &third).await, Verdict::Spent { .. }), "twenty are reserved");
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
