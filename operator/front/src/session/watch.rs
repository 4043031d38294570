//! The declared sessions and the tenants' totals, for the operator: how they stand, then what changed, at a slow rate.
//!
//! What changed is told by the store in ids, for all tenants at once and whichever front did it; the sessions themselves
//! are then read tenant by tenant. An interval in which nothing changed costs two small queries.

mod picture;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{TenantTotals, WatchSessionsResponse};
use futures::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

use self::picture::{Asked, Picture, month_start};
use crate::core::Core;
use crate::error::Error;
use crate::leaving::goodbye;
use crate::session::across::Horizon;

const INTERVAL_MS: i64 = 1_000;
const INTERVAL_MS_MIN: i64 = 200;
const INTERVAL_MS_MAX: i64 = 60_000;
/// A tenant's totals are summed up at most this often: the sum grows with the month.
const TOTALS_EVERY: Duration = Duration::from_secs(2);
/// And what the month has cost, where that failed, perhaps for having taken too long, is tried again after this long.
const TOTALS_AGAIN: Duration = Duration::from_mins(1);
/// Changes that are read at a time.
const PAGE: u32 = 1_000;
/// Tenants that are read at the same time.
const CONCURRENCY: usize = 4;
/// Answers that may wait for the operator. At the bound the watch waits too, and what changes meanwhile is told once.
const ANSWERS_MAX: usize = 16;

type Answers = mpsc::Sender<Result<WatchSessionsResponse, Status>>;

/// Why a watch is over.
enum End {
    /// Nobody listens any more.
    Gone,
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// One watch.
pub(crate) struct Watch {
    core: Arc<Core>,
    interval: Duration,
    /// Changes that it shows have all been seen.
    horizon: Horizon,
    /// Those of the others that have been seen: made while we looked.
    seen: HashMap<SessionId, u64>,
    /// What is still to be told, by tenant.
    changed: HashMap<TenantId, HashSet<SessionId>>,
    totals_due: BTreeSet<TenantId>,
    /// Whose part of the first picture failed; it is whole once there are none. Not of more than there are tenants.
    untold: Vec<TenantId>,
    sums: HashMap<TenantId, Sum>,
    month_start: Timestamp,
}

/// A tenant's totals.
#[derive(Default)]
struct Sum {
    /// That were told last, if any were.
    told: Option<TenantTotals>,
    /// When they may be summed up again, if not at once.
    rests_until: Option<Instant>,
    /// When the month is to be tried again, if it couldn't be summed up.
    month_again: Option<Instant>,
}

impl Watch {
    /// With so many milliseconds between two looks, within bounds; 0 takes a second.
    pub(crate) fn new(core: Arc<Core>, interval_ms: i64) -> Self {
        let interval_ms = if interval_ms == 0 { INTERVAL_MS } else { interval_ms };
        let interval_ms = interval_ms.clamp(INTERVAL_MS_MIN, INTERVAL_MS_MAX).unsigned_abs();
        Self {
            core,
            interval: Duration::from_millis(interval_ms),
            horizon: Horizon::default(),
            seen: HashMap::new(),
            changed: HashMap::new(),
            totals_due: BTreeSet::new(),
            untold: Vec::new(),
            sums: HashMap::new(),
            month_start: Timestamp::default(),
        }
    }

    /// Watches in a task of its own, until the stream is dropped or the front stops. `seat` is given back then.
    pub(crate) fn start(
        self,
        seat: OwnedSemaphorePermit,
    ) -> impl Stream<Item = Result<WatchSessionsResponse, Status>> + Send + use<> {
        let (answers, received) = mpsc::channel(ANSWERS_MAX);
        let tasks = self.core.tasks.clone();
        drop(tasks.spawn("session-watch", async move {
            let _seat = seat;
            let stopping = self.core.tasks.stopping();
            let listener = answers.clone();
            let end = tokio::select! {
                () = stopping.cancelled() => End::Failed(goodbye()),
                () = listener.closed() => End::Gone,
                end = self.run(answers) => end,
            };
            if let End::Failed(error) = end {
                // A listener that has no room for it sees the stream end all the same.
                let _ = listener.try_send(Err(error.into()));
            }
        }));
        ReceiverStream::new(received)
    }

    async fn run(mut self, answers: Answers) -> End {
        if let Err(end) = self.first(&answers).await {
            return end;
        }
        loop {
            tokio::time::sleep(self.interval).await;
            let told = match self.gather().await {
                Ok(()) => self.tell(&answers).await,
                Err(error) => Err(End::Failed(error)),
            };
            let told = match told {
                Ok(()) if !self.untold.is_empty() => self.complete(&answers).await,
                told => told,
            };
            match told {
                Ok(()) => {}
                Err(End::Gone) => return End::Gone,
                // What was to be told is kept.
                Err(End::Failed(error)) => tracing::warn!(%error, "changed sessions not told, trying again"),
            }
        }
    }

