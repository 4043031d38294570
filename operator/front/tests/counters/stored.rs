//! What is kept in Redis, and what becomes of it.

use std::time::Duration;

use croft_front::counters::{Ask, Bound, Counters, Verdict, Window};
use croft_proto::id::TenantId;
use redis::aio::MultiplexedConnection;
use redis::{Client, cmd};

use crate::server::Server;
use crate::{PATIENCE, admit, ask, bound, client, in_redis, in_time, is_granted, known, settle, url, window};
use croft_front::counters::redis::RedisCounters;

async fn connection(url: &str) -> MultiplexedConnection {
    Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn keys(connection: &mut MultiplexedConnection, tenant: TenantId) -> Vec<String> {
    let mut keys: Vec<String> = cmd("KEYS").arg(format!("croft:{{{tenant}}}:*")).query_async(connection).await.unwrap();
    keys.sort();
    keys
}

/// The server's clock.
async fn now_ms(connection: &mut MultiplexedConnection) -> i64 {
    let (seconds, micros): (i64, i64) = cmd("TIME").query_async(connection).await.unwrap();
    seconds * 1_000 + micros / 1_000
}

/// The numbers of a line of the tenant's state.
async fn numbers(connection: &mut MultiplexedConnection, tenant: TenantId, field: &str) -> Vec<f64> {
    let state = format!("croft:{{{tenant}}}:state");
    let line: Vec<u8> = cmd("HGET").arg(state).arg(field).query_async(connection).await.unwrap();
    line.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

async fn write(connection: &mut MultiplexedConnection, tenant: TenantId, field: &str, numbers: Vec<f64>) {
    let state = format!("croft:{{{tenant}}}:state");
    let _: () = cmd("HSET").arg(state).arg(field).arg(packed(numbers)).query_async(connection).await.unwrap();
}

fn packed(numbers: Vec<f64>) -> Vec<u8> {
    numbers.into_iter().flat_map(f64::to_le_bytes).collect()
}

/// As another clock would have written down when a reservation runs out.
async fn runs_out(connection: &mut MultiplexedConnection, ask: &Ask, millisecond: f64) {
    let (running, field) = (format!("croft:{{{}}}:running", ask.tenant), format!("held:{}", ask.id));
    let _: () = cmd("ZADD").arg(running).arg(millisecond).arg(field).query_async(connection).await.unwrap();
    let mut due = numbers(connection, ask.tenant, "due").await;
    due[0] = millisecond;
    write(connection, ask.tenant, "due", due).await;
}

#[tokio::test]
async fn keys_begin_with_the_tenant_and_go_by_themselves() {
    let counters = in_redis();
    let (ask, root) = in_time(async || {
        let (tenant, mut connection) = (TenantId::generate(), connection(&url()).await);
        let windows = vec![window("requests", 5, 1_000)];
        let ask = ask(tenant, windows, vec![known(bound("tenant::2026-11", 100, None), 1, 0, 0)]);
        let granted = counters.admit(&ask).await.unwrap();
        assert!(is_granted(&granted.verdict));
        let root = format!("croft:{{{tenant}}}");
        let found = keys(&mut connection, tenant).await;
        let mut left = Vec::new();
        for key in ["kept", "moments:requests", "state"] {
            let left_ms: i64 = cmd("PTTL").arg(format!("{root}:{key}")).query_async(&mut connection).await.unwrap();
            left.push((key, left_ms));
        }
        if now_ms(&mut connection).await >= granted.at_ms + 1_000 {
            return None;
        }
        let kept = ["kept", "moments:requests", "running", "state"];
        assert_eq!(found, kept.map(|key| format!("{root}:{key}")));
        for (key, left_ms) in left {
            assert!(left_ms > 0, "{key} is kept for ever");
        }
        Some((ask, root))
    })
    .await;
    settle(&*counters, &ask, None, vec![]).await;
    let (tenant, mut connection) = (ask.tenant, connection(&url()).await);
    let gone = async {
        while keys(&mut connection, tenant).await != ["kept", "state"].map(|key| format!("{root}:{key}")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("nothing but the copy of the ledger is left");
}

/// Each session has a bound of its own, and most sessions are never heard of again.
#[tokio::test]
async fn what_is_kept_no_longer_goes_while_others_go_on() {
    let (counters, tenant) = (in_redis(), TenantId::generate());
    let mut connection = connection(&url()).await;
    let windows = || vec![window("requests", 1_000_000, 50)];
    for session in 0..200 {
        let key = format!("session:{session}:life");
        let keep = Duration::from_millis(20);
        let gone = ask(tenant, windows(), vec![Bound { keep, ..known(bound(&key, 100, None), 1, 0, 0) }]);
        assert!(is_granted(&admit(&*counters, &gone).await));
        settle(&*counters, &gone, None, vec![]).await;
    }
    let state = format!("croft:{{{tenant}}}:state");
    let others = async {
        loop {
            assert!(is_granted(&admit(&*counters, &ask(tenant, windows(), vec![])).await));
            let mut fields: Vec<String> = cmd("HKEYS").arg(&state).query_async(&mut connection).await.unwrap();
            fields.sort();
            if fields == ["due", "moments:requests"] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, others).await.expect("the state is of what is in use");
}

#[tokio::test]
async fn a_window_whose_memory_redis_needed_begins_anew() {
    let (counters, tenant) = (in_redis(), TenantId::generate());
    let mut connection = connection(&url()).await;
    let estimated = || {
        let tokens = Window { settles: true, ..window("tokens", 5, 600_000) };
        Ask { tokens: 1, ..ask(tenant, vec![tokens], vec![]) }
    };
    let asks = [estimated(), estimated(), estimated()];
    for ask in &asks {
        assert!(is_granted(&admit(&*counters, ask).await));
    }
    let list = format!("croft:{{{tenant}}}:moments:tokens");
    let _: () = cmd("DEL").arg(list).query_async(&mut connection).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    for room in [true, true, true, true, true, false] {
        assert_eq!(is_granted(&admit(&*counters, &estimated()).await), room);
    }
    for ask in &asks {
        settle(&*counters, ask, Some(0), vec![]).await;
    }
    assert!(!is_granted(&admit(&*counters, &estimated()).await), "what is gone gives nothing back");
}

#[tokio::test]
async fn moments_from_the_future_count_as_of_now() {
    let counters = in_redis();
    in_time(async || moments_from_the_future(&*counters).await).await;
}

/// `None` when the first moment had left before all was told.
async fn moments_from_the_future(counters: &dyn Counters) -> Option<()> {
    let (tenant, span) = (TenantId::generate(), Duration::from_millis(300));
    let mut connection = connection(&url()).await;
    let next = || ask(tenant, vec![window("requests", 3, 300)], vec![]);
    let first = counters.admit(&next()).await.unwrap();
    assert!(is_granted(&first.verdict));
    // As a clock that was ahead leaves it, with one moment of that time. A window is until when it is kept, first number in the list,
    // first that counts and last, sum, first and last moment.
    let ahead = 9e12;
    let mut told = numbers(&mut connection, tenant, "moments:requests").await;
    if now_ms(&mut connection).await >= first.at_ms + 300 {
        return None;
    }
    (told[3], told[4], told[6]) = (told[3] + 1.0, told[4] + 2.0, ahead);
    write(&mut connection, tenant, "moments:requests", told).await;
    let (list, moment) = (format!("croft:{{{tenant}}}:moments:requests"), packed(vec![ahead, 2.0]));
    let _: () = cmd("RPUSH").arg(list).arg(moment).query_async(&mut connection).await.unwrap();
    let refused = counters.admit(&next()).await.unwrap();
    if refused.at_ms >= first.at_ms + 300 {
        return None;
    }
    let Verdict::Full { retry_after, .. } = refused.verdict else { panic!("they count: {:?}", refused.verdict) };
    assert!(retry_after <= span, "and no longer than others: {retry_after:?}");
    tokio::time::sleep(span + Duration::from_millis(10)).await;
    for _ in 0..3 {
        assert!(is_granted(&admit(counters, &next()).await));
    }
    Some(())
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
    let (now, _): (f64, f64) = cmd("TIME").query_async(&mut connection).await.unwrap();
    runs_out(&mut connection, &gone, (now + 3_600.0) * 1_000.0).await;
    assert!(matches!(admit(&*counters, &next(100)).await, Verdict::Spent { .. }));
    let granted = async {
        while !is_granted(&admit(&*counters, &next(100)).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, granted).await.expect("what nobody holds is free again");
}

/// The clock jumps ahead: every reservation seems to have run out, and whoever is still there has theirs again.
#[tokio::test]
async fn a_clock_that_jumps_ahead_costs_nobody_who_is_there_a_reservation() {
    let (counters, tenant) = (in_redis(), TenantId::generate());
    let mut connection = connection(&url()).await;
    let ledger = || vec![known(bound("tenant", 20, None), 1, 0, 0)];
    let running = ask(tenant, vec![], ledger());
    assert!(is_granted(&admit(&*counters, &running).await));
    runs_out(&mut connection, &running, 1.0).await;
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
    let counters = RedisCounters::connect(&client(&server.url()), PATIENCE).unwrap();
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

#[tokio::test]
async fn a_redis_that_begins_anew_from_its_file_knows_of_reservations_and_of_no_rates() {
    let mut server = Server::start().await;
    let mut connection = connection(&server.url()).await;
    for command in [&["SET", "appendonly", "yes"][..], &["REWRITE"]] {
        let _: () = cmd("CONFIG").arg(command).query_async(&mut connection).await.unwrap();
    }
    server.kill().await;
    server.run().await;
    let counters = RedisCounters::connect(&client(&server.url()), PATIENCE).unwrap();
    let tenant = TenantId::generate();
    let wish = |nano_usd| Ask {
        nano_usd,
        ..ask(tenant, vec![window("requests", 1, 600_000)], vec![bound("tenant::2026-11", 100, None)])
    };
    let first = Ask { bounds: vec![known(bound("tenant::2026-11", 100, None), 1, 0, 0)], ..wish(60) };
    assert!(is_granted(&admit(&counters, &first).await));
    assert!(matches!(admit(&counters, &wish(1)).await, Verdict::Full { .. }));
    server.kill().await;
    server.run().await;
    // The first to be asked finds out that its connection is gone.
    let verdict = async {
        loop {
            if let Ok(answer) = counters.admit(&wish(60)).await {
                break answer.verdict;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let verdict = tokio::time::timeout(PATIENCE, verdict).await.unwrap();
    assert!(matches!(verdict, Verdict::Spent { bound: 0, .. }), "sixty are reserved: {verdict:?}");
    assert!(is_granted(&admit(&counters, &wish(40)).await), "and the minute before is forgotten");
    assert!(matches!(admit(&counters, &wish(0)).await, Verdict::Full { .. }), "of the new one nothing is");
}
