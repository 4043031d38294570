//! `croft-front api-key …`: keys for a tenant's people, made, listed and revoked by an admin of the database.

use std::io::Write;

use anyhow::{Context, bail};
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use secrecy::{ExposeSecret, SecretString};

use crate::audit::{Action, AuditStore, Place};
use crate::identity::api_key::{self, KeyRecord, KeyStore, StoredKey};
use crate::identity::role::Role;
use crate::store::postgres::Postgres;
use crate::store::time::micros;

/// In the audit log: whoever has the URL of the database is not known by name.
const ACTOR: &str = "croft-front api-key";

/// Makes a key and prints it to stdout. Fails when no front has yet heard of the tenant, or it is being removed.
pub async fn create(
    tenant: &str,
    role: Role,
    expire_time: Option<Timestamp>,
    postgres_url: &SecretString,
) -> anyhow::Result<()> {
    let postgres = connect(postgres_url).await?;
    let key = make_for(tenant, role, expire_time, &postgres).await?;
    writeln!(std::io::stdout(), "{}", key.expose_secret()).context("cannot print the key")
}

/// Prints the tenant's keys to stdout, newest first, the revoked and expired ones, too.
pub async fn list(tenant: &str, postgres_url: &SecretString) -> anyhow::Result<()> {
    let postgres = connect(postgres_url).await?;
    let keys = KeyStore::list(&postgres, named(tenant, &postgres).await?).await?;
    write!(std::io::stdout(), "{}", table(&keys)).context("cannot print the keys")
}

/// Takes a key back, which fronts refuse within half a minute. To do so again is harmless. Fails when the tenant has no key of this
/// prefix.
pub async fn revoke(tenant: &str, prefix: &str, postgres_url: &SecretString) -> anyhow::Result<()> {
    take_back(tenant, prefix, &connect(postgres_url).await?).await
}

/// Records a new key for the tenant of this name, which allows every call.
pub async fn make(tenant: &str, postgres: &Postgres) -> anyhow::Result<SecretString> {
    make_for(tenant, Role::Admin, None, postgres).await
}

/// Records a new key for those who have this role at the tenant of this name, good until then.
pub async fn make_for(
    tenant: &str,
    role: Role,
    expire_time: Option<Timestamp>,
    postgres: &Postgres,
) -> anyhow::Result<SecretString> {
    let id = named(tenant, postgres).await?;
    let (stored, key) = api_key::generate(id, tenant)?;
    KeyStore::insert(postgres, &StoredKey { role, ..stored.clone() }, expire_time).await?;
    // A key that is in no record is given to nobody.
    record(id, "api_key.create", &stored.prefix, postgres).await?;
    Ok(key)
}

/// As [`revoke`], at this database.
pub async fn take_back(tenant: &str, prefix: &str, postgres: &Postgres) -> anyhow::Result<()> {
    let id = named(tenant, postgres).await?;
    if !KeyStore::revoke(postgres, id, prefix).await? {
        bail!("tenant {tenant} has no API key ck_{prefix}");
    }
    record(id, "api_key.revoke", prefix, postgres).await
}

/// Of `--prefix`: the first 8 digits of a key, with `ck_` or without, or the whole key, whose secret is let go.
pub fn prefix(text: &str) -> Result<String, String> {
    let prefix = text.strip_prefix("ck_").unwrap_or(text);
    let prefix = prefix.split_once('_').map_or(prefix, |(prefix, _)| prefix);
    let fits = prefix.len() == 8 && prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fits.then(|| prefix.to_owned()).ok_or_else(|| "it must be 8 digits in hex, such as ck_1a2b3c4d".to_owned())
}

