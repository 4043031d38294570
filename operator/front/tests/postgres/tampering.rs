//! The audit log only grows, and whoever gets past that is found out.

use std::sync::Arc;
use std::time::Duration;

use croft_front::Error;
use croft_front::audit::spool::Folder;
use croft_front::audit::writer::AuditWriter;
use croft_front::audit::{Action, Place};
use croft_front::metrics::Metrics;
use croft_front::store::Stores;
use croft_proto::id::TenantId;
use croft_serve::Tasks;
use prometheus::Registry;
use sqlx::{PgConnection, Row};

use crate::contract::audit::{action, broken_at, intact, known, verified, verified_with};
use crate::contract::fixtures::two_tenants;
use crate::database::{Database, FRONT_ROLE, OWNER_ROLE, execute};

const RECORDS: i64 = 5;

async fn five_records(stores: &Stores) -> TenantId {
    let [ours, theirs] = two_tenants(stores).await;
    let batch = (1..=RECORDS).flat_map(|number| [action(ours, &number.to_string()), action(theirs, "x")]);
    stores.audit.append(Place::start(), batch.collect()).await.unwrap();
    ours
}

/// What a connection is refused, with a transaction of its own around it.
async fn refused(connection: &mut PgConnection, statements: &str) -> String {
    let outcome = execute(connection, &format!("begin; {statements}")).await;
    execute(connection, "rollback").await.unwrap();
    outcome.expect_err(statements).to_string()
}

/// A call is recorded also where its caller made up a name that is none: PostgreSQL has no text with a zero in it.
#[tokio::test]
async fn a_name_that_the_database_does_not_take_holds_up_no_record() {
    let database = Database::migrated().await;
    let tasks = Tasks::new();
    let stores = Stores::postgres(&database.front().await, &tasks);
    let [ours, theirs] = two_tenants(&stores).await;
    let raw = stores.audit.append(Place::start(), vec![action(ours, "sessions/\0")]).await;
    assert!(matches!(raw, Err(Error::Invalid { .. })), "{raw:?}");
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let writer = AuditWriter::start(Arc::clone(&stores.audit), None, metrics, &tasks).await.unwrap();
    writer.record(action(ours, "sessions/\0")).await;
    writer.record(action(theirs, "sessions/1")).await;
    assert_eq!(writer.unwritten(Duration::from_secs(90)).await, 0);
    for (tenant, expected) in [(ours, "sessions/\u{fffd}"), (theirs, "sessions/1")] {
        let records = stores.audit.list(tenant, 0, 10).await.unwrap();
        assert_eq!(records.iter().map(|record| &*record.resource).collect::<Vec<_>>(), [expected]);
    }
    drop(writer);
    assert_eq!(tasks.shutdown(Duration::from_secs(90)).await, 0);
    database.end().await;
}

#[tokio::test]
async fn the_front_can_only_add_records_and_chooses_no_number_no_time_and_no_hash() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = five_records(&stores).await;
    let mut front = database.login(FRONT_ROLE).await;
    let forged = |column: &str, value: &str| {
        format!(
            "insert into audit_log (tenant_id, actor, action, resource, outcome, {column})
            values ('{tenant}', 'a', 'b', 'c', 'd', {value})"
        )
    };
    let attempts = [
        "update audit_log set outcome = 'ok'".to_owned(),
        "delete from audit_log".to_owned(),
        "truncate audit_log".to_owned(),
        forged("number", "9"),
        forged("create_time", "now()"),
        forged("hash", "sha256('x')"),
        "update audit_heads set number = 4".to_owned(),
        "delete from audit_heads".to_owned(),
        format!("insert into audit_heads values ('{tenant}', 9, sha256('x'))"),
        "alter table audit_log disable trigger only_grows".to_owned(),
        "alter table audit_log no force row level security".to_owned(),
        "drop policy one_tenant on audit_log".to_owned(),
        "set local session_replication_role = replica".to_owned(),
        "create or replace function audit_log_refuse() returns trigger language plpgsql as 'begin return null; end'"
            .to_owned(),
    ];
    for attempt in &attempts {
        for role in ["croft_request", "croft_writer", FRONT_ROLE] {
            let set = format!("set local role {role}; set local croft.tenant = '{tenant}'; {attempt}");
            let told = refused(&mut front, &set).await;
            assert!(told.contains("permission denied") || told.contains("must be owner"), "{role}, {attempt}: {told}");
        }
    }
    assert_eq!(verified(&stores, tenant).await, intact(5));
    database.end().await;
}

