//! What workers did, as the front's instruments tell it: counted once it is stored, from the events that tell of it. Nobody scrapes
//! workers, which stand behind their tenants' fences.
//!
//! A worker's words are its tenant's, and a label takes whatever it is given: so each label has words of ours, and `other`.

use std::time::Duration;

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{GuardrailViolation, ModelAttempt, ProviderMode, SessionEvent};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

/// Stands for every word that is none of ours.
const OTHER: &str = "other";
const PROVIDERS: &[&str] = &["anthropic", "openai", "gemini", "scripted", OTHER];
const ACCOUNTS: &[&str] = &["platform", "tenant"];
/// Of attempts: an answer, the classes of errors, and the ends that are neither.
const OUTCOMES: &[&str] = &[
    "ok",
    "rate",
    "quota",
    "overload",
    "auth",
    "invalid",
    "context",
    "content",
    "timeout",
    "network",
    "truncated",
    "hedged",
    "cancelled",
    "guardrail",
    "refusal",
    "bad_tool_call",
    "lost",
    OTHER,
];
const FALLBACK_REASONS: &[&str] = &["error", "context", "content", OTHER];
const ROUTES: &[&str] = &["stayed", "changed"];
const RESULTS: &[&str] = &["ok", "error"];
const POINTS: &[&str] = &["input", "tool_arguments", "tool_result", "output", OTHER];
const VIOLATIONS: &[&str] = &["blocked", "redacted", "shadow", OTHER];
/// In seconds.
const BUCKETS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// What is said to have taken longer is taken for this, so that no sum is spoiled.
const TOOK_MAX: Duration = Duration::from_hours(1);

/// The instruments. All that they may tell of is there from the start, at 0.
#[derive(Clone)]
pub(crate) struct Told {
    attempts: Counted<3>,
    attempt_seconds: Vec<Histogram>,
    first_token_seconds: Vec<Histogram>,
    fallbacks: Counted<1>,
    routes: Counted<1>,
    tool_calls: IntCounter,
    tool_results: Counted<1>,
    tool_seconds: Histogram,
    violations: Counted<2>,
}

impl Told {
    /// Registers the instruments. Fails if one is registered already.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let by_provider = |name: &str, help: &str| -> Result<Vec<Histogram>, prometheus::Error> {
            let seconds = HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.into()), &["provider"])?;
            registry.register(Box::new(seconds.clone()))?;
            Ok(PROVIDERS.iter().map(|provider| seconds.with_label_values(&[*provider])).collect())
        };
        let tool_calls = IntCounter::new("croft_tool_calls_total", "Calls of tools")?;
        registry.register(Box::new(tool_calls.clone()))?;
        let tool_seconds = Histogram::with_opts(
            HistogramOpts::new("croft_tool_seconds", "How long calls of tools took").buckets(BUCKETS.into()),
        )?;
        registry.register(Box::new(tool_seconds.clone()))?;
        Ok(Self {
            attempts: Counted::register(
                registry,
                Opts::new("croft_model_attempts_total", "Attempts at models, by how they ended"),
                ["provider", "account", "outcome"],
                [PROVIDERS, ACCOUNTS, OUTCOMES],
            )?,
            attempt_seconds: by_provider("croft_model_attempt_seconds", "How long attempts at models took")?,
            first_token_seconds: by_provider("croft_model_first_token_seconds", "From an attempt to its first token")?,
            fallbacks: Counted::register(
                registry,
                Opts::new("croft_model_fallbacks_total", "Models that took over from another within a turn"),
                ["reason"],
                [FALLBACK_REASONS],
            )?,
            routes: Counted::register(
                registry,
                Opts::new("croft_model_routes_total", "Decisions whether a cheaper model answers"),
                ["outcome"],
                [ROUTES],
            )?,
            tool_calls,
            tool_results: Counted::register(
                registry,
                Opts::new("croft_tool_results_total", "Results of tools"),
                ["outcome"],
                [RESULTS],
            )?,
            tool_seconds,
            violations: Counted::register(
                registry,
                Opts::new("croft_guardrail_violations_total", "What guardrails found, and what became of it"),
                ["point", "outcome"],
                [POINTS, VIOLATIONS],
            )?,
        })
    }

    /// Counts what these events tell of. `last_model` is that of the turn's last attempt, and empty before there was one.
    pub(super) fn count(&self, events: &[SessionEvent], last_model: &mut String) {
        for event in events {
            match &event.kind {
                Some(Kind::ModelAttempt(attempt)) => self.count_attempt(attempt, last_model),
                Some(Kind::ModelRouted(routed)) => {
                    let stayed = routed.chosen_model == routed.requested_model;
                    self.routes.of([if stayed { "stayed" } else { "changed" }]).inc();
                }
                Some(Kind::ToolCall(_)) => self.tool_calls.inc(),
                Some(Kind::ToolResult(result)) => {
                    self.tool_results.of([if result.is_error { "error" } else { "ok" }]).inc();
                    self.tool_seconds.observe(seconds(result.duration_ms));
                }
                Some(Kind::GuardrailViolation(violation)) => {
                    self.violations.of([violation.point.as_str(), became_of(violation)]).inc();
                }
                _ => {}
            }
        }
    }

    fn count_attempt(&self, attempt: &ModelAttempt, last_model: &mut String) {
        let account = match attempt.mode() {
            ProviderMode::Platform => "platform",
            ProviderMode::Unspecified
            | ProviderMode::TenantKey
            | ProviderMode::TenantEndpoint
            | ProviderMode::InCluster => "tenant",
        };
        let (provider, outcome) = (place(PROVIDERS, &attempt.provider), outcome(attempt));
        self.attempts.of([attempt.provider.as_str(), account, outcome]).inc();
        // How long one took that was lost nobody knows.
        if outcome != "lost" {
            self.attempt_seconds[provider].observe(seconds(attempt.latency_ms));
        }
        if let Some(first_token_ms) = attempt.first_token_ms {
            self.first_token_seconds[provider].observe(seconds(first_token_ms));
        }
        if attempt.model != *last_model {
            if !attempt.fallback_reason.is_empty() {
                self.fallbacks.of([attempt.fallback_reason.as_str()]).inc();
            }
            last_model.clone_from(&attempt.model);
        }
    }
}

