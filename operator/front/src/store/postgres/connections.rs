//! How many connections to the database there are, and how many of them are in use: at the bound all else waits.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use super::Postgres;

/// At a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// With somebody who works with them.
    pub used: u64,
    /// Open and at rest.
    pub idle: u64,
    /// That there may be.
    pub max: u64,
}

/// Counted when prometheus asks.
struct Gauges<F> {
    count: F,
    connections: IntGaugeVec,
    max: IntGauge,
}

/// Tells what `count` finds as `croft_postgres_connections{state}` and `croft_postgres_connections_max`. Fails when something of these
/// names is registered.
pub fn register<F>(registry: &Registry, count: F) -> prometheus::Result<()>
where
    F: Fn() -> Connections + Send + Sync + 'static,
{
    let opts = Opts::new("croft_postgres_connections", "Open connections to PostgreSQL, by state");
    let connections = IntGaugeVec::new(opts, &["state"])?;
    let max = IntGauge::new("croft_postgres_connections_max", "Connections to PostgreSQL that this replica may open")?;
    registry.register(Box::new(Gauges { count, connections, max }))
}

impl Postgres {
    /// Those of calls, now. The one for [`Postgres::check`] is none of them.
    pub fn connections(&self) -> Connections {
        let (open, kept) = (u64::from(self.pool.size()), self.warm.kept() as u64);
        let idle = (self.pool.num_idle() as u64 + kept).min(open);
        Connections { used: open - idle, idle, max: self.connections_max.into() }
    }
}

impl<F: Fn() -> Connections + Send + Sync> Collector for Gauges<F> {
    fn desc(&self) -> Vec<&Desc> {
        [self.connections.desc(), self.max.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Connections { used, idle, max } = (self.count)();
        let told = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.connections.with_label_values(&["used"]).set(told(used));
        self.connections.with_label_values(&["idle"]).set(told(idle));
        self.max.set(told(max));
        [self.connections.collect(), self.max.collect()].concat()
    }
}
