//! A hundred kills, each of which broke a turn off, of fronts and of workers, with connections to Redis and PostgreSQL cut among them,
//! at moments that a seed decides, while people talk. Every conversation must end as one that nothing disturbed.

use std::collections::BTreeMap;
use std::time::Duration;

use croft_proto::v1::session_event::Kind;
use futures::future::join_all;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::stage::Stage;
use crate::transcript::{Excuses, Record, differences, troubles};
use crate::{PATIENCE, conversation};

const KILLS: usize = 100;
/// At the least, of fronts and of workers each.
const KILLS_OF_EACH: usize = 25;
/// People who talk at the same time, one conversation after the other until there were so many kills.
const PEOPLE: usize = 8;
/// Within which yet another kill has broken a turn off. It takes a second or two where the machine has the time.
const STRUCK_WITHIN: Duration = Duration::from_mins(3);
/// A turn that loses so many workers ends, and says so. One that lost all but the last of them is spared.
const WORKERS_MAX: i64 = 3;
/// For which Redis is away.
const AWAY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Front,
    Worker,
}

/// A turn that somebody works at: which, and how often it has been begun by then.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Begun {
    turn_id: String,
    starts: i64,
}

/// One kill.
struct Blow {
    victim: Victim,
    /// At what it may have struck.
    at: Vec<Begun>,
}

/// What was done, and what came of it.
#[derive(Default)]
struct Blows {
    /// Of which it is not known yet whether they broke anything off.
    open: Vec<Blow>,
    fronts: usize,
    workers: usize,
    cuts: usize,
}

impl Blows {
    fn struck(&self) -> usize {
        self.fronts + self.workers
    }

    fn are_enough(&self) -> bool {
        self.struck() >= KILLS && self.fronts.min(self.workers) >= KILLS_OF_EACH
    }

    /// Whom to kill in place of one of whom so many have been that the others would be too few.
    fn other_than(&self, drawn: Victim) -> Victim {
        match drawn {
            Victim::Front if self.fronts >= KILLS - KILLS_OF_EACH => Victim::Worker,
            Victim::Worker if self.workers >= KILLS - KILLS_OF_EACH => Victim::Front,
            drawn => drawn,
        }
    }

