//! Which worker has a session, and what callers hear while none can have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::core::Options;
use croft_front::limits::rates::Rates;
use croft_front::worker_client::{Dial, Wire};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, ContentBlock, InterruptSessionRequest, SendMessageResponse, SessionError, SessionEvent,
    StopReason, ToolSpec, WorkerRoute,
};
use croft_serve::Tasks;
use croft_worker::RuntimeOptions;
use croft_worker::tools::{Builtins, Invocation, Tool};
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use crate::sub_agent_starts::breakable;
use crate::world::{Ground, PATIENCE, STALL, World, of_acme, read_all, stop_reason, worker};

const SLOW: &str = r#"{"script": [{"text": "a b c d e f g h", "token_delay_ms": 60000}]}"#;
const QUICK: &str = r#"{"script": [{"text": "there"}]}"#;
/// Where nothing is.
const NOWHERE: &str = "nowhere:50052";

/// Reaches workers by their addresses, and [`NOWHERE`] as `nowhere` does.
fn dial(nowhere: impl Fn() -> Option<String> + Send + Sync + Clone + 'static) -> Dial {
    Arc::new(move |address| {
        let nowhere = nowhere.clone();
        async move {
            let address = match address.as_str() {
                NOWHERE => match nowhere() {
                    Some(address) => address,
                    None => std::future::pending().await,
                },
                _ => address,
            };
            Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn Wire>)
        }
        .boxed()
    })
}

fn at(name: &str, address: &str) -> WorkerRoute {
    WorkerRoute { name: name.into(), address: address.into(), ready: true, sessions_max: 50 }
}

/// A turn that goes on until it is interrupted, once a worker has it.
async fn busy(client: &mut Client, session_id: &str) -> Streaming<SendMessageResponse> {
    let mut events = client.lifecycle.send_message(message(session_id, SLOW)).await.unwrap().into_inner();
    begun(&mut events).await;
    events
}

/// Until a worker has begun a step.
async fn begun(events: &mut Streaming<SendMessageResponse>) {
    loop {
        if let Some(Kind::StepStarted(_)) = events.message().await.unwrap().expect("no end").event.unwrap().kind {
            return;
        }
    }
}

fn details(refused: &Status, code: Code, reason: &str) -> ErrorDetails {
    assert_eq!(refused.code(), code, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, reason);
    details
}

fn trouble(events: &[SessionEvent]) -> &SessionError {
    let last = events.iter().rev().find_map(|event| match &event.kind {
        Some(Kind::Error(error)) => Some(error),
        _ => None,
    });
    last.unwrap_or_else(|| panic!("{events:?}"))
}

/// The emptiest worker is the one that has just gone with its node: each new session was given to it, and failed.
#[tokio::test]
async fn a_session_is_opened_at_another_worker_while_one_is_lost() {
    steady(STALL, async || {
        let world = World::start().await;
        world.core.workers.dial_by(dial(|| None));
        world.reroute(|route| route.workers.insert(0, at("gone", NOWHERE)));
        let mut client = world.client();
        let session = client.create(scripted_agent("first")).await.unwrap();
        assert_eq!(session.worker, "worker-0");
        // By now it is known, and nobody waits for it.
        let asked = Instant::now();
        let session = client.create(scripted_agent("second")).await.unwrap();
        assert_eq!(session.worker, "worker-0");
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    })
    .await;
}

/// Fronts count for themselves what they have placed, so that a worker may be full without that they know.
#[tokio::test]
async fn a_session_is_opened_at_another_worker_while_one_is_full() {
    let world = World::start().await;
    let tiny = RuntimeOptions { sessions_max: 1, ..of_acme("tiny") };
    let tiny = worker(tiny, Builtins::default(), &world.tasks).await;
    let large = world.worker();
    world.reroute(|route| route.workers = vec![tiny.clone()]);
    let mut client = world.client();
    let session_id = client.create(scripted_agent("busy")).await.unwrap().session_id;
    let _busy = busy(&mut client, &session_id).await;

    let mut elsewhere = world.client_of_another_front().await;
    let refused = elsewhere.create(scripted_agent("too-many")).await.unwrap_err();
    let details = details(&refused, Code::ResourceExhausted, "WORKERS_FULL");
    assert!(details.retry_info().unwrap().retry_delay.is_some_and(|delay| !delay.is_zero()));
    world.reroute(|route| route.workers.push(at("worker-0", &large)));
    let mut third = world.client_of_another_front().await;
    assert_eq!(third.create(scripted_agent("elsewhere")).await.unwrap().worker, "worker-0");
}

