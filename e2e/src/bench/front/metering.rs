//! What metering costs: limits and budgets at the counters, rows of usage and audit, and the proof of the audit log.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use croft_front::audit::{Action, Place};
use croft_front::counters::redis::RedisCounters;
use croft_front::counters::{Ask, Bound, Counters, Ledger, Settlement, Verdict, Window};
use croft_front::events::log::{Append, Authority, NewEvent};
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ModelAttempt, TokenUsage};
use croft_serve::Tasks;
use futures::future::try_join_all;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::create;
use super::log::session;
use super::stage::Stage;
use crate::bench::alone::alone;
use crate::bench::load;
use crate::bench::pace::Pace;
use crate::bench::row::Row;

const MINUTE: Duration = Duration::from_mins(1);
/// As the front's own pool.
const CONNECTIONS: u32 = 16;
/// What an audit writer stores at a time.
const BATCH: usize = 500;

/// Whether leave is settled as soon as it was granted, which is another call of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    No,
    Yes,
}

/// Whether Redis writes each change to a file, as it does from the start.
pub(super) async fn keep_file(stage: &Stage, keeps: bool) -> anyhow::Result<()> {
    let mut redis = redis::Client::open(&*stage.place.redis_url)?.get_multiplexed_async_connection().await?;
    let value = if keeps { "yes" } else { "no" };
    Ok(redis::cmd("CONFIG").arg(&["SET", "appendonly", value]).query_async(&mut redis).await?)
}

/// Leave for model calls of a hundred tenants: two windows and three budgets each, in one call of Redis. A Redis that does not keep up
/// is an outcome.
pub(super) async fn leave(stage: &Stage, per_second: u32, seconds: u32, settled: Settled) -> anyhow::Result<Row> {
    let redis_url = &*stage.place.redis_url;
    let pace = Pace { per_second, count: per_second * seconds };
    let redis = redis::Client::open(redis_url)?;
    let mut redis = redis.get_multiplexed_async_connection().await?;
    let Leaves { calls, used, begun } = alone(leaves(redis_url, pace, settled))?;
    let ran = scripts(&mut redis).await?;
    let each = (ran.microseconds - begun.microseconds) / (ran.calls - begun.calls).max(1.0);
    let count = calls.len();
    let (mut times, mut late) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut failure, mut failures) = (None, 0);
    for (lateness, call) in calls {
        late.push(lateness);
        match call {
            Ok(taken) => times.push(taken),
            Err(error) => {
                failures += 1;
                failure.get_or_insert(error);
            }
        }
    }
    let what = match settled {
        Settled::Yes => "and its settlement, two calls",
        Settled::No => "one call",
    };
    let measure = format!("leave for a model call at {per_second}/s: 2 windows, 3 budgets, {what} of Redis");
    let row = match failure {
        Some(error) => Row::value(measure, format!("{failures} of {count} failed"))
            .reach("none fails", false)
            .besides(format!("the first: {error:#}")),
        None if settled == Settled::Yes => Row::times(measure, times.into_iter().collect()),
        None => Row::times(measure, times.into_iter().collect()).p99_within(Duration::from_millis(1)),
    };
    Ok(row
        .besides(create::lateness(late))
        .besides(format!("a script takes Redis {each:.0} µs"))
        .besides(format!("CPU seconds of {seconds}: the harness {:.1}", used.as_secs_f64())))
}

/// What the least call of Redis costs at such a rate, made and answered in the same way: the rest of leave is Croft's.
pub(super) fn bare(stage: &Stage, per_second: u32, seconds: u32) -> anyhow::Result<Row> {
    let pace = Pace { per_second, count: per_second * seconds };
    let calls = alone(async {
        let redis = redis::Client::open(&*stage.place.redis_url)?.get_multiplexed_async_connection().await?;
        let call = async |_| {
            let (mut redis, begun) = (redis.clone(), Instant::now());
            let answer: redis::RedisResult<()> = redis::cmd("PING").query_async(&mut redis).await;
            answer.map(|()| begun.elapsed())
        };
        Ok(pace.run(call).await)
    })?;
    let times = calls.into_iter().map(|(_, call)| call).collect::<Result<_, _>>()?;
    Ok(Row::times(format!("a bare `PING` of Redis at {per_second}/s"), times))
}

/// What came of many calls.
struct Leaves {
    /// By how much each was made later than it was due, and how long it took.
    calls: Vec<(Duration, anyhow::Result<Duration>)>,
    /// Processor time of this program.
    used: Duration,
    /// What Redis said before.
    begun: Scripts,
}

