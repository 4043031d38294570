//! The counters in memory, held to the same contract as those in Redis: for tests, and for a replica that is left to itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::TenantId;
use tokio::time::Instant;

use super::{Amount, Answer, Ask, Bound, Counters, Settlement, Standing, Verdict, Window};
use crate::error::Error;

/// Bounds that are kept for each tenant. At the bound those that nobody reserves of are forgotten; they are asked for anew.
const BOUNDS_MAX: usize = 10_000;

/// Counters of this process alone, by its monotonic clock.
pub struct Memory {
    began: Instant,
    tenants: Mutex<HashMap<TenantId, Tenant>>,
}

#[derive(Default)]
struct Tenant {
    windows: HashMap<String, Log>,
    spent: HashMap<String, Spent>,
    held: HashMap<String, Held>,
}

/// What a window let through, by the millisecond.
#[derive(Default)]
struct Log {
    moments: BTreeMap<i64, i64>,
    sum: i64,
    /// As it was asked for last.
    span_ms: i64,
}

#[derive(Default)]
struct Spent {
    version: Option<i64>,
    stale: bool,
    standing: Standing,
}

struct Held {
    until_ms: i64,
    amount: Amount,
    windows: Vec<(String, i64)>,
    bounds: Vec<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { began: Instant::now(), tenants: Mutex::default() }
    }
}

impl Memory {
    fn now_ms(&self) -> i64 {
        millis(self.began.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this ask has a reservation here.
    pub(crate) fn holds(&self, tenant: TenantId, id: &str) -> bool {
        self.lock().get(&tenant).is_some_and(|tenant| tenant.held.contains_key(id))
    }

    /// Forgets tenants who have reserved nothing and have nothing in a window any more, with what is known of their bounds.
    pub(super) fn forget_who_is_done(&self) {
        let now = self.now_ms();
        self.lock().retain(|_, tenant| !tenant.is_done(now));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

#[async_trait]
impl Counters for Memory {
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
        let at_ms = self.now_ms();
        let verdict = self.lock().entry(ask.tenant).or_default().admit(ask, at_ms);
        Ok(Answer { at_ms, verdict })
    }

    async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
        let at_ms = self.now_ms();
        let verdict = self.lock().entry(ask.tenant).or_default().hold(ask, at_ms);
        Ok(Answer { at_ms, verdict })
    }

    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
        let now = self.now_ms();
        let mut tenants = self.lock();
        let tenant = tenants.entry(settlement.tenant).or_default();
        let told: Vec<_> = settlement.bounds.iter().filter(|bound| bound.ledger.is_some()).collect();
        tenant.release(&settlement.id, settlement.tokens, &told);
        tenant.begin(&settlement.bounds, now);
        Ok(tenant.standings(&settlement.bounds))
    }
}

impl Tenant {
    /// What every call does first: takes the ledger's word over, and gives up what nobody has spoken for.
    fn begin(&mut self, bounds: &[Bound], now: i64) {
        for bound in bounds {
            if let Some(ledger) = bound.ledger {
                let spent = self.spent.entry(bound.key.clone()).or_default();
                let is_older = spent.version.is_some_and(|known| known > ledger.version);
                if !is_older || (bound.insists && spent.stale) {
                    spent.version = Some(ledger.version);
                    spent.stale = false;
                    spent.standing.spent = Amount { nano_usd: ledger.nano_usd, tokens: ledger.tokens };
                }
            }
        }
        let gone: Vec<_> =
            self.held.iter().filter(|(_, held)| held.until_ms <= now).map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.release(&id, None, &[]);
        }
        if self.spent.len() > BOUNDS_MAX {
            self.spent.retain(|_, spent| spent.standing.reserved != Amount::default());
        }
    }

    fn is_done(&mut self, now: i64) -> bool {
        self.begin(&[], now);
        self.windows.retain(|_, log| {
            log.slide(log.span_ms, now);
            !log.moments.is_empty()
        });
        self.held.is_empty() && self.windows.is_empty()
    }

    fn admit(&mut self, ask: &Ask, now: i64) -> Verdict {
        self.begin(&ask.bounds, now);
        if let Some(told) = self.told_before(ask, now) {
            return told;
        }
        let full = ask.windows.iter().enumerate().filter_map(|(place, window)| {
            let log = self.windows.entry(window.name.clone()).or_default();
            Some((place, log.wait(window, now)?))
        });
        // Of several that take as long, the first.
        let longest = full.fold(None, |longest: Option<(usize, i64)>, (place, pause)| match longest {
            Some((_, longer)) if longer >= pause => longest,
            _ => Some((place, pause)),
        });
        if let Some((window, pause)) = longest {
            let retry_after = Duration::from_millis(pause.max(1).unsigned_abs());
            return Verdict::Full { window, retry_after };
        }
        for (bound, standing) in self.standings(&ask.bounds).into_iter().enumerate() {
            let Bound { nano_usd, tokens, .. } = ask.bounds[bound];
            let Standing { spent, reserved } = standing;
            if nano_usd.is_some_and(|limit| spent.nano_usd + reserved.nano_usd + ask.nano_usd > limit)
                || tokens.is_some_and(|limit| spent.tokens + reserved.tokens + ask.tokens > limit)
            {
                return Verdict::Spent { bound, standing };
            }
        }
        let mut windows = Vec::new();
        for window in &ask.windows {
            self.windows.entry(window.name.clone()).or_default().add(now, window.amount);
            if window.settles {
                windows.push((window.name.clone(), now));
            }
        }
        self.reserve(ask, windows, now)
    }

