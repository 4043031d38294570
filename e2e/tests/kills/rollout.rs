//! A rollout: every worker and every front is asked to end and has a successor, one after the other, while people talk. Every
//! conversation must end as one that nothing disturbed.

use std::collections::BTreeSet;
use std::time::Duration;

use croft_proto::v1::StopReason;
use croft_proto::v1::session_event::Kind;
use futures::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::stage::Stage;
use crate::transcript::{Excuses, Record, differences, troubles};
use crate::{PATIENCE, conversation};

const ROLLOUTS: u64 = 3;
/// People who talk at the same time, one conversation after the other until the rollout is over.
const PEOPLE: usize = 6;
/// How long fronts let turns end: less than most take, so that some are left to the other front.
const FRONT_GRACE: &str = "--shutdown-grace-ms=200";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_end_as_undisturbed_ones_while_every_program_is_replaced() {
    let mut stage = Stage::with(&[FRONT_GRACE.to_owned()]).await;
    let calm = conversation(&stage.clients(), 0, &mut Dice::new(1)).await;
    let mut wrong = [calm.faults(), troubles(&calm, &[])].concat();
    let (mut gave_back, mut taken_over) = (BTreeSet::new(), 0.0);
    for seed in 1..=ROLLOUTS {
        let (talks, taken) = rollout(&mut stage, seed).await;
        taken_over += taken;
        for talk in talks {
            let found = match talk {
                Some(record) => {
                    gave_back.extend(hand_backs(&record));
                    [record.faults(), differences(&calm, &record, &Excuses::default())].concat()
                }
                None => vec!["it came to no end".to_owned()],
            };
            wrong.extend(found.into_iter().map(|fault| format!("rollout {seed}: {fault}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        gave_back.into_iter().collect::<Vec<_>>(),
        ["worker-0", "worker-1"],
        "each was asked to end in mid turn"
    );
    assert!(taken_over > 0.0, "no front was asked to end in mid turn");
    stage.strike().await;
}

/// All conversations that were had meanwhile, `None` for one without an end, and how many turns fronts took over from others.
async fn rollout(stage: &mut Stage, seed: u64) -> (Vec<Option<Record>>, f64) {
    let (clients, over, mut dice) = (stage.clients(), CancellationToken::new(), Dice::new(seed));
    let talks = join_all((0..PEOPLE).map(|person| {
        let (clients, over, mut dice) = (&clients, &over, Dice::new(seed * 100 + person as u64));
        async move {
            let mut talks = Vec::new();
            while !over.is_cancelled() {
                talks.push(timeout(PATIENCE, conversation(clients, person, &mut dice)).await.ok());
            }
            talks
        }
    }));
    let replacing = async {
        let mut taken_over = 0.0;
        for place in 0..2 {
            sleep(Duration::from_millis(300 + dice.below(500))).await;
            stage.replace_worker(place).await;
        }
        for place in 0..2 {
            sleep(Duration::from_millis(300 + dice.below(500))).await;
            // What it counted goes with it.
            taken_over += takeovers(stage, place).await;
            stage.replace_front(place).await;
        }
        over.cancel();
        taken_over
    };
    let (talks, taken_over) = tokio::join!(talks, replacing);
    (talks.concat(), taken_over)
}

async fn takeovers(stage: &Stage, front: usize) -> f64 {
    stage.metrics(front).await.sum("croft_turn_takeovers_total", &[])
}

/// The workers that gave a turn of it back before its end.
fn hand_backs(record: &Record) -> Vec<String> {
    let (mut gave_back, mut worker) = (Vec::new(), String::new());
    for kind in record.events.iter().filter_map(|event| event.kind.as_ref()) {
        match kind {
            Kind::StepStarted(started) => worker.clone_from(&started.worker),
            Kind::StepCompleted(step) if step.stop_reason() == StopReason::HandedBack => gave_back.push(worker.clone()),
            _ => {}
        }
    }
    gave_back
}
