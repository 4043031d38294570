//! The relay through Redis keeps what every relay promises, and outlives its Redis.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod authority;
mod outage;
mod port;
#[path = "../contract/relay.rs"]
mod relay;
mod server;
mod tls;

use std::time::Duration;

use croft_front::events::relay::Relay;
use croft_front::events::relay::redis::RedisRelay;
use croft_serve::Tasks;
use redis::{Client, cmd};
use relay::{ids, next, numbered};

/// The relays of two fronts.
struct Ground {
    ours: RedisRelay,
    theirs: RedisRelay,
    tasks: Tasks,
}

fn url() -> String {
    std::env::var("CROFT_TEST_REDIS_URL")
        .expect("CROFT_TEST_REDIS_URL is not set: `make test-services` starts a Redis and tells its URL")
}

async fn ground() -> Ground {
    on(&url()).await
}

async fn on(url: &str) -> Ground {
    let tasks = Tasks::new();
    let client = croft_front::redis_client::open(url, None).unwrap();
    let ours = RedisRelay::connect(client.clone(), &tasks).await.unwrap();
    let theirs = RedisRelay::connect(client, &tasks).await.unwrap();
    Ground { ours, theirs, tasks }
}

impl Ground {
    /// Both are held while the tasks end: nothing must wait for the handles to go.
    async fn end(self) {
        assert_eq!(self.tasks.shutdown(relay::PATIENCE).await, 0, "tasks outlive the shutdown");
    }
}

relay::relay_promises!();

/// How many connections listen to a channel, as Redis counts them.
async fn listeners(channel: &str) -> u64 {
    let mut connection = Client::open(url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let (_, count): (String, u64) =
        cmd("PUBSUB").arg("NUMSUB").arg(channel).query_async(&mut connection).await.unwrap();
    count
}

#[tokio::test]
async fn the_last_listener_of_a_replica_unsubscribes_it() {
    let ground = ground().await;
    let (tenant, session) = ids();
    let channel = format!("croft:{tenant}:{session}");
    let first = ground.ours.subscribe(tenant, session).await.unwrap();
    let second = ground.ours.subscribe(tenant, session).await.unwrap();
    let third = ground.theirs.subscribe(tenant, session).await.unwrap();
    assert_eq!(listeners(&channel).await, 2, "one for each replica");
    drop(first);
    drop(third);
    let left = async |count| {
        while listeners(&channel).await != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(relay::PATIENCE, left(1)).await.expect("the other replica leaves");
    drop(second);
    tokio::time::timeout(relay::PATIENCE, left(0)).await.expect("the last one leaves");
    ground.end().await;
}

#[tokio::test]
async fn rubbish_on_a_channel_is_passed_over() {
    let ground = ground().await;
    let (tenant, session) = ids();
    let mut there = ground.theirs.subscribe(tenant, session).await.unwrap();
    let mut connection = Client::open(url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let _: u64 = cmd("PUBLISH")
        .arg(format!("croft:{tenant}:{session}"))
        .arg("rubbish")
        .query_async(&mut connection)
        .await
        .unwrap();
    ground.ours.publish(tenant, session, &numbered(1)).await.unwrap();
    assert_eq!(next(&mut there).await, Some(numbered(1)));
    drop(there);
    ground.end().await;
}