    fn hold(&mut self, ask: &Ask, now: i64) -> Verdict {
        self.begin(&ask.bounds, now);
        if let Some(told) = self.told_before(ask, now) {
            return told;
        }
        self.reserve(ask, Vec::new(), now)
    }

    fn told_before(&mut self, ask: &Ask, now: i64) -> Option<Verdict> {
        let is_known =
            |bound: &Bound| self.spent.get(&bound.key).is_some_and(|spent| spent.version.is_some() && !spent.stale);
        let unknown: Vec<_> = (0..).zip(&ask.bounds).filter(|(_, bound)| !is_known(bound)).map(|(at, _)| at).collect();
        if !unknown.is_empty() {
            return Some(Verdict::Unknown(unknown));
        }
        let held = self.held.get_mut(&ask.id)?;
        held.until_ms = now + millis(ask.ttl);
        // What holds for the call only since it was granted.
        for bound in ask.bounds.iter().filter(|bound| !held.bounds.contains(&bound.key)).collect::<Vec<_>>() {
            let reserved = &mut self.spent.entry(bound.key.clone()).or_default().standing.reserved;
            reserved.nano_usd += held.amount.nano_usd;
            reserved.tokens += held.amount.tokens;
            held.bounds.push(bound.key.clone());
        }
        Some(Verdict::Granted(self.standings(&ask.bounds)))
    }

    fn reserve(&mut self, ask: &Ask, windows: Vec<(String, i64)>, now: i64) -> Verdict {
        if !ask.bounds.is_empty() || !windows.is_empty() {
            let amount = Amount { nano_usd: ask.nano_usd, tokens: ask.tokens };
            for bound in &ask.bounds {
                let reserved = &mut self.spent.entry(bound.key.clone()).or_default().standing.reserved;
                reserved.nano_usd += amount.nano_usd;
                reserved.tokens += amount.tokens;
            }
            let bounds = ask.bounds.iter().map(|bound| bound.key.clone()).collect();
            self.held.insert(ask.id.clone(), Held { until_ms: now + millis(ask.ttl), amount, windows, bounds });
        }
        Verdict::Granted(self.standings(&ask.bounds))
    }

    /// `told` are the bounds of which the ledger's word is known since.
    fn release(&mut self, id: &str, tokens: Option<i64>, told: &[&Bound]) {
        let Some(Held { amount, windows, bounds, .. }) = self.held.remove(id) else { return };
        if let Some(tokens) = tokens {
            for (name, moment) in windows {
                if let Some(log) = self.windows.get_mut(&name) {
                    log.correct(moment, tokens - amount.tokens);
                }
            }
        }
        for key in bounds {
            if let Some(spent) = self.spent.get_mut(&key) {
                let reserved = &mut spent.standing.reserved;
                reserved.nano_usd = (reserved.nano_usd - amount.nano_usd).max(0);
                reserved.tokens = (reserved.tokens - amount.tokens).max(0);
                spent.stale |= !told.iter().any(|bound| bound.key == key);
            }
        }
    }

    fn standings(&self, bounds: &[Bound]) -> Vec<Standing> {
        let of = |bound: &Bound| self.spent.get(&bound.key).map(|spent| spent.standing).unwrap_or_default();
        bounds.iter().map(of).collect()
    }
}

impl Log {
    fn slide(&mut self, span_ms: i64, now: i64) {
        while let Some(oldest) = self.moments.first_entry().filter(|oldest| *oldest.key() <= now - span_ms) {
            self.sum -= oldest.remove();
        }
    }

    /// How long until the window has room; `None` when it has.
    fn wait(&mut self, window: &Window, now: i64) -> Option<i64> {
        let span_ms = millis(window.span);
        self.span_ms = span_ms;
        self.slide(span_ms, now);
        let excess = self.sum + window.amount.min(window.limit) - window.limit;
        let mut freed = 0;
        (excess > 0).then(|| {
            let last = self.moments.iter().find(|(_, amount)| {
                freed += **amount;
                freed >= excess
            });
            last.map_or(span_ms, |(moment, _)| moment + span_ms - now)
        })
    }

    fn add(&mut self, moment: i64, amount: i64) {
        *self.moments.entry(moment).or_default() += amount;
        self.sum += amount;
    }

    fn correct(&mut self, moment: i64, difference: i64) {
        if let Some(amount) = self.moments.get_mut(&moment) {
            let corrected = (*amount + difference).max(0);
            self.sum += corrected - *amount;
            *amount = corrected;
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}
