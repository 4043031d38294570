//! The start of a sub-agent: a result where it fails, and one record of who opened what, whatever is lost meanwhile.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::message;
use croft_front::core::Options;
use croft_front::store::Stores;
use croft_front::worker_client::{Dial, Wire};
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AuditRecord, BuiltinTool, ContentBlock, StopReason, TenantLimits, ToolSpec};
use croft_serve::Tasks;
use croft_worker::tools::{Builtins, Error, Invocation, Tool};
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::io::{copy_bidirectional, duplex};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::doubles::{Call, Gate, Outage, hooked};
use crate::sub_agents::{ask, children, editor, results, say, script};
use crate::world::{Ground, PATIENCE, World, read_all, stop_reason};

#[tokio::test]
async fn a_sub_agent_that_cannot_be_started_is_a_result_that_says_why() {
    let world = World::with_limits(TenantLimits { sessions_max: 1, ..TenantLimits::default() }).await;
    let mut client = world.client();
    let session_id = client.create(editor()).await.unwrap().session_id;
    let steps = json!([ask("reader", &json!([{"text": "hello"}])), {"text": "alone, then"}]);
    let events = say(&mut client, &session_id, &steps).await;
    let told = "The sub-agent could not be started: the tenant has 1 sessions, its limit.";
    assert_eq!(results(&events), [(told.to_owned(), true)]);
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));
    let nothing = json!([{"tool_call": {"name": "ask-reader", "arguments": {"message": ""}}}, {"text": "?"}]);
    let events = say(&mut client, &session_id, &nothing).await;
    assert!(results(&events)[0].0.contains("do not fit the tool's schema"), "{events:?}");
}

/// A tool whose calls wait at a gate.
struct Waits(Gate);

#[async_trait]
impl Tool for Waits {
    fn description(&self) -> &'static str {
        "Waits."
    }

    fn input_schema(&self) -> Value {
        json!({ "type": "object" })
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, Error> {
        self.0.pass().await;
        Ok(Vec::new())
    }
}

/// It is tried ten times a second: once, each try was a record that is kept for years.
#[tokio::test]
async fn a_sub_agent_that_is_not_started_for_long_is_recorded_once() {
    let gate = Gate::default();
    let ground = Ground {
        options: Options { placement_timeout: Duration::from_millis(600), ..Options::default() },
        builtins: Builtins::default().with("gate", Waits(gate.clone())),
        ..Ground::default()
    };
    let world = World::on(ground).await;
    let mut client = world.client();
    let source = Some(Source::Builtin(BuiltinTool { name: "gate".into() }));
    let mut agent = editor();
    agent.tools.push(ToolSpec { name: "gate".into(), source, ..ToolSpec::default() });
    let session_id = client.create(agent).await.unwrap().session_id;
    let waits = json!({"tool_call": {"name": "gate", "arguments": {}}});
    let steps = json!([waits, ask("reader", &json!([{"text": "hello"}])), {"text": "alone, then"}]);
    let sent = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
    tokio::time::timeout(PATIENCE, gate.reached()).await.expect("it is not called");
    // There is nowhere to start another session.
    world.reroute(|route| route.workers.clear());
    gate.open();
    let events = tokio::time::timeout(PATIENCE, read_all(sent)).await.expect("no end");
    let (said, is_error) = results(&events).pop().unwrap();
    assert!(is_error && said.starts_with("The sub-agent could not be started: "), "{said}");
    world.core.audit.unwritten(PATIENCE).await;
    let records = world.core.stores.audit.list(world.tenant(), 0, 1_000).await.unwrap();
    let refused = |record: &&AuditRecord| record.action == "session.create" && record.outcome != "ok";
    let refused: Vec<_> = records.iter().filter(refused).map(|record| (&*record.actor, &*record.outcome)).collect();
    assert_eq!(refused, [(&*format!("sessions/{session_id}"), "NO_WORKER")]);
}

