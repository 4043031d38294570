//! Counters that never stand in the way: shared ones, and this replica's own for as long as the shared ones are away.
//!
//! Rates fail open that way: each replica lets through its share of what all of them together should. Budgets don't: without the
//! shared counters no bound is taken for known, so that whoever asks brings the ledger's word along, every time; and since what
//! other replicas have reserved in the meantime is not seen, a replica reserves no more than its share of what is left.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::TenantId;
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::memory::Memory;
use super::{Answer, Ask, Bound, Counters, Settlement, Standing, Verdict};
use crate::error::Error;

/// After a failure, how long nobody asks the shared counters: calls must not wait for them one after the other.
const REST: Duration = Duration::from_secs(1);
/// While they are away and nobody asks them anything, how often they are asked whether they are back.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a bound's copy of the ledger is believed before it is compared with the ledger again.
const BELIEF: Duration = Duration::from_mins(1);
/// Bounds that are believed at a time; at the bound all are compared with the ledger again.
const BELIEFS_MAX: usize = 100_000;

/// The guarded counters.
pub struct Guarded {
    shared: Arc<dyn Counters>,
    own: Memory,
    /// That share what there is, this one included.
    replicas: u32,
    state: Mutex<State>,
    metrics: Metrics,
}

/// Instruments of the guard.
#[derive(Clone)]
pub struct Metrics {
    /// Calls that this replica answered by itself.
    pub alone: IntCounter,
    pub away: IntGauge,
}

impl Metrics {
    /// Registers the instruments. Fails if one is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let alone = IntCounter::new(
            "croft_counters_alone_total",
            "Limits and budgets that this replica judged by itself, since Redis was away",
        )?;
        registry.register(Box::new(alone.clone()))?;
        let away = IntGauge::new("croft_counters_away", "1 while limits and budgets are judged without Redis")?;
        registry.register(Box::new(away.clone()))?;
        Ok(Self { alone, away })
    }
}

#[derive(Default)]
struct State {
    /// The shared counters are not asked before.
    rests_until: Option<Instant>,
    failures: u64,
    /// Bounds that were compared with the ledger since the counters came back, until when that is believed.
    believed: HashSet<(TenantId, String)>,
    believed_until: Option<Instant>,
}

impl Guarded {
    pub fn new(shared: Arc<dyn Counters>, replicas: u32, metrics: Metrics) -> Self {
        Self { shared, own: Memory::default(), replicas: replicas.max(1), state: Mutex::default(), metrics }
    }

    /// What this replica may let through by itself.
    fn share_of(&self, ask: &Ask) -> Ask {
        let replicas = i64::from(self.replicas);
        let mut own = ask.clone();
        for window in &mut own.windows {
            // Rounded up: a limit of one is not to become none.
            window.limit = window.limit.saturating_add(replicas - 1) / replicas;
        }
        for bound in &mut own.bounds {
            let spent = bound.ledger.unwrap_or_default();
            let share = |limit: i64, spent: i64| spent.saturating_add(limit.saturating_sub(spent).max(0) / replicas);
            bound.nano_usd = bound.nano_usd.map(|limit| share(limit, spent.nano_usd));
            bound.tokens = bound.tokens.map(|limit| share(limit, spent.tokens));
        }
        own
    }

    async fn admit_alone(&self, ask: &Ask) -> Result<Answer, Error> {
        let own = self.share_of(ask);
        let mut answer = self.own.admit(&own).await?;
        if let Verdict::Spent { bound, standing } = &mut answer.verdict
            && let (Some(full), Some(share)) = (ask.bounds.get(*bound), own.bounds.get(*bound))
        {
            // The others' shares are as good as reserved: who asks for less next must ask for so much less.
            let others =
                |full: Option<i64>, share: Option<i64>| full.zip(share).map_or(0, |(full, share)| full - share);
            standing.reserved.nano_usd += others(full.nano_usd, share.nano_usd);
            standing.reserved.tokens += others(full.tokens, share.tokens);
        }
        Ok(answer)
    }

