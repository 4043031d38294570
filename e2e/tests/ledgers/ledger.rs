//! What callers know, and whether it is what the tables say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AuditRecord, CreateSessionRequest, ListAuditRecordsRequest, ListUsageEventsRequest, SessionEvent,
    StreamEventsRequest, VerifyAuditLogRequest,
};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::PATIENCE;

/// In each session, one after the other.
const MESSAGES: usize = 4;

/// What callers know.
#[derive(Default)]
pub(crate) struct Known {
    /// Sessions that were created, with the messages that were accepted there, and with those that were tried.
    sessions: BTreeMap<String, Messages>,
    creations_tried: usize,
    /// Attempts at models that somebody saw, with their sessions.
    attempts: BTreeSet<(String, String)>,
    answers: usize,
}

#[derive(Default)]
struct Messages {
    accepted: usize,
    tried: usize,
}

/// How many answers callers have had.
pub(crate) fn answered(known: &Mutex<Known>) -> usize {
    known.lock().unwrap().answers
}

/// Compares what so many callers know with the audit log and the ledger of usage.
pub(crate) async fn compare(client: &Client, known: &Known, callers: usize) {
    let records = audited(client, known).await;
    let mut wrong = Vec::new();
    for (session, Messages { accepted, tried }) in &known.sessions {
        let resource = format!("sessions/{session}");
        if recorded(&records, "session.create", &resource) == 0 {
            wrong.push(format!("nobody recorded that {session} was created"));
        }
        let told = recorded(&records, "session.send_message", &resource);
        if !(*accepted..=*tried).contains(&told) {
            wrong.push(format!("{session}: {accepted} messages accepted of {tried} tried, {told} recorded"));
        }
    }
    let created = records.iter().filter(|record| record.action == "session.create" && record.outcome == "ok").count();
    if created > known.creations_tried {
        wrong.push(format!("{created} creations recorded of {} tried", known.creations_tried));
    }
    let mut stored = BTreeSet::new();
    for session in known.sessions.keys() {
        let events = log(client, session).await;
        let logged: BTreeSet<_> = attempts(&events).collect();
        let rows = usage(client, session).await;
        let billed: BTreeSet<_> = rows.iter().cloned().collect();
        if rows.len() != billed.len() || billed != logged {
            wrong.push(format!("{session}: {} rows of usage, {} attempts in the log", rows.len(), logged.len()));
        }
        stored.extend(billed.into_iter().map(|attempt| (session.clone(), attempt)));
    }
    for lost in known.attempts.difference(&stored) {
        wrong.push(format!("attempt {} of {} was seen, and is not in the ledger", lost.1, lost.0));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let seen = (known.sessions.len(), known.attempts.len());
    assert!(seen.0 >= callers && seen.1 >= callers, "{seen:?}: nothing much was tried");
}

/// How often it is recorded that this was done.
fn recorded(records: &[AuditRecord], action: &str, resource: &str) -> usize {
    let is_such = |record: &&AuditRecord| record.action == action && record.resource == resource;
    records.iter().filter(is_such).filter(|record| record.outcome == "ok").count()
}

/// Opens sessions and talks there until it is told to stop, each call at another front, again where one fails.
pub(crate) async fn call(clients: &[Client], caller: usize, known: &Mutex<Known>, stop: &AtomicBool) {
    let mut turn = caller;
    let mut next = || {
        turn += 1;
        clients[turn % clients.len()].clone()
    };
    while !stop.load(Ordering::SeqCst) {
        let key = uuid::Uuid::new_v4().to_string();
        let session = loop {
            known.lock().unwrap().creations_tried += 1;
            let agent = Some(scripted_agent("ledger"));
            let request = CreateSessionRequest { agent, idempotency_key: key.clone(), ..Default::default() };
            let created = timeout(Duration::from_secs(10), next().lifecycle.create_session(request)).await;
            if let Ok(Ok(created)) = created {
                break created.into_inner().session.unwrap().session_id;
            }
            sleep(Duration::from_millis(50)).await;
        };
        {
            let mut known = known.lock().unwrap();
            known.answers += 1;
            known.sessions.entry(session.clone()).or_default();
        }
        for number in 0..MESSAGES {
            let key = format!("message {number}");
            loop {
                let said = timeout(Duration::from_secs(10), say(next(), &session, &key, known)).await;
                if matches!(said, Ok(Ok(()))) {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Sends a message and reads what follows to the turn's end. Fails where the answer breaks off.
async fn say(mut client: Client, session: &str, key: &str, known: &Mutex<Known>) -> Result<(), Status> {
    let script = json!({"script": [{"text": "as was asked", "token_delay_ms": 5}]}).to_string();
    let mut request = message(session, &script);
    key.clone_into(&mut request.idempotency_key);
    known.lock().unwrap().sessions.entry(session.to_owned()).or_default().tried += 1;
    let mut events = client.lifecycle.send_message(request).await?.into_inner();
    {
        let mut known = known.lock().unwrap();
        known.answers += 1;
        known.sessions.entry(session.to_owned()).or_default().accepted += 1;
    }
    while let Some(response) = events.message().await? {
        let event = response.event.unwrap();
        if event.seq == 0 {
            continue;
        }
        let seen: Vec<_> =
            attempts(std::slice::from_ref(&event)).map(|attempt| (session.to_owned(), attempt)).collect();
        known.lock().unwrap().attempts.extend(seen);
        if matches!(event.kind, Some(Kind::SessionIdle(_))) {
            return Ok(());
        }
    }
    Err(Status::aborted("it broke off"))
}

fn attempts(events: &[SessionEvent]) -> impl Iterator<Item = String> {
    events.iter().filter_map(|event| match &event.kind {
        Some(Kind::ModelAttempt(attempt)) => Some(attempt.attempt_id.clone()),
        _ => None,
    })
}

/// All of the audit log, once it holds what callers know, or does not come to hold it; its chain holds in any case.
async fn audited(client: &Client, known: &Known) -> Vec<AuditRecord> {
    let mut records: Vec<AuditRecord> = Vec::new();
    let read = async {
        loop {
            let after_number = records.last().map_or(0, |record| record.number);
            let request = ListAuditRecordsRequest { after_number, page_size: 500 };
            let page = client.clone().audit.list_audit_records(request).await.unwrap().into_inner().records;
            let has_more = !page.is_empty();
            records.extend(page);
            // Of each session: one may have more than its callers know of.
            let is_missing = |(session, messages): (&String, &Messages)| {
                let resource = format!("sessions/{session}");
                recorded(&records, "session.create", &resource) == 0
                    || recorded(&records, "session.send_message", &resource) < messages.accepted
            };
            if !has_more && !known.sessions.iter().any(is_missing) {
                return;
            }
            if !has_more {
                sleep(Duration::from_millis(100)).await;
            }
        }
    };
    // What is missing is told by the comparison.
    let _ = timeout(PATIENCE, read).await;
    let verdict = client.clone().audit.verify_audit_log(VerifyAuditLogRequest::default()).await.unwrap().into_inner();
    assert!(verdict.intact, "{verdict:?}");
    records
}

async fn usage(client: &Client, session: &str) -> Vec<String> {
    let request = ListUsageEventsRequest { session_id: session.to_owned(), page_size: 500, ..Default::default() };
    let rows = client.clone().usage.list_usage_events(request).await.unwrap().into_inner().usage_events;
    rows.into_iter().map(|row| row.attempt_id).collect()
}

/// The session's events up to the end of its last turn.
async fn log(client: &Client, session: &str) -> Vec<SessionEvent> {
    let request = StreamEventsRequest { session_id: session.to_owned(), after_seq: 0, durable_only: true };
    let mut stream = client.clone().lifecycle.stream_events(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    // It goes on for as long as the session does.
    while idles(&events) < MESSAGES {
        let response = timeout(PATIENCE, stream.message()).await.expect("every turn has ended").unwrap();
        events.push(response.expect("the session lives").event.unwrap());
    }
    events
}

fn idles(events: &[SessionEvent]) -> usize {
    events.iter().filter(|event| matches!(event.kind, Some(Kind::SessionIdle(_)))).count()
}
