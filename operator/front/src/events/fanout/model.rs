//! The hub under a scheduler that tries orders which no clock would bring about: no wake-up is lost, nothing waits for ever,
//! what is given up is given up once.

use std::future::poll_fn;
use std::sync::atomic::AtomicUsize;

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{TextDelta, UserMessage};
use futures::StreamExt as _;
use shuttle::future::block_on;
use shuttle::thread;
use tokio_util::sync::CancellationToken;

use super::crowd::Held;
use super::queue::Queue;
use super::*;
use crate::events::testing::DownRelay;
use crate::sync::model::check;

const ORDERS: usize = 2_000;

fn key() -> Key {
    (TenantId::generate(), SessionId::generate())
}

fn durable(seq: u64) -> SessionEvent {
    SessionEvent { seq, kind: Some(Kind::UserMessage(UserMessage::default())), ..SessionEvent::default() }
}

fn preview() -> SessionEvent {
    SessionEvent { kind: Some(Kind::TextDelta(TextDelta { text: "he".into() })), ..SessionEvent::default() }
}

fn sized(event: SessionEvent) -> Sized {
    let after_seq = event.seq.saturating_sub(1);
    Sized { bytes: 10, event: Arc::new(event.into()), after_seq }
}

/// A hub without its tasks, which a model has no clock for: the relay is never asked.
fn hub(events_max: usize) -> Hub {
    let options = Options { subscriber_events_max: events_max, ..Options::default() };
    let (origin, crowd) = (Uuid::now_v7(), Crowd::new(&options));
    Hub {
        shared: Arc::new(Shared {
            origin,
            relay: Arc::new(DownRelay),
            tasks: Tasks::new(),
            options,
            metrics: Metrics::register(&Registry::new()).unwrap(),
            outbox: Arc::new(Outbox::new(origin)),
            topics: Arc::default(),
            crowd,
            relay_up: Arc::new(AtomicBool::new(true)),
            relay_failures: AtomicU64::new(0),
            turns: watch::Sender::new(0),
            replays: Room::default(),
            looks: Looks::default(),
        }),
    }
}

/// Takes a place as `Hub::subscribe` does, and tells whether it was the first of its topic.
fn join(hub: &Hub, key: Key) -> (Subscription, Option<CancellationToken>) {
    let queue = hub.shared.crowd.join(key.0, &hub.shared.options);
    hub.shared.metrics.subscribers.inc();
    let Joined { id, asked: _, pump } = hub.shared.topics().add_subscriber(key, Arc::clone(&queue), true);
    let listener = Listener { shared: Arc::clone(&hub.shared), key, id, is_turn: false };
    (Subscription::new(queue, listener), pump.map(|(token, _)| token))
}

#[test]
fn a_reader_that_sleeps_is_woken_by_each_kind_of_news() {
    check(ORDERS, || {
        let queue = Arc::new(Queue::new(64, 1_000, Held::unbounded()));
        let pushing = Arc::clone(&queue);
        let pusher = thread::spawn(move || {
            pushing.push(sized(durable(1)));
            pushing.push(sized(preview()));
            pushing.push(sized(durable(2)));
            pushing.resync();
        });
        let (mut numbers, mut resyncs) = (Vec::new(), 0);
        block_on(async {
            while numbers.len() < 3 || resyncs == 0 {
                match poll_fn(|context| queue.poll_pop(context)).await {
                    Item::Durable(event) | Item::Preview { event, .. } => numbers.push(event.seq),
                    Item::Resync => resyncs += 1,
                    other => panic!("{other:?}"),
                }
            }
        });
        assert_eq!((numbers, resyncs), (vec![1, 0, 2], 1));
        pusher.join().unwrap();
    });
}

#[test]
fn a_slow_reader_is_told_every_preview_that_it_lost_and_every_durable_event_or_its_end() {
    check(ORDERS, || {
        let queue = Arc::new(Queue::new(3, 1_000, Held::unbounded()));
        let pushing = Arc::clone(&queue);
        let pusher = thread::spawn(move || {
            for seq in 1..=3 {
                pushing.push(sized(preview()));
                pushing.push(sized(preview()));
                pushing.push(sized(durable(seq)));
            }
        });
        let (mut last, mut previews) = (0, 0);
        block_on(async {
            while last < 3 {
                match poll_fn(|context| queue.poll_pop(context)).await {
                    Item::Durable(event) => {
                        assert_eq!(event.seq, last + 1);
                        last = event.seq;
                    }
                    Item::Preview { .. } => previews += 1,
                    Item::Gap { dropped_previews } => previews += dropped_previews,
                    Item::Lagged { last_seq } => {
                        assert_eq!(last_seq, last, "it is told where to go on");
                        return;
                    }
                    Item::Resync => panic!("nothing was lost on the way"),
                }
            }
            assert_eq!(previews, 6);
        });
        pusher.join().unwrap();
    });
}