/// The owner of the tables needs to turn off two things before a record changes, and a superuser the trigger alone.
#[tokio::test]
async fn the_owner_changes_nothing_either_unless_trigger_and_row_security_are_turned_off() {
    let database = Database::empty().await;
    let mut superuser = database.admin().await;
    execute(&mut superuser, &format!("alter database {} owner to {OWNER_ROLE}", database.name)).await.unwrap();
    croft_front::migrate::run(&database.url_of(OWNER_ROLE).into(), FRONT_ROLE).await.unwrap();
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = five_records(&stores).await;
    let mut owner = database.login(OWNER_ROLE).await;
    for statement in ["update audit_log set outcome = 'x'", "delete from audit_log", "truncate audit_log"] {
        for connection in [&mut owner, &mut superuser] {
            let told = refused(connection, statement).await;
            assert!(told.contains("the audit log only grows"), "{statement}: {told}");
        }
    }
    let change = format!("update audit_log set outcome = 'x' where number = 2 and tenant_id = '{tenant}'");
    execute(&mut owner, "alter table audit_log disable trigger only_grows").await.unwrap();
    assert_eq!(execute(&mut owner, &change).await.unwrap(), 0, "row security is forced on the owner");
    assert_eq!(verified(&stores, tenant).await, intact(5));
    execute(&mut owner, "alter table audit_log no force row level security").await.unwrap();
    assert_eq!(execute(&mut owner, &change).await.unwrap(), 1);
    assert_eq!(verified(&stores, tenant).await, broken_at(2));
    database.end().await;
}

/// The columns of a table and how a value of each is turned into another. Read from the catalog, so that a new one is not forgotten.
async fn columns(connection: &mut PgConnection, table: &str) -> Vec<(String, String)> {
    let rows = sqlx::query(
        "select attname::text, format_type(atttypid, null) from pg_attribute
        where attrelid = $1::regclass and attnum > 0 and not attisdropped order by attnum",
    )
    .bind(table)
    .fetch_all(connection)
    .await
    .unwrap();
    let another = |name: &str, kind: &str| match kind {
        "uuid" => "gen_random_uuid()".to_owned(),
        "bigint" => format!("{name} + 1000"),
        "text" => format!("{name} || ' '"),
        "timestamp with time zone" => format!("{name} + interval '1 microsecond'"),
        "bytea" => format!("set_byte({name}, 31, get_byte({name}, 31) # 1)"),
        kind => panic!("{table}.{name} is a {kind}: say here how to change one, and see that the hash covers it"),
    };
    let changed = |name: String, kind: &str| (name.clone(), another(&name, kind));
    rows.iter().map(|row| changed(row.get(0), row.get(1))).collect()
}

/// As a superuser who turns all triggers off.
async fn tamper(superuser: &mut PgConnection, statements: &str) {
    execute(superuser, &format!("set session_replication_role = replica; {statements}")).await.unwrap();
}

#[tokio::test]
async fn a_change_of_any_column_of_any_record_is_found_where_it_was_made() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let mut superuser = database.admin().await;
    let columns = columns(&mut superuser, "audit_log").await;
    assert!(columns.len() >= 9, "{columns:?}");
    for (column, changed) in &columns {
        for number in 1..=RECORDS {
            let tenant = five_records(&stores).await;
            let change =
                format!("update audit_log set {column} = {changed} where number = {number} and tenant_id = '{tenant}'");
            tamper(&mut superuser, &change).await;
            assert_eq!(verified(&stores, tenant).await, broken_at(number.unsigned_abs()), "{column} of {number}");
        }
    }
    database.end().await;
}

