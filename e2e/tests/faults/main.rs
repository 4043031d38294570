//! Histories with faults: fronts and workers are killed, connections cut, stores and relay away, at moments that a seed decides;
//! afterwards all must be as if nothing had been, or the session must say what is unknown.
//!
//! `CROFT_SEED=7 cargo test -p croft-e2e --test faults` plays one history alone, `CROFT_SEED=1-9` those.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chaos;
mod dice;
#[path = "../../../operator/front/tests/doubles/mod.rs"]
mod doubles;
mod gate;
mod judge;
mod people;
mod pipe;
mod scenario;
mod story;
mod tools;
mod transcript;
mod world;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::chaos::{Length, Plan};
use crate::dice::Dice;
use crate::scenario::{Said, Scenario};
use crate::transcript::{Excuses, Record};
use crate::world::World;

/// No history takes longer, on its own clock: all faults are over after half a minute.
const PATIENCE: Duration = Duration::from_mins(10);

/// What came of a history.
struct Outcome {
    length: Length,
    records: Vec<Record>,
    wrong: Vec<String>,
}

/// Plays a scenario with what the plan says going wrong. The seed decides who is first where nobody must be.
fn play(scenario: u64, seed: u64, plan: Plan) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let scenario = Scenario::of(&mut Dice::new(scenario));
        let all_told = plan.leaves_someone_who_knows();
        let world = World::start(Dice::new(!seed), plan).await;
        let talks = scenario.talks.iter().enumerate();
        let talking = join_all(talks.map(|(tenant, talk)| people::converse(Arc::clone(&world), tenant, talk)));
        let Ok(told) = tokio::time::timeout(PATIENCE, talking).await else {
            let wrong = vec![format!("it came to no end: {}", world.picture().await)];
            return Outcome { length: world.chaos.length(), records: Vec::new(), wrong };
        };
        let length = world.chaos.length();
        // What a turn still has to do after its last word, also when its front is lost right then and its lease has to run out; and until what a
        // store that was away did not take is in the ledger.
        tokio::time::sleep(Duration::from_mins(4)).await;
        let (mut records, mut children, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for (tenant, told) in told.iter().enumerate() {
            let record = judge::record(&world, tenant, told).await;
            wrong.extend(judge::faults(&world, tenant, told, &record).await);
            let (below, faulty) = judge::children(&world, tenant, told, &record).await;
            children.extend(below);
            wrong.extend(faulty);
            records.push(record);
        }
        let all = [records.clone(), children].concat();
        wrong.extend(judge::misdeeds(&all, &world.deeds, all_told));
        Outcome { length, records, wrong }
    })
}

/// A scenario that nothing disturbs, and what came of it.
struct Calm {
    number: u64,
    talks: Vec<Vec<Said>>,
    outcome: Outcome,
}

impl Calm {
    fn play(number: u64) -> Self {
        let mut outcome = play(number, number, Plan::default());
        let talks = Scenario::of(&mut Dice::new(number)).talks;
        for (record, talk) in outcome.records.iter().zip(&talks) {
            outcome.wrong.extend(transcript::troubles(record, &scenario::interrupted(talk)));
        }
        Self { number, talks, outcome }
    }

    /// What is wrong with the history of this seed: the same scenario, and faults.
    fn disturbed(&self, seed: u64) -> Vec<String> {
        if !self.outcome.wrong.is_empty() {
            return self.outcome.wrong.clone();
        }
        let plan = Plan::of(&mut Dice::new(seed ^ 0x5eed), self.outcome.length);
        let (worker_losses, shown) = (plan.losses(), format!("{plan:?}"));
        let mut stormy = play(self.number, seed, plan);
        for ((calm, record), talk) in self.outcome.records.iter().zip(&stormy.records).zip(&self.talks) {
            let excuses = Excuses { worker_losses, interrupted: scenario::interrupted(talk) };
            stormy.wrong.extend(transcript::differences(calm, record, &excuses));
        }
        if !stormy.wrong.is_empty() {
            stormy.wrong.push(shown);
        }
        stormy.wrong
    }
}

fn histories(seeds: impl Iterator<Item = u64>) {
    let (mut failed, mut report) = (Vec::new(), String::new());
    let mut calm: Option<Calm> = None;
    for seed in seeds {
        let number = seed / PLANS;
        let calm = match calm.take().filter(|calm| calm.number == number) {
            Some(same) => calm.insert(same),
            None => calm.insert(Calm::play(number)),
        };
        let wrong = calm.disturbed(seed);
        if !wrong.is_empty() {
            failed.push(seed);
            writeln!(report, "CROFT_SEED={seed}: {}", wrong.join("\n  ")).unwrap();
        }
    }
    assert!(failed.is_empty(), "{} histories went wrong: {failed:?}\n{report}", failed.len());
}

/// Several threads share them: `play` is one thread's work.
fn share(place: u64, of: u64) {
    let seeds: Vec<u64> = match std::env::var("CROFT_SEED") {
        Ok(seeds) => {
            let (first, last) = seeds.split_once('-').unwrap_or((&seeds, &seeds));
            let seed = |seed: &str| seed.parse().expect("CROFT_SEED is a number, or two: 1-9");
            (seed(first)..=seed(last)).collect()
        }
        Err(_) => (1..=HISTORIES).chain(FOUND).collect(),
    };
    histories(seeds.into_iter().filter(|seed| seed / PLANS % of == place));
}

const HISTORIES: u64 = 520;
/// Of those beyond, the ones that have found something.
const FOUND: [u64; 1] = [2039];
/// Plans of faults for each scenario: each is compared with the one time that nothing disturbed it.
const PLANS: u64 = 4;

#[test]
fn histories_with_kills_and_cuts_end_as_without_them_first_part() {
    share(0, 2);
}

#[test]
fn histories_with_kills_and_cuts_end_as_without_them_second_part() {
    share(1, 2);
}