    /// Finds out that the shared counters are back where no call does, until `stopping`.
    pub async fn watch(&self, stopping: CancellationToken) {
        let mut failures_before = 0;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            // Calls that fail know better than a question that changes nothing.
            if self.is_away() && self.failures() == failures_before {
                self.heard(self.shared.ping().await, TenantId(Uuid::nil()), &[]);
            }
            failures_before = self.failures();
        }
    }

    fn failures(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failures
    }

    fn is_away(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).rests_until.is_some()
    }

    fn is_resting(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes down how the shared counters did. `None` when they are away.
    fn heard<T>(&self, told: Result<T, Error>, tenant: TenantId, bounds: &[Bound]) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Ok(told) => {
                if state.rests_until.take().is_some() {
                    tracing::info!("limits and budgets are judged with Redis again");
                }
                self.metrics.away.set(0);
                let compared = bounds.iter().filter(|bound| bound.ledger.is_some());
                state.believed.extend(compared.map(|bound| (tenant, bound.key.clone())));
                Some(told)
            }
            Err(error) => {
                if state.rests_until.is_none() {
                    tracing::warn!(
                        error = format!("{:#}", anyhow::Error::from(error)),
                        "limits and budgets are judged without Redis"
                    );
                }
                state.rests_until = Some(Instant::now() + REST);
                state.failures += 1;
                // What happened in the meantime is in the ledger, and not in the counters.
                state.believed.clear();
                self.metrics.away.set(1);
                None
            }
        }
    }

    /// The bounds that must be compared with the ledger first.
    fn doubtful(&self, tenant: TenantId, bounds: &[Bound]) -> Vec<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.believed.len() > BELIEFS_MAX || state.believed_until.is_none_or(|until| until <= now) {
            state.believed.clear();
            state.believed_until = Some(now + BELIEF);
            self.own.forget_who_is_done();
        }
        let is_believed =
            |bound: &Bound| bound.ledger.is_some() || state.believed.contains(&(tenant, bound.key.clone()));
        (0..).zip(bounds).filter(|(_, bound)| !is_believed(bound)).map(|(at, _)| at).collect()
    }

    async fn judged<F>(
        &self,
        ask: &Ask,
        shared: F,
        alone: impl AsyncFnOnce() -> Result<Answer, Error>,
    ) -> Result<Answer, Error>
    where
        F: Future<Output = Result<Answer, Error>> + Send,
    {
        let unknown = |bounds| Ok(Answer { at_ms: 0, verdict: Verdict::Unknown(bounds) });
        if !self.is_resting() {
            let doubtful = self.doubtful(ask.tenant, &ask.bounds);
            if !doubtful.is_empty() {
                return unknown(doubtful);
            }
            if let Some(answer) = self.heard(shared.await, ask.tenant, &ask.bounds) {
                return Ok(answer);
            }
        }
        let unread: Vec<_> =
            (0..).zip(&ask.bounds).filter(|(_, bound)| bound.ledger.is_none()).map(|(at, _)| at).collect();
        if !unread.is_empty() {
            return unknown(unread);
        }
        self.metrics.alone.inc();
        alone().await
    }
}

