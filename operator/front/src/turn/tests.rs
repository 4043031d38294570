use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::v1::{
    AgentMessage, AgentSpec, ContentBlock, Grant, GrantRequest, Image, ModelAttempt, SessionCreated, SessionIdle,
    StopReason, SubAgentCall, Text, TokenUsage, content_block, image,
};
use croft_serve::Tasks;
use futures::FutureExt as _;
use tokio::time::sleep;

use super::granted::Granted;
use super::recorder::Recorder;
use super::*;
use crate::app::{Parts, assemble};
use crate::core::Options;
use crate::counters::memory::Memory;
use crate::doubles::{Call, Hook, Made, Outage, hooked};
use crate::events::relay::Frame;
use crate::events::relay::memory::MemoryRelay;
use crate::session::Session;
use crate::session::store::{Inserted, NewSession};
use crate::store::Stores;
use crate::tenants::Tenants;

fn new_session(tenant: TenantId) -> NewSession {
    let agent = AgentSpec { name: "helper".into(), ..AgentSpec::default() };
    let created = NewEvent::now(Kind::SessionCreated(SessionCreated::default()));
    NewSession::of(SessionId::generate(), tenant, "heron", agent, vec![created])
}

/// A front on these stores that knows no tenant, and so of no worker; and a session.
async fn front(stores: Stores, options: Options, tasks: &Tasks) -> (Arc<Core>, Session) {
    let tenant = TenantId::generate();
    stores.tenants.upsert(tenant, "heron").await.unwrap();
    let parts = Parts {
        replica: "front-0".into(),
        stores: stores.clone(),
        relay: Arc::new(MemoryRelay::default()),
        counters: Arc::new(Memory::default()),
        tenants: Tenants::new(),
        tls: None,
        options,
    };
    let core = assemble(parts, tasks, &prometheus::Registry::new()).await.unwrap();
    let (Inserted::New { session, .. } | Inserted::Existing(session)) =
        stores.sessions.insert(new_session(tenant)).await.unwrap();
    (core, session)
}

async fn append(core: &Core, session: &Session, turn: TurnId, kinds: Vec<Kind>) -> Vec<SessionEvent> {
    let events = kinds.into_iter().map(|kind| turn_event(turn, kind)).collect();
    let append = Append::of(session.tenant, session.id, Authority::Caller, events);
    match core.stores.events.append(append).await.unwrap() {
        Appended::New(events) => events,
        Appended::Existing { .. } => panic!("it is new"),
    }
}

/// An earlier release stored the message, with the hash of what it was sent. It is sent again, behind an upgrade.
#[tokio::test]
async fn a_repeated_message_is_known_by_what_was_sent_and_not_by_what_is_stored_of_it() {
    let (tasks, stores) = (Tasks::new(), Stores::memory());
    let (core, session) = front(stores.clone(), Options::default(), &tasks).await;
    let tenant = session.tenant;
    let source = Some(image::Source::Data((b"\x89PNG\r\n\x1a\n\0" as &[u8]).into()));
    let misnamed = Image { media_type: "image/jpg".into(), source };
    let content = vec![ContentBlock { block: Some(content_block::Block::Image(misnamed)) }];
    let body = SendMessageRequest { session_id: session.id.to_string(), content, ..SendMessageRequest::default() };

    let turn = TurnId::generate();
    let said = UserMessage { content: body.content.clone(), sender: "them".into() };
    let said = vec![turn_event(turn, Kind::UserMessage(said))];
    let idempotency_key = idempotency_key("k", &body).unwrap();
    let append = Append { idempotency_key, ..Append::of(tenant, session.id, Authority::Caller, said) };
    let Appended::New(events) = stores.events.append(append).await.unwrap() else { panic!("it is new") };

    let again = SendMessageRequest { idempotency_key: "k".into(), ..body };
    let sent = Turns::new(core).send(tenant, "them", again).await.unwrap();
    assert_eq!((sent.accepted, sent.is_new()), (Accepted { turn, seq: events[0].seq }, false));
}

/// Sessions that can't be looked at while it is said: nobody answers.
#[derive(Default)]
struct Silent(AtomicBool);

#[async_trait]
impl Hook for Silent {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if matches!(call, Call::Get) && self.0.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        made.await
    }
}

