//! The same proof as `faults`, on the real programs: fronts and workers killed by their process id, connections to PostgreSQL and
//! Redis cut, at moments that a seed decides. Every conversation must end as one that nothing disturbed.
//!
//! `CROFT_SEED=… cargo test -p croft-e2e --test kills` plays one round alone. Needs `make test-services`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../traces/collector.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod collector;
#[path = "../faults/dice.rs"]
mod dice;
mod hundred;
mod lifecycle;
#[path = "../../../worker/tests/mcp_server/mod.rs"]
mod mcp_server;
#[path = "../in_process/receiver.rs"]
mod receiver;
mod relay;
mod rollout;
#[expect(dead_code, reason = "other tests need more of it")]
mod stage;
#[path = "../faults/story.rs"]
mod story;
mod supersteps;
mod traced;
#[path = "../faults/transcript.rs"]
mod transcript;
mod wired;

use std::sync::Mutex;
use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, CreateSessionRequest, ListUsageEventsRequest, ReplayClass, SessionEvent,
    StreamEventsRequest, ToolSpec,
};
use futures::future::join_all;
use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use crate::dice::Dice;
use crate::stage::Stage;
use crate::transcript::{Excuses, Record, differences, troubles};

/// Rounds, each with its faults, and conversations in each: 28 histories.
const ROUNDS: u64 = 7;
const TALKS: usize = 4;
/// A conversation that takes longer does not come to an end.
const PATIENCE: Duration = Duration::from_mins(3);

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Front(usize),
    Worker(usize),
    Redis,
    Postgres,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_end_as_undisturbed_ones_while_programs_are_killed_and_connections_cut() {
    let mut stage = Stage::set().await;
    let calm = conversation(&stage.clients(), 0, &mut Dice::new(1)).await;
    let mut wrong = [calm.faults(), troubles(&calm, &[])].concat();
    let seeds = match std::env::var("CROFT_SEED") {
        Ok(seed) => vec![seed.parse().expect("CROFT_SEED is a number")],
        Err(_) => (1..=ROUNDS).collect(),
    };
    for seed in seeds {
        let faulty = round(&mut stage, seed, &calm).await;
        wrong.extend(faulty.into_iter().map(|fault| format!("CROFT_SEED={seed}: {fault}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stage.strike().await;
}

/// Several conversations at the same time while one or two things go wrong.
async fn round(stage: &mut Stage, seed: u64, calm: &Record) -> Vec<String> {
    let mut dice = Dice::new(seed);
    let clients = stage.clients();
    let count = 1 + dice.below(2);
    let faults: Vec<_> = (0..count)
        .map(|_| {
            let place = dice.one_of(&[0, 1]);
            let fault = match dice.below(8) {
                0..=2 => Fault::Front(place),
                3..=5 => Fault::Worker(place),
                6 => Fault::Redis,
                _ => Fault::Postgres,
            };
            (Duration::from_millis(50 + dice.below(900)), fault)
        })
        .collect();
    let talks = join_all((0..TALKS).map(|talk| {
        let (clients, mut dice) = (clients.clone(), Dice::new(seed * 100 + talk as u64));
        async move {
            // Not all at the same place when it happens.
            tokio::time::sleep(Duration::from_millis(dice.below(400))).await;
            timeout(PATIENCE, conversation(&clients, talk, &mut dice)).await
        }
    }));
    let shown = format!("{faults:?}");
    let failing = async {
        for (after, fault) in faults {
            tokio::time::sleep(after).await;
            match fault {
                Fault::Front(place) => stage.kill_front(place).await,
                Fault::Worker(place) => stage.kill_worker(place).await,
                Fault::Redis => stage.cut_redis(Duration::from_millis(500)),
                Fault::Postgres => stage.cut_postgres().await,
            }
        }
    };
    let (records, ()) = tokio::join!(talks, failing);
    let mut wrong = Vec::new();
    for (talk, record) in records.into_iter().enumerate() {
        let found = match record {
            Ok(record) => [record.faults(), differences(calm, &record, &Excuses::default())].concat(),
            Err(_) => vec!["it came to no end".into()],
        };
        wrong.extend(found.into_iter().map(|fault| format!("talk {talk}, with {shown}: {fault}")));
    }
    wrong
}

fn agent() -> AgentSpec {
    let tool = |name: &str, replay: ReplayClass| ToolSpec {
        name: name.into(),
        source: Some(Source::Builtin(BuiltinTool { name: "calculator".into() })),
        replay: replay.into(),
        ..ToolSpec::default()
    };
    let tools = vec![tool("reckon", ReplayClass::Safe), tool("charge", ReplayClass::Idempotent)];
    AgentSpec { tools, ..scripted_agent("killed") }
}

/// Two messages, each answered in several supersteps over about a second.
fn messages() -> [String; 2] {
    let call = |name: &str, sum: &str| json!({"tool_call": {"name": name, "arguments": {"expression": sum}}});
    let said = |text: &str| json!({"text": text, "token_delay_ms": 30});
    let first = json!({"script": [
        said("one two three four five"), call("reckon", "6 * 7"), call("charge", "1 + 1"),
        said("six seven eight nine"), call("charge", "2 + 2"),
        said("ten eleven twelve"),
    ]});
    let second = json!({"script": [said("and once more"), call("reckon", "3 * 3"), said("good bye")]});
    [first.to_string(), second.to_string()]
}

/// Has the conversation, and reads it beside, each at any front; then takes all of it from the log.
async fn conversation(clients: &[Client], talk: usize, dice: &mut Dice) -> Record {
    let key = format!("talk {talk} {}", uuid::Uuid::new_v4());
    let create = CreateSessionRequest { agent: Some(agent()), idempotency_key: key, ..CreateSessionRequest::default() };
    let created = insist(clients, dice, async |mut client| client.lifecycle.create_session(create.clone()).await);
    let session_id = created.await.into_inner().session.unwrap().session_id;
    let seen = Mutex::new(Vec::new());
    for (turn, text) in messages().iter().enumerate() {
        let mut request = message(&session_id, text);
        request.idempotency_key = format!("message {turn}");
        // The answer to this call is not needed: the reader has it.
        insist(clients, dice, async |mut client| client.lifecycle.send_message(request.clone()).await.map(drop)).await;
        read(clients, dice, &session_id, turn + 1, &seen).await;
    }
    let usage = ListUsageEventsRequest { session_id: session_id.clone(), page_size: 500, ..Default::default() };
    let usage = insist(clients, dice, async |mut client| client.usage.list_usage_events(usage.clone()).await).await;
    let seen = seen.into_inner().unwrap();
    let events = Mutex::new(Vec::new());
    read(clients, dice, &session_id, messages().len(), &events).await;
    let record = Record::new(events.into_inner().unwrap(), usage.into_inner().usage_events, None);
    let misread = record.misreadings(&seen);
    assert!(misread.is_empty(), "{misread:?}");
    record
}

/// A call at any front, until one answers.
async fn insist<T>(
    clients: &[Client],
    dice: &mut Dice,
    mut call: impl AsyncFnMut(Client) -> Result<T, tonic::Status>,
) -> T {
    loop {
        let client = any(clients, dice);
        match timeout(Duration::from_secs(10), call(client)).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(status)) => assert!(
                matches!(
                    status.code(),
                    Code::Unavailable
                        | Code::Aborted
                        | Code::Unknown
                        | Code::Cancelled
                        | Code::Internal
                        | Code::DeadlineExceeded
                ),
                "{status:?}"
            ),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(30 + dice.below(100))).await;
    }
}

fn any(clients: &[Client], dice: &mut Dice) -> Client {
    let place = usize::try_from(dice.below(clients.len() as u64)).unwrap();
    clients[place].clone()
}

/// Reads on from what was seen until so many turns have ended, at any front, and at another when one breaks off.
async fn read(clients: &[Client], dice: &mut Dice, session_id: &str, turns: usize, seen: &Mutex<Vec<SessionEvent>>) {
    loop {
        let after_seq = seen.lock().unwrap().last().map_or(0, |event: &SessionEvent| event.seq);
        let request =
            StreamEventsRequest { session_id: session_id.to_owned(), after_seq, durable_only: dice.chance(30) };
        let mut client = any(clients, dice);
        let reading = async {
            let mut events = client.lifecycle.stream_events(request).await?.into_inner();
            while let Some(response) = events.message().await? {
                let event = response.event.unwrap();
                if event.seq == 0 {
                    continue;
                }
                let mut seen = seen.lock().unwrap();
                seen.push(event);
                let ended = seen.iter().filter(|event| matches!(event.kind, Some(Kind::SessionIdle(_)))).count();
                if ended == turns {
                    break;
                }
            }
            Ok::<_, tonic::Status>(())
        };
        // A front that is killed in mid stream shows as an error; one that says nothing for long is left for another.
        let _ = timeout(Duration::from_secs(8), reading).await;
        let ended =
            seen.lock().unwrap().iter().filter(|event| matches!(event.kind, Some(Kind::SessionIdle(_)))).count();
        if ended >= turns {
            return;
        }
        tokio::time::sleep(Duration::from_millis(30 + dice.below(100))).await;
    }
}
