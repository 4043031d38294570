//! What the first token waits for: the message, and nothing that is stored after it.

use std::sync::Arc;

use croft_e2e::client::{message, scripted_agent};
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, StopReason};
use futures::FutureExt as _;
use tokio::sync::Semaphore;

use crate::paused_log::paused;
use crate::world::{Ground, World, names, read_all, stop_reason};

#[tokio::test]
async fn the_first_token_does_not_wait_until_the_steps_beginning_is_stored() {
    let let_go = Arc::new(Semaphore::new(0));
    let mut stores = Stores::memory();
    let stores_it = Arc::clone(&let_go);
    stores.events = paused(stores.events, move |moment| {
        let (begins, let_go) = (moment.appends(|kind| matches!(kind, Kind::StepStarted(_))), Arc::clone(&stores_it));
        async move {
            if begins {
                drop(let_go.acquire().await);
            }
        }
        .boxed()
    });
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session = client.create(scripted_agent("quick")).await.unwrap();
    let script = r#"{"script": [{"text": "one two three"}]}"#;
    let mut events = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap().into_inner();
    let mut heard = Vec::new();
    while !matches!(heard.last(), Some(SessionEvent { kind: Some(Kind::TextDelta(_)), .. })) {
        heard.push(events.message().await.unwrap().unwrap().event.unwrap());
    }
    assert!(!names(&heard).contains(&"step"), "{heard:?}");

    let_go.add_permits(1);
    let rest = read_all(events).await;
    assert!(names(&rest).contains(&"step"), "{rest:?}");
    assert_eq!(stop_reason(&rest), Some(StopReason::EndTurn));
    let durable: Vec<_> = heard.iter().chain(&rest).map(|event| event.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(durable, (3..).take(durable.len()).collect::<Vec<_>>(), "no hole, no double");
}
