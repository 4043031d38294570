//! The counters in Redis: one script a call, on the server's clock, with keys of the form `croft:{<tenant>}:…`.

use std::sync::LazyLock;
use std::time::Duration;

use ::redis::{Client, FromRedisValue, Script, Value, cmd};
use async_trait::async_trait;

use super::{Amount, Answer, Ask, Bound, Counters, LARGEST, Ledger, Settlement, Standing, Verdict, Window};
use crate::error::Error;
use crate::redis_connection::RedisConnection;

/// How long Redis may take to answer. It is on the path of every call, and there is a way without it: see [`super::guard`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// What the script takes for no number at all.
const NONE: f64 = -1.0;
/// That a stored bound consists of.
const BOUND_NUMBERS: usize = 7;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("counters.lua")));

/// Counters that all replicas share; cheap to clone.
#[derive(Clone)]
pub struct RedisCounters {
    connection: RedisConnection,
}

impl RedisCounters {
    /// Connects when it is first asked.
    pub fn connect(client: &Client, answer_timeout: Duration) -> Result<Self, Error> {
        Ok(Self { connection: RedisConnection::lazy(client.clone(), answer_timeout)? })
    }

    async fn call(&self, verb: &str, ask: &Ask, tokens: f64) -> Result<Answer, Error> {
        let Ask { tenant, id, ttl, nano_usd, tokens: _, windows, bounds } = ask;
        let mut numbers = vec![millis(*ttl), number(*nano_usd), tokens, count(windows.len())];
        for Window { name: _, limit, span, amount, settles } in windows {
            numbers.extend([number(*limit), millis(*span), number(*amount), f64::from(u8::from(*settles))]);
        }
        for Bound { key: _, nano_usd, tokens, keep, ledger, insists } in bounds {
            numbers.extend([nano_usd.map_or(f64::INFINITY, number), tokens.map_or(f64::INFINITY, number)]);
            numbers.push(millis(*keep));
            numbers.extend(match ledger {
                Some(Ledger { version, nano_usd, tokens }) => [number(*version), number(*nano_usd), number(*tokens)],
                None => [NONE; 3],
            });
            numbers.push(f64::from(u8::from(*insists)));
        }
        let mut call = SCRIPT.key(format!("croft:{{{tenant}}}"));
        call.arg(verb).arg(packed(&numbers)).arg(format!("held:{id}"));
        for window in windows {
            call.arg(format!("moments:{}", window.name));
        }
        for bound in bounds {
            call.arg(format!("bound:{}", bound.key));
        }
        let told: Vec<Value> =
            self.connection.ask(|mut redis| async move { call.invoke_async(&mut redis).await }).await?;
        read(told)
    }
}

#[async_trait]
impl Counters for RedisCounters {
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
        self.call("admit", ask, number(ask.tokens)).await
    }

    async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
        self.call("hold", ask, number(ask.tokens)).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
        let Settlement { tenant, id, tokens, bounds } = settlement.clone();
        let ask = Ask { tenant, id, ttl: Duration::ZERO, nano_usd: 0, tokens: 0, windows: Vec::new(), bounds };
        match self.call("settle", &ask, tokens.map_or(NONE, number)).await?.verdict {
            Verdict::Granted(standings) => Ok(standings),
            _ => Err(nonsense()),
        }
    }

    async fn ping(&self) -> Result<(), Error> {
        self.connection.ask(|mut redis| async move { cmd("PING").query_async(&mut redis).await }).await
    }
}

fn read(told: Vec<Value>) -> Result<Answer, Error> {
    let mut told = told.into_iter();
    let word: String = next(&mut told)?;
    let at_ms = next(&mut told)?;
    let verdict = match word.as_str() {
        "granted" => Verdict::Granted(told.map(standing).collect::<Result<_, _>>()?),
        "unknown" => Verdict::Unknown(told.map(::redis::from_redis_value).collect::<Result<_, _>>().map_err(down)?),
        "full" => {
            let (window, pause) = (next(&mut told)?, next(&mut told)?);
            Verdict::Full { window, retry_after: Duration::from_millis(pause) }
        }
        "spent" => {
            let bound = next(&mut told)?;
            Verdict::Spent { bound, standing: standing(told.next().ok_or_else(nonsense)?)? }
        }
        _ => return Err(nonsense()),
    };
    Ok(Answer { at_ms, verdict })
}

fn next<T: FromRedisValue>(told: &mut impl Iterator<Item = Value>) -> Result<T, Error> {
    ::redis::from_redis_value(told.next().ok_or_else(nonsense)?).map_err(down)
}

/// A bound as the script stores it: behind two other numbers, what is spent and what is reserved.
fn standing(told: Value) -> Result<Standing, Error> {
    let Value::BulkString(line) = told else { return Err(nonsense()) };
    let amount = |at: usize| Amount { nano_usd: number_at(&line, at), tokens: number_at(&line, at + 1) };
    if line.len() != BOUND_NUMBERS * size_of::<f64>() {
        return Err(nonsense());
    }
    Ok(Standing { spent: amount(2), reserved: amount(4) })
}

fn packed(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the script counts in whole numbers, and its sums are a few times LARGEST"
)]
fn number_at(line: &[u8], at: usize) -> i64 {
    let bytes = line.chunks_exact(size_of::<f64>()).nth(at).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, |bytes| f64::from_le_bytes(bytes) as i64)
}

#[expect(clippy::cast_precision_loss, reason = "up to LARGEST there is none")]
fn number(number: i64) -> f64 {
    number.clamp(0, LARGEST) as f64
}

fn count(count: usize) -> f64 {
    number(i64::try_from(count).unwrap_or(LARGEST))
}

fn millis(duration: Duration) -> f64 {
    number(i64::try_from(duration.as_millis()).unwrap_or(LARGEST).clamp(1, LARGEST / 1_000))
}

fn down(error: impl Into<anyhow::Error>) -> Error {
    Error::unavailable("redis", error)
}

fn nonsense() -> Error {
    Error::internal(anyhow::anyhow!("the counters answered what this front does not understand"))
}
