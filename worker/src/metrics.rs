//! What the worker counts, beside what every gRPC server counts.

mod breakers;

use std::time::Duration;

use croft_llm::{Class, Providers};
use croft_proto::v1::StopReason;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use breakers::BreakerMetrics;

/// Seconds: from a cached small model to one that thinks first.
const FIRST_TOKEN_BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// The counters of one worker. Clones share them. No label names a session or a tool: their number has no bound.
#[derive(Clone)]
pub(crate) struct Metrics {
    model_attempts: IntCounterVec,
    model_errors: IntCounterVec,
    model_retries: IntCounterVec,
    fallbacks: IntCounterVec,
    hedges: IntCounterVec,
    tool_calls: IntCounterVec,
    steps: IntCounterVec,
    guardrail_violations: IntCounterVec,
    first_token: Histogram,
    previews_dropped: IntCounter,
    pub(crate) sessions: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("fixed names and labels are valid")
        };
        let first_token = HistogramOpts::new(
            "croft_worker_first_token_seconds",
            "Seconds from a model call to its first piece of output.",
        );
        Self {
            model_attempts: counter(
                "croft_worker_model_attempts_total",
                "Attempts at a model, by how they ended.",
                &["provider", "model", "outcome"],
            ),
            model_errors: counter(
                "croft_worker_model_errors_total",
                "Attempts at a model that failed, by the class of the error.",
                &["provider", "class"],
            ),
            model_retries: counter(
                "croft_worker_model_retries_total",
                "Further attempts at the same model, by what the one before came to.",
                &["provider", "reason"],
            ),
            fallbacks: counter(
                "croft_worker_model_fallbacks_total",
                "Models that gave way to the next one of their agent, by why.",
                &["reason"],
            ),
            hedges: counter(
                "croft_worker_model_hedges_total",
                "Second tries of calls whose answer was slow to begin, by what came of them.",
                &["outcome"],
            ),
            tool_calls: counter("croft_worker_tool_calls_total", "Tool calls, by how they ended.", &["outcome"]),
            steps: counter("croft_worker_steps_total", "Steps that ended in order, by why.", &["stop_reason"]),
            guardrail_violations: counter(
                "croft_worker_guardrail_violations_total",
                "What guardrails found, by where and by what was done about it.",
                &["point", "outcome"],
            ),
            first_token: Histogram::with_opts(first_token.buckets(FIRST_TOKEN_BUCKETS.to_vec()))
                .expect("a fixed name and buckets are valid"),
            previews_dropped: IntCounter::new(
                "croft_worker_previews_dropped_total",
                "Previews that were dropped since the front read too slowly.",
            )
            .expect("a fixed name is valid"),
            sessions: IntGauge::new("croft_worker_sessions", "Sessions that the worker holds.")
                .expect("a fixed name is valid"),
        }
    }
}

impl Metrics {
    /// Shows them in `registry`, with the breakers of `providers`.
    pub(crate) fn register(&self, registry: &Registry, providers: &Providers) -> prometheus::Result<()> {
        registry.register(Box::new(BreakerMetrics::new(providers)))?;
        registry.register(Box::new(self.model_attempts.clone()))?;
        registry.register(Box::new(self.model_errors.clone()))?;
        registry.register(Box::new(self.model_retries.clone()))?;
        registry.register(Box::new(self.fallbacks.clone()))?;
        registry.register(Box::new(self.hedges.clone()))?;
        registry.register(Box::new(self.tool_calls.clone()))?;
        registry.register(Box::new(self.steps.clone()))?;
        registry.register(Box::new(self.guardrail_violations.clone()))?;
        registry.register(Box::new(self.first_token.clone()))?;
        registry.register(Box::new(self.previews_dropped.clone()))?;
        registry.register(Box::new(self.sessions.clone()))
    }

    pub(crate) fn model_attempt(&self, provider: &str, model: &str, outcome: &str, first_token: Option<Duration>) {
        self.model_attempts.with_label_values(&[provider, model, outcome]).inc();
        if let Some(first_token) = first_token {
            self.first_token.observe(first_token.as_secs_f64());
        }
    }

    pub(crate) fn model_error(&self, provider: &str, class: Class) {
        self.model_errors.with_label_values(&[provider, class.as_str()]).inc();
    }

    /// `reason` is the class of an error, or `bad_tool_call`.
    pub(crate) fn model_retry(&self, provider: &str, reason: &'static str) {
        self.model_retries.with_label_values(&[provider, reason]).inc();
    }

    pub(crate) fn fallback(&self, reason: &'static str) {
        self.fallbacks.with_label_values(&[reason]).inc();
    }

    /// `won`, `lost`, `needless` when the first began while a grant was asked for, or `refused`.
    pub(crate) fn hedge(&self, outcome: &'static str) {
        self.hedges.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn tool_call(&self, outcome: &'static str) {
        self.tool_calls.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn step_ended(&self, stop_reason: StopReason) {
        self.steps.with_label_values(&[stop_reason.as_str_name()]).inc();
    }

    pub(crate) fn guardrail_violation(&self, point: &str, outcome: &'static str) {
        self.guardrail_violations.with_label_values(&[point, outcome]).inc();
    }

    pub(crate) fn dropped_previews(&self, count: u64) {
        self.previews_dropped.inc_by(count);
    }
}