#[tokio::test]
async fn a_change_of_any_column_of_a_logs_end_is_found() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let mut superuser = database.admin().await;
    for (column, changed) in columns(&mut superuser, "audit_heads").await {
        let tenant = five_records(&stores).await;
        tamper(&mut superuser, &format!("update audit_heads set {column} = {changed} where tenant_id = '{tenant}'"))
            .await;
        assert_eq!(verified(&stores, tenant).await, broken_at(6), "{column}");
    }
    database.end().await;
}

#[tokio::test]
async fn a_record_that_is_missing_slipped_in_or_in_anothers_place_is_found() {
    let swapped = "update audit_log set number = -2 where number = 2 and tenant_id = '$';
        update audit_log set number = 2 where number = 4 and tenant_id = '$';
        update audit_log set number = 4 where number = -2 and tenant_id = '$'";
    let exchanged =
        "update audit_log a set actor = b.actor, action = b.action, resource = b.resource, outcome = b.outcome,
            create_time = b.create_time, act_time = b.act_time, hash = b.hash
        from audit_log b where a.tenant_id = '$' and b.tenant_id = '$' and (a.number, b.number) in ((2, 3), (3, 2))";
    let copied =
        "insert into audit_log select tenant_id, #, create_time, actor, action, resource, outcome, hash, act_time
        from audit_log where number = 5 and tenant_id = '$'";
    let cases = [
        ("delete from audit_log where number = 1 and tenant_id = '$'".to_owned(), 1),
        ("delete from audit_log where number = 4 and tenant_id = '$'".to_owned(), 4),
        ("delete from audit_log where number = 5 and tenant_id = '$'".to_owned(), 5),
        ("delete from audit_log where number > 2 and tenant_id = '$'".to_owned(), 3),
        ("delete from audit_log where tenant_id = '$'".to_owned(), 1),
        ("delete from audit_heads where tenant_id = '$'".to_owned(), 6),
        (swapped.to_owned(), 2),
        (exchanged.to_owned(), 2),
        (copied.replace('#', "0"), 1),
        (copied.replace('#', "6"), 6),
        (copied.replace('#', "6") + "; update audit_heads set number = 6 where tenant_id = '$'", 6),
        (copied.replace('#', "8"), 6),
        // Without the key that forbids it: a second record of a number.
        ("alter table audit_log drop constraint audit_log_pkey; ".to_owned() + &copied.replace('#', "3"), 4),
    ];
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let mut superuser = database.admin().await;
    for (statements, number) in cases {
        let tenant = five_records(&stores).await;
        tamper(&mut superuser, &statements.replace('$', &tenant.to_string())).await;
        let found = verified(&stores, tenant).await;
        assert!(!found.intact, "{statements}");
        // Of two records of one number either may come first.
        let places = [number, if statements.contains("drop constraint") { number - 1 } else { number }];
        assert!(places.contains(&found.first_broken_number), "{statements}: {found:?}");
    }
    database.end().await;
}

