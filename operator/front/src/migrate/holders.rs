//! Who holds the lock that a connection waits for, in words for the log.

use std::convert::Infallible;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};

/// Several looks fall into the time for which a lock is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// `pg_blocking_pids` says 0 for a prepared transaction. Of others' processes everybody sees names, and nothing of what they do:
/// <https://www.postgresql.org/docs/15/monitoring-stats.html>.
const BLOCKING: &str = "select coalesce(
        coalesce(nullif(a.application_name, ''), 'a client') || ' of ' || coalesce(a.usename, 'the server') || ' (process ' || a.pid || ')',
        'a prepared transaction'
    )
    from unnest(pg_blocking_pids($1)) as blocking (pid)
    left join pg_stat_activity a using (pid)";

/// Notes who is in the way of this process of the server, as of the last look that found somebody, until it is dropped.
pub(super) async fn note(admin_url: &SecretString, process: i32, holders: &mut Vec<String>) -> Infallible {
    let mut connection = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Without it less is known, and that is all.
        if connection.is_none() {
            connection = PgConnection::connect(admin_url.expose_secret()).await.ok();
        }
        let Some(open) = &mut connection else { continue };
        match sqlx::query_scalar(BLOCKING).bind(process).fetch_all(open).await {
            Ok(found) if !found.is_empty() => *holders = found,
            Ok(_) => {}
            Err(_) => connection = None,
        }
    }
}
