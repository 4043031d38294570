//! A call of which nobody knows what it came to, and which may not be repeated unless somebody says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::message;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    BuiltinTool, ContentBlock, Permission, ReplayClass, ResolveApprovalRequest, SessionEvent, SessionState, StopReason,
    ToolSpec,
};
use croft_serve::Tasks;
use croft_worker::tools::{Builtins, Error, Invocation, Tool};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tonic::Code;

use crate::approvals::{cautious, failures, questions, say_yes};
use crate::sub_agents::{ask, children, editor, results, script};
use crate::world::{Ground, World, stop_reason};

/// A tool whose first call never returns, and each other one at once.
#[derive(Clone, Default)]
struct StuckOnce {
    is_called: Arc<Notify>,
    was_called: Arc<AtomicBool>,
}

#[async_trait]
impl Tool for StuckOnce {
    fn description(&self) -> &'static str {
        "Gets stuck once."
    }

    fn input_schema(&self) -> Value {
        json!({ "type": "object" })
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, Error> {
        if !self.was_called.swap(true, Ordering::SeqCst) {
            self.is_called.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(Vec::new())
    }
}

/// The answer was stored, and the worker asked the same question again, which nobody could answer a second time.
#[tokio::test]
async fn a_yes_has_a_call_repeated_whose_outcome_is_unknown() {
    let (tool, theirs) = (StuckOnce::default(), Tasks::new());
    let builtins = Builtins::default().with("stuck-once", tool.clone());
    let world = World::on(Ground { builtins, ..Ground::default() }).await;
    let mut client = world.client_of_a_front_with(&theirs).await;
    let mut once = cautious();
    once.tools[0].source = Some(Source::Builtin(BuiltinTool { name: "stuck-once".into() }));
    once.tools[0].set_permission(Permission::Allow);
    once.tools[0].set_replay(ReplayClass::Unsafe);
    let session_id = client.create(once).await.unwrap().session_id;
    let script = r#"{"script": [{"tool_call": {"name": "clock", "arguments": {}}}, {"text": "done"}]}"#;
    let _turn = client.lifecycle.send_message(message(&session_id, script)).await.unwrap();
    tool.is_called.notified().await;
    // Whoever takes the turn over hangs up on the worker that makes the call.
    assert!(theirs.shutdown(Duration::from_millis(50)).await > 0, "the turn is not over");
    let session = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    let log = world.log(&session_id, 0).await;
    assert_eq!(stop_reason(&log), Some(StopReason::RequiresAction), "{log:?}");
    let [approval_id] = &questions(&log)[..] else { panic!("{log:?}") };
    let changed = ResolveApprovalRequest {
        session_id: session_id.clone(),
        approval_id: approval_id.clone(),
        arguments_json: "{}".into(),
        ..ResolveApprovalRequest::default()
    };
    let refused = world.client().lifecycle.resolve_approval(changed).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "with other arguments it is another call");
    say_yes(&mut world.client(), &session_id, approval_id).await;
    let before = session.last_seq;
    world.wait_for(&session_id, |session| session.state == SessionState::Idle && session.last_seq > before + 3).await;
    let rest = world.log(&session_id, before).await;
    assert_eq!((stop_reason(&rest), questions(&rest)), (Some(StopReason::EndTurn), Vec::new()), "{rest:?}");
    let calls = [&log, &rest].map(|log| {
        let call = |event: &SessionEvent| match &event.kind {
            Some(Kind::ToolCall(call)) => Some(call.clone()),
            _ => None,
        };
        log.iter().filter_map(call).collect::<Vec<_>>()
    });
    assert_eq!((calls[0].len(), &calls[0]), (1, &calls[1]), "it is told once more, under its key");
    assert_eq!(failures(&rest), [false]);
}

/// The turn ended with the question, and its sub-agents with it: the next turn was given an error in place of an answer.
#[tokio::test]
async fn a_sub_agent_beside_a_call_whose_outcome_is_unknown_gives_its_answer() {
    let (tool, theirs) = (StuckOnce::default(), Tasks::new());
    let builtins = Builtins::default().with("stuck-once", tool.clone());
    let world = World::on(Ground { builtins, ..Ground::default() }).await;
    let mut client = world.client_of_a_front_with(&theirs).await;
    let source = Some(Source::Builtin(BuiltinTool { name: "stuck-once".into() }));
    let once = ToolSpec { name: "once".into(), source, replay: ReplayClass::Unsafe.into(), ..ToolSpec::default() };
    let mut agent = editor();
    agent.tools.push(once);
    let session_id = client.create(agent).await.unwrap().session_id;
    let once = json!({"tool_call": {"name": "once", "arguments": {}}});
    let reads = ask("reader", &json!([{"delay_ms": 2_000}, {"text": "a good book"}]));
    let steps = script(&json!([once, reads, {"text": "done"}]));
    let _turn = client.lifecycle.send_message(message(&session_id, &steps)).await.unwrap();
    tool.is_called.notified().await;
    while children(&mut world.client(), &session_id).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(theirs.shutdown(Duration::from_millis(50)).await > 0, "the turn is not over");
    let session = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    let log = world.log(&session_id, 0).await;
    assert_eq!(stop_reason(&log), Some(StopReason::RequiresAction), "{log:?}");
    assert_eq!(results(&log), [("a good book".to_owned(), false)]);
    let [approval_id] = &questions(&log)[..] else { panic!("{log:?}") };
    say_yes(&mut world.client(), &session_id, approval_id).await;
    let before = session.last_seq;
    world.wait_for(&session_id, |session| session.state == SessionState::Idle && session.last_seq > before + 3).await;
    let rest = world.log(&session_id, before).await;
    assert_eq!((stop_reason(&rest), results(&rest)), (Some(StopReason::EndTurn), vec![(String::new(), false)]));
    assert_eq!(children(&mut world.client(), &session_id).await.len(), 1, "it was not run again");
}