/// What can't be seen in the database alone, whose owner may write all of it anew: it takes a word that was kept elsewhere.
#[tokio::test]
async fn a_log_that_was_cut_or_written_anew_with_its_end_is_found_by_what_is_known() {
    let cut = "delete from audit_log where number > 3 and tenant_id = '$';
        update audit_heads set number = 3, hash = (select hash from audit_log where number = 3 and tenant_id = '$')
        where tenant_id = '$'";
    let anew =
        "create temporary table kept on commit drop as select * from audit_log where tenant_id = '$' order by number;
        delete from audit_log where tenant_id = '$'; delete from audit_heads where tenant_id = '$';
        select croft_append_audit(array_agg(tenant_id order by number), array_agg(actor order by number),
            array_agg(action order by number), array_agg(resource order by number),
            array_agg(case number when 2 then 'denied' else outcome end order by number)) from kept";
    let nothing = "delete from audit_log where tenant_id = '$'; delete from audit_heads where tenant_id = '$'";
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let mut superuser = database.admin().await;
    for (statements, left, broken) in [(cut, 3, 4), (anew, 5, 5), (nothing, 0, 1)] {
        let tenant = five_records(&stores).await;
        let kept = known(&stores, tenant).await;
        tamper(&mut superuser, &statements.replace('$', &tenant.to_string())).await;
        assert_eq!(verified(&stores, tenant).await, intact(left), "{statements}");
        assert_eq!(verified_with(&stores, tenant, Some(kept)).await, broken_at(broken), "{statements}");
    }
    database.end().await;
}

/// Each number that it gives is there already. It was tried again for ever, and with it what others had in the same batch and behind it.
#[tokio::test]
async fn a_log_whose_end_was_set_back_holds_up_no_others() {
    let (database, tasks) = (Database::migrated().await, Tasks::new());
    let stores = Stores::postgres(&database.front().await, &tasks);
    let (broken, whole) = (five_records(&stores).await, five_records(&stores).await);
    let mut superuser = database.admin().await;
    tamper(&mut superuser, &format!("update audit_heads set number = 1 where tenant_id = '{broken}'")).await;
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let writer = AuditWriter::start(Arc::clone(&stores.audit), None, metrics, &tasks).await.unwrap();
    for _ in 0..2 {
        tokio::join!(writer.record(action(broken, "another")), writer.record(action(whole, "another")));
    }
    assert_eq!(writer.unwritten(Duration::from_secs(90)).await, 0);
    assert_eq!(verified(&stores, whole).await, intact(7));
    assert!(!verified(&stores, broken).await.intact);
    drop(writer);
    assert_eq!(tasks.shutdown(Duration::from_secs(90)).await, 0);
    database.end().await;
}

/// A batch without records was taken, and moved the end of a journal as far as anybody liked: from then on each record was taken for stored.
#[tokio::test]
async fn a_front_whose_journal_somebody_else_wrote_to_loses_no_record() {
    let (database, tasks) = (Database::migrated().await, Tasks::new());
    let stores = Stores::postgres(&database.front().await, &tasks);
    let [ours, theirs] = two_tenants(&stores).await;
    let (metrics, folder) = (Metrics::register(&Registry::new()).unwrap(), tempfile::tempdir().unwrap());
    let folder = Folder { path: folder.path().to_owned(), bytes_max: 1 << 20 };
    let writer = AuditWriter::start(Arc::clone(&stores.audit), Some(&folder), metrics.clone(), &tasks).await.unwrap();
    writer.record(action(ours, "before")).await;
    assert_eq!(writer.unwritten(Duration::from_secs(90)).await, 0);

    let journal: uuid::Uuid =
        sqlx::query_scalar("select journal from audit_journals").fetch_one(&mut database.admin().await).await.unwrap();
    let mut front = database.login(FRONT_ROLE).await;
    let far = i64::MAX - 1;
    let empty = "'{}', '{}', '{}', '{}', '{}'";
    for batch in [empty.to_owned(), format!("{empty}, '{{}}'")] {
        let appends =
            format!("set local role croft_writer; select croft_append_audit_once('{journal}', {far}, {batch})");
        let told = refused(&mut front, &appends).await;
        assert!(told.contains("a batch has records"), "{batch}: {told}");
    }
    let poisoned = format!(
        "begin; set local role croft_writer; set local croft.tenant = '{theirs}';
        select croft_append_audit_once(
            '{journal}', {far}, array['{theirs}'::uuid], array['a'], array['b'], array['c'], array['d'], array[7]::bigint[]
        );
        commit"
    );
    execute(&mut front, &poisoned).await.unwrap();
    for resource in ["behind", "further behind"] {
        writer.record(action(ours, resource)).await;
        assert_eq!(writer.unwritten(Duration::from_secs(90)).await, 0);
    }
    let records = stores.audit.list(ours, 0, 10).await.unwrap();
    let resources: Vec<_> = records.iter().map(|record| &*record.resource).collect();
    assert_eq!(resources, ["before", "behind", "further behind"]);
    assert_eq!(metrics.audit_refused.get(), 1, "and it is told");
    assert_eq!(verified(&stores, ours).await, intact(3));
    drop(writer);
    assert_eq!(tasks.shutdown(Duration::from_secs(90)).await, 0);
    database.end().await;
}

