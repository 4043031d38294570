//! Those who use the system: one talks, one reads, one approves. They try again, at any front, until they are heard.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_e2e::client::message;
use croft_front::Error;
use croft_front::events::replay::follow;
use croft_front::session::manager::Manager;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BusyPolicy, CreateSessionRequest, ResolveApprovalRequest, SendMessageRequest, SessionEvent};
use futures::StreamExt as _;
use tokio::sync::watch;

use crate::scenario::{Said, agent};
use crate::transcript::is_answer;
use crate::world::World;

/// What came of one conversation.
pub(crate) struct Told {
    pub(crate) session: SessionId,
    /// The durable events that its reader was told, over all connections, in the order in which they came.
    pub(crate) seen: Vec<SessionEvent>,
}

/// How many answers the reader has seen to their end.
type Progress = watch::Sender<usize>;

/// Has a conversation to its end.
pub(crate) async fn converse(world: Arc<World>, tenant: usize, talk: &[Said]) -> Told {
    let session = open(&world, tenant).await;
    let (progress, seen) = (Progress::new(0), Mutex::new(Vec::new()));
    let talking = async {
        for (place, said) in talk.iter().enumerate() {
            if said.policy == BusyPolicy::Reject {
                let _ = progress.subscribe().wait_for(|answered| *answered >= place).await;
            }
            say(&world, tenant, session, place, said).await;
        }
    };
    tokio::join!(talking, read(&world, tenant, session, talk.len(), &progress, &seen));
    Told { session, seen: seen.into_inner().unwrap() }
}

/// Between two tries.
async fn pause(world: &World) {
    tokio::time::sleep(Duration::from_millis(20 + world.chaos.roll(400))).await;
}

/// A call at any front, again and again until one answers as it should.
async fn insist<T>(world: &World, what: &str, mut call: impl AsyncFnMut(crate::world::Front) -> Result<T, Error>) -> T {
    loop {
        let front = world.front().await;
        let dead = front.dead.clone();
        let answer = tokio::select! {
            answer = tokio::time::timeout(Duration::from_secs(30), call(front)) => answer.ok(),
            () = dead.cancelled() => None,
        };
        match answer {
            Some(Ok(answer)) => return answer,
            Some(Err(
                Error::Unavailable { .. }
                | Error::SessionBusy { .. }
                | Error::WorkerLost { .. }
                | Error::NoWorker { .. },
            ))
            | None => pause(world).await,
            Some(Err(error)) => panic!("{what}: {error:?}"),
        }
    }
}

async fn open(world: &World, tenant: usize) -> SessionId {
    let identity = &world.identities[tenant];
    let request = CreateSessionRequest {
        agent: Some(agent()),
        idempotency_key: "the one session".into(),
        ..CreateSessionRequest::default()
    };
    let session =
        insist(world, "create", async |front| Manager::new(front.core).create(identity, request.clone()).await);
    session.await.id
}

async fn say(world: &World, tenant: usize, session: SessionId, place: usize, said: &Said) {
    let mut request: SendMessageRequest = message(&session.to_string(), &said.text);
    request.set_busy_policy(said.policy);
    request.idempotency_key = format!("message {place}");
    let identity = &world.identities[tenant];
    insist(world, "send", async |front| front.lifecycle.accept(identity, request.clone()).await.map(drop)).await;
}

/// Reads until so many turns have ended.
async fn read(
    world: &Arc<World>,
    tenant: usize,
    session: SessionId,
    turns: usize,
    progress: &Progress,
    seen: &Mutex<Vec<SessionEvent>>,
) {
    let of = world.identities[tenant].tenant;
    let (mut last_seq, mut asked, mut answers) = (0, Vec::<String>::new(), BTreeSet::new());
    loop {
        let (front, lost) = (world.front().await, world.chaos.readers_lost());
        let log = Arc::clone(&front.core.stores.events);
        let reading = async {
            // Also what it was asked at a front that has died since.
            while let Some(approval_id) = asked.last().cloned() {
                approve(world, tenant, session, &approval_id).await;
                asked.pop();
            }
            let Ok(events) = follow(log, &front.core.hub, of, session, last_seq, false).await else { return };
            let mut events = std::pin::pin!(events);
            while let Some(Ok(event)) = events.next().await {
                if event.seq == 0 {
                    continue;
                }
                last_seq = event.seq;
                let question = match &event.kind {
                    // Nobody knows whether to repeat what may have happened.
                    Some(Kind::ApprovalRequired(question)) if !question.reason.contains("its outcome is unknown") => {
                        Some(question.approval_id.clone())
                    }
                    _ => None,
                };
                if is_answer(&event) {
                    answers.insert(event.turn_id.clone());
                }
                // The end of a turn that answers no message is told besides.
                if matches!(event.kind, Some(Kind::SessionIdle(_))) && !answers.contains(&event.turn_id) {
                    progress.send_modify(|answered| *answered += 1);
                }
                seen.lock().unwrap().push(event);
                if *progress.borrow() == turns {
                    return;
                }
                if let Some(approval_id) = question {
                    asked.push(approval_id.clone());
                    approve(world, tenant, session, &approval_id).await;
                    asked.clear();
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = front.dead.cancelled() => {}
            () = lost.cancelled() => {}
        }
        if *progress.borrow() == turns {
            return;
        }
        pause(world).await;
    }
}

async fn approve(world: &World, tenant: usize, session: SessionId, approval_id: &str) {
    let identity = &world.identities[tenant];
    let request = ResolveApprovalRequest {
        session_id: session.to_string(),
        approval_id: approval_id.to_owned(),
        approved: true,
        ..ResolveApprovalRequest::default()
    };
    insist(world, "approve", async |front| match front.lifecycle.answer(identity, request.clone()).await {
        // Its first word arrived, and the answer did not.
        Err(Error::ApprovalNotPending { .. }) => Ok(()),
        answer => answer,
    })
    .await;
}
