//! Spans of two programs come to the collector as one trace.

use croft_serve::trace::{Telemetry, propagate};
use croft_serve::{Readiness, Tasks, health, log};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tracing::Instrument;

use crate::collector::{Collector, Running, nothing, something, with_health};

fn attribute(span: &Span, name: &str) -> Option<Value> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name)?;
    attribute.value.clone()?.value
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

/// One thread, as the subscriber under test is the thread's.
#[tokio::test]
async fn a_call_is_one_trace_from_client_to_server() {
    let keeper = Collector::new();
    let collector = Running::start(keeper.routes(), None).await;
    let telemetry = Telemetry::start("croft-test", Some(&collector.url())).unwrap();
    let subscriber = log::subscriber("off", telemetry.tracer(), std::io::sink).unwrap();
    let default = tracing::subscriber::set_default(subscriber);

    let health = health::service(&Readiness::new(), &Tasks::new(), &[]).await;
    let server = Running::start(with_health(&Collector::new(), health), None).await;
    let channel = server.channel().await;
    // A span that another test's thread, which has no subscriber, meets first is taken for one that nobody wants.
    TraceServiceClient::new(channel.clone()).export(something()).await.unwrap();
    tracing::callsite::rebuild_interest_cache();
    let calls = async {
        let mut client = TraceServiceClient::with_interceptor(channel.clone(), propagate);
        client.export(something()).await.unwrap();
        client.export(nothing()).await.unwrap_err();
        HealthClient::with_interceptor(channel, propagate).check(HealthCheckRequest::default()).await.unwrap();
    };
    calls.instrument(tracing::info_span!("turn")).await;
    // The last span ends with the connection's task.
    server.tasks.shutdown(std::time::Duration::from_secs(90)).await;
    drop(default);
    telemetry.flush().await;

    let spans = keeper.spans();
    let turn = spans.iter().find(|span| span.name == "turn").expect("the client's span should arrive");
    let calls: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == turn.span_id).collect();
    assert_eq!(calls.len(), 2, "two calls and no probe: {spans:#?}");
    for call in &calls {
        assert_eq!(call.trace_id, turn.trace_id);
        assert_eq!(call.name, "opentelemetry.proto.collector.trace.v1.TraceService/Export");
        assert_eq!(call.kind(), SpanKind::Server);
        assert_eq!(attribute(call, "rpc.system"), Some(text("grpc")));
        assert_eq!(attribute(call, "rpc.service"), Some(text("opentelemetry.proto.collector.trace.v1.TraceService")));
        assert_eq!(attribute(call, "rpc.method"), Some(text("Export")));
        let failed = call.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
        assert!(!failed, "neither call failed by the server's doing");
    }
    let mut codes: Vec<_> = calls.iter().map(|call| attribute(call, "rpc.grpc.status_code")).collect();
    codes.sort_by_key(|code| format!("{code:?}"));
    assert_eq!(codes, [Some(Value::IntValue(0)), Some(Value::IntValue(3))]);
    let resource = keeper.received.lock().unwrap()[0].resource.clone().unwrap();
    let service = resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(service.value.clone().unwrap().value, Some(text("croft-test")));
}
