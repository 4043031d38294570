//! Sees every call that a server takes: a span under the caller's, a count and a duration by method and code.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use crate::Metrics;
use crate::metrics::RpcMetrics;

/// Probes come every few seconds and say nothing about the work.
const UNSEEN: &str = "grpc.health.v1.Health";

/// What stands for a method that nobody has heard of, whatever it is answered: its name is the caller's invention and has no bound.
const UNKNOWN: &str = "unknown";

/// Reasons of `UNAVAILABLE` that a tenant can bring about for itself, as by an image that crashes.
const TENANTS: [&str; 2] = ["NO_WORKER", "WORKER_LOST"];

/// In the extensions of an answer: its failure is no news to the log, since anybody can have it as often as he likes. It is counted apart, as
/// the caller's.
#[derive(Debug, Clone, Copy)]
pub struct Unremarkable;

/// In the extensions of an answer that goes on, with [`Tasks::stopping`](crate::Tasks::stopping): that it ends with `UNAVAILABLE` from then on is no
/// news to the log, since each does whose program goes away. It is counted apart, as one that leaves.
#[derive(Debug, Clone)]
pub struct UnremarkableOnce(pub CancellationToken);

/// Wraps a server, or routes, to see its calls. The span is called `rpc` and has empty fields `tenant` and `session`,
/// which a handler fills with `Span::current().record(…)`; log lines within it then bear them.
#[derive(Clone)]
pub struct RpcLayer {
    metrics: RpcMetrics,
    methods: &'static [&'static str],
}

impl RpcLayer {
    /// Counts these `methods`, each named as in its path, into `metrics`; several servers of one program may share them.
    pub fn new(metrics: &Metrics, methods: &'static [&'static str]) -> Self {
        Self { metrics: metrics.rpc().clone(), methods }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        let Self { metrics, methods } = self.clone();
        RpcService { inner, metrics, methods }
    }
}

/// What [`RpcLayer`] makes of a service.
#[derive(Clone)]
pub struct RpcService<S> {
    inner: S,
    metrics: RpcMetrics,
    methods: &'static [&'static str],
}

impl<S, B, R> Service<Request<B>> for RpcService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<RpcBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(mut call) = Call::begin(&request, &self.metrics, self.methods) else {
            let answer = self.inner.call(request);
            return Box::pin(async move { Ok(answer.await?.map(|inner| RpcBody { inner, call: None })) });
        };
        let answer = call.span.in_scope(|| self.inner.call(request)).instrument(call.span.clone());
        Box::pin(async move {
            let answer = answer.await?;
            // A call that fails before its first message has its status in the headers.
            if let Some(code) = code_in(answer.headers()) {
                call.is_unremarkable = answer.extensions().get::<Unremarkable>().is_some();
                call.end_with(code, answer.headers());
            }
            call.unremarkable_once = answer.extensions().get::<UnremarkableOnce>().cloned();
            Ok(answer.map(|inner| RpcBody { inner, call: Some(call) }))
        })
    }
}

/// A call that is going on. Dropped before its end, it has been cancelled.
struct Call {
    service: &'static str,
    method: &'static str,
    begun: Instant,
    span: Span,
    metrics: RpcMetrics,
    ended: bool,
    is_unremarkable: bool,
    /// It failed by what a tenant can bring about.
    is_tenants: bool,
    unremarkable_once: Option<UnremarkableOnce>,
}