/// A tool that only some workers have.
struct Novelty;

#[async_trait]
impl Tool for Novelty {
    fn description(&self) -> &'static str {
        "Is new."
    }

    fn input_schema(&self) -> Value {
        json!({ "type": "object" })
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, croft_worker::tools::Error> {
        Ok(Vec::new())
    }
}

/// A worker that has it.
async fn novel(name: &str, tasks: &Tasks) -> WorkerRoute {
    worker(of_acme(name), Builtins::default().with("novelty", Novelty), tasks).await
}

/// A worker that lacks it.
async fn plain(name: &str, tasks: &Tasks) -> WorkerRoute {
    worker(of_acme(name), Builtins::default(), tasks).await
}

/// An agent that has it.
fn early() -> AgentSpec {
    let source = Some(Source::Builtin(BuiltinTool { name: "novelty".into() }));
    let tools = vec![ToolSpec { name: "novelty".into(), source, ..ToolSpec::default() }];
    AgentSpec { tools, ..scripted_agent("early") }
}

/// While a tenant's workers are replaced they are of two kinds. What the first to be asked lacked was final: the session was not opened, and
/// a turn ended with its message.
#[tokio::test]
async fn what_one_worker_lacks_another_may_have() {
    let world = World::start().await;
    let (novel, plain) = (async |name| novel(name, &world.tasks).await, async |name| plain(name, &world.tasks).await);
    let agent = early();
    let mut client = world.client();
    // By name, the first is asked first.
    let (new, old) = (novel("worker-1").await, plain("worker-0").await);
    world.reroute(|route| route.workers = vec![old, new]);
    let session = client.create(agent.clone()).await.unwrap();
    assert_eq!(session.worker, "worker-1");

    // A session is taken to its worker first, which is rolled back to what it was.
    let (new, old) = (novel("worker-0").await, plain("worker-1").await);
    world.reroute(|route| route.workers = vec![new, old]);
    let sent = client.lifecycle.send_message(message(&session.session_id, QUICK)).await.unwrap();
    let events = timeout(PATIENCE, read_all(sent.into_inner())).await.expect("no end");
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
    assert_eq!(world.stored(&session.session_id).await.worker, "worker-0");

    // Where all lack it, that is told.
    let both = [plain("worker-0").await, plain("worker-1").await];
    world.reroute(|route| route.workers = both.into());
    let sent = client.lifecycle.send_message(message(&session.session_id, QUICK)).await.unwrap();
    let events = timeout(PATIENCE, read_all(sent.into_inner())).await.expect("no end");
    let trouble = trouble(&events);
    assert_eq!((stop_reason(&events), &*trouble.reason), (Some(StopReason::Error), "WORKER_REFUSED"));
    assert!(trouble.message.contains("novelty"), "{trouble:?}");
    let refused = client.create(agent).await.unwrap_err();
    let details = details(&refused, Code::FailedPrecondition, "WORKER_REFUSED");
    assert_eq!(details.error_info().unwrap().metadata["worker_reason"], "TOOL_UNSUPPORTED");
}

