//! `croft-front migrate`, and how a front tells whether it has run.

use std::process::Command;
use std::time::Duration;

use croft_front::Error;
use croft_front::audit::Place;
use croft_front::migrate;
use croft_front::models::price::cost_nano_usd;
use croft_front::models::seed::seed;
use croft_front::models_command;
use croft_front::session::across::Horizon;
use croft_front::session::retention::store::Erased;
use croft_front::session::store::NewSession;
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_proto::id::SessionId;
use croft_proto::v1::{ModelAttempt, TokenUsage};
use croft_serve::Tasks;
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{Migrate as _, Migrator};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::contract;
use crate::contract::audit::{action, intact, verified};
use crate::contract::fixtures::{append, appended, at, attempt, get, insert, new_session, session, tenant, terminated};
use crate::database::{Database, FRONT_ROLE, OWNER_ROLE, execute};

const GONE: Uuid = Uuid::nil();

#[tokio::test]
async fn the_front_knows_whether_they_have_run() {
    let database = Database::empty().await;
    let front = Postgres::connect(&database.url_of(FRONT_ROLE), 1).await.unwrap();
    assert!(matches!(front.check().await, Err(Error::Unavailable { .. })));
    migrate::run(&database.admin_url(), FRONT_ROLE).await.unwrap();
    front.check().await.unwrap();

    let mut admin = database.admin().await;
    execute(&mut admin, "update _sqlx_migrations set checksum = 'other' where version = 3").await.unwrap();
    assert!(front.check().await.is_err(), "another migration ran under this number");
    execute(&mut admin, "delete from _sqlx_migrations where version = 3").await.unwrap();
    assert!(front.check().await.is_err(), "one is missing");
    database.end().await;
}

#[tokio::test]
async fn they_can_be_repeated_and_leave_an_admins_prices_alone() {
    let database = Database::migrated().await;
    let mut admin = database.admin().await;
    let edits = "update prices set input_usd = 0.5, source = 'our contract' where model_id = 'scripted-1';
        delete from prices where model_id = 'gpt-6-luna'";
    execute(&mut admin, edits).await.unwrap();
    // Two at once, as when two releases are rolled out.
    let url = database.admin_url();
    let (first, second) = tokio::join!(migrate::run(&url, FRONT_ROLE), migrate::run(&url, FRONT_ROLE));
    first.unwrap();
    second.unwrap();
    let models = Stores::postgres(&database.front().await, &Tasks::new()).models.load().await.unwrap();
    let prices = |id: &str| &models.iter().find(|model| model.model_id == id).unwrap().prices;
    assert_eq!((&*prices("scripted-1")[0].input_usd, &*prices("scripted-1")[0].source), ("0.5", "our contract"));
    assert_eq!(prices("gpt-6-luna").len(), 1, "what is missing comes back");
    assert_eq!(models.len(), seed().len());
    database.end().await;
}

/// A list price of the release that was newer than a contract's ended it, and budgets went by it from then on.
#[tokio::test]
async fn they_end_no_price_of_an_admins() {
    let database = Database::migrated().await;
    let mut admin = database.admin().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let seeds = |id: &str| seed().into_iter().find(|model| model.model_id == id).unwrap().prices;
    let edits = "update prices set effective_from = '2019-01-01Z', input_usd = 0.5, source = 'our contract' where model_id = 'scripted-1';
        delete from prices where model_id = 'gpt-6-luna'";
    execute(&mut admin, edits).await.unwrap();
    for _ in 0..2 {
        migrate::run(&database.admin_url(), FRONT_ROLE).await.unwrap();
        let models = stores.models.load().await.unwrap();
        let of = |id: &str| models.iter().find(|model| model.model_id == id).unwrap();
        let usage = Some(TokenUsage { input_uncached_tokens: 1_000_000, ..TokenUsage::default() });
        let attempt = ModelAttempt { model: "scripted-1".into(), usage, ..ModelAttempt::default() };
        assert_eq!(cost_nano_usd(of("scripted-1"), &attempt, i64::MAX), Some(500_000_000));
        assert_eq!(of("gpt-6-luna").prices, seeds("gpt-6-luna"), "what ends nobody's comes back");
    }
    // Where the contract begins later, it has the last word in any case.
    execute(&mut admin, "update prices set effective_from = '2999-01-01Z' where model_id = 'scripted-1'")
        .await
        .unwrap();
    migrate::run(&database.admin_url(), FRONT_ROLE).await.unwrap();
    let models = stores.models.load().await.unwrap();
    let mut prices = models.into_iter().find(|model| model.model_id == "scripted-1").unwrap().prices;
    prices.retain(|price| price.source != "our contract");
    assert_eq!(prices, seeds("scripted-1"));
    database.end().await;
}