impl Call {
    /// `None` for calls that aren't looked at.
    fn begin<B>(request: &Request<B>, metrics: &RpcMetrics, methods: &'static [&'static str]) -> Option<Self> {
        let path = request.uri().path().trim_start_matches('/');
        if path.split_once('/').is_some_and(|(service, _)| service == UNSEEN) {
            return None;
        }
        let path = methods.iter().find(|known| **known == path).copied().unwrap_or(UNKNOWN);
        let (service, method) = path.split_once('/').unwrap_or((UNKNOWN, UNKNOWN));
        let span = tracing::info_span!(
            "rpc",
            otel.name = path,
            otel.kind = "server",
            otel.status_code = tracing::field::Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = tracing::field::Empty,
            tenant = tracing::field::Empty,
            session = tracing::field::Empty,
        );
        crate::trace::adopt(&span, request.headers());
        Some(Self {
            service,
            method,
            begun: Instant::now(),
            span,
            metrics: metrics.clone(),
            ended: false,
            is_unremarkable: false,
            is_tenants: false,
            unremarkable_once: None,
        })
    }

    /// As these headers or trailers tell.
    fn end_with(&mut self, code: Code, told: &HeaderMap) {
        let reason = || Status::from_header_map(told)?.get_details_error_info().map(|info| info.reason);
        self.is_tenants = code == Code::Unavailable && reason().is_some_and(|told| TENANTS.contains(&told.as_str()));
        self.end(code);
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let name = format!("{code:?}");
        let labels = [self.service, self.method, &name];
        let seconds = self.begun.elapsed().as_secs_f64();
        let whose = self.whose(code);
        self.metrics.requests.with_label_values(&[self.service, self.method, &name, whose]).inc();
        self.metrics.duration.with_label_values(&labels).observe(seconds);
        self.span.record("rpc.grpc.status_code", code as i32);
        let _entered = self.span.enter();
        if is_ours(code) {
            self.span.record("otel.status_code", "ERROR");
        }
        if self.is_news(code) {
            tracing::warn!(code = name, seconds, "call failed");
        } else {
            tracing::debug!(code = name, seconds, "call ended");
        }
    }

    /// Whose doing it is that it ended so, as the label says; empty where it is nobody's but ours.
    fn whose(&self, code: Code) -> &'static str {
        match self {
            Self { is_unremarkable: true, .. } => "caller",
            Self { is_tenants: true, .. } => "tenant",
            _ if self.leaves_with(code) => "leaving",
            _ => "",
        }
    }

    fn is_news(&self, code: Code) -> bool {
        is_ours(code) && !self.is_unremarkable && !self.leaves_with(code)
    }

    /// It ends so as its program goes away.
    fn leaves_with(&self, code: Code) -> bool {
        let goes_away = self.unremarkable_once.as_ref().is_some_and(|once| once.0.is_cancelled());
        goes_away && code == Code::Unavailable
    }
}

/// The rest are the caller's doing: <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>
fn is_ours(code: Code) -> bool {
    matches!(code, Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::Unavailable | Code::DataLoss)
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// An answer's body, watched for the trailers that hold the call's status.
pub struct RpcBody<R> {
    inner: R,
    call: Option<Call>,
}

impl<R: Body + Unpin> Body for RpcBody<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let Self { inner, call } = &mut *self;
        let Some(call) = call else { return Pin::new(inner).poll_frame(context) };
        let span = call.span.clone();
        let frame = ready!(span.in_scope(|| Pin::new(inner).poll_frame(context)));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    call.end_with(code_in(trailers).unwrap_or(Code::Unknown), trailers);
                }
            }
            Some(Err(_)) | None => call.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use axum::response::IntoResponse;
    use axum::routing::post_service;
    use tower::{ServiceExt, service_fn};

    use super::*;

    const METHODS: &[&str] = &["heron/Watch"];

    /// Of a call whose answer goes on, with this in its extensions.
    async fn begun(extension: impl Clone + Send + Sync + 'static) -> Call {
        let answer = move |_| {
            let extension = extension.clone();
            async move { Ok::<_, Infallible>((axum::Extension(extension), Body::empty()).into_response()) }
        };
        let calls =
            RpcLayer::new(&Metrics::new("croft-test").unwrap(), METHODS).layer(post_service(service_fn(answer)));
        let request = Request::post("/heron/Watch").body(Body::empty()).unwrap();
        calls.oneshot(request).await.unwrap().into_body().call.unwrap()
    }

    /// A planned restart was a warning for each stream that was open.
    #[tokio::test]
    async fn that_a_stream_ends_as_its_program_goes_away_is_no_news() {
        let stopping = CancellationToken::new();
        let call = begun(UnremarkableOnce(stopping.clone())).await;
        assert!(call.is_news(Code::Unavailable));
        assert_eq!(call.whose(Code::Unavailable), "");
        stopping.cancel();
        assert!(!call.is_news(Code::Unavailable));
        assert_eq!([Code::Unavailable, Code::Internal].map(|code| call.whose(code)), ["leaving", ""]);
        assert!(call.is_news(Code::Internal) && !call.is_news(Code::NotFound));
        assert!(begun(()).await.is_news(Code::Unavailable), "another is");
    }
}
