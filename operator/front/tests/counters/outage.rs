//! Redis is away, or comes back, and calls are judged all the same.

use std::sync::Arc;
use std::time::Duration;

use croft_front::counters::guard::{Guarded, Metrics};
use croft_front::counters::redis::{ANSWER_TIMEOUT, RedisCounters};
use croft_front::counters::{Ask, Verdict};
use croft_proto::id::TenantId;
use prometheus::Registry;
use tokio::time::{Instant, sleep, timeout};

use crate::server::Server;
use crate::{admit, ask, bound, is_granted, known, settle, window};

fn guarded(server: &Server) -> (Guarded, Metrics) {
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let counters = RedisCounters::connect(&server.url(), ANSWER_TIMEOUT).unwrap();
    (Guarded::new(Arc::new(counters), metrics.clone()), metrics)
}

#[tokio::test]
async fn rates_fail_open_behind_the_replicas_own_limit() {
    let mut server = Server::start().await;
    let (guarded, metrics) = guarded(&server);
    let tenant = TenantId::generate();
    let next = || ask(tenant, vec![window("requests", 3, 60_000)], vec![]);
    for _ in 0..3 {
        assert!(is_granted(&admit(&guarded, &next()).await));
    }
    assert!(!is_granted(&admit(&guarded, &next()).await));
    server.kill().await;
    let asked = Instant::now();
    for _ in 0..3 {
        assert!(is_granted(&admit(&guarded, &next()).await), "nobody knows of the three");
    }
    assert!(!is_granted(&admit(&guarded, &next()).await), "but nobody gets more than three");
    assert!(asked.elapsed() < Duration::from_secs(2), "nobody waits for a Redis that is away: {:?}", asked.elapsed());
    assert_eq!((metrics.alone.get(), metrics.away.get()), (4, 1));

    server.run().await;
    let back = async {
        while metrics.away.get() == 1 {
            let _ = admit(&guarded, &ask(TenantId::generate(), vec![window("requests", 3, 60_000)], vec![])).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), back).await.expect("Redis is asked again");
}

#[tokio::test]
async fn budgets_go_by_the_ledger_until_redis_is_back() {
    let mut server = Server::start().await;
    let (guarded, metrics) = guarded(&server);
    let tenant = TenantId::generate();
    let next = |ledger: Option<(i64, i64)>| {
        let bound = bound("tenant", 100, None);
        let bound = ledger.map_or(bound.clone(), |(version, nano_usd)| known(bound, version, nano_usd, 0));
        ask(tenant, vec![], vec![bound])
    };
    assert_eq!(admit(&guarded, &next(None)).await, Verdict::Unknown(vec![0]), "it was never compared");
    assert!(is_granted(&admit(&guarded, &next(Some((1, 10)))).await));
    assert!(is_granted(&admit(&guarded, &next(None)).await), "now it is believed");

    server.kill().await;
    assert_eq!(admit(&guarded, &next(None)).await, Verdict::Unknown(vec![0]), "without Redis nothing is");
    let alone = next(Some((2, 85)));
    assert!(is_granted(&admit(&guarded, &alone).await));
    assert!(matches!(admit(&guarded, &next(Some((2, 85)))).await, Verdict::Spent { .. }), "ten are reserved here");
    settle(&guarded, &alone, Some(1), vec![known(bound("tenant", 100, None), 3, 92, 0)]).await;
    assert!(matches!(admit(&guarded, &next(Some((3, 92)))).await, Verdict::Spent { .. }));

    server.run().await;
    let back = async {
        while metrics.away.get() == 1 {
            let _ = admit(&guarded, &ask(TenantId::generate(), vec![window("requests", 3, 60_000)], vec![])).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), back).await.expect("Redis is asked again");
    assert_eq!(admit(&guarded, &next(None)).await, Verdict::Unknown(vec![0]), "it may have missed something");
    let read = Ask { nano_usd: 8, ..next(Some((3, 92))) };
    assert!(is_granted(&admit(&guarded, &read).await));
}

#[tokio::test]
async fn a_redis_that_is_silent_is_not_waited_for() {
    let server = Server::start().await;
    let (guarded, _) = guarded(&server);
    let next = || ask(TenantId::generate(), vec![window("requests", 3, 60_000)], vec![]);
    assert!(is_granted(&admit(&guarded, &next()).await));
    server.freeze().await;
    let asked = Instant::now();
    for _ in 0..20 {
        assert!(is_granted(&admit(&guarded, &next()).await));
    }
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}
