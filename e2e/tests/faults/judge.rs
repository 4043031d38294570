//! What must be true after a history, whatever went wrong in it.

use std::collections::{BTreeMap, BTreeSet};

use croft_front::session::store::Filter;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{Role, SessionState, UsageEvent};

use crate::people::Told;
use crate::tools::Deeds;
use crate::transcript::{Line, Record, content};
use crate::world::World;

/// All of a conversation after its end, as it is stored.
pub(crate) async fn record(world: &World, tenant: usize, told: &Told) -> Record {
    recorded(world, tenant, told.session).await
}

async fn recorded(world: &World, tenant: usize, session: SessionId) -> Record {
    let of = world.identities[tenant].tenant;
    let events = world.stores.events.read(of, session, 0, 100_000).await.unwrap();
    let usage = world.stores.usage.list(of, Some(session), None, None, 100_000).await.unwrap();
    let checkpoint = world.stores.events.checkpoint(of, session).await.unwrap();
    let messages = checkpoint.map(|stored| stored.checkpoint.messages).unwrap_or_default();
    let memory = messages.iter().flat_map(|message| {
        let together = if message.role() == Role::Tool { 1 } else { message.content.len() };
        message.content.chunks(together.max(1)).map(|part| format!("{:?}: {}", message.role(), content(part)))
    });
    Record::new(events, usage, Some(memory.collect()))
}

/// All of a conversation's sub-agents, and what is wrong with them: each call has one session, which has come to its end.
pub(crate) async fn children(world: &World, tenant: usize, told: &Told, record: &Record) -> (Vec<Record>, Vec<String>) {
    let of = world.identities[tenant].tenant;
    let below = Filter { parent: Some(told.session), ..Filter::default() };
    let sessions = world.stores.sessions.list(of, &below, None, 1_000).await.unwrap().sessions;
    let (mut records, mut wrong) = (Vec::new(), Vec::new());
    let mut calls = BTreeSet::new();
    for session in sessions {
        let call = session.parent.as_ref().map(|parent| parent.tool_call_id.clone());
        if session.state != SessionState::Terminated {
            wrong.push(format!("the sub-agent of call {call:?} is {:?} still", session.state));
        }
        let child = recorded(world, tenant, session.id).await;
        wrong.extend(child.faults().into_iter().map(|fault| format!("the sub-agent of call {call:?}: {fault}")));
        if !calls.insert(call.clone()) {
            wrong.push(format!("call {call:?} has two sub-agents"));
        }
        records.push(child);
    }
    let mut started = BTreeSet::new();
    for event in &record.events {
        if let Some(Kind::SubAgentStarted(start)) = &event.kind
            && !started.insert(Some(start.tool_call_id.clone()))
        {
            wrong.push(format!("the sub-agent of call {} starts twice", start.tool_call_id));
        }
    }
    if !started.is_subset(&calls) {
        wrong.push(format!("sub-agents were started for {started:?}, and there are some for {calls:?}"));
    }
    (records, wrong)
}

/// What is wrong with a conversation by itself; empty when nothing is.
pub(crate) async fn faults(world: &World, tenant: usize, told: &Told, record: &Record) -> Vec<String> {
    let of = world.identities[tenant].tenant;
    let session = world.stores.sessions.get(of, told.session).await.unwrap().unwrap();
    let mut wrong = [record.faults(), record.misreadings(&told.seen)].concat();
    if session.last_seq != record.events.len() as u64 {
        wrong.push(format!("the session counts {} events of {}", session.last_seq, record.events.len()));
    }
    let id = told.session.to_string();
    if told.seen.iter().any(|event| event.session_id != id) {
        wrong.push("the reader saw a foreign event".into());
    }
    let output: i64 = record.usage.iter().map(|row| row.tokens.unwrap_or_default().output_tokens).sum();
    let (totals, attempts) = (session.usage, i64::try_from(record.usage.len()).unwrap());
    if totals.attempts != attempts || totals.tokens.unwrap_or_default().output_tokens != output {
        wrong.push(format!(
            "the session's totals are {totals:?}, of {attempts} attempts with {output} tokens of output"
        ));
    }
    if session.has_waiting_input() {
        wrong.push("a message waits".into());
    }
    wrong
}

/// How many attempts have a row of usage, and no word in the log.
fn paid_in_silence(record: &Record) -> usize {
    let told = record.events.iter().filter_map(|event| match &event.kind {
        Some(Kind::ModelAttempt(attempt)) => Some(attempt.attempt_id.as_str()),
        _ => None,
    });
    let told: BTreeSet<_> = told.collect();
    record.usage.iter().filter(|row| !told.contains(row.attempt_id.as_str())).count()
}

/// What is wrong with what was done in the world outside. With `all_told`, nobody was lost together with the only one who knew.
pub(crate) fn misdeeds(records: &[Record], deeds: &Deeds, all_told: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let events = records.iter().flat_map(|record| &record.events);
    let attempts: Vec<_> = events
        .filter_map(|event| match &event.kind {
            // A grant that came when nobody needed it any more is told of, and is no call: nobody here asks twice.
            Some(Kind::ModelAttempt(attempt)) => Some(attempt).filter(|attempt| attempt.finish_reason != "hedged"),
            _ => None,
        })
        .collect();
    let (made, told) = (deeds.models(), attempts.len() as u64);
    let reckoned = attempts.iter().filter(|attempt| attempt.finish_reason == "lost").count() as u64;
    // A log that was over or away when its worker told of a call did not take it: such a call has its row of usage alone.
    let silent: usize = records.iter().map(paid_in_silence).sum();
    let is_counted = |row: &&UsageEvent| !["lost", "hedged"].contains(&row.finish_reason.as_str());
    let counted = records.iter().flat_map(|record| &record.usage).filter(is_counted).count() as u64;
    if told - reckoned > made || counted > made || (all_told && told + (silent as u64) < made) {
        wrong.push(format!(
            "{made} attempts were made; {told} are told, {reckoned} of them reckoned, and {silent} paid in silence; {counted} are paid \
            as they were told"
        ));
    }
    let mut calls = BTreeMap::new();
    for event in records.iter().flat_map(|record| &record.events) {
        if let Some(Kind::ToolCall(call)) = &event.kind
            && calls.insert(call.idempotency_key.clone(), call.name.clone()).is_some()
        {
            wrong.push(format!("call {} is told twice", call.tool_call_id));
        }
    }
    let (deeds, mut made_once) = (deeds.calls(), BTreeSet::new());
    for deed in &deeds {
        if calls.get(&deed.idempotency_key).map(String::as_str) != Some(deed.tool) {
            wrong.push(format!("{deed:?} was done and is not in the log"));
        }
        if matches!(deed.tool, "launch" | "fire") && !made_once.insert(deed.idempotency_key.clone()) {
            wrong.push(format!("{deed:?} was repeated"));
        }
    }
    let mut done: BTreeSet<_> = deeds.iter().map(|deed| format!("{} of {} is done", deed.tool, deed.of)).collect();
    // A sub-agent's words are its caller's result.
    done.extend(records.iter().flat_map(|record| &record.turns).flatten().filter_map(|line| match line {
        Line::Agent(text) => Some(text.clone()),
        _ => None,
    }));
    for line in records.iter().flat_map(|record| &record.turns).flatten() {
        if let Line::Result { text, is_error: false, .. } = line
            && !done.contains(text)
        {
            wrong.push(format!("{text:?} is told and was not done"));
        }
    }
    wrong
}
