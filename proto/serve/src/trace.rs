//! One trace across programs: W3C `traceparent` over gRPC metadata, and spans sent by OTLP when a collector is named.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
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
