//! Which providers' models are left alone. It is looked up whenever the page is asked for, since nothing happens when a
//! breaker's time is over.

use croft_llm::Providers;
use croft_llm::breaker::Breakers;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

/// The breakers of one worker, by provider. Models and keys are no labels: an alert is about a provider, and the log names
/// the model.
pub(super) struct BreakerMetrics {
    breakers: Breakers,
    /// All that are configured, so that each has its series from the start.
    providers: Vec<&'static str>,
    open: IntGaugeVec,
    opened: IntCounterVec,
}

impl BreakerMetrics {
    pub(super) fn new(providers: &Providers) -> Self {
        Self {
            breakers: providers.breakers().clone(),
            providers: providers.names().collect(),
            open: open(),
            opened: opened(),
        }
    }
}

impl Collector for BreakerMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [self.open.desc(), self.opened.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // New ones each time, as two pages may be asked for at once.
        let (open, opened) = (open(), opened());
        for provider in &self.providers {
            open.with_label_values(&[provider]).set(self.breakers.is_open(provider).into());
            opened.with_label_values(&[provider]).inc_by(self.breakers.opened(provider));
        }
        [open.collect(), opened.collect()].concat()
    }
}

fn open() -> IntGaugeVec {
    let help = "Whether calls of a model are held back by its breaker; 1 or 0.";
    IntGaugeVec::new(Opts::new("croft_worker_model_breaker_open", help), &["provider"])
        .expect("a fixed name and label are valid")
}

fn opened() -> IntCounterVec {
    let help = "Times that the breaker of a model opened.";
    IntCounterVec::new(Opts::new("croft_worker_model_breaker_opened_total", help), &["provider"])
        .expect("a fixed name and label are valid")
}
