//! Brings the database up to date, and tells whether it is.

mod holders;

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{Migrate as _, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row};
use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::models::seed::seed;
use crate::store::postgres::{self, SharedName, add_models, explained, failed};

/// The migrations that this program was built with. It leaves alone what a newer release has added: after a rollback, the
/// older one runs on the newer schema.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("../../migrations");
    migrations.set_ignore_missing(true);
    migrations
});

/// The roles that the front takes on.
const ROLES: [&str; 2] = ["croft_request", "croft_writer"];
/// Roles belong to the whole server: two databases that are migrated at once may get in each other's way. Then the step is
/// tried again.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Whether `$1`, or whoever asks if it is empty, may take on the role `$2`. From PostgreSQL 16 on, who makes a role is a member that
/// may not: <https://www.postgresql.org/docs/16/role-attributes.html>. An older one doesn't know the word.
const MAY_TAKE_ON: &str = "select pg_has_role(
    coalesce(nullif($1, ''), current_user), $2,
    case when current_setting('server_version_num')::int < 160000 then 'member' else 'set' end)";

/// Another that migrates is waited for for as long as it takes: nobody else wants that lock. So is each statement, whatever the database or the
/// role is set to: what was broken off begins anew, and keeps writers waiting once more. A server that hears nothing of its client
/// being gone goes on with what it does, and with the locks that it has for it. They are told with the first message, as fronts tell
/// theirs: a pooler that would hand locks and settings of one client to another refuses them, unless it was told to drop them.
const SETTINGS: [(&str, &str); 3] =
    [("lock_timeout", "0"), ("statement_timeout", "0"), ("client_connection_check_interval", "2s")];
/// All other locks are waited for for less long than fronts wait for theirs (`store/postgres.rs`), who may be queued behind; and for longer
/// than `deadlock_timeout`, after which PostgreSQL sends an autovacuum away that is in the way.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const _: () = assert!(LOCK_TIMEOUT.as_millis() < postgres::LOCK_TIMEOUT.as_millis());
/// After so long it is told that another migrates.
const TELL_OF_ANOTHER: Duration = Duration::from_secs(2);
/// How long fronts go first, when a lock was not to be had; twice as long each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// No try begins after so long. What others took that were migrating is not in it.
const TRIED_FOR: Duration = Duration::from_mins(5);