    /// Counts those behind which one of their turns was begun once more.
    async fn judge(&mut self, database: &mut PgConnection) {
        let starts = starts(database).await;
        let is_open = |blow: &Blow| !blow.at.iter().any(|at| starts.get(&at.turn_id) > Some(&at.starts));
        let (open, struck): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open).into_iter().partition(is_open);
        self.open = open;
        for blow in struck {
            match blow.victim {
                Victim::Front => self.fronts += 1,
                Victim::Worker => self.workers += 1,
            }
        }
    }

    /// What a new blow would strike, of what no other has: a turn that was broken off and not begun again is nobody's.
    fn unclaimed(&self, running: Vec<Begun>) -> Vec<Begun> {
        running.into_iter().filter(|turn| !self.open.iter().any(|blow| blow.at.contains(turn))).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_end_as_undisturbed_ones_through_a_hundred_kills_in_mid_turn() {
    let seed = std::env::var("CROFT_SEED").map_or(1, |seed| seed.parse().expect("CROFT_SEED is a number"));
    let mut stage = Stage::set().await;
    let calm = conversation(&stage.clients(), 0, &mut Dice::new(1)).await;
    let mut wrong = [calm.faults(), troubles(&calm, &[])].concat();
    let (clients, over, begun) = (stage.clients(), CancellationToken::new(), Instant::now());
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
    let killing = async {
        let blows = kill(&mut stage, &mut Dice::new(seed)).await;
        over.cancel();
        blows
    };
    let (talks, blows) = tokio::join!(talks, killing);
    let talks = talks.concat();
    for talk in &talks {
        let found = match talk {
            Some(record) => [record.faults(), differences(&calm, record, &excuses(record))].concat(),
            None => vec!["it came to no end".to_owned()],
        };
        wrong.extend(found.into_iter().map(|fault| format!("CROFT_SEED={seed}: {fault}")));
    }
    let Blows { fronts, workers, cuts, .. } = blows;
    eprintln!("{fronts} fronts, {workers} workers, {cuts} cuts, {} talks, {:?}", talks.len(), begun.elapsed());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(fronts >= KILLS_OF_EACH && workers >= KILLS_OF_EACH, "{fronts} fronts and {workers} workers");
    assert!(cuts > 0, "no connection was cut");
    stage.strike().await;
}

/// Kills until so many kills have broken a turn off. Each victim starts again before the next goes.
async fn kill(stage: &mut Stage, dice: &mut Dice) -> Blows {
    let (mut database, mut blows) = (stage.database().await, Blows::default());
    let (mut struck, mut since) = (0, Instant::now());
    while !blows.are_enough() {
        assert!(since.elapsed() < STRUCK_WITHIN, "no kill broke a turn off any more behind {struck}");
        sleep(Duration::from_millis(dice.below(300))).await;
        let (victim, place) = (dice.one_of(&[Victim::Front, Victim::Worker]), dice.one_of(&[0, 1]));
        let (victim, cut) = (blows.other_than(victim), dice.below(16));
        let running = running(&mut database, victim, place).await;
        let spared = |turn: &Begun| victim == Victim::Worker && turn.starts >= WORKERS_MAX;
        if running.iter().any(spared) {
            continue;
        }
        let at = blows.unclaimed(running);
        if at.is_empty() {
            continue;
        }
        match cut {
            0 => stage.cut_redis(AWAY),
            1 => stage.cut_postgres().await,
            _ => {}
        }
        blows.cuts += usize::from(cut < 2);
        blows.open.push(Blow { victim, at });
        match victim {
            Victim::Front => stage.kill_front(place).await,
            Victim::Worker => stage.kill_worker(place).await,
        }
        blows.judge(&mut database).await;
        if blows.struck() > struck {
            (struck, since) = (blows.struck(), Instant::now());
        }
    }
    blows
}

/// The turns that a front drives, or a worker runs.
async fn running(database: &mut PgConnection, victim: Victim, place: usize) -> Vec<Begun> {
    let (of, name) = match victim {
        Victim::Front => ("l.holder", format!("front-{place}")),
        Victim::Worker => ("s.worker", format!("worker-{place}")),
    };
    let query = format!(
        "select e.turn_id::text, count(*) from leases l
            join sessions s using (tenant_id, session_id)
            join events e on e.tenant_id = s.tenant_id and e.session_id = s.session_id and e.turn_id::text = s.turn_id
        where s.state = 'running' and l.expire_time > now() and e.kind = 'step_started' and {of} = $1
        group by e.turn_id"
    );
    let rows = sqlx::query_as::<_, (String, i64)>(AssertSqlSafe(query)).bind(name).fetch_all(database).await;
    rows.unwrap().into_iter().map(|(turn_id, starts)| Begun { turn_id, starts }).collect()
}

/// How often each turn was begun so far.
async fn starts(database: &mut PgConnection) -> BTreeMap<String, i64> {
    let query = "select turn_id::text, count(*) from events where kind = 'step_started' group by turn_id";
    sqlx::query_as::<_, (String, i64)>(query).fetch_all(database).await.unwrap().into_iter().collect()
}

/// A turn may have lost as many workers as the log says that it was begun.
fn excuses(record: &Record) -> Excuses {
    let mut starts = BTreeMap::<_, usize>::new();
    for event in &record.events {
        if matches!(event.kind, Some(Kind::StepStarted(_))) {
            *starts.entry(&event.turn_id).or_default() += 1;
        }
    }
    Excuses { worker_losses: starts.into_values().max().unwrap_or_default(), ..Excuses::default() }
}
