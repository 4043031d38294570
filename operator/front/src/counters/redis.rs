//! The counters in Redis: one script a call, on the server's clock, with keys of the form `croft:{<tenant>}:…`.

use std::sync::LazyLock;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Script, Value};
use async_trait::async_trait;

use super::{Amount, Answer, Ask, Bound, Counters, LARGEST, Settlement, Standing, Verdict, Window};
use crate::error::Error;

/// How long Redis may take to answer. It is on the path of every call, and there is a way without it: see [`super::guard`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("counters.lua")));

/// Counters that all replicas share; cheap to clone.
#[derive(Clone)]
pub struct RedisCounters {
    connection: ConnectionManager,
}

impl RedisCounters {
    /// Connects when it is first asked. Fails with [`Error::Invalid`] when the URL is none.
    pub fn connect(url: &str, answer_timeout: Duration) -> Result<Self, Error> {
        // The parser's complaint may quote the URL, and with it a password.
        let client = Client::open(url).map_err(|_| Error::invalid("the Redis URL", "can't be read"))?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(answer_timeout))
            .set_response_timeout(Some(answer_timeout));
        Ok(Self { connection: client.get_connection_manager_lazy(config).map_err(down)? })
    }

    async fn ask(&self, verb: &str, ask: &Ask) -> Result<Answer, Error> {
        let mut call = SCRIPT.key(root(ask.tenant));
        call.arg(verb).arg(&ask.id).arg(millis(ask.ttl)).arg(clamped(ask.nano_usd)).arg(clamped(ask.tokens));
        call.arg(ask.windows.len()).arg(ask.bounds.len());
        for Window { name, limit, span, amount, settles } in &ask.windows {
            call.arg(name).arg(clamped(*limit)).arg(millis(*span)).arg(clamped(*amount)).arg(u8::from(*settles));
        }
        add(&mut call, &ask.bounds);
        let told: Vec<Value> = call.invoke_async(&mut self.connection.clone()).await.map_err(down)?;
        read(told)
    }
}

#[async_trait]
impl Counters for RedisCounters {
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
        self.ask("admit", ask).await
    }

    async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
        self.ask("hold", ask).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
        let mut call = SCRIPT.key(root(settlement.tenant));
        call.arg("settle").arg(&settlement.id).arg(0).arg(0);
        match settlement.tokens {
            Some(tokens) => call.arg(clamped(tokens)),
            None => call.arg("-"),
        };
        call.arg(0).arg(settlement.bounds.len());
        add(&mut call, &settlement.bounds);
        let told: Vec<Value> = call.invoke_async(&mut self.connection.clone()).await.map_err(down)?;
        match read(told)?.verdict {
            Verdict::Granted(standings) => Ok(standings),
            _ => Err(nonsense()),
        }
    }
}

fn add(call: &mut ::redis::ScriptInvocation<'_>, bounds: &[Bound]) {
    fn or_dash(call: &mut ::redis::ScriptInvocation<'_>, number: Option<i64>) {
        match number {
            Some(number) => call.arg(clamped(number)),
            None => call.arg("-"),
        };
    }
    for Bound { key, nano_usd, tokens, keep, ledger } in bounds {
        call.arg(key);
        or_dash(call, *nano_usd);
        or_dash(call, *tokens);
        call.arg(millis(*keep));
        or_dash(call, ledger.map(|ledger| ledger.version));
        or_dash(call, ledger.map(|ledger| ledger.nano_usd));
        or_dash(call, ledger.map(|ledger| ledger.tokens));
    }
}

fn read(told: Vec<Value>) -> Result<Answer, Error> {
    let mut told = told.into_iter();
    let word: String = told.next().and_then(|word| ::redis::from_redis_value(word).ok()).ok_or_else(nonsense)?;
    let numbers: Vec<i64> = told.map(::redis::from_redis_value).collect::<Result<_, _>>().map_err(down)?;
    let (at_ms, numbers) = numbers.split_first().ok_or_else(nonsense)?;
    let place = |number: i64| usize::try_from(number).map_err(|_| nonsense());
    let verdict = match (word.as_str(), numbers) {
        ("granted", standings) => Verdict::Granted(standings.chunks_exact(4).map(standing).collect()),
        ("unknown", places) => Verdict::Unknown(places.iter().map(|at| place(*at)).collect::<Result<_, _>>()?),
        ("full", [window, pause]) => {
            let retry_after = Duration::from_millis(u64::try_from(*pause).unwrap_or(1));
            Verdict::Full { window: place(*window)?, retry_after }
        }
        ("spent", [bound, numbers @ ..]) if numbers.len() == 4 => {
            Verdict::Spent { bound: place(*bound)?, standing: standing(numbers) }
        }
        _ => return Err(nonsense()),
    };
    Ok(Answer { at_ms: *at_ms, verdict })
}

/// Four numbers, in the order of the script.
fn standing(numbers: &[i64]) -> Standing {
    let amount = |at: usize| Amount {
        nano_usd: numbers.get(at).copied().unwrap_or_default(),
        tokens: numbers.get(at + 1).copied().unwrap_or_default(),
    };
    Standing { spent: amount(0), reserved: amount(2) }
}

fn root(tenant: croft_proto::id::TenantId) -> String {
    format!("croft:{{{tenant}}}")
}

fn clamped(number: i64) -> i64 {
    number.clamp(0, LARGEST)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4).clamp(1, LARGEST.unsigned_abs() / 1_000)
}

fn down(error: impl Into<anyhow::Error>) -> Error {
    Error::unavailable("redis", error)
}

fn nonsense() -> Error {
    Error::internal(anyhow::anyhow!("the counters answered what this front does not understand"))
}
