//! Readers as a property: whoever is slow, stuck, leaves or comes anew, each reader that stays is told every durable event or its
//! end, previews in their order, and exactly how many of them it lost; and nothing is kept beyond the bounds, or behind their backs.

use croft_proto::v1::session_event::Kind;
use futures::{FutureExt as _, StreamExt as _};
use proptest::prelude::*;

use super::*;
use crate::events::relay::memory::MemoryRelay;
use crate::events::testing::{Scene, user_message};

const READERS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Durable,
    Previews {
        count: u64,
    },
    Read {
        reader: usize,
        items: usize,
    },
    /// Leaves, if it is there, and takes a place anew.
    Rejoin {
        reader: usize,
        previews: bool,
    },
    Leave {
        reader: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let reader = 0..READERS;
    prop_oneof![
        5 => Just(Step::Durable),
        6 => (1..6_u64).prop_map(|count| Step::Previews { count }),
        6 => (reader.clone(), 1..8_usize).prop_map(|(reader, items)| Step::Read { reader, items }),
        2 => (reader.clone(), prop::bool::weighted(0.8)).prop_map(|(reader, previews)| Step::Rejoin { reader, previews }),
        1 => reader.prop_map(|reader| Step::Leave { reader }),
    ]
}

/// One that has a place, with what it must be told.
struct Reader {
    subscription: Subscription,
    wants_previews: bool,
    /// The number that must come next.
    next_seq: u64,
    /// The newest preview that it was told.
    newest_preview: u64,
    /// Previews that were published since it came, told to it, and told to be lost.
    published: u64,
    told: u64,
    lost: u64,
    lagged: bool,
}

impl Reader {
    async fn join(scene: &Scene, hub: &Hub, last_seq: u64, wants_previews: bool) -> Self {
        let options = SubscribeOptions { previews: wants_previews };
        let subscription = hub.subscribe(scene.tenant, scene.session, options).await;
        let next_seq = last_seq + 1;
        Self {
            subscription,
            wants_previews,
            next_seq,
            newest_preview: 0,
            published: 0,
            told: 0,
            lost: 0,
            lagged: false,
        }
    }

    /// Whether there was something to take.
    fn take(&mut self) -> bool {
        let Some(Some(item)) = self.subscription.next().now_or_never() else { return false };
        match item {
            Item::Durable(event) => {
                assert!(!self.lagged, "nothing follows the end");
                assert_eq!(event.seq, self.next_seq);
                self.next_seq += 1;
            }
            Item::Preview { event, after_seq } => {
                assert!(self.wants_previews && !self.lagged);
                assert!(after_seq < self.next_seq, "it was told what the preview follows");
                let Some(Kind::TextDelta(delta)) = event.kind else { panic!("{event:?}") };
                let number: u64 = delta.text.parse().unwrap();
                assert!(number > self.newest_preview, "in their order");
                self.newest_preview = number;
                self.told += 1;
            }
            Item::Gap { dropped_previews } => {
                assert!(self.wants_previews && dropped_previews > 0);
                self.lost += dropped_previews;
            }
            Item::Lagged { last_seq } => {
                // 0 says that no durable event was sent at all.
                assert!(last_seq + 1 == self.next_seq || last_seq == 0, "it is told where to go on");
                self.lagged = true;
                return false;
            }
            Item::Resync => panic!("nothing was lost on the way"),
        }
        true
    }
}

async fn play(steps: Vec<Step>, events_max: usize, held_bytes_max: usize) {
    let scene = Scene::new().await;
    let options = Options { subscriber_events_max: events_max, held_bytes_max, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let _turn = hub.controls(scene.tenant, scene.session).await;
    let mut readers: [Option<Reader>; READERS] = [const { None }; READERS];
    // The session's creation.
    let (mut last_seq, mut preview) = (1, 0);
    for step in steps {
        match step {
            Step::Durable => last_seq = scene.publish(&hub, user_message()).await,
            Step::Previews { count } => {
                for _ in 0..count {
                    preview += 1;
                    scene.preview(&hub, &preview.to_string());
                }
                for reader in readers.iter_mut().flatten().filter(|reader| reader.wants_previews) {
                    reader.published += count;
                }
            }
            Step::Read { reader, items } => {
                if let Some(reader) = &mut readers[reader] {
                    for _ in 0..items {
                        if !reader.take() {
                            break;
                        }
                    }
                }
            }
            Step::Rejoin { reader, previews } => {
                readers[reader] = Some(Reader::join(&scene, &hub, last_seq, previews).await);
            }
            Step::Leave { reader } => readers[reader] = None,
        }
    }
    // One more of each brings out what was lost and not yet told.
    last_seq = scene.publish(&hub, user_message()).await;
    for reader in readers.iter_mut().flatten() {
        let mut items = 0;
        while reader.take() {
            items += 1;
        }
        assert!(items <= events_max + 1, "{items} were kept for one reader");
        if !reader.lagged {
            assert_eq!(reader.next_seq, last_seq + 1, "every durable event came");
            assert_eq!(reader.told + reader.lost, reader.published, "every preview came, or was told to be lost");
        }
    }
    drop(readers);
    assert_eq!(hub.shared.crowd.held_bytes(), 0, "what nobody waits for is held");
}

proptest! {
    #[test]
    fn each_reader_is_told_all_that_is_durable_or_its_end_and_every_preview_that_it_lost(
        steps in prop::collection::vec(step(), 1..150),
        events_max in 2_usize..24,
        held_bytes_max in prop_oneof![50..2_000_usize, Just(usize::MAX)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(steps, events_max, held_bytes_max));
    }
}