/// Its driver waited for an answer without a bound, and for so long the turn stood still and kept what it had, such as connections.
#[tokio::test(start_paused = true)]
async fn a_turn_whose_lease_is_lost_is_dropped_although_nobody_can_see_its_session() {
    let (mut stores, silent) = (Stores::memory(), Arc::new(Silent::default()));
    stores.sessions = hooked(stores.sessions, Arc::clone(&silent));
    // It looks for a worker until then.
    let options = Options { placement_timeout: Duration::from_hours(1), ..Options::default() };
    let (tasks, lease_ttl) = (Tasks::new(), options.lease_ttl);
    let (core, session) = front(stores, options, &tasks).await;
    let content = vec![ContentBlock { block: Some(content_block::Block::Text(Text { text: "hello".into() })) }];
    let said = SendMessageRequest { session_id: session.id.to_string(), content, ..SendMessageRequest::default() };
    drop(Turns::new(Arc::clone(&core)).send(session.tenant, "them", said).await.unwrap());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(core.metrics.turns_running.get(), 1);

    core.stores.leases.abandon(session.tenant, session.id, 1).await.unwrap();
    let taken = core.stores.leases.acquire(session.tenant, session.id, "front-1", Duration::from_hours(1)).await;
    assert!(taken.unwrap().is_some(), "another has it");
    silent.0.store(true, Ordering::SeqCst);
    sleep(lease_ttl).await;
    assert_eq!((core.metrics.turns_running.get(), core.metrics.lease_losses.get()), (0, 1));
}

fn lost_attempt() -> Vec<Kind> {
    let mut granted = Granted::default();
    granted.give(&GrantRequest::default(), Grant { grant_id: "the grant".into(), ..Grant::default() });
    granted.lost()
}

/// It was there first, and what the worker told of the same call counted for nothing.
#[tokio::test(start_paused = true)]
async fn what_was_reckoned_is_charged_unless_the_worker_tells_of_it_in_time() {
    let (tasks, options) = (Tasks::new(), Options::default());
    let lease_ttl = options.lease_ttl;
    let (core, session) = front(Stores::memory(), options, &tasks).await;
    let charged = async || core.stores.usage.list(session.tenant, None, None, None, 10).await.unwrap();
    for is_told in [false, true] {
        let session = core.stores.sessions.insert(new_session(session.tenant)).await.unwrap();
        let (Inserted::New { session, .. } | Inserted::Existing(session)) = session;
        let before = charged().await.len();
        let mut recorder = Recorder::new(Arc::clone(&core), session.clone(), 1, (TurnId::generate(), "them"), false);
        let mut lost = lost_attempt();
        if let [Kind::ModelAttempt(attempt)] = &mut lost[..] {
            attempt.attempt_id = format!("attempt, {is_told}");
            // Nobody but the front has a say in this.
            attempt.sender = "somebody else".to_owned();
        }
        recorder.charge_unless_told(lost);
        sleep((6 * lease_ttl).saturating_sub(Duration::from_secs(1))).await;
        assert_eq!(charged().await.len(), before, "its worker may yet be heard of");
        if is_told {
            let usage = Some(TokenUsage { output_tokens: 7, ..TokenUsage::default() });
            let attempt_id = format!("attempt, {is_told}");
            let sender = "them".to_owned();
            let told = Kind::ModelAttempt(ModelAttempt { attempt_id, usage, sender, ..ModelAttempt::default() });
            append(&core, &session, TurnId::generate(), vec![told]).await;
        }
        sleep(Duration::from_secs(2)).await;
        let rows = core.stores.usage.list(session.tenant, Some(session.id), None, None, 10).await.unwrap();
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!((rows[0].usage_estimated, rows[0].tokens.unwrap().output_tokens == 7), (!is_told, is_told));
        assert_eq!(rows[0].sender, "them");
    }
}

/// The front lived, and what it knew was forgotten with the turn.
#[tokio::test(start_paused = true)]
async fn what_a_turn_used_that_could_not_be_stored_is_charged_in_a_while() {
    let (mut stores, tasks, options) = (Stores::memory(), Tasks::new(), Options::default());
    let outage = Outage::of(1).before(|call| call.appends(|kind| matches!(kind, Kind::ModelAttempt(_))));
    stores.events = hooked(stores.events, outage);
    let in_a_while = 6 * options.lease_ttl + Duration::from_secs(1);
    let (core, session) = front(stores, options, &tasks).await;
    let turn = (TurnId::generate(), "them");
    let mut recorder = Recorder::new(Arc::clone(&core), session.clone(), 1, turn, false);
    let usage = Some(TokenUsage { output_tokens: 7, ..TokenUsage::default() });
    let told = ModelAttempt { attempt_id: "told".into(), grant_id: "told".into(), usage, ..ModelAttempt::default() };
    let told = vec![Kind::ModelAttempt(told)];
    recorder.granted.settle(&told);
    recorder.store(told, None, None).await.unwrap_err();
    recorder.granted.give(&GrantRequest::default(), Grant { grant_id: "out".into(), ..Grant::default() });
    drop(recorder);
    sleep(in_a_while).await;
    let rows = core.stores.usage.list(session.tenant, Some(session.id), None, None, 10).await.unwrap();
    let mut charged: Vec<_> = rows.iter().map(|row| (&*row.attempt_id, row.tokens.unwrap().output_tokens)).collect();
    charged.sort_unstable();
    assert_eq!(charged, [("out", 0), ("told", 7)]);

    // Nothing is left of what was stored.
    let mut recorder = Recorder::new(Arc::clone(&core), session.clone(), 1, turn, false);
    recorder.granted.stored();
    drop(recorder);
    sleep(in_a_while).await;
    assert_eq!(core.stores.usage.list(session.tenant, Some(session.id), None, None, 10).await.unwrap().len(), 2);
}