async fn leaves(redis_url: &str, pace: Pace, settled: Settled) -> anyhow::Result<Leaves> {
    let counters = RedisCounters::connect(&croft_front::redis_client::open(redis_url, None)?, Duration::from_secs(5))?;
    let tenants: Vec<_> = (0..100).map(|_| TenantId::generate()).collect();
    for tenant in &tenants {
        leave_of(&counters, *tenant, u32::MAX, true, Settled::No).await?;
    }
    let mut redis = redis::Client::open(redis_url)?.get_multiplexed_async_connection().await?;
    let (cpu, begun) = (load::of(std::process::id())?.cpu, scripts(&mut redis).await?);
    let calls = pace
        .run(async |number| {
            let tenant = tenants[number as usize % tenants.len()];
            // From the moment at which it is made.
            let begun = Instant::now();
            let call = leave_of(&counters, tenant, number, false, settled).await.map(|()| begun.elapsed());
            (begun, call)
        })
        .await;
    let used = load::of(std::process::id())?.cpu.saturating_sub(cpu);
    let calls = calls.into_iter().map(|(due, (begun, call))| (begun - due, call)).collect();
    Ok(Leaves { calls, used, begun })
}

/// What Redis says of its scripts.
struct Scripts {
    calls: f64,
    microseconds: f64,
}

async fn scripts(redis: &mut MultiplexedConnection) -> anyhow::Result<Scripts> {
    let told: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await?;
    let line = told.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).context("no script has run")?;
    let of = |name: &str| -> anyhow::Result<f64> {
        let value = line.split(',').filter_map(|field| field.split_once('=')).find(|(field, _)| *field == name);
        Ok(value.context("Redis does not tell what scripts cost")?.1.parse()?)
    };
    Ok(Scripts { calls: of("calls")?, microseconds: of("usec")? })
}

async fn leave_of(
    counters: &RedisCounters,
    tenant: TenantId,
    number: u32,
    with_ledger: bool,
    settled: Settled,
) -> anyhow::Result<()> {
    let window = |name: &str, amount, settles| Window {
        name: name.to_owned(),
        limit: 1_000_000_000_000,
        span: MINUTE,
        amount,
        settles,
    };
    let bound = |key: &str| Bound {
        key: key.to_owned(),
        nano_usd: Some(1_000_000_000_000_000),
        tokens: Some(1_000_000_000_000_000),
        keep: MINUTE,
        ledger: with_ledger.then_some(Ledger { version: 1, nano_usd: 1, tokens: 1 }),
        insists: false,
    };
    let ask = Ask {
        tenant,
        id: format!("{number}-{tenant}"),
        ttl: MINUTE,
        nano_usd: 5_000_000,
        tokens: 2_000,
        windows: vec![window("tokens", 2_000, true), window("requests:scripted", 1, false)],
        bounds: vec![bound("tenant::2026-11"), bound("agent:bench:2026-11-25"), bound("session:0:life")],
    };
    let verdict = counters.admit(&ask).await?.verdict;
    ensure!(matches!(verdict, Verdict::Granted(_)), "there is room, and the answer is {verdict:?}");
    if settled == Settled::Yes {
        // With the ledger's word, as whoever settles has it.
        let told = Some(Ledger { version: 1, nano_usd: 1, tokens: 1 });
        let bounds = ask.bounds.into_iter().map(|bound| Bound { ledger: told, ..bound }).collect();
        counters.settle(&Settlement { tenant, id: ask.id, tokens: Some(1_500), bounds }).await?;
    }
    Ok(())
}

