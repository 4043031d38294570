//! Logs: one JSON object a line on stdout, with the fields of the event, of the spans around it, and the trace's ids.

use std::fmt;

use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::trace::SdkTracer;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

/// Sends this process' logs to stdout. A second call changes nothing: a process has one log.
pub fn install(filter: &str, tracer: SdkTracer) -> anyhow::Result<()> {
    let subscriber = subscriber(filter, tracer, std::io::stdout)?;
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let message = panic.payload_as_str().unwrap_or("no message");
            let place = panic.location().map(ToString::to_string);
            tracing::error!(panic = message, place, "panicked");
        }));
    }
    Ok(())
}

/// Libraries whose lines quote what peers say, which may be a credential that they were sent.
const QUOTING: [&str; 1] = ["rmcp"];

fn quotes_nobody(metadata: &Metadata<'_>) -> bool {
    !QUOTING.iter().any(|library| metadata.target().starts_with(library))
}

/// What [`install`] installs, with another place to write to.
///
/// `filter` decides on log lines only. Spans of level info and above make trace ids and are exported whatever it says, and without
/// the lines: one may quote what a provider says, and that what it was sent.
pub fn subscriber<W>(filter: &str, tracer: SdkTracer, writer: W) -> anyhow::Result<impl Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(JsonFields::new())
        .event_format(JsonLine)
        .with_writer(writer)
        .with_filter(EnvFilter::try_new(filter)?.and(filter_fn(quotes_nobody)));
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(LevelFilter::INFO.and(filter_fn(|metadata| metadata.is_span() && quotes_nobody(metadata))));
    Ok(tracing_subscriber::registry().with(spans).with(lines))
}

/// An error with its causes, the first that led to it last: `cannot apply Secret worker-tls: connection refused`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// `{"time":…,"level":…,"target":…,"message":…,"trace_id":…,"span_id":…, fields…}`, flat, so that `jq .tenant` works
/// wherever the field was set. A field of the event wins over one of a span, an inner span's over an outer's.
struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(formatted) = span.extensions().get::<FormattedFields<JsonFields>>()
                && let Ok(Value::Object(own)) = serde_json::from_str(formatted)
            {
                // `otel.*` speaks to the exporter.
                fields.0.extend(own.into_iter().filter(|(name, _)| !name.starts_with("otel.")));
            }
        }
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("time".into(), now().into());
        line.insert("level".into(), event.metadata().level().as_str().to_ascii_lowercase().into());
        line.insert("target".into(), event.metadata().target().into());
        line.insert("message".into(), fields.0.remove("message").unwrap_or_default());
        let current = opentelemetry::Context::current();
        let span = current.span().span_context().clone();
        if span.is_valid() {
            line.insert("trace_id".into(), span.trace_id().to_string().into());
            line.insert("span_id".into(), span.span_id().to_string().into());
        }
        // A field that bears one of the names above doesn't displace it.
        for (name, value) in fields.0 {
            line.entry(name).or_insert(value);
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// RFC 3339 in UTC, to the microsecond.
fn now() -> String {
    use tracing_subscriber::fmt::time::FormatTime;
    let mut text = String::new();
    // Writing to a string doesn't fail.
    let _ = tracing_subscriber::fmt::time::SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().trim_start_matches("r#").to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.put(field, chain(error));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};

    use super::*;
    use crate::trace::Telemetry;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What `body` logs.
    fn logged(filter: &str, body: impl FnOnce()) -> Vec<Value> {
        let (lines, telemetry) = (Lines::default(), Telemetry::start("croft-test", None).unwrap());
        let writer = lines.clone();
        let subscriber = subscriber(filter, telemetry.tracer(), move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, body);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_library_that_quotes_its_peers_says_nothing() {
        let lines = logged("trace", || {
            tracing::error!(target: "rmcp::transport", "the server said: a-made-up-token");
            tracing::error!("ours");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(line["message"], "ours");
    }

    /// Keeps what would be exported.
    #[derive(Debug, Clone, Default)]
    struct Exported(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Exported {
        fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_in_no_span_that_is_exported() {
        let (lines, exported) = (Lines::default(), Exported::default());
        let tracer = SdkTracerProvider::builder().with_span_processor(exported.clone()).build().tracer("croft");
        let writer = lines.clone();
        let subscriber = subscriber("info", tracer, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let _entered = tracing::info_span!("chat", tenant = "acme").entered();
            tracing::warn!(error = "the provider said: what the user said", "model attempt failed");
        });
        assert!(String::from_utf8(lines.0.lock().unwrap().clone()).unwrap().contains("what the user said"));
        let spans = exported.0.lock().unwrap();
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((span.name.as_ref(), span.events.len()), ("chat", 0));
        assert!(!format!("{span:?}").contains("what the user said"), "{span:?}");
    }

    #[test]
    fn a_line_bears_its_own_fields_and_those_of_the_spans_around_it() {
        let lines = logged("info", || {
            let outer = tracing::info_span!("outer", tenant = "acme", attempt = 1, otel.name = "x");
            let inner = tracing::info_span!(parent: &outer, "inner", attempt = 2, session = tracing::field::Empty);
            inner.record("session", "s-1");
            let _entered = inner.enter();
            tracing::info!(seq = 7, stored = true, "event stored");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(line["message"], "event stored");
        assert_eq!(line["level"], "info");
        assert_eq!((&line["tenant"], &line["session"]), (&"acme".into(), &"s-1".into()));
        assert_eq!((&line["attempt"], &line["seq"], &line["stored"]), (&2.into(), &7.into(), &true.into()));
        assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
        assert_eq!(line["span_id"].as_str().unwrap().len(), 16);
        assert!(line.get("otel.name").is_none());
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_quiet_filter_leaves_the_trace_ids() {
        let lines = logged("warn", || {
            let _entered = tracing::info_span!("rpc").entered();
            tracing::info!("not shown");
            tracing::warn!("shown");
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["trace_id"].as_str().unwrap().len(), 32);
    }

    #[test]
    fn a_line_outside_any_span_has_no_ids() {
        let lines = logged("info", || tracing::info!("alone"));
        assert!(lines[0].get("trace_id").is_none());
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot store event")]
        struct Store(#[source] std::io::Error);
        let error = Store(std::io::Error::other("disk full"));
        let lines = logged("info", || tracing::error!(error = &error as &dyn std::error::Error, "failed"));
        assert_eq!(lines[0]["error"], "cannot store event: disk full");
    }
}
