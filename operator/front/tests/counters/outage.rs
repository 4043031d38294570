//! Redis is away, or comes back, and calls are judged all the same.

use std::sync::Arc;
use std::time::Duration;

use croft_front::counters::guard::{Guarded, Metrics};
use croft_front::counters::redis::{ANSWER_TIMEOUT, RedisCounters};
use croft_front::counters::{Ask, Counters as _, Verdict};
use croft_proto::id::TenantId;
use prometheus::Registry;
use tokio::time::{Instant, sleep, timeout};

use crate::server::Server;
use crate::{PATIENCE, admit, ask, bound, client, in_time, is_granted, known, settle, window};

/// Of servers that refuse at once when they are away: what is slow is there.
fn guarded(server: &Server) -> (Guarded, Metrics) {
    one_of(1, server, PATIENCE)
}

fn one_of(replicas: u32, server: &Server, answer_timeout: Duration) -> (Guarded, Metrics) {
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let counters = RedisCounters::connect(&client(&server.url()), answer_timeout).unwrap();
    (Guarded::new(Arc::new(counters), replicas, metrics.clone()), metrics)
}

#[tokio::test]
async fn rates_fail_open_behind_the_replicas_own_limit() {
    let mut server = Server::start().await;
    let (guarded, metrics) = guarded(&server);
    let tenant = TenantId::generate();
    let next = || ask(tenant, vec![window("requests", 3, 600_000)], vec![]);
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
    assert!(asked.elapsed() < Duration::from_mins(1), "nobody waits for a Redis that is away: {:?}", asked.elapsed());
    assert_eq!((metrics.alone.get(), metrics.away.get()), (4, 1));

    server.run().await;
    let back = async {
        while metrics.away.get() == 1 {
            let _ = admit(&guarded, &ask(TenantId::generate(), vec![window("requests", 3, 600_000)], vec![])).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, back).await.expect("Redis is asked again");
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
            let _ = admit(&guarded, &ask(TenantId::generate(), vec![window("requests", 3, 600_000)], vec![])).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, back).await.expect("Redis is asked again");
    assert_eq!(admit(&guarded, &next(None)).await, Verdict::Unknown(vec![0]), "it may have missed something");
    let read = Ask { nano_usd: 8, ..next(Some((3, 92))) };
    assert!(is_granted(&admit(&guarded, &read).await));
}

#[tokio::test]
async fn a_redis_that_is_silent_is_not_waited_for() {
    let server = Server::start().await;
    let (guarded, _) = one_of(1, &server, ANSWER_TIMEOUT);
    let next = || ask(TenantId::generate(), vec![window("requests", 3, 600_000)], vec![]);
    assert!(is_granted(&admit(&guarded, &next()).await));
    server.freeze().await;
    // Waiting for each answer would take ten seconds.
    in_time(async || {
        let asked = Instant::now();
        for _ in 0..20 {
            assert!(is_granted(&admit(&guarded, &next()).await));
        }
        (asked.elapsed() < Duration::from_secs(3)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_redis_replicas_share_what_there_is() {
    let server = Server::stopped();
    let replicas = [1, 2, 3].map(|_| one_of(3, &server, PATIENCE).0);
    let tenant = TenantId::generate();
    let mut through = 0;
    for guarded in replicas.iter().cycle().take(30) {
        through +=
            i64::from(is_granted(&admit(guarded, &ask(tenant, vec![window("requests", 7, 600_000)], vec![])).await));
    }
    assert_eq!(through, 9, "seven, but for what rounding up adds");
    // Ninety are left of a hundred: thirty for each, and so much is told to whoever asks for more.
    let next = |nano_usd| Ask { nano_usd, ..ask(tenant, vec![], vec![known(bound("tenant", 100, None), 1, 10, 0)]) };
    for guarded in &replicas {
        assert!(is_granted(&admit(guarded, &next(20)).await));
        let Verdict::Spent { bound: 0, standing } = admit(guarded, &next(20)).await else { panic!("it has ten") };
        assert_eq!((standing.spent.nano_usd, standing.reserved.nano_usd), (10, 80));
        assert!(is_granted(&admit(guarded, &next(10)).await));
        assert!(!is_granted(&admit(guarded, &next(1)).await));
    }
}

/// The connection that was refused once was kept for ever.
#[tokio::test]
async fn a_redis_that_refused_the_password_counts_once_it_knows_it() {
    let server = Server::start().await;
    server.ask_for("another").await;
    let counters = RedisCounters::connect(&client(&server.url_with("ours")), PATIENCE).unwrap();
    let next = ask(TenantId::generate(), vec![window("requests", 3, 600_000)], vec![]);
    for _ in 0..3 {
        counters.ping().await.unwrap_err();
        counters.admit(&next).await.unwrap_err();
    }
    server.ask_for_another("another", "ours").await;
    let counted = async {
        while counters.admit(&next).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("it counts");
    counters.ping().await.unwrap();
}