/// Runs what is missing of the migrations, adds the models and prices that are missing, but for models that would take a name of another,
/// and lets `front_role` take on the front's roles. Safe to repeat; of two at once, the second waits until the first is done, however long that takes.
///
/// The URL is that of an admin, who owns the database and may create roles.
///
/// What fronts ask of a table queues behind whoever waits for a lock of it. So each wait is short; then fronts go first for a while, and all
/// that has not run yet is tried again. Fails when a lock is held by others for longer than [`TRIED_FOR`].
pub async fn run(admin_url: &SecretString, front_role: &str) -> anyhow::Result<()> {
    let mut give_up = Instant::now() + TRIED_FOR;
    let mut pause = PAUSE_MIN;
    loop {
        let mut holders = Vec::new();
        let error = match attempt(admin_url, front_role, &mut holders, &mut give_up).await {
            Err(error) if lacks_lock(&error) => error,
            outcome => return outcome,
        };
        let held_by = if holders.is_empty() { "nobody who could be seen".to_owned() } else { holders.join(", ") };
        if Instant::now() >= give_up {
            let minutes = TRIED_FOR.as_secs() / 60;
            return Err(error.context(format!("no lock was to be had for {minutes} minutes, it was held by {held_by}")));
        }
        let reason = format!("{error:#}");
        tracing::warn!(
            held_by,
            reason,
            again_in_s = pause.as_secs(),
            "a lock that migrations need is held, trying again"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// On a connection of its own, with which go all locks. Notes who held the one that it lacked, and puts `give_up` off by what others took
/// that were migrating.
async fn attempt(
    admin_url: &SecretString,
    front_role: &str,
    holders: &mut Vec<String>,
    give_up: &mut Instant,
) -> anyhow::Result<()> {
    // The parser's complaint may quote the URL, and with it a password.
    let options = PgConnectOptions::from_str(admin_url.expose_secret())
        .map_err(|_| anyhow::anyhow!("the PostgreSQL URL can't be read"))?
        .application_name("croft-front migrate")
        .options(SETTINGS);
    let mut admin = PgConnection::connect_with(&options).await.map_err(explained).context("cannot reach PostgreSQL")?;
    let asked = Instant::now();
    wait_for_others(&mut admin).await.context("cannot wait for another that migrates")?;
    *give_up += asked.elapsed();
    let patience = format!("set lock_timeout = '{}ms'", LOCK_TIMEOUT.as_millis());
    sqlx::raw_sql(AssertSqlSafe(patience)).execute(&mut admin).await.context("cannot set what migrations wait for")?;
    let process: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut admin).await?;
    tokio::select! {
        outcome = bring_up_to_date(&mut admin, front_role) => outcome?,
        never = holders::note(admin_url, process, holders) => match never {},
    }
    admin.close().await.context("cannot close the connection")
}

/// Takes the lock of sqlx' own, which the migrations then take once more: a connection may have it several times
/// (<https://www.postgresql.org/docs/15/explicit-locking.html#ADVISORY-LOCKS>).
async fn wait_for_others(admin: &mut PgConnection) -> anyhow::Result<()> {
    let mut locked = admin.lock();
    if let Ok(at_once) = timeout(TELL_OF_ANOTHER, &mut locked).await {
        return Ok(at_once?);
    }
    tracing::info!("another process migrates the database, waiting until it is done");
    Ok(locked.await?)
}

async fn bring_up_to_date(admin: &mut PgConnection, front_role: &str) -> anyhow::Result<()> {
    MIGRATIONS.run(&mut *admin).await.context("the migrations failed")?;
    admit(admin, front_role).await?;

    let mut transaction = admin.begin().await?;
    let left_out = add_models(&mut transaction, &seed()).await.context("cannot add the models")?;
    transaction.commit().await?;
    for SharedName { name, model, other } in left_out {
        tracing::warn!(
            model,
            name,
            other,
            "a model of the release is not added, since a name of it is another model's"
        );
    }
    tracing::info!(front_role, newest = newest(), "the database is up to date");
    Ok(())
}

/// Whether it failed for a lock that another holds, or was chosen to give way where two wait for each other:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
fn lacks_lock(error: &anyhow::Error) -> bool {
    let mut codes = error.chain().filter_map(|cause| match cause.downcast_ref() {
        Some(sqlx::Error::Database(refusal)) => refusal.code(),
        Some(_) | None => None,
    });
    codes.any(|code| matches!(&*code, "55P03" | "40P01"))
}

/// Whether every migration that this program knows has run, unchanged. A newer schema is current too: an older front runs
/// on it during a rollout.
pub async fn is_current(pool: &PgPool) -> Result<bool, Error> {
    Ok(pending(pool).await?.is_empty())
}

/// The versions of the migrations that have not run.
pub async fn pending(pool: &PgPool) -> Result<Vec<i64>, Error> {
    let rows = match sqlx::query("select version, checksum from _sqlx_migrations where success").fetch_all(pool).await {
        Ok(rows) => rows,
        // The table is not there, or not for us: nothing has run to its end.
        Err(sqlx::Error::Database(refusal)) if matches!(refusal.code().as_deref(), Some("42P01" | "42501")) => {
            Vec::new()
        }
        Err(error) => return Err(failed(error)),
    };
    let mut applied: HashMap<i64, Vec<u8>> = HashMap::with_capacity(rows.len());
    for row in rows {
        applied.insert(row.try_get("version").map_err(failed)?, row.try_get("checksum").map_err(failed)?);
    }
    let missing = MIGRATIONS
        .iter()
        .filter(|migration| applied.get(&migration.version).is_none_or(|checksum| **checksum != *migration.checksum));
    Ok(missing.map(|migration| migration.version).collect())
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Lets the login role take on the front's roles, and see which migrations have run; by itself it may do nothing else.
async fn admit(admin: &mut PgConnection, front_role: &str) -> anyhow::Result<()> {
    let exists: bool = sqlx::query_scalar("select exists (select 1 from pg_roles where rolname = $1)")
        .bind(front_role)
        .fetch_one(&mut *admin)
        .await?;
    if !exists {
        bail!("the role {front_role:?} does not exist: create it with a password and `login` first");
    }
    let quoted: String = sqlx::query_scalar("select quote_ident($1)").bind(front_role).fetch_one(&mut *admin).await?;
    let inherits: bool = sqlx::query_scalar("select rolinherit from pg_roles where rolname = $1")
        .bind(front_role)
        .fetch_one(&mut *admin)
        .await?;
    if inherits {
        step(admin, &format!("alter role {quoted} noinherit")).await.context("cannot change the front's role")?;
    }
    for role in ROLES {
        for (member, name) in [(front_role, quoted.as_str()), ("", "current_user")] {
            let may_already: bool =
                sqlx::query_scalar(MAY_TAKE_ON).bind(member).bind(role).fetch_one(&mut *admin).await?;
            if !may_already {
                step(admin, &format!("grant {role} to {name}"))
                    .await
                    .with_context(|| format!("cannot grant {role}"))?;
            }
        }
    }
    step(admin, &format!("grant select on _sqlx_migrations to {quoted}"))
        .await
        .context("cannot grant a look at the migrations")
}

async fn step(admin: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    let mut tries = 1;
    loop {
        match sqlx::query(AssertSqlSafe(statement)).execute(&mut *admin).await {
            // A row of the catalogue was being changed (XX000), or has just been made (23505).
            Err(sqlx::Error::Database(refusal))
                if tries < TRIES && matches!(refusal.code().as_deref(), Some("XX000" | "23505")) => {}
            result => return result.map(drop),
        }
        tokio::time::sleep(TRY_AGAIN * tries).await;
        tries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The newest migration that was made before there was a rule for indexes.
    const FREE: i64 = 37;

    /// The statements that make an index, and fail where it was made beforehand, or make it concurrently, which no migration can.
    fn unfit(sql: &str) -> Vec<String> {
        let code = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
        let statements = code.split(';').map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" "));
        let makes = |statement: &String| {
            let made = ["create index ", "create unique index "].iter().find_map(|make| statement.split_once(make));
            made.is_some_and(|(_, rest)| !rest.starts_with("if not exists "))
        };
        statements.map(|statement| statement.to_lowercase()).filter(makes).collect()
    }

    #[test]
    fn an_index_of_a_migration_may_have_been_made_beforehand() {
        assert_eq!(
            unfit("create table t (a int);\n-- create index t_a on t (a);\ncreate index if not exists t_a on t (a);"),
            [""; 0]
        );
        for sql in [
            "create index t_a on t (a)",
            "CREATE UNIQUE\n    INDEX t_a on t (a)",
            "create index concurrently if not exists t_a on t (a)",
        ] {
            assert_eq!(unfit(sql).len(), 1, "{sql}");
        }
        for migration in MIGRATIONS.iter().filter(|migration| migration.version > FREE) {
            assert_eq!(unfit(migration.sql.as_str()), [""; 0], "{}", migration.version);
            assert!(!migration.no_tx, "{}", migration.version);
        }
    }
}