#[async_trait]
impl Counters for Guarded {
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
        self.judged(ask, self.shared.admit(ask), async || self.admit_alone(ask).await).await
    }

    async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
        self.judged(ask, self.shared.hold(ask), async || self.own.hold(ask).await).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
        // It may have been granted by either. What was not granted here is none of our own counters' while the shared ones answer.
        let is_own = self.own.holds(settlement.tenant, &settlement.id);
        let own = if is_own { Some(self.own.settle(settlement).await?) } else { None };
        if !self.is_resting() {
            let shared = self.shared.settle(settlement).await;
            if let Some(shared) = self.heard(shared, settlement.tenant, &settlement.bounds) {
                return Ok(shared);
            }
        }
        match own {
            Some(own) => Ok(own),
            None => self.own.settle(settlement).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::counters::{Ledger, Window};

    /// Counters that are away for a while.
    #[derive(Default)]
    struct Fickle {
        counters: Memory,
        is_away: AtomicBool,
    }

    impl Fickle {
        fn here(&self) -> Result<&Memory, Error> {
            let is_away = self.is_away.load(Ordering::Relaxed);
            let away = || Error::unavailable("redis", anyhow::anyhow!("connection refused"));
            if is_away { Err(away()) } else { Ok(&self.counters) }
        }
    }

    #[async_trait]
    impl Counters for Fickle {
        async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
            self.here()?.admit(ask).await
        }

        async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
            self.here()?.hold(ask).await
        }

        async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
            self.here()?.settle(settlement).await
        }

        async fn ping(&self) -> Result<(), Error> {
            self.here()?.ping().await
        }
    }

    fn guarded() -> (Guarded, Arc<Fickle>) {
        let (shared, metrics) = (Arc::new(Fickle::default()), Metrics::register(&Registry::new()).unwrap());
        (Guarded::new(Arc::clone(&shared) as _, 1, metrics), shared)
    }

    /// Of a tenant's day and a session of its own, as far as the ledger goes.
    fn ask(tenant: TenantId, number: i64) -> Ask {
        let ledger = Some(Ledger { version: number, nano_usd: number, tokens: number });
        let bound =
            |key: String| Bound { key, nano_usd: Some(1_000_000), tokens: None, keep: REST, ledger, insists: false };
        let name = "requests".to_owned();
        Ask {
            tenant,
            id: number.to_string(),
            ttl: Duration::from_secs(30),
            nano_usd: 1,
            tokens: 1,
            windows: vec![Window { name, limit: 100_000, span: BELIEF, amount: 1, settles: true }],
            bounds: vec![bound("tenant".into()), bound(format!("session:{number}"))],
        }
    }

    async fn is_let_through(guarded: &Guarded, ask: &Ask) -> bool {
        matches!(guarded.admit(ask).await.unwrap().verdict, Verdict::Granted(_))
    }

    fn settlement(ask: Ask) -> Settlement {
        let Ask { tenant, id, bounds, .. } = ask;
        Settlement { tenant, id, tokens: Some(1), bounds }
    }

    async fn watch_for(guarded: &Guarded, time: Duration) {
        let endless = guarded.watch(CancellationToken::new());
        tokio::time::timeout(time, endless).await.unwrap_err();
    }

    /// Once, a quiet front told that Redis was away until somebody called it.
    #[tokio::test(start_paused = true)]
    async fn that_the_shared_counters_are_back_is_found_out_without_a_call() {
        let (guarded, shared) = guarded();
        shared.is_away.store(true, Ordering::Relaxed);
        assert!(is_let_through(&guarded, &ask(TenantId::generate(), 1)).await);
        watch_for(&guarded, 10 * LOOK_EVERY).await;
        assert_eq!(guarded.metrics.away.get(), 1);
        shared.is_away.store(false, Ordering::Relaxed);
        watch_for(&guarded, 3 * LOOK_EVERY).await;
        assert_eq!((guarded.metrics.away.get(), guarded.metrics.alone.get()), (0, 1));
        assert!(is_let_through(&guarded, &ask(TenantId::generate(), 2)).await);
        assert_eq!(guarded.metrics.alone.get(), 1, "they are asked again");
    }

    /// A server that answers and takes nothing is away.
    #[tokio::test(start_paused = true)]
    async fn while_calls_fail_an_answer_to_nothing_is_not_believed() {
        let (guarded, shared) = guarded();
        let calls = async {
            for number in 0..20 {
                shared.is_away.store(true, Ordering::Relaxed);
                assert!(is_let_through(&guarded, &ask(TenantId::generate(), number)).await);
                shared.is_away.store(false, Ordering::Relaxed);
                assert_eq!(guarded.metrics.away.get(), 1, "{number}");
                tokio::time::sleep(REST).await;
                assert_eq!(guarded.metrics.away.get(), 1, "{number}");
            }
        };
        tokio::select! {
            () = calls => {}
            () = guarded.watch(CancellationToken::new()) => panic!("it ends with the program alone"),
        }
    }

    /// Once, each session ever settled was remembered, and looked through at every further settlement.
    #[tokio::test(start_paused = true)]
    async fn what_the_shared_counters_settle_leaves_nothing_here() {
        let (guarded, _) = guarded();
        for number in 0..1_000 {
            let ask = ask(TenantId::generate(), number);
            assert!(is_let_through(&guarded, &ask).await);
            assert_eq!(guarded.settle(&settlement(ask)).await.unwrap()[0].spent.nano_usd, number);
        }
        assert!(guarded.own.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_granted_here_is_settled_here_and_forgotten_once_it_is_over() {
        let (guarded, shared) = guarded();
        shared.is_away.store(true, Ordering::Relaxed);
        let (tenant, other) = (TenantId::generate(), TenantId::generate());
        let (settled, left) = (ask(tenant, 1), ask(other, 1));
        assert!(is_let_through(&guarded, &settled).await && is_let_through(&guarded, &left).await);
        // One that was granted by the shared counters is told the ledger's word all the same.
        assert_eq!(guarded.settle(&settlement(ask(tenant, 7))).await.unwrap()[0].spent.nano_usd, 7);
        shared.is_away.store(false, Ordering::Relaxed);
        tokio::time::sleep(REST).await;
        assert!(guarded.own.holds(tenant, "1"));
        guarded.settle(&settlement(settled)).await.unwrap();
        assert!(!guarded.own.holds(tenant, "1"), "it is not reserved once more when they are away again");

        // Their windows are as long as the counters are believed.
        assert!(!guarded.own.is_empty());
        tokio::time::sleep(BELIEF).await;
        assert!(is_let_through(&guarded, &ask(TenantId::generate(), 2)).await);
        assert!(guarded.own.is_empty());
    }
}