#[test]
fn every_frame_is_sent_once_in_order_and_every_sender_ends() {
    check(ORDERS, || {
        let (outbox, keys) = (Arc::new(Outbox::new(Uuid::now_v7())), [key(), key()]);
        let under_way: Arc<[AtomicUsize; 2]> = Arc::default();
        let sent = Arc::new(shuttle::sync::Mutex::new([Vec::new(), Vec::new()]));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (outbox, under_way, sent) = (Arc::clone(&outbox), Arc::clone(&under_way), Arc::clone(&sent));
                thread::spawn(move || {
                    block_on(async {
                        while let Some(job) = outbox.take().await {
                            let place = usize::from(job.key == keys[1]);
                            assert_eq!(under_way[place].fetch_add(1, Ordering::SeqCst), 0, "two frames of a session");
                            if let Frame::Events(events) = &job.envelope.frame {
                                sent.lock().unwrap()[place].extend(events.iter().map(|event| event.seq));
                            }
                            under_way[place].fetch_sub(1, Ordering::SeqCst);
                            outbox.done(job.key, 0);
                        }
                    });
                })
            })
            .collect();
        let pushers: Vec<_> = keys
            .map(|key| {
                let outbox = Arc::clone(&outbox);
                thread::spawn(move || {
                    outbox.push(key, vec![sized(durable(1))]);
                    outbox.push_control(key, Frame::Terminated);
                    outbox.push(key, vec![sized(durable(2)), sized(durable(3))]);
                })
            })
            .into_iter()
            .collect();
        for pusher in pushers {
            pusher.join().unwrap();
        }
        outbox.close();
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!(*sent.lock().unwrap(), [vec![1, 2, 3], vec![1, 2, 3]]);
        assert_eq!(outbox.len(), 0);
    });
}

#[test]
fn whoever_has_a_place_sees_all_that_follows_and_the_last_to_leave_ends_the_pump() {
    check(ORDERS, || {
        let (hub, key) = (hub(64), key());
        // The number of the last event whose publication has begun.
        let begun = Arc::new(AtomicUsize::new(0));
        let (publishing, counting) = (hub.clone(), Arc::clone(&begun));
        let publisher = thread::spawn(move || {
            for seq in 1..=3 {
                counting.fetch_add(1, Ordering::SeqCst);
                publishing.publish(key.0, key.1, vec![durable(seq)]);
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (hub, begun) = (hub.clone(), Arc::clone(&begun));
                thread::spawn(move || {
                    let (mut subscription, pump) = join(&hub, key);
                    // What it is sent from now on has no hole; the log has what was before.
                    let first = u64::try_from(begun.load(Ordering::SeqCst)).unwrap() + 1;
                    let mut seen = Vec::new();
                    while let Some(Some(item)) = futures::FutureExt::now_or_never(subscription.next()) {
                        let Item::Durable(event) = item else { panic!("{item:?}") };
                        seen.push(event.seq);
                    }
                    let from = seen.first().copied().unwrap_or(first);
                    assert!(from <= first, "a hole between {first} and {from}");
                    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
                    drop(subscription);
                    pump
                })
            })
            .collect();
        let pumps: Vec<_> = readers.into_iter().filter_map(|reader| reader.join().unwrap()).collect();
        publisher.join().unwrap();
        // One pump for each time that the topic came to be, and each was ended.
        assert!((1..=2).contains(&pumps.len()));
        assert!(pumps.iter().all(CancellationToken::is_cancelled));
        assert_eq!(hub.shared.topics().len(), 0);
        assert_eq!(hub.metrics().subscribers.get(), 0);
    });
}

#[test]
fn one_stuck_reader_neither_stops_another_nor_its_publisher() {
    check(ORDERS, || {
        let (hub, key) = (hub(2), key());
        let (stuck, _) = join(&hub, key);
        let (mut quick, _) = join(&hub, key);
        let publishing = hub.clone();
        let publisher = thread::spawn(move || {
            for seq in 1..=4 {
                publishing.publish(key.0, key.1, vec![durable(seq)]);
            }
        });
        let mut last = 0;
        block_on(async {
            while last < 4 {
                match quick.next().await.unwrap() {
                    Item::Durable(event) => {
                        assert_eq!(event.seq, last + 1);
                        last = event.seq;
                    }
                    Item::Lagged { last_seq } => {
                        assert_eq!(last_seq, last);
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        publisher.join().unwrap();
        assert!(stuck.has_lagged());
    });
}
