//! Conversations that are too long for the model.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::sync::{Arc, Mutex};

use croft_llm::scripted::Scripted;
use croft_llm::{Class, DeltaStream, Provider, Providers, Request, estimate};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentLimits, AgentSpec, Message, Role, SessionCheckpoint, StopReason};
use croft_worker::tools::Builtins;
use futures::StreamExt as _;
use support::*;

/// Takes so many tokens, and answers as the scripted one does.
struct Narrow {
    tokens_max: u32,
    sent: Arc<Mutex<Vec<u32>>>,
}

impl Provider for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    fn stream(&self, request: Request) -> DeltaStream {
        let tokens = estimate::conversation_tokens(&request.messages);
        self.sent.lock().unwrap().push(tokens);
        if tokens > self.tokens_max {
            let error = croft_llm::Error::new("narrow", Class::Context, "too long");
            return futures::stream::iter([Err(error)]).boxed();
        }
        Scripted::new().stream(request)
    }
}

/// Twenty exchanges of some 250 tokens each.
fn long_talk() -> SessionCheckpoint {
    let message = |role: Role| Message { role: role.into(), content: text(&"x".repeat(500)), ..Message::default() };
    let messages = (0..20).flat_map(|_| [message(Role::User), message(Role::Assistant)]).collect();
    SessionCheckpoint {
        checkpoint_id: "long".into(),
        messages,
        turn_id: "turn-0".into(),
        ..SessionCheckpoint::default()
    }
}

async fn told(tokens_max: u32, limits: AgentLimits) -> (Heard, Vec<u32>) {
    let sent = Arc::<Mutex<Vec<u32>>>::default();
    let narrow = Narrow { tokens_max, sent: Arc::clone(&sent) };
    let worker = worker_with(options(), Providers::new().with(narrow), Builtins::default()).await;
    let session_id = session();
    let agent = AgentSpec { model: "narrow-1".into(), limits: Some(limits), tools: Vec::new(), ..agent() };
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut start = start(&session_id, text("and now?"));
    start.checkpoint = Some(long_talk());
    let mut front = Front::open(&worker.client, start).await;
    front.provider = "narrow".into();
    let heard = front.finish().await;
    let sent = sent.lock().unwrap().clone();
    (heard, sent)
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_does_not_fit_is_shortened_until_it_does_and_stays_whole_itself() {
    let (heard, sent) = told(1_500, AgentLimits::default()).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert!(sent.len() == 3 && sent.is_sorted_by(|one, other| one > other), "{sent:?}");
    assert_eq!(heard.checkpoint().messages.len(), 42, "the checkpoint holds all of it");
    assert!(heard.previews.iter().any(|kind| matches!(kind, Kind::Progress(_))), "people are told");
    assert_eq!(heard.story().iter().filter(|name| **name == "attempt").count(), 3, "each attempt is told");
}

#[tokio::test(start_paused = true)]
async fn an_agents_own_bound_is_kept_from_the_first_call() {
    let limits = AgentLimits { context_tokens_max: 1_000, ..AgentLimits::default() };
    let (heard, sent) = told(1_500, limits).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert!(sent.len() == 1 && sent[0] <= 1_050, "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn what_never_fits_ends_the_turn_with_its_reason() {
    let (heard, sent) = told(10, AgentLimits::default()).await;
    assert_eq!(heard.stop_reason(), StopReason::ContextFull);
    assert!(sent.len() < 6, "{sent:?}");
}
