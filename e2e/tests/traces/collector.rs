//! An OTLP collector that keeps the spans that it is sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_serve::Tasks;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Longer than the exporter waits for a batch to fill; what it bounds has failed.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Clone, Default)]
pub(crate) struct Collector {
    received: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.received.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves on a free port, and says where.
    pub(crate) async fn serve(&self, tasks: &Tasks) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        let serving = serving.serve_with_incoming(TcpIncoming::from(listener));
        let stopping = tasks.stopping();
        drop(tasks.spawn("collector", async move { stopping.run_until_cancelled(serving).await }));
        address
    }

    /// The spans of that trace, once one of each name has come.
    pub(crate) async fn trace(&self, trace_id: &str, names: &[&str]) -> Trace {
        let arrived = async {
            loop {
                let trace = self.so_far(trace_id);
                if names.iter().all(|name| trace.0.iter().any(|span| span.name == *name)) {
                    return trace;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let Ok(trace) = tokio::time::timeout(PATIENCE, arrived).await else {
            panic!("not all of {names:?} in {:#?}", self.so_far(trace_id));
        };
        trace
    }

    fn so_far(&self, trace_id: &str) -> Trace {
        let received = self.received.lock().unwrap();
        let mut spans: Vec<Span> = received.iter().filter(|span| hex(&span.trace_id) == trace_id).cloned().collect();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        Trace(spans)
    }
}

/// Spans in the order in which they began.
#[derive(Debug)]
pub(crate) struct Trace(Vec<Span>);

impl Trace {
    /// The only span of this name.
    pub(crate) fn one(&self, name: &str) -> &Span {
        let [one] = self.all(name)[..] else { panic!("not one {name:?} in {self:#?}") };
        one
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    /// All that its spans say of themselves, as text.
    pub(crate) fn said(&self) -> String {
        let said: Vec<_> = self.0.iter().map(|span| (&span.name, attributes(span), &span.status)).collect();
        format!("{said:#?}")
    }
}

/// The attributes of a span. A list of texts is joined by commas, within brackets.
pub(crate) fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let pairs = span.attributes.iter().map(|pair| (pair.key.as_str(), pair.value.as_ref().unwrap().value.as_ref()));
    pairs.map(|(key, value)| (key, value.map(text).unwrap_or_default())).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        Value::ArrayValue(list) => {
            let items: Vec<String> = list.values.iter().filter_map(|item| item.value.as_ref()).map(text).collect();
            format!("[{}]", items.join(","))
        }
        other => format!("{other:?}"),
    }
}

/// An id as a `traceparent` writes it.
pub(crate) fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
