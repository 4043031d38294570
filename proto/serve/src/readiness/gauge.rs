//! `croft_ready{check}`: which checks hold, for who does not look at `/readyz`.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};

use super::Readiness;
use crate::Metrics;

/// Reckoned when prometheus asks.
struct Gauge {
    readiness: Readiness,
    ready: IntGaugeVec,
}

impl Readiness {
    /// Tells of each check on the page of metrics: 1 where it holds, else 0. Fails when something of the name is there.
    pub fn register(&self, metrics: &Metrics) -> prometheus::Result<()> {
        let opts = Opts::new("croft_ready", "Whether each check of the program's readiness holds.");
        let ready = IntGaugeVec::new(opts, &["check"])?;
        metrics.registry().register(Box::new(Gauge { readiness: self.clone(), ready }))
    }
}

impl Collector for Gauge {
    fn desc(&self) -> Vec<&Desc> {
        self.ready.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (name, state) in &*self.readiness.checks.borrow() {
            self.ready.with_label_values(&[name]).set(i64::from(state.why.is_none()));
        }
        self.ready.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_told_of_whether_it_holds_or_not() {
        let (readiness, metrics) = (Readiness::new(), Metrics::new("croft-test").unwrap());
        readiness.register(&metrics).unwrap();
        let (routes, postgres) = (readiness.tells("routes"), readiness.check("postgres"));
        postgres.ready();
        let told = || {
            let text = metrics.text().unwrap();
            text.lines().filter(|line| line.starts_with("croft_ready{")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(told(), [r#"croft_ready{check="postgres"} 1"#, r#"croft_ready{check="routes"} 0"#]);
        postgres.not_ready("no answer in time");
        routes.ready();
        assert_eq!(told(), [r#"croft_ready{check="postgres"} 0"#, r#"croft_ready{check="routes"} 1"#]);
    }
}