    async fn first(&mut self, answers: &Answers) -> Result<(), End> {
        if !self.core.tenants.synced() {
            return Err(Error::unavailable("the list of tenants", anyhow::anyhow!("no snapshot of routes yet")).into());
        }
        // Before anything is read: what changes while we read is told again.
        self.horizon = self.core.stores.across.horizon().await?;
        self.month_start = month_start()?;
        self.untold = self.core.tenants.list().iter().map(|tenant| tenant.id).collect();
        let tenants = self.untold.len();
        match self.complete(answers).await {
            // One tenant's failure is none of the others'. Where all fail, another front may do better.
            Err(End::Failed(error)) if self.untold.len() < tenants => {
                tracing::warn!(%error, "the first picture of sessions is not whole yet, trying again");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Tells all open sessions of the tenants of whom they have not been told yet, and then that the first picture is whole. Those whose
    /// sessions can't be had are kept for the next try.
    async fn complete(&mut self, answers: &Answers) -> Result<(), End> {
        let (core, month_start) = (Arc::clone(&self.core), self.month_start);
        let mut untold = std::mem::take(&mut self.untold);
        untold.retain(|tenant| core.tenants.get(*tenant).is_some());
        let mut pictures = stream::iter(untold)
            .map(|tenant| {
                let core = &core;
                async move { (tenant, Picture::of_open(core, tenant, month_start).await) }
            })
            .buffer_unordered(CONCURRENCY);
        let mut failed = None;
        while let Some((tenant, picture)) = pictures.next().await {
            let mut picture = match picture {
                Ok(picture) => picture,
                Err(error) => {
                    self.untold.push(tenant);
                    failed = Some(error);
                    continue;
                }
            };
            picture.totals = self.news(tenant, picture.totals.take(), Asked::Month(month_start));
            picture.send(answers).await?;
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        let synced = WatchSessionsResponse { synced: true, ..WatchSessionsResponse::default() };
        answers.send(Ok(synced)).await.map_err(|_| End::Gone)
    }

    /// Adds to what is to be told.
    async fn gather(&mut self) -> Result<(), Error> {
        let across = &self.core.stores.across;
        let horizon = across.horizon().await?;
        let mut after = (0, SessionId(Uuid::nil()));
        loop {
            let page = across.changed(&self.horizon, after, PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            for change in page {
                after = (change.number, change.session);
                if self.seen.insert(change.session, change.number) != Some(change.number) {
                    self.changed.entry(change.tenant).or_default().insert(change.session);
                    self.totals_due.insert(change.tenant);
                }
            }
            if is_last {
                break;
            }
        }
        self.seen.retain(|_, number| !horizon.shows(*number));
        self.horizon = horizon;
        let month_start = month_start()?;
        if month_start != self.month_start {
            self.month_start = month_start;
            self.totals_due.extend(self.sums.keys());
        }
        let tenants = &self.core.tenants;
        self.sums.retain(|tenant, _| tenants.get(*tenant).is_some());
        self.totals_due.retain(|tenant| tenants.get(*tenant).is_some());
        Ok(())
    }

    /// What there is to tell of totals that were asked for; nothing where they are as they were told.
    fn news(&mut self, tenant: TenantId, totals: Option<TenantTotals>, asked: Asked) -> Option<TenantTotals> {
        let totals = totals?;
        let now = Instant::now();
        let sum = self.sums.entry(tenant).or_default();
        sum.rests_until = Some(now + TOTALS_EVERY);
        if matches!(asked, Asked::Month(_)) {
            sum.month_again = totals.month.is_none().then(|| now + TOTALS_AGAIN);
        }
        self.totals_due.remove(&tenant);
        // What the month has cost is taken to be as it was told last, until it can be told again.
        let known = match &sum.told {
            Some(told) if totals.month.is_none() => {
                TenantTotals { sessions_open: totals.sessions_open, ..told.clone() }
            }
            Some(_) | None => totals.clone(),
        };
        let is_news = sum.told.as_ref() != Some(&known);
        sum.told = Some(known);
        is_news.then_some(totals)
    }

    /// What is asked now of the totals of whom.
    fn asked(&mut self) -> HashMap<TenantId, Asked> {
        let now = Instant::now();
        let again = self.sums.iter().filter(|(_, sum)| sum.month_again.is_some_and(|again| again <= now));
        self.totals_due.extend(again.map(|(tenant, _)| tenant));
        let asked = |tenant: &TenantId| match self.sums.get(tenant) {
            Some(sum) if sum.rests_until.is_some_and(|until| until > now) => None,
            Some(sum) if sum.month_again.is_some_and(|again| again > now) => Some((*tenant, Asked::Open)),
            Some(_) | None => Some((*tenant, Asked::Month(self.month_start))),
        };
        self.totals_due.iter().filter_map(asked).collect()
    }

    /// Tells what changed, and the totals whose turn it is.
    async fn tell(&mut self, answers: &Answers) -> Result<(), End> {
        let asked = self.asked();
        let mut todo = std::mem::take(&mut self.changed);
        for tenant in asked.keys() {
            todo.entry(*tenant).or_default();
        }
        let asked_of = |tenant: TenantId| asked.get(&tenant).copied().unwrap_or(Asked::Nothing);
        let core = Arc::clone(&self.core);
        let mut pictures = stream::iter(todo)
            .map(|(tenant, ids)| {
                let (core, asked) = (&core, asked_of(tenant));
                async move { (tenant, Picture::of_changed(core, tenant, &ids, asked).await, ids) }
            })
            .buffer_unordered(CONCURRENCY);
        let mut failed = None;
        while let Some((tenant, picture, ids)) = pictures.next().await {
            let mut picture = match picture {
                Ok(picture) => picture,
                Err(error) => {
                    self.changed.entry(tenant).or_default().extend(ids);
                    failed = Some(error);
                    continue;
                }
            };
            picture.totals = self.news(tenant, picture.totals.take(), asked_of(tenant));
            picture.send(answers).await?;
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}
