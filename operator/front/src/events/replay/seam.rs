//! The seam as a property: whatever is lost, doubled, delayed or out of order, and however the reader reads and
//! reconnects, it is told each number once and in order, and no preview after the message that holds it.

use std::collections::HashSet;
use std::sync::Mutex;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::BoxStream;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::*;
use crate::events::fanout::{Controls, Options};
use crate::events::relay::{Envelope, Relay};
use crate::events::testing::{Scene, agent_message, terminated, user_message};

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// The turn shows part of the message it is writing.
    Preview,
    /// The turn stores the message.
    Message,
    /// Someone else says something, at the reader's replica or at the other.
    UserMessage {
        here: bool,
    },
    /// As `UserMessage`, and the replica dies before it could tell anyone.
    Unpublished,
    /// A frame arrives, or doesn't.
    Frame {
        place: usize,
        fate: Fate,
    },
    /// The reader reads, if there is something.
    Read {
        events: usize,
    },
    /// The reader goes away and comes back with its number.
    Reconnect,
    /// The relay loses its receivers.
    Reset,
    Wait {
        milliseconds: u64,
    },
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Delivered,
    Doubled,
    Lost,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![6 => Just(Fate::Delivered), 1 => Just(Fate::Doubled), 2 => Just(Fate::Lost)];
    prop_oneof![
        6 => Just(Step::Preview),
        3 => Just(Step::Message),
        2 => any::<bool>().prop_map(|here| Step::UserMessage { here }),
        1 => Just(Step::Unpublished),
        // Mostly the oldest; any other is out of order.
        5 => fate.clone().prop_map(|fate| Step::Frame { place: 0, fate }),
        2 => (0_usize..8, fate).prop_map(|(place, fate)| Step::Frame { place, fate }),
        4 => (1_usize..12).prop_map(|events| Step::Read { events }),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Reset),
        1 => (1_u64..3_000).prop_map(|milliseconds| Step::Wait { milliseconds }),
    ]
}

/// Keeps frames until the test decides what becomes of them.
#[derive(Default)]
struct Chaos {
    frames: Mutex<Vec<Envelope>>,
    receivers: Mutex<Vec<mpsc::Sender<Envelope>>>,
}

#[async_trait]
impl Relay for Chaos {
    async fn publish(&self, _: TenantId, _: SessionId, envelope: &Envelope) -> Result<u64, Error> {
        self.frames.lock().unwrap().push(envelope.clone());
        Ok(self.receivers.lock().unwrap().len() as u64)
    }

    async fn subscribe(&self, _: TenantId, _: SessionId) -> Result<mpsc::Receiver<Envelope>, Error> {
        let (sender, receiver) = mpsc::channel(1_024);
        self.receivers.lock().unwrap().push(sender);
        Ok(receiver)
    }
}

impl Chaos {
    async fn decide(&self, place: usize, fate: Fate) {
        let frame = {
            let mut frames = self.frames.lock().unwrap();
            let place = place.min(frames.len().saturating_sub(1));
            if frames.is_empty() { None } else { Some(frames.remove(place)) }
        };
        let times = match fate {
            Fate::Delivered => 1,
            Fate::Doubled => 2,
            Fate::Lost => 0,
        };
        let receivers = self.receivers.lock().unwrap().clone();
        for (frame, receiver) in frame.iter().flat_map(|frame| receivers.iter().map(move |receiver| (frame, receiver)))
        {
            for _ in 0..times {
                // One that is closed has gone.
                let _ = receiver.send(frame.clone()).await;
            }
        }
    }
}

/// The reader, and what it has been told.
struct Reader {
    events: BoxStream<'static, Result<SessionEvent, Error>>,
    last_seq: u64,
    /// How many messages it has in full.
    complete: usize,
    /// Those that came at this connection, when their turn is at this replica.
    previews: Option<HashSet<usize>>,
    is_over: bool,
}