/// Sessions that named the admin's model by its alias went to the release's from then on, and a file that named either was refused.
#[tokio::test]
async fn a_model_with_a_name_that_an_admin_gave_to_another_is_not_added() {
    let database = Database::migrated().await;
    let mut admin = database.admin().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let migrate = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_croft-front"));
        let url = format!("--postgres-url={}", database.admin_url().expose_secret());
        let output = program.env_clear().args(["migrate", &url, "--front-role", FRONT_ROLE]).output().unwrap();
        let log = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
        assert!(output.status.success(), "{log}");
        log
    };
    let whole = stores.models.load().await.unwrap();
    let by = "claude-haiku-4-5-20251001";
    for (left_out, ours, alias, shared) in [
        ("gpt-6-luna", "house-1", "gpt-6-luna", "gpt-6-luna"),
        ("claude-haiku-4-5", by, "house", by),
        ("claude-haiku-4-5", "house-1", by, by),
    ] {
        let edits = format!(
            "delete from models where model_id = '{left_out}';
            insert into models (model_id, provider, aliases) values ('{ours}', 'openai', '{{{alias}}}')"
        );
        execute(&mut admin, &edits).await.unwrap();
        let before = stores.models.load().await.unwrap();
        let log = migrate();
        assert_eq!(stores.models.load().await.unwrap(), before, "{log}");
        let mut lines = log.lines().filter(|line| line.contains("is not added"));
        let told = lines.next().unwrap();
        assert!([left_out, ours, shared].iter().all(|name| told.contains(&format!("\"{name}\""))), "{told}");
        assert_eq!(lines.next(), None);

        // Once the name is free, the model comes.
        execute(&mut admin, &format!("delete from models where model_id = '{ours}'")).await.unwrap();
        assert!(!migrate().contains("is not added"));
        assert_eq!(stores.models.load().await.unwrap(), whole);
    }
    database.end().await;
}

#[tokio::test]
async fn an_older_release_runs_on_a_newer_schema() {
    let database = Database::migrated().await;
    let newer = "insert into _sqlx_migrations select 9999, 'from the future', now(), true, 'checksum', 1";
    execute(&mut database.admin().await, newer).await.unwrap();
    migrate::run(&database.admin_url(), FRONT_ROLE).await.unwrap();
    database.front().await.check().await.unwrap();
    database.end().await;
}

