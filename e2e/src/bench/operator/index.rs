//! Finding a declared session among many, in the operator's own index. Beside it, what the same takes by a search of all.

use std::hint::black_box;
use std::time::Duration;

use anyhow::Context as _;
use croft_crds::AgentSession;
use croft_operator::cluster::SessionIndex;
use serde_json::json;
use tokio::time::Instant;

use crate::bench::row::Row;
use crate::bench::samples::{Samples, human};

/// Flat is: however many sessions there are, within this.
const REACH: Duration = Duration::from_micros(5);
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Sessions of one tenant.
const OF_A_TENANT: usize = 10;
const SAMPLES: usize = 2_000;
/// Look-ups that are timed together: the clock itself takes as long as one.
const TOGETHER: u32 = 20;

/// At each size, by UID, by namespace, and those that wait in a namespace that holds all.
pub fn all() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in SIZES {
        let sessions: Vec<_> = (0..size).map(session).collect::<Result<_, _>>()?;
        let spread = SessionIndex::default();
        let crowded = SessionIndex::default();
        for session in &sessions {
            spread.put(session);
            let mut moved = session.clone();
            moved.metadata.namespace = Some("tenant-crowded".to_owned());
            crowded.put(&moved);
        }
        let searched = time(1, |number| {
            let uid = uid(number * 7_919 % size);
            black_box(sessions.iter().find(|session| session.metadata.uid.as_ref() == Some(&uid)));
        });
        let by_uid = time(TOGETHER, |number| {
            black_box(spread.by_uid(&uid(number * 7_919 % size)));
        });
        let within = time(TOGETHER, |number| {
            black_box(spread.within(&namespace(number * 7_919 % size)));
        });
        let waiting = time(TOGETHER, |_| {
            black_box(crowded.waiting("tenant-crowded"));
        });
        spread.by_uid(&uid(size - 1)).context("the index has lost a session")?;
        let row = |what: &str, times| Row::times(format!("{what}, {size} sessions"), times).p99_within(REACH);
        rows.push(row("index look-up by UID", by_uid).besides(format!("a search of all: {}", human(searched.p50()))));
        rows.push(row("index look-up of a tenant's ten", within));
        rows.push(row("index look-up of those that wait, none of them, all in one tenant", waiting));
    }
    Ok(rows)
}

fn time(together: u32, look_up: impl Fn(usize)) -> Samples {
    let mut number = 0;
    let sample = |_| {
        let begun = Instant::now();
        for _ in 0..together {
            look_up(number);
            number += 1;
        }
        begun.elapsed() / together
    };
    (0..SAMPLES).map(sample).collect()
}

fn uid(number: usize) -> String {
    format!("0c9e2f6e-8a8f-4a8e-9a56-{number:012}")
}

fn namespace(number: usize) -> String {
    format!("tenant-{:06}", number / OF_A_TENANT)
}

fn session(number: usize) -> serde_json::Result<AgentSession> {
    serde_json::from_value(json!({
        "metadata": { "name": format!("session-{number:06}"), "namespace": namespace(number), "uid": uid(number) },
        "spec": { "agent": { "model": "scripted-1" } },
        "status": { "phase": "Ready", "sessionID": uid(number) },
    }))
}
