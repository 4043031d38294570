//! What a provider is told of the trace. By itself, as it makes trace ids in the whole process.

use croft_llm::anthropic::{Anthropic, Settings};
use croft_llm::{Limits, Provider as _, Request};
use croft_serve::log;
use croft_serve::trace::{Telemetry, traceparent};
use futures::StreamExt as _;
use secrecy::SecretString;
use tracing::Instrument as _;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

/// By which a model server of one's own goes on with the trace.
#[tokio::test]
async fn the_provider_is_told_to_which_trace_a_call_belongs() {
    let telemetry = Telemetry::start("croft-test", None).unwrap();
    let traced = log::subscriber("off", telemetry.tracer(), std::io::sink).unwrap();
    tracing::subscriber::set_global_default(traced).unwrap();
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let api_key = SecretString::from("a-made-up-key").into();
    let settings = Settings { base_url: server.uri(), api_key, limits: Limits::default() };
    let provider = Anthropic::new(settings).unwrap();
    let call = async || drop(provider.stream(Request::default()).collect::<Vec<_>>().await);
    let span = tracing::info_span!("chat");
    let expected = span.in_scope(traceparent).unwrap();
    call().instrument(span).await;
    call().await;
    let calls = server.received_requests().await.unwrap();
    let told: Vec<_> = calls.iter().map(|call| call.headers.get("traceparent")).collect();
    assert_eq!(told, [Some(&expected.parse().unwrap()), None]);
}