/// After a rollback, fronts that took a table for what it was when they were built did not start.
#[tokio::test]
async fn an_older_release_reads_and_writes_tables_with_columns_that_it_does_not_know() {
    let database = Database::migrated().await;
    let mut admin = database.admin().await;
    let widen = "do $$ declare name text; begin
        for name in select table_name from information_schema.tables
            where table_schema = current_schema() and table_type = 'BASE TABLE' and table_name <> '_sqlx_migrations'
        loop
            execute format('alter table %I add column later int not null default 0', name);
        end loop;
    end $$";
    execute(&mut admin, widen).await.unwrap();
    let wide = count(&mut admin, "information_schema.columns where column_name = 'later'".to_owned()).await;
    assert!(wide > 15, "{wide}");
    migrate::run(&database.admin_url(), FRONT_ROLE).await.unwrap();
    let front = database.front().await;
    front.check().await.unwrap();
    let stores = Stores::postgres(&front, &Tasks::new());
    contract::models::holds_the_seed(&stores).await;
    contract::across::tells_each_change_of_state_from_a_horizon_on(&stores).await;
    contract::sessions::survives_a_round_trip_in_full(&stores).await;
    contract::sessions::answers_a_repeated_key_with_the_same_session(&stores).await;
    contract::sessions::lists_in_pages_newest_first(&stores).await;
    contract::sessions::has_one_child_for_each_call_of_a_parent(&stores).await;
    contract::asking::are_those_that_were_left_with_a_question_or_run_and_have_asked(&stores).await;
    contract::events::projects_state(&stores).await;
    contract::events::replaces_the_checkpoint(&stores).await;
    contract::events::answers_a_repeated_key_with_the_same_number(&stores).await;
    contract::leases::passes_on_when_it_runs_out(&stores).await;
    contract::turns::begins_with_lease_and_message_together(&stores).await;
    contract::turns::gives_the_lease_up_with_the_last_word(&stores).await;
    contract::usage::adds_to_the_sessions_totals(&stores).await;
    contract::usage::adds_what_an_ended_session_used(&stores).await;
    contract::usage::summarizes_by_each_dimension(&stores).await;
    contract::budgets::replaces_and_takes_away(&stores).await;
    contract::budgets::adds_up_each_account_as_the_rows_do(&stores).await;
    contract::budgets::tells_of_a_threshold_once(&stores).await;
    contract::audit::numbers_and_chains_each_tenant(&stores).await;
    contract::keys::finds_what_was_stored(&stores).await;
    contract::retention::erases_a_large_session_in_slices_and_shows_none_of_it(&stores).await;
    contract::removal::erases_in_batches_and_keeps_the_books(&stores).await;
    let house = "- { modelId: house-1, provider: openai, prices: [{ effectiveFrom: 2026-11-01T00:00:00Z, inputUsd: '1', outputUsd: '2', source: ours }] }";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), house).unwrap();
    models_command::apply(file.path(), &database.admin_url()).await.unwrap();
    database.end().await;
}

/// While a release is rolled out, fronts of the one before call the functions that they know: without senders, and without tiers.
#[tokio::test]
async fn a_front_of_an_earlier_release_meters_as_before() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    let mut older = database.login(FRONT_ROLE).await;
    for (id, tier, knows) in [("a", "", ""), ("b", "flex", ", array['flex']")] {
        let appended = format!(
            "select lease_epoch from croft_append('{tenant}', '{{{session}}}', '{{1}}', '{{null}}', '{{null}}', '{{null}}',
                '{{null}}', '{{null}}', '{{null}}', array[now()], '{{null}}', '{{null}}', '{{null}}', '{{null}}', '{{f}}', '{{f}}',
                '{{1}}', '{{1}}', '{{model_attempt}}', '{{null}}', array[now()], array[''::bytea], '{{{session}}}', '{{{id}}}',
                '{{scripted}}', '{{scripted-1}}', '{{1}}', '{{2}}', '{{3}}', '{{4}}', '{{5}}', '{{6}}', '{{7}}', '{{8}}',
                '{{end_turn}}', array[''], '{{f}}', array[now()], '{{platform}}'{knows})",
            tenant = tenant.0,
            session = session.0,
        );
        execute(&mut older, &appended).await.unwrap();
        let metered = format!(
            "begin; set local role croft_request; set local croft.tenant = '{tenant}';
            select attempts from croft_meter('{tenant}', '{{{session}}}', '{{{session}}}', '{{{id}2}}', '{{scripted}}',
                '{{scripted-1}}', '{{1}}', '{{2}}', '{{3}}', '{{4}}', '{{5}}', '{{6}}', '{{7}}', '{{8}}', '{{end_turn}}', array[''],
                '{{f}}', array[now()], '{{platform}}'{knows});
            commit",
            tenant = tenant.0,
            session = session.0,
        );
        execute(&mut older, &metered).await.unwrap();
        let usage = stores.usage.list(tenant, None, None, None, 10).await.unwrap();
        let ours: Vec<_> = usage.iter().filter(|row| row.attempt_id.starts_with(id)).collect();
        assert_eq!(ours.len(), 2, "{usage:?}");
        assert!(
            ours.iter().all(|row| row.service_tier == tier && row.sender.is_empty() && row.latency_ms == 8),
            "{ours:?}"
        );
    }
    let usage = get(&stores, tenant, session).await.usage;
    assert_eq!((usage.attempts, usage.cost_nano_usd), (4, 28));
    database.end().await;
}

