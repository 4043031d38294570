//! What an operator sees of models that fail: their breakers, the errors by class, and the tries again.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::time::Duration;

use croft_llm::anthropic::{Anthropic, Settings};
use croft_llm::scripted::Scripted;
use croft_llm::{Class, Limits, Providers, breaker, retry};
use croft_proto::v1::{AgentSpec, StopReason};
use croft_serve::Metrics;
use croft_worker::RuntimeOptions;
use croft_worker::tools::Builtins;
use secrecy::SecretString;
use support::*;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

fn registered(worker: &Worker) -> Metrics {
    let metrics = Metrics::new("croft-worker").unwrap();
    worker.server.register(&metrics).unwrap();
    metrics
}

/// The value of each of these series.
fn values<const N: usize>(metrics: &Metrics, series: [&str; N]) -> [Option<u64>; N] {
    let page = metrics.text().unwrap();
    let value = |series: &str| page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    series.map(value)
}

/// A turn at a model of that provider.
async fn turn_at(worker: &Worker, provider: &str, model: &str) -> Heard {
    let agent = AgentSpec { model: model.into(), ..agent() };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    (front.provider, front.model) = (provider.into(), model.into());
    front.finish().await
}

/// An endpoint that is overloaded, whoever asks. In the end it asks to be left alone for longer than any test takes: its breaker goes by
/// the real clock, as sockets do.
async fn overloaded() -> (MockServer, Anthropic) {
    let server = MockServer::start().await;
    let busy = ResponseTemplate::new(529);
    let for_long = busy.clone().insert_header("retry-after", "120");
    let mock = |response| Mock::given(path("/v1/messages")).respond_with(response);
    mock(busy).up_to_n_times(FAILURES as u64 - 1).mount(&server).await;
    mock(for_long).mount(&server).await;
    let api_key = SecretString::from("sk-ant-of-nobody").into();
    let settings = Settings { base_url: server.uri(), api_key, limits: Limits::default() };
    (server, Anthropic::new(settings).unwrap())
}

const FAILURES: usize = 5;

#[tokio::test]
async fn a_breaker_that_opens_shows_by_provider_and_no_series_names_a_tenant_or_a_session() {
    let (server, anthropic) = overloaded().await;
    let first_delay = Duration::from_millis(1);
    let retry = retry::Policy { attempts_max: FAILURES, first_delay, delay_max: first_delay, ..options().retry };
    let providers = Providers::new().with(anthropic).with(Scripted::new());
    let worker = worker_with(RuntimeOptions { retry, ..options() }, providers, Builtins::default()).await;
    let metrics = registered(&worker);
    let series = [
        r#"croft_worker_model_breaker_open{provider="anthropic"}"#,
        r#"croft_worker_model_breaker_opened_total{provider="anthropic"}"#,
        r#"croft_worker_model_breaker_open{provider="scripted"}"#,
        r#"croft_worker_model_breaker_opened_total{provider="scripted"}"#,
    ];
    assert_eq!(values(&metrics, series), [Some(0); 4], "each is there from the start");

    let heard = turn_at(&worker, "anthropic", "claude-haiku-4-5").await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    assert_eq!(server.received_requests().await.unwrap().len(), FAILURES);
    assert_eq!(values(&metrics, series), [Some(1), Some(1), Some(0), Some(0)]);
    let series = [
        r#"croft_worker_model_errors_total{class="overload",provider="anthropic"}"#,
        r#"croft_worker_model_retries_total{provider="anthropic",reason="overload"}"#,
    ];
    assert_eq!(values(&metrics, series), [Some(5), Some(4)]);

    let page = metrics.text().unwrap();
    for line in page.lines().filter(|line| line.contains("model_breaker") && !line.starts_with('#')) {
        let (_, labels) = line.split_once('{').unwrap();
        assert_eq!(labels.matches('=').count(), 1, "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_whose_time_is_over_shows_as_closed_though_nobody_called_since() {
    let worker = worker_with_flaky(Flaky::new(FAILURES + 1, Class::Network)).await;
    let metrics = registered(&worker);
    let seen = || {
        let series =
            ["open", "opened_total"].map(|what| format!(r#"croft_worker_model_breaker_{what}{{provider="flaky"}}"#));
        values(&metrics, series.each_ref().map(String::as_str)).map(Option::unwrap)
    };
    for expected in [[0, 0], [1, 1]] {
        assert_eq!(turn_at(&worker, "flaky", "house-1").await.stop_reason(), StopReason::Error);
        assert_eq!(seen(), expected, "three calls are too few to judge by");
    }
    tokio::time::advance(breaker::Policy::default().open).await;
    assert_eq!(seen(), [0, 1]);
    // The trial fails too, and the one after it does not.
    assert_eq!(turn_at(&worker, "flaky", "house-1").await.stop_reason(), StopReason::EndTurn);
    assert_eq!(seen(), [0, 2]);
}