/// A turn ended with what the first worker lacked as soon as the one that has it was not ready, or was lost in mid turn.
#[tokio::test]
async fn what_one_worker_lacks_ends_no_turn_while_another_may_come() {
    /// Enough for a turn to end that waits for nobody.
    const MOMENT: Duration = Duration::from_millis(300);
    let options = Options { placement_timeout: PATIENCE, ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let (cut, asked) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let [old, new] = [plain("worker-0", &world.tasks).await, novel("worker-1", &world.tasks).await];
    let (breakable, old_address, is_asked) = (breakable(&cut, &world.tasks), old.address.clone(), Arc::clone(&asked));
    world.core.workers.dial_by(Arc::new(move |address| {
        if address == old_address {
            is_asked.notify_one();
        }
        breakable(address)
    }));
    let mut client = world.client();
    world.reroute(|route| route.workers = vec![new.clone()]);
    let session_id = client.create(early()).await.unwrap().session_id;

    let is_ready = |ready| world.reroute(|route| route.workers[1].ready = ready);
    world.reroute(|route| route.workers = vec![old, new]);
    is_ready(false);
    let mut events = client.lifecycle.send_message(message(&session_id, SLOW)).await.unwrap().into_inner();
    timeout(PATIENCE, asked.notified()).await.expect("it is not asked");
    tokio::time::sleep(MOMENT).await;
    is_ready(true);
    timeout(PATIENCE, begun(&mut events)).await.expect("it waits though the worker is ready");

    is_ready(false);
    cut.notify_waiters();
    let is_lost = async {
        while world.core.metrics.workers_lost.get() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, is_lost).await.expect("it is not lost");
    tokio::time::sleep(MOMENT).await;
    is_ready(true);
    timeout(PATIENCE, begun(&mut events)).await.expect("it does not go on");
    let interrupt = InterruptSessionRequest { session_id };
    assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
    let events = timeout(PATIENCE, read_all(events)).await.expect("no end");
    assert_eq!(stop_reason(&events), Some(StopReason::Interrupted), "{events:?}");
}

/// Clients that tried again while their workers restarted heard of their rate when those were back.
#[tokio::test]
async fn who_finds_no_worker_has_used_nothing_of_a_rate() {
    let options = Options { rates: Rates { sessions: 1, ..Rates::default() }, ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let address = world.worker();
    world.reroute(|route| route.workers.clear());
    for _ in 0..3 {
        let refused = client.create(scripted_agent("early")).await.unwrap_err();
        let details = details(&refused, Code::Unavailable, "NO_WORKER");
        assert!(details.retry_info().is_some(), "a worker may come");
    }
    world.reroute(|route| route.workers = vec![at("worker-0", &address)]);
    client.create(scripted_agent("in-time")).await.unwrap();
    let refused = client.create(scripted_agent("one-more")).await.unwrap_err();
    details(&refused, Code::ResourceExhausted, "RATE_LIMITED");
}

/// The same of a worker that other fronts have filled, which is only found out by asking it: sub-agents, tried ten times a second, had used
/// up the rate when one of its turns was over.
#[tokio::test]
async fn who_finds_a_worker_full_has_used_nothing_of_a_rate() {
    let options = Options { rates: Rates { sessions: 2, ..Rates::default() }, ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let tiny = RuntimeOptions { sessions_max: 1, ..of_acme("tiny") };
    let tiny = worker(tiny, Builtins::default(), &world.tasks).await;
    world.reroute(|route| route.workers = vec![tiny]);
    let mut client = world.client();
    let session_id = client.create(scripted_agent("busy")).await.unwrap().session_id;
    let turn = busy(&mut client, &session_id).await;
    let mut elsewhere = world.client_of_another_front().await;
    for _ in 0..5 {
        let refused = elsewhere.create(scripted_agent("early")).await.unwrap_err();
        details(&refused, Code::ResourceExhausted, "WORKERS_FULL");
    }
    let interrupt = InterruptSessionRequest { session_id };
    assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
    read_all(turn).await;
    // The worker may have a little left to do behind the turn's end.
    let in_time = async {
        loop {
            match elsewhere.create(scripted_agent("in-time")).await {
                Ok(_) => break,
                Err(refused) => drop(details(&refused, Code::ResourceExhausted, "WORKERS_FULL")),
            }
        }
    };
    timeout(PATIENCE, in_time).await.expect("there is room");
    let refused = elsewhere.create(scripted_agent("one-more")).await.unwrap_err();
    details(&refused, Code::ResourceExhausted, "RATE_LIMITED");
}

#[tokio::test]
async fn callers_hear_in_the_operators_words_why_there_is_no_worker_or_no_more_of_them() {
    const SENTENCE: &str = "quota exceeded: tenant, requested: limits.cpu=1, used: limits.cpu=1, limited: limits.cpu=1";
    let options = Options { placement_timeout: Duration::from_millis(300), ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let busy_id = client.create(scripted_agent("busy")).await.unwrap().session_id;
    let waiting_id = client.create(scripted_agent("waiting")).await.unwrap().session_id;
    let address = world.worker();
    world.reroute(|route| {
        route.workers[0].sessions_max = 1;
        route.workers_problem = SENTENCE.into();
        route.workers_problem_reason = "QuotaExceeded".into();
    });
    let is_told = |refused: &Status, details: &ErrorDetails| {
        assert!(refused.message().contains(SENTENCE), "{refused:?}");
        assert_eq!(details.error_info().unwrap().metadata["workers_problem"], "QuotaExceeded");
    };
    let _busy = busy(&mut client, &busy_id).await;
    let refused = client.create(scripted_agent("one-more")).await.unwrap_err();
    let full = details(&refused, Code::ResourceExhausted, "WORKERS_FULL");
    is_told(&refused, &full);
    assert!(full.retry_info().is_some(), "a turn may end");
    assert_eq!(full.quota_failure().unwrap().violations[0].subject, "workers");
    let turn = client.lifecycle.send_message(message(&waiting_id, QUICK)).await.unwrap().into_inner();
    let turn = read_all(turn).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::WorkerLost), "{turn:?}");
    let told = trouble(&turn);
    assert_eq!((told.reason.as_str(), told.retryable), ("WORKERS_FULL", true));
    assert!(told.message.contains(SENTENCE), "{told:?}");

    world.reroute(|route| route.workers.clear());
    let refused = client.create(scripted_agent("one-more")).await.unwrap_err();
    let none = details(&refused, Code::Unavailable, "NO_WORKER");
    is_told(&refused, &none);
    assert!(none.retry_info().is_none(), "somebody has to mend it");
    let turn = client.lifecycle.send_message(message(&waiting_id, QUICK)).await.unwrap().into_inner();
    let turn = read_all(turn).await;
    let told = trouble(&turn);
    assert_eq!((told.reason.as_str(), told.message.contains(SENTENCE)), ("NO_WORKER", true), "{told:?}");

    world.reroute(|route| route.workers = vec![at("worker-0", &address)]);
    let turn = client.lifecycle.send_message(message(&waiting_id, QUICK)).await.unwrap().into_inner();
    assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::EndTurn));
}