#[tokio::test]
async fn a_missing_role_is_named() {
    let database = Database::empty().await;
    let error = migrate::run(&database.admin_url(), "nobody's \"front\"").await.unwrap_err();
    assert!(error.to_string().contains("create it with a password"), "{error}");
    database.end().await;
}

/// Row security is forced on the owner, so what looks across tenants must be let through for it by name.
#[tokio::test]
async fn an_owner_who_is_no_superuser_can_run_them() {
    let database = Database::empty().await;
    let mut admin = database.admin().await;
    execute(&mut admin, &format!("alter database {} owner to {OWNER_ROLE}", database.name)).await.unwrap();
    migrate::run(&SecretString::from(database.url_of(OWNER_ROLE)), FRONT_ROLE).await.unwrap();

    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    appended(&stores, append(tenant, session, vec![attempt("a", Some(1))])).await;
    assert_eq!(get(&stores, tenant, session).await.usage.attempts, 1);
    stores.leases.acquire(tenant, session, "front-0", Duration::ZERO).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap().len(), 1);
    assert_eq!(stores.across.due(at(999), 10).await.unwrap(), []);
    assert_eq!(stores.across.changed(&Horizon::default(), (0, SessionId(Uuid::nil())), 10).await.unwrap().len(), 1);
    let timed = NewSession { idle_timeout_ms: 1_000, ..new_session(tenant) };
    let timed = insert(&stores, timed).await.id;
    assert_eq!(stores.across.due(at(999), 10).await.unwrap(), [(tenant, timed)]);
    stores.audit.append(Place::start(), vec![action(tenant, "sessions/1"); 2]).await.unwrap();
    assert_eq!(verified(&stores, tenant).await, intact(2));
    // And as the owner, `api-key create` works, while a look without a tenant shows nothing.
    let owner = Postgres::connect(&database.url_of(OWNER_ROLE), 1).await.unwrap();
    assert_eq!(owner.tenant_named("ours").await.unwrap(), Some(tenant));
    assert_eq!(owner.tenant_named("theirs").await.unwrap(), None);
    let mut login = database.login(OWNER_ROLE).await;
    let seen: i64 = sqlx::query_scalar("select count(*) from sessions").fetch_one(&mut login).await.unwrap();
    assert_eq!(seen, 0);

    // What ended long ago can be erased, in slices.
    let old = self::session(&stores, tenant).await;
    appended(&stores, append(tenant, old, vec![terminated("done")])).await;
    for slice in [Erased { sessions: 0, events: 2 }, Erased { sessions: 1, events: 1 }, Erased::default()] {
        assert_eq!(stores.retention.erase_ended(tenant, at(9), 10, 2).await.unwrap(), slice);
    }

    // And a tenant of such an owner's can be removed.
    for id in [session, timed] {
        appended(&stores, append(tenant, id, vec![terminated("gone")])).await;
    }
    stores.removal.begin(tenant, "ours").await.unwrap();
    assert!(stores.removal.erase_rows(tenant, 100).await.unwrap() >= 9);
    assert_eq!(stores.removal.count_rows(tenant, 100).await.unwrap(), 0);
    database.end().await;
}

/// A database of an owner who is no superuser, with the migrations before 28 and, of two tenants, a session, a budget of each kind, and
/// alerts; the session `GONE` is not there.
async fn before_sessions_were_hidden() -> (Database, [Uuid; 2]) {
    let database = Database::empty().await;
    let mut admin = database.admin().await;
    execute(&mut admin, &format!("alter database {} owner to {OWNER_ROLE}", database.name)).await.unwrap();
    migrate_to(&database, 27).await;
    let tenants = [Uuid::now_v7(), Uuid::now_v7()];
    for tenant in tenants {
        let there = Uuid::now_v7();
        let rows = format!(
            "insert into tenants (tenant_id, name) values ('{tenant}', '{tenant}');
            insert into sessions (tenant_id, session_id, state, agent, agent_name, config_hash, create_time, update_time, last_seq)
                values ('{tenant}', '{there}', 'idle', '', 'helper', '', now(), now(), 1);
            insert into budgets (tenant_id, scope, subject, limit_tokens)
                values ('{tenant}', 'session', '{there}', 1), ('{tenant}', 'session', '{GONE}', 1),
                    ('{tenant}', 'session', 'no id', 1), ('{tenant}', 'tenant', '', 1);
            insert into budget_alerts (tenant_id, scope, subject, period, unit, limit_amount, percent, spent_amount, session_id)
                values ('{tenant}', 'session', '{there}', 'life', 'tokens', 1, 80, 1, '{there}'),
                    ('{tenant}', 'session', '{GONE}', 'life', 'tokens', 1, 80, 1, '{GONE}')"
        );
        execute(&mut admin, &rows).await.unwrap();
    }
    (database, tenants)
}