/// What the hash covered was not what the column could hold, and the chain did not fit any more.
#[tokio::test]
async fn an_act_of_no_time_that_there_is_is_refused_and_its_chain_goes_on() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = five_records(&stores).await;
    for act_micros in [(1 << 53) + 1, 4_102_444_800_000_001, -1, i64::MAX, i64::MIN] {
        let act = Action { act_micros: Some(act_micros), ..action(tenant, "x") };
        let outcome = stores.audit.append(Place::start(), vec![action(tenant, "x"), act]).await;
        let is_refused = matches!(&outcome, Err(Error::Invalid { problem, .. }) if problem.contains("of this century"));
        assert!(is_refused, "{act_micros}: {outcome:?}");
    }
    for act_micros in [0, 1, 4_102_444_799_999_999, 4_102_444_800_000_000] {
        let act = Action { act_micros: Some(act_micros), ..action(tenant, "x") };
        stores.audit.append(Place::start(), vec![act]).await.unwrap();
    }
    assert_eq!(verified(&stores, tenant).await, intact(9));
    database.end().await;
}

/// A record had the time at which its batch had begun to wait for others.
#[tokio::test]
async fn no_record_seems_older_than_those_before_it() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [one, other] = two_tenants(&stores).await;
    stores.audit.append(Place::start(), vec![action(one, "1"), action(other, "1")]).await.unwrap();
    // By tenant: the lower one is waited for.
    let [held, free] = if one.0 < other.0 { [one, other] } else { [other, one] };
    let (mut holder, mut watcher) = (database.admin().await, database.admin().await);
    execute(&mut holder, &format!("begin; select from audit_heads where tenant_id = '{held}' for update"))
        .await
        .unwrap();
    let place = Place::start();
    let long = async {
        loop {
            // A lock is waited for only so long, and whoever watches may take longer.
            match stores.audit.append(place, vec![action(held, "2"), action(free, "3")]).await {
                Err(Error::Unavailable { .. }) => {}
                outcome => return outcome,
            }
        }
    };
    let meanwhile = async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.unwrap() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stores.audit.append(Place::start(), vec![action(free, "2")]).await.unwrap();
        execute(&mut holder, "commit").await.unwrap();
    };
    let (outcome, ()) = tokio::join!(long, meanwhile);
    outcome.unwrap();
    let records = stores.audit.list(free, 0, 10).await.unwrap();
    assert_eq!(records.iter().map(|record| &*record.resource).collect::<Vec<_>>(), ["1", "2", "3"]);
    let times: Vec<_> = records.iter().map(|record| record.create_time.unwrap()).collect();
    assert!(times.is_sorted_by_key(|time| (time.seconds, time.nanos)), "{times:?}");
    assert_eq!(verified(&stores, free).await, intact(3));
    database.end().await;
}

#[tokio::test]
async fn a_long_log_is_verified_in_pages() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    for _ in 0..4 {
        stores
            .audit
            .append(Place::start(), (0..500).map(|number| action(ours, &number.to_string())).collect())
            .await
            .unwrap();
    }
    assert_eq!(verified(&stores, ours).await, intact(2_000));
    stores.audit.append(Place::start(), vec![action(ours, "one more")]).await.unwrap();
    assert_eq!(verified(&stores, ours).await, intact(2_001));
    database.end().await;
}