/// Rows of usage, each with its event, and of audit, written side by side as fast as they can be.
pub(super) async fn rows(stage: &Stage, sessions: usize, seconds: u32) -> anyhow::Result<Row> {
    let postgres = Postgres::connect(&stage.place.postgres_front_url, CONNECTIONS).await?;
    let tasks = Tasks::new();
    let stores = Stores::postgres(&postgres, &tasks);
    let tenants: Vec<_> = stage.tenants.iter().take(1).map(|tenant| tenant.id).collect();
    let mut ids = Vec::with_capacity(sessions);
    for number in 0..sessions {
        let tenant = tenants[number % tenants.len()];
        ids.push((tenant, session(&stores, tenant).await?));
    }
    let (before, begun) = (load::of(std::process::id())?.cpu, Instant::now());
    let until = begun + Duration::from_secs(seconds.into());
    let usage = ids.into_iter().map(|(tenant, id)| {
        let stores = stores.clone();
        tasks.spawn("usage-writer", async move {
            let mut rows = 0_u32;
            while Instant::now() < until {
                stores.events.append(attempts(tenant, id, 16)).await?;
                rows += 16;
            }
            anyhow::Ok(rows)
        })
    });
    let audit = (0..2).map(|_| {
        let (stores, tenants) = (stores.clone(), tenants.clone());
        tasks.spawn("audit-writer", async move {
            let (mut rows, mut place) = (0_u32, Place::start());
            while Instant::now() < until {
                let batch = (0..BATCH).map(|number| action(tenants[number % tenants.len()])).collect();
                stores.audit.append(place, batch).await?;
                place = place.behind(BATCH);
                rows += u32::try_from(BATCH)?;
            }
            anyhow::Ok(rows)
        })
    });
    let (usage, audit): (Vec<_>, Vec<_>) = (usage.collect(), audit.collect());
    let usage: u32 = try_join_all(usage).await?.into_iter().sum::<anyhow::Result<u32>>()?;
    let audit: u32 = try_join_all(audit).await?.into_iter().sum::<anyhow::Result<u32>>()?;
    let took = begun.elapsed().as_secs_f64();
    let used = load::of(std::process::id())?.cpu.saturating_sub(before).as_secs_f64();
    ensure!(tasks.shutdown(Duration::from_secs(5)).await == 0, "the log does not come to rest");
    let rate = (f64::from(usage) + f64::from(audit)) / took;
    Ok(Row::value(
        format!("rows of usage (with their events) and of audit, {sessions} sessions × 16 at a time, audit × {BATCH}"),
        format!("{rate:.0}/s"),
    )
    .reach("≥ 50,000/s", rate >= 50_000.0)
    .besides(format!("usage {:.0}/s, audit {:.0}/s", f64::from(usage) / took, f64::from(audit) / took))
    .besides(format!("CPU seconds of {seconds}: the harness {used:.1}")))
}

/// The proof of a tenant's audit log.
pub(super) async fn verified(stage: &Stage, records: usize) -> anyhow::Result<Row> {
    let postgres = Postgres::connect(&stage.place.postgres_front_url, CONNECTIONS).await?;
    let tasks = Tasks::new();
    let stores = Stores::postgres(&postgres, &tasks);
    let tenant = TenantId::generate();
    stores.tenants.upsert(tenant, "verified").await?;
    for _ in 0..records / BATCH {
        stores.audit.append(Place::start(), (0..BATCH).map(|_| action(tenant)).collect()).await?;
    }
    let begun = Instant::now();
    let verdict = stores.audit.verify(tenant, None).await?;
    let took = begun.elapsed().as_secs_f64();
    ensure!(verdict.intact && verdict.records_verified == u64::try_from(records)?, "the log is broken: {verdict:?}");
    ensure!(tasks.shutdown(Duration::from_secs(5)).await == 0, "tasks do not end");
    let rate = f64::from(u32::try_from(records)?) / took;
    Ok(Row::value(format!("audit log verified, {records} records"), format!("{rate:.0}/s"))
        .reach("≥ 200,000/s", rate >= 200_000.0))
}

fn attempts(tenant: TenantId, session: SessionId, count: usize) -> Append {
    let attempt = || {
        let usage = TokenUsage { input_uncached_tokens: 1_000, output_tokens: 200, ..TokenUsage::default() };
        NewEvent::now(Kind::ModelAttempt(ModelAttempt {
            attempt_id: SessionId::generate().to_string(),
            provider: "scripted".to_owned(),
            model: "scripted-1".to_owned(),
            usage: Some(usage),
            cost_nano_usd: Some(2_000_000),
            latency_ms: 900,
            finish_reason: "end_turn".to_owned(),
            ..ModelAttempt::default()
        }))
    };
    Append::of(tenant, session, Authority::Caller, (0..count).map(|_| attempt()).collect())
}

fn action(tenant: TenantId) -> Action {
    Action {
        tenant,
        actor: "api-key/ck_1a2b3c4d".to_owned(),
        action: "session.send_message".into(),
        resource: "sessions/0198a5c0-0000-7000-8000-000000000000".to_owned(),
        outcome: "ok".into(),
        act_micros: None,
    }
}
