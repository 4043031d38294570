//! For how much a call asks leave, and what it is reckoned at where its provider tells nothing.

use croft_llm::openai::Chat;
use croft_llm::{Delta, Limits, Providers, Settings, Stop, estimate};
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::{AgentSpec, Grant, NativeBlock, StopReason};
use croft_worker::RuntimeOptions;
use croft_worker::tools::Builtins;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::canned::{Answer, Canned, agent, attempts, fails, opened, reserved, says, turn, worker};
use crate::support::{self, Front, init, options, session, start, text, worker_with};

/// An answer with a call, behind long thoughts that go back as they came.
fn thinks_long_and_calls(tool_call_id: &str) -> Answer {
    let native = NativeBlock { provider: "a".into(), json: format!(r#"{{"hologram":"{}"}}"#, "y".repeat(4_000)) };
    vec![
        Ok(opened()),
        Ok(Delta::Thinking { block: 0, text: "hm, ".repeat(10_000) }),
        Ok(Delta::Signature { block: 0, signature: "signed".into() }),
        Ok(Delta::Native { block: 1, native }),
        Ok(Delta::ToolCallStarted { block: 2, tool_call_id: tool_call_id.into(), name: "clock".into() }),
        Ok(Delta::ToolCallStopped { block: 2, arguments_json: "{}".into() }),
        Ok(Delta::Stop(Stop::ToolUse)),
    ]
}

/// What the calls were sent, in their order.
fn sent(canned: &Canned) -> Vec<u32> {
    canned.requests.lock().unwrap().iter().map(estimate::input_tokens).collect()
}

/// Leave was asked for a tenth of what the call then took.
#[tokio::test(start_paused = true)]
async fn what_a_model_thought_counts_in_what_the_next_call_asks_leave_for() {
    let a = Canned::new("a", [thinks_long_and_calls("one"), says("noon")]);
    let heard = turn(&worker(&[&a]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert!(sent(&a)[1] > 10_000);
    assert_eq!(reserved(&heard), sent(&a));
}

#[tokio::test(start_paused = true)]
async fn what_another_model_thought_counts_for_the_one_that_thought_it_alone() {
    let a = Canned::new("a", [thinks_long_and_calls("one"), fails(croft_llm::Class::Auth)]);
    let b = Canned::new("b", [thinks_long_and_calls("two"), says("noon")]);
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(reserved(&heard), [sent(&a), sent(&b)].concat());
    assert!(sent(&b)[0] < 1_000, "it is sent nothing of what the other thought");
    assert!((10_000..20_000).contains(&sent(&b)[1]), "and later what it thought itself");
}

/// The agent names its models by aliases, and grants by their ids.
#[tokio::test(start_paused = true)]
async fn what_a_model_thought_that_took_over_counts_whatever_it_is_called() {
    let a = Canned::new("a", [fails(croft_llm::Class::Auth)]);
    let b = Canned::new("b", [thinks_long_and_calls("one"), says("noon")]);
    let worker = worker(&[&a, &b]).await;
    let agent = AgentSpec { model: "a".into(), fallback_models: vec!["alias-of-b".into()], ..agent() };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    front.grants = false;
    while let Some(message) = front.next().await.unwrap() {
        if let FromWorker::GrantRequest(request) = message {
            let name = request.model.trim_start_matches("alias-of-").to_owned();
            let grant = Grant { provider: name.clone(), model: name, ..front.grant(&request) };
            front.send(ToWorker::Grant(grant)).await;
        }
    }
    assert_eq!(front.heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(reserved(&front.heard), [sent(&a), sent(&b)].concat());
}

/// What a server does with a connection on which a whole request came.
#[derive(Clone, Copy)]
enum Way {
    HangsUp,
    BeginsAndHangsUp,
}

/// A server of Chat Completions that takes whole requests, and answers none of them.
async fn serve(listener: TcpListener, way: Way) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        take(&mut stream).await;
        if matches!(way, Way::BeginsAndHangsUp) {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99\r\n\r\n";
            stream.write_all(head).await.unwrap();
        }
    }
}

/// Reads a request to its end.
async fn take(stream: &mut TcpStream) {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() >= length.parse().unwrap() {
                return;
            }
        }
        assert!(stream.read_buf(&mut request).await.unwrap() > 0, "it is cut: {text}");
    }
}

/// A turn at a server with this address, and for what its attempts asked leave, with the input that each was reckoned at.
async fn attempts_at(address: std::net::SocketAddr) -> Vec<(i64, i64)> {
    let api_key = SecretString::from("sk-of-nobody").into();
    let settings = Settings { base_url: format!("http://{address}"), api_key, limits: Limits::default() };
    let retry = croft_llm::retry::Policy { first_delay: std::time::Duration::from_millis(1), ..options().retry };
    let providers = Providers::new().with(Chat::new(settings).unwrap());
    let worker = worker_with(RuntimeOptions { retry, ..options() }, providers, Builtins::default()).await;
    let agent = AgentSpec { model: "openai".into(), fallback_models: Vec::new(), ..support::agent() };
    let heard = turn(&worker, &agent, &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    let attempts = attempts(&heard);
    assert!(attempts.iter().all(|attempt| attempt.usage_estimated));
    let reckoned = attempts.into_iter().map(|attempt| attempt.usage.unwrap().input_uncached_tokens);
    reserved(&heard).into_iter().map(i64::from).zip(reckoned).collect()
}

/// The model may have worked on it.
#[tokio::test]
async fn a_call_that_its_provider_took_is_reckoned_though_the_connection_breaks_before_an_answer() {
    for way in [Way::HangsUp, Way::BeginsAndHangsUp] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let attempts = tokio::select! {
            () = serve(listener, way) => unreachable!("it has no end"),
            attempts = attempts_at(address) => attempts,
        };
        assert_eq!(attempts.len(), 3);
        assert!(attempts.iter().all(|(asked, reckoned)| *asked > 0 && asked == reckoned), "{attempts:?}");
    }
}

#[tokio::test]
async fn a_call_that_never_got_to_its_provider_costs_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let attempts = attempts_at(address).await;
    assert!(attempts.len() == 3 && attempts.iter().all(|(_, reckoned)| *reckoned == 0), "{attempts:?}");
}