/// As the database's owner.
async fn migrate_to(database: &Database, newest: i64) {
    let all = sqlx::migrate!("../../migrations");
    let older = all.iter().filter(|migration| migration.version <= newest).cloned().collect();
    Migrator::with_migrations(older).run(&mut database.login(OWNER_ROLE).await).await.unwrap();
}

async fn count(connection: &mut PgConnection, rows: String) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {rows}"))).fetch_one(connection).await.unwrap()
}

/// Nothing took them away while the release before this one erased sessions.
#[tokio::test]
async fn budgets_of_sessions_that_are_gone_go_whoever_owns_the_database() {
    let (database, tenants) = before_sessions_were_hidden().await;
    migrate::run(&SecretString::from(database.url_of(OWNER_ROLE)), FRONT_ROLE).await.unwrap();
    let mut admin = database.admin().await;
    for (table, left) in [("budgets", 2), ("budget_alerts", 1)] {
        for tenant in tenants {
            assert_eq!(count(&mut admin, format!("{table} where tenant_id = '{tenant}'")).await, left, "{table}");
        }
    }
    database.end().await;
}

/// Tables of sessions and leases were locked meanwhile, so that no lease could be renewed.
#[tokio::test]
async fn fronts_go_on_while_budgets_of_sessions_that_are_gone_go() {
    let (database, _) = before_sessions_were_hidden().await;
    migrate_to(&database, 28).await;
    let (mut holder, mut admin) = (database.admin().await, database.admin().await);
    let held = format!("begin; select from budgets where subject = '{GONE}' for update");
    execute(&mut holder, &held).await.unwrap();
    let url = SecretString::from(database.url_of(OWNER_ROLE));
    let meanwhile = async {
        let waiting = "pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        while count(&mut admin, waiting.to_owned()).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let works =
            "begin; set local lock_timeout = '2s'; lock table sessions, leases, events in row exclusive mode; commit";
        let worked = execute(&mut admin, works).await;
        execute(&mut holder, "rollback").await.unwrap();
        worked
    };
    let meanwhile = tokio::time::timeout(Duration::from_secs(90), meanwhile);
    let (ran, worked) = tokio::join!(migrate::run(&url, FRONT_ROLE), meanwhile);
    ran.unwrap();
    worked.expect("none goes, or they went with migration 28").unwrap();
    database.end().await;
}

/// A migration that waited for its lock, behind a dump of the database, kept all fronts waiting behind it, for as long as the dump took.
#[tokio::test]
async fn fronts_go_on_while_a_migration_lacks_its_lock() {
    let (database, _) = before_sessions_were_hidden().await;
    let (mut dump, mut front, mut admin) = (database.admin().await, database.admin().await, database.admin().await);
    execute(&mut dump, "begin; lock table sessions in access share mode").await.unwrap();
    execute(&mut front, "set lock_timeout = '60s'").await.unwrap();
    let url = SecretString::from(database.url_of(OWNER_ROLE));
    let meanwhile = async {
        let waiting = "pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
            and application_name = 'croft-front migrate'";
        // More than once: the first time may be luck.
        for _ in 0..2 {
            while count(&mut admin, waiting.to_owned()).await == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            execute(&mut front, "select from sessions").await?;
        }
        execute(&mut dump, "rollback").await
    };
    let meanwhile = tokio::time::timeout(Duration::from_secs(90), meanwhile);
    let (ran, worked) = tokio::join!(migrate::run(&url, FRONT_ROLE), meanwhile);
    worked.expect("it waits for no lock").unwrap();
    ran.unwrap();
    database.front().await.check().await.unwrap();
    database.end().await;
}

