//! One trace across programs: W3C `traceparent` over gRPC metadata, and spans sent by OTLP when a collector is named.

use std::collections::HashMap;

use axum::http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Status as SpanStatus, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap};
use tonic::{Request, Status};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Writes the current span's `traceparent` into the metadata of a call about to be made.
pub fn inject(metadata: &mut MetadataMap) {
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut Outgoing(metadata));
}

/// The current span's `traceparent`, for calls that aren't gRPC: <https://www.w3.org/TR/trace-context/>. `None` outside any span, and where
/// nothing makes trace ids.
pub fn traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut carrier);
    carrier.remove("traceparent")
}

/// Makes the span a child of the caller's, if these headers of a call name one.
pub fn adopt(span: &tracing::Span, headers: &HeaderMap) {
    // An error means that spans aren't exported.
    let _ = span.set_parent(extract_from(&MetadataMap::from_headers(headers.clone())));
}

/// Marks the current span as failed. No word goes with it: what failed, and why, is in the log.
pub fn failed() {
    tracing::Span::current().set_status(SpanStatus::error(""));
}

/// [`inject`] as a client's interceptor: `Client::with_interceptor(channel, trace::propagate)`.
pub fn propagate(mut request: Request<()>) -> Result<Request<()>, Status> {
    inject(request.metadata_mut());
    Ok(request)
}

/// The caller's span, for `set_parent`; [`crate::grpc::RpcLayer`] does this for each call that a server takes. Empty
/// when the caller sent none.
pub fn extract<T>(request: &Request<T>) -> Context {
    extract_from(request.metadata())
}

/// [`extract`] from bare metadata.
pub fn extract_from(metadata: &MetadataMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Incoming(metadata))
}

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        // The propagator writes `traceparent` and `tracestate`, which are both valid here.
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct Incoming<'a>(&'a MetadataMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let ascii = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(ascii).collect()
    }
}

/// Makes trace ids for every span, and sends the spans when there is somewhere to send them.
#[derive(Clone)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// Call it within the runtime. A collector that doesn't answer costs spans, never the program: they are sent in
    /// batches from a bounded queue, which drops new spans while it is full.
    pub fn start(program: &'static str, otlp_endpoint: Option<&str>) -> anyhow::Result<Self> {
        let resource = Resource::builder().with_service_name(program).build();
        let mut builder = SdkTracerProvider::builder().with_resource(resource);
        if let Some(endpoint) = otlp_endpoint {
            builder =
                builder.with_batch_exporter(SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?);
        }
        Ok(Self { provider: builder.build() })
    }

    /// For the subscriber's OpenTelemetry layer.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("croft")
    }

    /// Sends what is still queued.
    pub async fn flush(self) {
        // The exporter's own thread needs this runtime to send, so it must not be blocked meanwhile.
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(error = error.to_string(), "cannot flush traces");
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_extracted_is_what_was_sent() {
        let mut request = Request::new(());
        request.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
        let context = extract(&request);
        let span = context.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.span_id().to_string(), "b7ad6b7169203331");
        assert!(span.is_remote() && span.is_sampled());
    }

    #[tokio::test]
    async fn a_call_made_within_a_span_carries_on_its_callers_trace() {
        let telemetry = Telemetry::start("croft-test", None).unwrap();
        let subscriber = crate::log::subscriber("off", telemetry.tracer(), std::io::sink).unwrap();
        let _default = tracing::subscriber::set_default(subscriber);
        let mut incoming = Request::new(());
        incoming.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
        let span = tracing::info_span!("work");
        span.set_parent(extract(&incoming)).unwrap();

        let outgoing = span.in_scope(|| propagate(Request::new(())).unwrap());
        let sent = outgoing.metadata().get("traceparent").unwrap().to_str().unwrap();
        let own = span.context().span().span_context().span_id();
        assert_eq!(sent, format!("00-0af7651916cd43dd8448eb211c80319c-{own}-01"));
        assert_ne!(own.to_string(), "b7ad6b7169203331");
        assert_eq!(span.in_scope(traceparent).as_deref(), Some(sent));
    }

    #[test]
    fn a_call_made_outside_any_span_carries_nothing() {
        let mut metadata = MetadataMap::new();
        inject(&mut metadata);
        assert!(metadata.is_empty());
        assert_eq!(traceparent(), None);
    }
}