fn outcome(attempt: &ModelAttempt) -> &str {
    match (attempt.error_class.as_str(), attempt.finish_reason.as_str()) {
        // Its class is that of an answer that breaks off, which is no fault of its provider's.
        (_, "lost") => "lost",
        ("", "end_turn" | "tool_use" | "max_tokens" | "context_full" | "pause") => "ok",
        // A class alone says that it failed.
        ("", word @ ("hedged" | "cancelled" | "guardrail" | "refusal" | "bad_tool_call")) => word,
        ("" | "ok" | "hedged" | "cancelled" | "guardrail" | "refusal" | "bad_tool_call" | "lost", _) => OTHER,
        (class, _) => class,
    }
}

fn became_of(violation: &GuardrailViolation) -> &'static str {
    match (violation.blocked, violation.redacted) {
        (true, false) => "blocked",
        (false, true) => "redacted",
        (false, false) => "shadow",
        (true, true) => OTHER,
    }
}

fn seconds(milliseconds: i64) -> f64 {
    Duration::from_millis(milliseconds.try_into().unwrap_or(0)).min(TOOK_MAX).as_secs_f64()
}

/// Where a word stands among these; the last place is that of all others.
fn place(words: &[&str], word: &str) -> usize {
    words.iter().position(|known| *known == word).unwrap_or(words.len() - 1)
}

/// A counter for each combination of its labels' words: found without a look-up by name, as events are many.
#[derive(Clone)]
struct Counted<const LABELS: usize> {
    words: [&'static [&'static str]; LABELS],
    /// In the order of the words, the last label's changing first.
    counters: Vec<IntCounter>,
}