/// It gave up after two seconds, again and again, and failed in the end though all was well.
#[tokio::test]
async fn one_waits_for_another_for_as_long_as_that_takes() {
    waits_for_another(Database::empty().await).await;
}

/// Cut short, the index that a migration made was begun anew with each pod, and kept writers waiting each time.
#[tokio::test]
async fn a_database_whose_statements_have_little_time_leaves_migrations_as_much_as_they_take() {
    let database = Database::empty().await;
    let little = format!("alter database {} set statement_timeout = '1s'", database.name);
    execute(&mut database.server().await, &little).await.unwrap();
    waits_for_another(database).await;
}

async fn waits_for_another(database: Database) {
    let (mut other, mut admin) = (database.admin().await, database.admin().await);
    other.lock().await.unwrap();
    let url = database.admin_url();
    let meanwhile = async {
        let waits = "pg_stat_activity where datname = current_database() and application_name = 'croft-front migrate'
            and wait_event = 'advisory' and clock_timestamp() - query_start > interval '4s'";
        while count(&mut admin, waits.to_owned()).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        other.unlock().await.unwrap();
    };
    let meanwhile = tokio::time::timeout(Duration::from_secs(90), meanwhile);
    let (ran, waited) = tokio::join!(migrate::run(&url, FRONT_ROLE), meanwhile);
    waited.expect("it does not wait that long");
    ran.unwrap();
    database.front().await.check().await.unwrap();
    database.end().await;
}

/// Until the table was next analysed, lists of sessions went through all of it.
#[tokio::test]
async fn the_planner_knows_at_once_that_few_sessions_are_hidden() {
    let (database, _) = before_sessions_were_hidden().await;
    migrate::run(&SecretString::from(database.url_of(OWNER_ROLE)), FRONT_ROLE).await.unwrap();
    let shown: Option<f32> =
        sqlx::query_scalar("select null_frac from pg_stats where tablename = 'sessions' and attname = 'erase_time'")
            .fetch_optional(&mut database.admin().await)
            .await
            .unwrap();
    assert_eq!(shown, Some(1.0));
    database.end().await;
}

/// While a release is rolled out, fronts of the one before erase sessions as they know how to.
#[tokio::test]
async fn a_front_that_erases_sessions_at_once_leaves_no_budgets_behind() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let [old, kept] = [session(&stores, tenant).await, session(&stores, tenant).await];
    let mut admin = database.admin().await;
    for id in [old, kept] {
        let rows = format!(
            "insert into budgets (tenant_id, scope, subject, limit_tokens) values ('{tenant}', 'session', '{id}', 1);
            insert into budget_alerts (tenant_id, scope, subject, period, unit, limit_amount, percent, spent_amount, session_id)
                values ('{tenant}', 'session', '{id}', 'life', 'tokens', 1, 80, 1, '{id}')"
        );
        execute(&mut admin, &rows).await.unwrap();
    }
    appended(&stores, append(tenant, old, vec![terminated("done")])).await;
    let erases = format!(
        "begin; set local role croft_request; set local croft.tenant = '{tenant}';
        select croft_erase_ended_sessions(now(), 10);
        commit"
    );
    execute(&mut database.login(FRONT_ROLE).await, &erases).await.unwrap();
    for table in ["sessions", "budgets", "budget_alerts"] {
        assert_eq!(count(&mut admin, format!("{table} where tenant_id = '{tenant}'")).await, 1, "{table}");
    }
    database.end().await;
}

#[tokio::test]
async fn a_name_leads_to_its_newest_tenant() {
    let database = Database::migrated().await;
    let front = database.front().await;
    let stores = Stores::postgres(&front, &Tasks::new());
    let gone = tenant(&stores, "acme").await;
    assert_eq!(front.tenant_named("acme").await.unwrap(), Some(gone));
    let anew = tenant(&stores, "acme").await;
    assert_eq!(front.tenant_named("acme").await.unwrap(), Some(anew));
    database.end().await;
}