/// A worker that failed is passed over for some seconds, or until it has done something well: as the last one that has room.
#[tokio::test]
async fn a_turn_that_goes_well_takes_its_worker_back_in() {
    let world = World::start().await;
    let (is_there, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (looked, counted, address) = (Arc::clone(&is_there), Arc::clone(&failed), world.worker());
    world.core.workers.dial_by(dial(move || {
        if looked.load(Ordering::SeqCst) {
            return Some(address.clone());
        }
        counted.fetch_add(1, Ordering::SeqCst);
        // Nothing listens there.
        Some("127.0.0.1:1".to_owned())
    }));
    let other = worker(of_acme("other"), Builtins::default(), &world.tasks).await;
    let mut client = world.client();
    world.reroute(|route| route.workers = vec![WorkerRoute { sessions_max: 1, ..other.clone() }]);
    let [busy_id, session_id] = [
        client.create(scripted_agent("busy")).await.unwrap().session_id,
        client.create(scripted_agent("patient")).await.unwrap().session_id,
    ];
    let _busy = busy(&mut client, &busy_id).await;
    world.reroute(|route| route.workers.push(at("shaky", NOWHERE)));
    let events = client.lifecycle.send_message(message(&session_id, QUICK)).await.unwrap().into_inner();
    let has_failed = async {
        while failed.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, has_failed).await.expect("it is not tried");
    is_there.store(true, Ordering::SeqCst);
    let turn = read_all(events).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn), "{turn:?}");
    // The other has room again, and one session more.
    world.reroute(|route| route.workers[0].sessions_max = 50);
    assert_eq!(client.create(scripted_agent("next")).await.unwrap().worker, "shaky");
}