/// The next try found it, took it for one of an earlier turn's, and no record told who opened it.
#[tokio::test]
async fn a_sub_agent_whose_start_nobody_heard_of_is_recorded_all_the_same() {
    let (mut stores, outage) = (Stores::memory(), Outage::of(1));
    let starts = |call: &Call<'_>| matches!(call, Call::Insert(new) if new.parent.is_some());
    stores.sessions = hooked(stores.sessions, outage.after(starts));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(editor()).await.unwrap().session_id;
    let steps = json!([ask("reader", &json!([{"text": "hello"}])), {"text": "good"}]);
    let events = say(&mut client, &session_id, &steps).await;
    assert_eq!(results(&events), [("hello".to_owned(), false)]);
    assert!(outage.is_over(), "its start was heard of");
    let [child] = &children(&mut client, &session_id).await[..] else { panic!("one call, one session") };
    world.core.audit.unwritten(PATIENCE).await;
    let opened = records_of_opening(&world, &child.session_id).await;
    assert_eq!(opened, [(format!("sessions/{session_id}"), "ok".to_owned())]);
}

/// Who opened the session and what came of it, by each record of that.
async fn records_of_opening(world: &World, session_id: &str) -> Vec<(String, String)> {
    let records = world.core.stores.audit.list(world.tenant(), 0, 1_000).await.unwrap();
    let resource = format!("sessions/{session_id}");
    let opened = |record: &AuditRecord| record.action == "session.create" && record.resource == resource;
    records.into_iter().filter(opened).map(|record| (record.actor, record.outcome.clone())).collect()
}

/// Reaches workers by connections that break when `cut` tells those that wait.
pub(crate) fn breakable(cut: &Arc<Notify>, tasks: &Tasks) -> Dial {
    let (cut, tasks) = (Arc::clone(cut), tasks.clone());
    Arc::new(move |address| {
        let (cut, tasks) = (Arc::clone(&cut), tasks.clone());
        async move {
            let (mut worker, (ours, mut theirs)) = (TcpStream::connect(address).await?, duplex(64 * 1024));
            drop(tasks.spawn("connection", async move {
                tokio::select! {
                    () = cut.notified() => {}
                    _ = copy_bidirectional(&mut theirs, &mut worker) => {}
                }
            }));
            Ok(Box::new(ours) as Box<dyn Wire>)
        }
        .boxed()
    })
}

/// Whoever opened it was dropped with the step of its caller, and the next step took it for one of an earlier turn's.
#[tokio::test]
async fn a_sub_agent_whose_callers_worker_is_lost_while_it_is_opened_is_recorded_once() {
    let starts = |call: &Call<'_>| matches!(call, Call::Insert(new) if new.parent.is_some());
    for is_stored in [true, false] {
        let (mut stores, gate, cut) = (Stores::memory(), Gate::default(), Arc::new(Notify::new()));
        stores.sessions = if is_stored {
            hooked(stores.sessions, gate.after(starts))
        } else {
            hooked(stores.sessions, gate.before(starts))
        };
        let world = World::on(Ground { stores, ..Ground::default() }).await;
        world.core.workers.dial_by(breakable(&cut, &world.tasks));
        let mut client = world.client();
        let session_id = client.create(editor()).await.unwrap().session_id;
        let steps = json!([ask("reader", &json!([{"text": "hello"}])), {"text": "good"}]);
        let sent = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
        timeout(PATIENCE, gate.reached()).await.expect("it is not opened");
        cut.notify_waiters();
        if !is_stored {
            // The next step finds none, and opens one as well.
            timeout(PATIENCE, gate.reached()).await.expect("the call is not made again");
            gate.open();
        }
        let events = timeout(PATIENCE, read_all(sent)).await.expect("no end");
        assert_eq!(
            (results(&events), stop_reason(&events)),
            (vec![("hello".into(), false)], Some(StopReason::EndTurn))
        );
        gate.open();
        let [child] = &children(&mut client, &session_id).await[..] else { panic!("one call, one session") };
        let recorded = async {
            while records_of_opening(&world, &child.session_id).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, recorded).await.expect("it is not recorded");
        // Whoever opened it, or came second, has said so by then.
        assert_eq!(world.tasks.shutdown(PATIENCE).await, 0);
        let opened = records_of_opening(&world, &child.session_id).await;
        assert_eq!(opened, [(format!("sessions/{session_id}"), "ok".to_owned())]);
    }
}