impl Reader {
    async fn connect(scene: &Scene, hub: &Hub, after_seq: u64) -> BoxStream<'static, Result<SessionEvent, Error>> {
        follow(scene.log.clone(), hub, scene.tenant, scene.session, after_seq, false).await.unwrap().boxed()
    }

    async fn take(&mut self, event: Option<Result<SessionEvent, Error>>, scene: &Scene, hub: &Hub) {
        match event {
            Some(Ok(event)) if event.seq > 0 => {
                assert_eq!(event.seq, self.last_seq + 1, "a hole or a double");
                self.last_seq = event.seq;
                self.complete += usize::from(matches!(event.kind, Some(Kind::AgentMessage(_))));
            }
            Some(Ok(event)) => match event.kind {
                Some(Kind::TextDelta(delta)) => {
                    let (message, preview) = delta.text.split_once(':').unwrap();
                    assert_eq!(
                        message,
                        self.complete.to_string(),
                        "a preview before the message before it, or after its own"
                    );
                    if let Some(previews) = &mut self.previews {
                        assert!(previews.insert(preview.parse().unwrap()), "a preview came twice");
                    }
                }
                Some(Kind::Gap(gap)) => assert!(gap.dropped_previews > 0 && gap.last_seq == self.last_seq),
                other => panic!("what is this: {other:?}"),
            },
            Some(Err(Error::SlowConsumer { resume_after })) => {
                assert_eq!(resume_after, self.last_seq);
                self.events = Self::connect(scene, hub, resume_after).await;
            }
            Some(Err(error)) => panic!("{error}"),
            None => self.is_over = true,
        }
    }
}

async fn play(steps: Vec<Step>, turn_is_here: bool, events_max: usize) {
    let scene = Scene::new().await;
    let relay = Arc::new(Chaos::default());
    let options = Options { subscriber_events_max: events_max, ..Options::default() };
    let [here, there] = [(); 2].map(|()| scene.hub(relay.clone(), options.clone()));
    let turn = if turn_is_here { &here } else { &there };
    let controls: Controls = turn.controls(scene.tenant, scene.session).await;
    let events = Reader::connect(&scene, &here, 0).await;
    let previews = turn_is_here.then(HashSet::new);
    let mut reader = Reader { events, last_seq: 0, complete: 0, previews, is_over: false };
    let (mut message, mut preview) = (0, 0);

    for step in steps {
        match step {
            Step::Preview => {
                scene.preview(turn, &format!("{message}:{preview}"));
                preview += 1;
            }
            Step::Message => {
                scene.publish(turn, agent_message()).await;
                message += 1;
            }
            Step::UserMessage { here: true } => drop(scene.publish(&here, user_message()).await),
            Step::UserMessage { here: false } => drop(scene.publish(&there, user_message()).await),
            Step::Unpublished => drop(scene.append(user_message()).await),
            Step::Frame { place, fate } => relay.decide(place, fate).await,
            Step::Read { events } => {
                for _ in 0..events {
                    let Some(event) = reader.events.next().now_or_never() else { break };
                    reader.take(event, &scene, &here).await;
                }
            }
            Step::Reconnect => reader.events = Reader::connect(&scene, &here, reader.last_seq).await,
            Step::Reset => relay.receivers.lock().unwrap().clear(),
            Step::Wait { milliseconds } => sleep(Duration::from_millis(milliseconds)).await,
        }
        // The senders and the pumps run in between.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    // The last word is lost too: time must do.
    let last = scene.append(terminated()).await[0].seq;
    while !reader.is_over {
        let event = timeout(Duration::from_mins(1), reader.events.next()).await.expect("the log was not looked at");
        reader.take(event, &scene, &here).await;
    }
    assert_eq!(reader.last_seq, last);
    drop(controls);
}

proptest! {
    #[test]
    fn each_number_once_in_order_and_no_preview_after_its_message(
        steps in prop::collection::vec(step(), 1..120),
        turn_is_here in any::<bool>(),
        events_max in 4_usize..64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(steps, turn_is_here, events_max));
    }
}