/// Of `--expires`: a time by RFC 3339, or how long from now on, in which a day is 24 hours.
pub fn expiry(text: &str) -> Result<Timestamp, String> {
    let now = jiff::Timestamp::now();
    let time = text.parse::<jiff::Timestamp>().or_else(|_| {
        let days = jiff::SpanRelativeTo::days_are_24_hours();
        let span = text.parse::<jiff::Span>().and_then(|span| span.to_duration(days));
        span.and_then(|span| now.checked_add(span))
    });
    let time = time.map_err(|_| "it must be a time such as 2027-01-31T00:00:00Z or a while such as 90d".to_owned())?;
    if time <= now {
        return Err("it must be in the future".to_owned());
    }
    Ok(Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

async fn connect(postgres_url: &SecretString) -> anyhow::Result<Postgres> {
    Postgres::connect(postgres_url.expose_secret(), 1)
        .await
        .context("cannot reach PostgreSQL at --postgres-url (CROFT_POSTGRES_URL)")
}

async fn named(tenant: &str, postgres: &Postgres) -> anyhow::Result<TenantId> {
    let id = postgres.tenant_named(tenant).await?;
    id.with_context(|| format!("tenant {tenant} of --tenant is not known to the fronts; is it Ready?"))
}

async fn record(tenant: TenantId, action: &'static str, prefix: &str, postgres: &Postgres) -> anyhow::Result<()> {
    let (actor, resource) = (ACTOR.to_owned(), format!("api-keys/ck_{prefix}"));
    let action = Action { tenant, actor, action: action.into(), resource, outcome: "ok".into(), act_micros: None };
    AuditStore::append(postgres, Place::start(), vec![action])
        .await
        .map(drop)
        .with_context(|| format!("ck_{prefix} is changed, but it can't be recorded in the audit log"))
}

fn table(keys: &[KeyRecord]) -> String {
    let mut lines = vec![row("PREFIX", "ROLE", "CREATED", "EXPIRES", "REVOKED")];
    lines.extend(keys.iter().map(|key| {
        let [expires, revoked] = [&key.expire_time, &key.revoke_time].map(|time| time.as_ref().map(day_and_time));
        let [expires, revoked] = [expires, revoked].map(|time| time.unwrap_or_else(|| "-".to_owned()));
        row(&format!("ck_{}", key.prefix), key.role.as_str(), &day_and_time(&key.create_time), &expires, &revoked)
    }));
    lines.concat()
}

fn row(prefix: &str, role: &str, created: &str, expires: &str, revoked: &str) -> String {
    format!("{prefix:<12} {role:<8} {created:<21} {expires:<21} {revoked}\n")
}

/// To the second.
fn day_and_time(time: &Timestamp) -> String {
    jiff::Timestamp::from_second(micros(time).div_euclid(1_000_000)).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_read_however_it_is_copied() {
        let whole = format!("ck_1a2b3c4d_{}", "A".repeat(43));
        for text in ["1a2b3c4d", "ck_1a2b3c4d", &whole] {
            assert_eq!(prefix(text).unwrap(), "1a2b3c4d");
        }
        for text in ["", "ck_", "1a2b3c4", "1A2B3C4D", "1a2b3c4d5"] {
            assert!(prefix(text).unwrap_err().contains("8 digits"), "{text}");
        }
    }

    #[test]
    fn a_key_expires_at_a_time_or_after_a_while() {
        assert_eq!(expiry("2999-01-31T00:00:00Z").unwrap().seconds, 32_474_736_000);
        let now = jiff::Timestamp::now().as_second();
        for (text, seconds) in [("90d", 90 * 86_400), ("2w", 14 * 86_400), ("36h", 36 * 3_600), ("PT1M", 60)] {
            let ahead = expiry(text).unwrap().seconds - now;
            assert!((seconds..seconds + 10).contains(&ahead), "{text} is {ahead} s ahead");
        }
        for (text, told) in [
            ("2020-01-31T00:00:00Z", "in the future"),
            ("-1d", "in the future"),
            ("0s", "in the future"),
            ("soon", "must be a time"),
            ("2027-01-31", "must be a time"),
            ("99999y", "must be a time"),
        ] {
            let problem = expiry(text).unwrap_err();
            assert!(problem.contains(told), "{text}: {problem}");
        }
    }

    #[test]
    fn a_list_tells_what_is_good() {
        let at = |seconds| Timestamp { seconds, nanos: 999 };
        let (prefix, role) = ("1a2b3c4d".to_owned(), Role::User);
        let key = KeyRecord { prefix, role, create_time: at(0), expire_time: None, revoke_time: Some(at(86_400)) };
        let told = "PREFIX       ROLE     CREATED               EXPIRES               REVOKED\n\
            ck_1a2b3c4d  user     1970-01-01T00:00:00Z  -                     1970-01-02T00:00:00Z\n";
        assert_eq!(table(&[key]), told);
    }
}