impl<const LABELS: usize> Counted<LABELS> {
    fn register(
        registry: &Registry,
        opts: Opts,
        labels: [&str; LABELS],
        words: [&'static [&'static str]; LABELS],
    ) -> Result<Self, prometheus::Error> {
        let family = IntCounterVec::new(opts, &labels)?;
        registry.register(Box::new(family.clone()))?;
        let counter = |mut number: usize| {
            let mut values = [""; LABELS];
            for (value, words) in values.iter_mut().zip(words).rev() {
                *value = words[number % words.len()];
                number /= words.len();
            }
            family.with_label_values(&values)
        };
        let counters = (0..words.iter().map(|words| words.len()).product()).map(counter).collect();
        Ok(Self { words, counters })
    }

    fn of(&self, told: [&str; LABELS]) -> &IntCounter {
        let number =
            self.words.iter().zip(told).fold(0, |number, (words, word)| number * words.len() + place(words, word));
        &self.counters[number]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use croft_proto::v1::{Grant, GrantRequest, ModelRouted, ToolResult};

    use super::super::granted::Granted;
    use super::*;

    fn event(kind: Kind) -> SessionEvent {
        SessionEvent { kind: Some(kind), ..SessionEvent::default() }
    }

    fn attempt(model: &str, fallback_reason: &str) -> SessionEvent {
        event(Kind::ModelAttempt(ModelAttempt {
            provider: "anthropic".into(),
            model: model.into(),
            finish_reason: "end_turn".into(),
            fallback_reason: fallback_reason.into(),
            mode: ProviderMode::TenantKey.into(),
            ..ModelAttempt::default()
        }))
    }

    /// Each series by its labels, as it is on the page.
    fn series(registry: &Registry) -> BTreeSet<String> {
        let families = registry.gather();
        let all = families.iter().flat_map(|family| family.get_metric().iter().map(move |metric| (family, metric)));
        all.map(|(family, metric)| {
            let labels = metric.get_label().iter().map(|label| format!(" {}={}", label.name(), label.value()));
            format!("{}{}", family.name(), labels.collect::<String>())
        })
        .collect()
    }

    #[test]
    fn a_hostile_word_is_another_and_makes_no_series_of_its_own() {
        let registry = Registry::new();
        let told = Told::register(&registry).unwrap();
        let before = series(&registry);
        assert!(before.contains("croft_model_attempts_total account=tenant outcome=bad_tool_call provider=gemini"));
        let hostile = || "\u{1f480}\"} 1\n".to_owned();
        let mut last_model = String::new();
        let attempt = |error_class: &str, finish_reason: &str| {
            event(Kind::ModelAttempt(ModelAttempt {
                provider: hostile(),
                model: hostile(),
                error_class: error_class.into(),
                finish_reason: finish_reason.into(),
                fallback_reason: hostile(),
                latency_ms: i64::MIN,
                first_token_ms: Some(i64::MAX),
                mode: 77,
                ..ModelAttempt::default()
            }))
        };
        let violation = GuardrailViolation { point: hostile(), blocked: true, redacted: true, ..Default::default() };
        let events = [
            attempt("", &hostile()),
            attempt(&hostile(), ""),
            // Words of ours, in a place where they mean nothing.
            attempt("ok", "end_turn"),
            attempt("lost", "error"),
            event(Kind::GuardrailViolation(violation)),
            event(Kind::ToolResult(ToolResult { duration_ms: i64::MAX, ..ToolResult::default() })),
        ];
        told.count(&events, &mut last_model);
        assert_eq!(series(&registry), before);
        assert_eq!(told.attempts.of([OTHER, "tenant", OTHER]).get(), 4);
        assert_eq!(told.violations.of([OTHER, OTHER]).get(), 1);
        assert_eq!(told.fallbacks.of([OTHER]).get(), 1);
        let close_to = |seconds: f64, expected: f64| (seconds - expected).abs() < 0.001;
        assert!(close_to(told.attempt_seconds[place(PROVIDERS, OTHER)].get_sample_sum(), 0.0));
        assert!(close_to(told.tool_seconds.get_sample_sum(), TOOK_MAX.as_secs_f64()));
    }

    #[test]
    fn a_model_that_took_over_counts_once_however_often_it_is_asked() {
        let told = Told::register(&Registry::new()).unwrap();
        let mut last_model = String::new();
        told.count(&[attempt("a", ""), attempt("b", "error"), attempt("b", "error")], &mut last_model);
        told.count(&[attempt("b", "error"), attempt("c", "context")], &mut last_model);
        assert_eq!((told.fallbacks.of(["error"]).get(), told.fallbacks.of(["context"]).get()), (1, 1));
        assert_eq!(told.attempts.of(["anthropic", "tenant", "ok"]).get(), 5);
    }

    /// It counted among answers that break off, as if its provider had failed.
    #[tokio::test]
    async fn an_attempt_that_was_lost_with_its_worker_is_no_failure_of_its_provider() {
        let told = Told::register(&Registry::new()).unwrap();
        let mut granted = Granted::default();
        granted.give(&GrantRequest::default(), Grant { provider: "anthropic".into(), ..Grant::default() });
        let lost: Vec<_> = granted.lost().into_iter().map(event).collect();
        told.count(&lost, &mut String::new());
        let counted = |outcome| told.attempts.of(["anthropic", "tenant", outcome]).get();
        assert_eq!((counted("lost"), counted("truncated")), (1, 0));
        let took = &told.attempt_seconds[place(PROVIDERS, "anthropic")];
        assert_eq!(took.get_sample_count(), 0, "nobody knows");
    }

    #[test]
    fn a_route_that_was_decided_says_whether_it_changed_something() {
        let told = Told::register(&Registry::new()).unwrap();
        let routed = |chosen: &str| {
            let (requested_model, chosen_model) = ("a".to_owned(), chosen.to_owned());
            event(Kind::ModelRouted(ModelRouted { requested_model, chosen_model, ..ModelRouted::default() }))
        };
        told.count(&[routed("a"), routed("b"), routed("b")], &mut String::new());
        assert_eq!((told.routes.of(["stayed"]).get(), told.routes.of(["changed"]).get()), (1, 2));
    }
}