/// A rollout came within the minute, and they were given up without a try.
#[tokio::test(start_paused = true)]
async fn what_is_to_be_charged_in_a_while_is_charged_by_a_front_that_is_to_stop() {
    let tasks = Tasks::new();
    let (core, session) = front(Stores::memory(), Options::default(), &tasks).await;
    Recorder::new(Arc::clone(&core), session.clone(), 1, (TurnId::generate(), "them"), false)
        .charge_unless_told(lost_attempt());
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    assert_eq!(tasks.shutdown(Duration::from_secs(25)).await, 0, "none is left behind");
    assert!(begun.elapsed() < Duration::from_secs(2), "nor waited for");
    let rows = core.stores.usage.list(session.tenant, Some(session.id), None, None, 10).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
}

/// They waited for their next try, were cut off with the program, and stood nowhere.
#[tokio::test(start_paused = true)]
async fn attempts_that_wait_for_the_ledger_are_given_up_as_the_front_goes() {
    let (mut stores, tasks) = (Stores::memory(), Tasks::new());
    stores.usage = hooked(stores.usage, Outage::of(usize::MAX).before(|call| matches!(call, Call::AddBehindEnd)));
    let (core, session) = front(stores, Options::default(), &tasks).await;
    charge_behind_end(&core, session.clone(), vec![ModelAttempt::default()]).await;
    Recorder::new(Arc::clone(&core), session, 1, (TurnId::generate(), "them"), false)
        .charge_unless_told(lost_attempt());
    // Between two tries of the first, and before there is any of the other.
    assert_eq!(tasks.shutdown(Duration::from_millis(500)).await, 0, "none is left behind");
}

/// It answered, and its caller was told that it could not be told what to do.
#[tokio::test]
async fn a_sub_agent_that_is_at_work_is_followed_although_it_can_not_be_told_again() {
    let (tasks, options) = (Tasks::new(), Options { message_bytes_max: 1, ..Options::default() });
    let (core, session) = front(Stores::memory(), options, &tasks).await;
    let turn = TurnId::generate();
    let content = vec![ContentBlock { block: Some(content_block::Block::Text(Text { text: "it is 42".into() })) }];
    let log = vec![
        Kind::UserMessage(UserMessage::default()),
        Kind::SessionRunning(SessionRunning {}),
        Kind::AgentMessage(AgentMessage { content: content.clone(), model: "m".into() }),
        Kind::SessionIdle(SessionIdle { stop_reason: StopReason::EndTurn.into() }),
    ];
    append(&core, &session, turn, log).await;
    let child = core.stores.sessions.get(session.tenant, session.id).await.unwrap().unwrap();
    let call = SubAgentCall { tool_call_id: "call".into(), arguments_json: "{}".into(), ..SubAgentCall::default() };
    let result = sub_agents::answer(&core, &child, "them", &call).await;
    assert_eq!((result.content, result.is_error), (content, false));
}

/// Who repeats a message that interrupts stopped the turn of one that had waited since before, which the first try had let run.
#[tokio::test(start_paused = true)]
async fn a_message_interrupts_the_turn_that_began_before_it_and_no_later_one() {
    let tasks = Tasks::new();
    let (core, session) = front(Stores::memory(), Options::default(), &tasks).await;
    let turns = Turns::new(Arc::clone(&core));
    let (first, second, third) = (TurnId::generate(), TurnId::generate(), TurnId::generate());
    let said = || Kind::UserMessage(UserMessage::default());
    append(&core, &session, first, vec![said(), Kind::SessionRunning(SessionRunning {})]).await;
    append(&core, &session, second, vec![said()]).await;
    let events = append(&core, &session, third, vec![said()]).await;
    let accepted = Accepted { turn: third, seq: events[0].seq };

    let mut controls = core.hub.controls(session.tenant, session.id).await;
    let mut interrupted = || -> Vec<_> {
        let told = std::iter::from_fn(|| controls.recv().now_or_never().flatten());
        told.filter_map(|frame| if let Frame::Interrupt { turn } = frame { turn } else { None }).collect()
    };
    turns.make_way(session.tenant, session.id, accepted);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(interrupted(), [first]);
    let idle = Kind::SessionIdle(SessionIdle { stop_reason: StopReason::Interrupted.into() });
    append(&core, &session, first, vec![idle]).await;
    append(&core, &session, second, vec![Kind::SessionRunning(SessionRunning {})]).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(interrupted(), []);

    turns.make_way(session.tenant, session.id, accepted);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(interrupted(), [], "it began behind the message");
}
