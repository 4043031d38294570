//! `croft-front reprice`: the ledger, the sessions and the sums of budgets change together.

use croft_front::budget::{Account, Scope};
use croft_front::migrate;
use croft_front::models_command;
use croft_front::reprice_command::{Choice, Repriced, reprice};
use croft_front::store::Stores;
use croft_proto::id::TenantId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AuditRecord, ModelAttempt, UsageDimension};
use croft_serve::Tasks;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::contract::fixtures::{append, appended, attempt, get, session, two_tenants};
use crate::database::{Database, FRONT_ROLE, OWNER_ROLE, execute};
use croft_front::usage::Selection;

/// 100 tokens of input at 1 dollar for a million, and 10 of output at 5, as the seed has it for `scripted-1`.
const COST: i64 = 150_000;

#[tokio::test]
async fn what_was_not_priced_is_priced_once_and_everything_adds_up() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, theirs] = two_tenants(&stores).await;
    let (first, second) = (session(&stores, ours).await, session(&stores, theirs).await);
    appended(&stores, append(ours, first, vec![attempt("a", None), attempt("b", Some(7)), attempt("c", None)])).await;
    appended(&stores, append(theirs, second, vec![attempt("a", None)])).await;
    // The fixtures' clock is behind the seed's prices.
    execute(
        &mut database.admin().await,
        "update prices set effective_from = '2020-01-01' where model_id = 'scripted-1'",
    )
    .await
    .unwrap();

    let dry = Choice { dry_run: true, ..Choice::default() };
    let would = Repriced { looked_at: 3, changed: 3, unpriced: 0, difference_nano_usd: 3 * COST };
    assert_eq!(reprice(&database.admin_url(), dry).await.unwrap(), would);
    assert_eq!(get(&stores, ours, first).await.usage.unpriced_attempts, 2, "nothing was changed");
    assert_eq!(recorded(&stores, ours).await, [""; 0], "and nothing recorded");

    assert_eq!(reprice(&database.admin_url(), Choice::default()).await.unwrap(), would);
    let usage = get(&stores, ours, first).await.usage;
    assert_eq!((usage.attempts, usage.unpriced_attempts, usage.cost_nano_usd), (3, 0, 7 + 2 * COST));
    let sums = stores.usage.summarize(ours, Selection::default(), &[UsageDimension::Session]).await.unwrap();
    assert_eq!(sums[0].totals.unwrap(), usage);
    for (scope, subject, period) in [
        (Scope::Tenant, String::new(), "life"),
        (Scope::Tenant, String::new(), "2026-09-21"),
        (Scope::Agent, "helper".to_owned(), "2026-09"),
        (Scope::Session, first.to_string(), "life"),
        (Scope::Session, first.to_string(), "2026-09"),
    ] {
        let account = Account { scope, subject, period: period.to_owned() };
        let ledger = stores.budgets.ledgers(ours, std::slice::from_ref(&account)).await.unwrap()[0];
        assert_eq!(ledger.nano_usd, 7 + 2 * COST, "{account:?}");
        assert!(ledger.version > 3, "{account:?} is newer than before: {ledger:?}");
        assert_eq!(ledger.tokens, 330);
    }
    assert_eq!(
        reprice(&database.admin_url(), Choice::default()).await.unwrap(),
        Repriced::default(),
        "nothing is left"
    );

    let all = Choice { all: true, ..Choice::default() };
    let corrected = Repriced { looked_at: 4, changed: 1, unpriced: 0, difference_nano_usd: COST - 7 };
    assert_eq!(reprice(&database.admin_url(), all).await.unwrap(), corrected);
    assert_eq!(get(&stores, ours, first).await.usage.cost_nano_usd, 3 * COST);
    let told = |attempts, more| {
        format!(
            "croft-front reprice usage.reprice usage/1970-01-01T00:00:00Z: {attempts} attempts, {more} nano-dollars more ok"
        )
    };
    assert_eq!(recorded(&stores, ours).await, [told(2, 2 * COST), told(1, COST - 7)]);
    assert_eq!(recorded(&stores, theirs).await, [told(1, COST)]);
    database.end().await;
}

/// What was changed is recorded with it: a job that is killed, or whose record is refused, has changed nothing that nobody knows of.
#[tokio::test]
async fn nothing_is_repriced_that_is_not_recorded() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let first = session(&stores, ours).await;
    appended(&stores, append(ours, first, vec![attempt("a", None)])).await;
    let mut admin = database.admin().await;
    execute(&mut admin, "update prices set effective_from = '2020-01-01' where model_id = 'scripted-1'").await.unwrap();
    let refuses = "alter table audit_log add constraint no_record check (action <> 'usage.reprice')";
    execute(&mut admin, refuses).await.unwrap();
    let error = reprice(&database.admin_url(), Choice::default()).await.unwrap_err();
    let told = format!("{error:#}");
    assert!(told.starts_with("broken off: 0 attempts looked at") && told.contains("the audit log"), "{told}");
    assert_eq!(get(&stores, ours, first).await.usage.cost_nano_usd, 0);
    execute(&mut admin, "alter table audit_log drop constraint no_record").await.unwrap();
    assert_eq!(reprice(&database.admin_url(), Choice::default()).await.unwrap().changed, 1);
    assert_eq!(recorded(&stores, ours).await.len(), 1);
    database.end().await;
}

/// Who waited for a lock without an end held all that the transaction had, and with it the tenant's calls.
#[tokio::test]
async fn a_transaction_that_waits_for_too_long_is_broken_off_and_changes_nothing() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let id = session(&stores, ours).await;
    appended(&stores, append(ours, id, vec![attempt("a", None)])).await;
    let (mut admin, mut holder) = (database.admin().await, database.admin().await);
    execute(&mut admin, "update prices set effective_from = '2020-01-01' where model_id = 'scripted-1'").await.unwrap();
    let head = format!("insert into audit_heads values ('{ours}', 0, decode(repeat('00', 32), 'hex'))");
    execute(&mut holder, &head).await.unwrap();
    let holds = format!("begin; select from audit_heads where tenant_id = '{ours}' for update");
    execute(&mut holder, &holds).await.unwrap();
    let told = format!("{:#}", reprice(&database.admin_url(), Choice::default()).await.unwrap_err());
    assert!(told.contains("cannot write the audit log") && told.contains("lock timeout"), "{told}");
    execute(&mut holder, "commit").await.unwrap();
    assert_eq!(get(&stores, ours, id).await.usage.unpriced_attempts, 1);
    assert_eq!(reprice(&database.admin_url(), Choice::default()).await.unwrap().changed, 1);
    database.end().await;
}

async fn recorded(stores: &Stores, tenant: TenantId) -> Vec<String> {
    let told = |AuditRecord { actor, action, resource, outcome, .. }| format!("{actor} {action} {resource} {outcome}");
    stores.audit.list(tenant, 0, 10).await.unwrap().into_iter().map(told).collect()
}

/// As the entry of `CroftUnpricedAttempts` tells the owner to look, whom row security holds for like anybody.
#[tokio::test]
async fn the_page_on_monitoring_says_how_the_owner_finds_what_has_no_price() {
    let database = Database::empty().await;
    let owner_of = format!("alter database {} owner to {OWNER_ROLE}", database.name);
    execute(&mut database.admin().await, &owner_of).await.unwrap();
    let owner_url = SecretString::from(database.url_of(OWNER_ROLE));
    migrate::run(&owner_url, FRONT_ROLE).await.unwrap();
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, theirs] = two_tenants(&stores).await;
    for tenant in [ours, theirs] {
        let session = session(&stores, tenant).await;
        appended(&stores, append(tenant, session, vec![attempt("a", None), attempt("b", Some(7))])).await;
    }
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/monitoring.md")).unwrap();
    let (_, entry) = page.split_once("### CroftUnpricedAttempts").unwrap();
    let (_, look) = entry.split_once("```sql\n").unwrap();
    let (look, behind) = look.split_once("```").unwrap();
    let choose = behind.split('`').find(|quoted| quoted.starts_with("select set_config")).unwrap();

    let mut owner = database.login(OWNER_ROLE).await;
    let look = look.trim().trim_end_matches(';');
    let found = async |connection: &mut PgConnection| {
        sqlx::query_as::<_, (String, String, String)>(AssertSqlSafe(look)).fetch_all(connection).await.unwrap()
    };
    assert_eq!(found(&mut owner).await, [], "without a tenant");
    execute(&mut owner, &choose.replace("acme", "ours")).await.unwrap();
    let wanted = [("scripted".to_owned(), "scripted-1".to_owned(), String::new())];
    assert_eq!(found(&mut owner).await, wanted);
    assert_eq!(found(&mut database.admin().await).await, wanted, "of a superuser who chose none");

    // The owner may take the front's roles on, on every version of PostgreSQL.
    execute(&mut owner, "begin; set local role croft_request; set local role croft_writer; commit").await.unwrap();
    drop(owner);
    database.end().await;
}

/// Two jobs that overlap. Each used to add what it had found missing.
#[tokio::test]
async fn two_at_the_same_time_count_nothing_twice() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let first = session(&stores, ours).await;
    appended(&stores, append(ours, first, vec![attempt("a", None), attempt("b", None)])).await;
    let mut admin = database.admin().await;
    execute(&mut admin, "update prices set effective_from = '2020-01-01' where model_id = 'scripted-1'").await.unwrap();

    // Both are under way before either can write.
    execute(&mut admin, "begin; lock table sessions in exclusive mode").await.unwrap();
    let (url, mut watcher) = (database.admin_url(), database.admin().await);
    let held_back = async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.unwrap() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        execute(&mut admin, "commit").await.unwrap();
    };
    let both = futures::future::join(reprice(&url, Choice::default()), reprice(&url, Choice::default()));
    let ((one, other), ()) = tokio::join!(both, held_back);
    assert_eq!(one.unwrap().difference_nano_usd + other.unwrap().difference_nano_usd, 2 * COST);
    assert_eq!(get(&stores, ours, first).await.usage.cost_nano_usd, 2 * COST);
    let account = Account { scope: Scope::Tenant, subject: String::new(), period: "life".into() };
    assert_eq!(stores.budgets.ledgers(ours, &[account]).await.unwrap()[0].nano_usd, 2 * COST);
    database.end().await;
}

#[tokio::test]
async fn an_attempt_is_priced_by_how_it_was_served() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let first = session(&stores, ours).await;
    let attempts = [("a", ""), ("b", "priority"), ("c", "flex")].map(|(id, tier)| {
        let Kind::ModelAttempt(made) = attempt(id, None) else { unreachable!() };
        Kind::ModelAttempt(ModelAttempt { service_tier: tier.into(), ..made })
    });
    appended(&stores, append(ours, first, attempts.into())).await;
    let told = reprice(&database.admin_url(), Choice::default()).await.unwrap();
    assert_eq!(told, Repriced { looked_at: 3, changed: 2, unpriced: 1, difference_nano_usd: COST + 2 * COST });

    let file = tempfile::NamedTempFile::new().unwrap();
    let flex =
        "[{modelId: scripted-1, provider: scripted, prices: [{serviceTier: flex, effectiveFrom: '2020-01-01T00:00:00Z',
        inputUsd: '0.5', outputUsd: '2.5', source: ours}]}]";
    std::fs::write(file.path(), flex).unwrap();
    for _ in 0..2 {
        models_command::apply(file.path(), &database.admin_url()).await.unwrap();
    }
    let told = reprice(&database.admin_url(), Choice::default()).await.unwrap();
    assert_eq!(told, Repriced { looked_at: 1, changed: 1, unpriced: 0, difference_nano_usd: COST / 2 });
    database.end().await;
}

/// Once, a file with a new price took the model's aliases and capabilities with it.
#[tokio::test]
async fn a_price_alone_leaves_the_rest_of_its_model_as_it_was() {
    const MODEL: &str = "modelId: claude-haiku-4-5, provider: anthropic";
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let applied = async |named: &str| {
        if !named.is_empty() {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("[{{{MODEL}, {named}}}]")).unwrap();
            models_command::apply(file.path(), &database.admin_url()).await.unwrap();
        }
        let models = stores.models.load().await.unwrap();
        models.into_iter().find(|model| model.model_id == "claude-haiku-4-5").unwrap()
    };
    let before = applied("").await;
    assert!(!before.aliases.is_empty() && before.capabilities.unwrap().tools);
    let price = "prices: [{effectiveFrom: '2026-11-01T00:00:00Z', inputUsd: '3', outputUsd: '9', source: ours}]";
    let priced = applied(price).await;
    assert_eq!((&priced.aliases, priced.capabilities), (&before.aliases, before.capabilities));
    assert_eq!(priced.prices.len(), before.prices.len() + 1);
    let renamed = applied("aliases: [other]").await;
    assert_eq!((&*renamed.aliases[0], renamed.capabilities), ("other", before.capabilities));
    let able = applied("capabilities: {images: true, contextTokensMax: '9'}").await;
    let can = able.capabilities.unwrap();
    assert_eq!((can.tools, can.images, can.context_tokens_max), (false, true, 9), "what is named is the whole");
    assert_eq!((able.aliases, able.prices), (renamed.aliases, priced.prices));
    let nameless = applied("aliases: []").await;
    assert_eq!((nameless.aliases, nameless.capabilities), (Vec::new(), Some(can)), "an empty list is named, too");
    database.end().await;
}

/// Once, it was not said which of the two was meant by the name, and past usage was priced as the other's.
#[tokio::test]
async fn a_file_is_refused_in_which_a_name_is_two_models() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let apply = async |models: &[&str]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let entries: Vec<_> = models.iter().map(|model| format!("{{{model}, provider: openai}}")).collect();
        std::fs::write(file.path(), format!("[{}]", entries.join(","))).unwrap();
        models_command::apply(file.path(), &database.admin_url()).await.map_err(|error| format!("{error:#}"))
    };
    apply(&["modelId: m-5", "modelId: m-6, aliases: [m, m-6]"]).await.unwrap();
    let before = stores.models.load().await.unwrap();
    for (models, told) in [
        (&["modelId: m-5-2027, aliases: [m-5]"][..], "the alias m-5 of m-5-2027 is an id or an alias of m-5, too"),
        (&["modelId: m-7, aliases: [m]"], "the alias m of m-6 is an id or an alias of m-7, too"),
        (&["modelId: m"], "the alias m of m-6 is an id or an alias of m, too"),
        (&["modelId: a, aliases: [c]", "modelId: b, aliases: [c]"], "the alias c of a is an id or an alias of b, too"),
    ] {
        let refused = apply(models).await.unwrap_err();
        assert!(refused.contains(told), "{refused}");
        assert!(refused.contains("with the `aliases` that it keeps, `[]` for none"), "{refused}");
        assert_eq!(stores.models.load().await.unwrap(), before, "{told}");
    }
    // One that gives its name up in the same file has given it up.
    apply(&["modelId: m-6, aliases: [m-six]", "modelId: m-7, aliases: [m]"]).await.unwrap();
    apply(&["modelId: m-7, aliases: []", "modelId: m"]).await.unwrap();
    // One that is two models in the tables already, too.
    execute(&mut database.admin().await, "update models set aliases = '{m-5}' where model_id = 'm-6'").await.unwrap();
    for shares in ["modelId: m-5", "modelId: m-6"] {
        let refused = apply(&[shares]).await.unwrap_err();
        assert!(refused.contains("the alias m-5 of m-6 is an id or an alias of m-5, too"), "{refused}");
    }
    apply(&["modelId: m-5", "modelId: m-6, aliases: []"]).await.unwrap();
    apply(&["modelId: m-5", "modelId: m-6"]).await.unwrap();
    database.end().await;
}

#[tokio::test]
async fn a_price_that_is_gone_makes_nothing_unknown() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let first = session(&stores, ours).await;
    appended(&stores, append(ours, first, vec![attempt("a", Some(9)), attempt("b", None)])).await;
    execute(&mut database.admin().await, "delete from prices").await.unwrap();
    let all = Choice { all: true, ..Choice::default() };
    let told = reprice(&database.admin_url(), all).await.unwrap();
    assert_eq!(told, Repriced { looked_at: 2, changed: 0, unpriced: 2, difference_nano_usd: 0 });
    assert_eq!(get(&stores, ours, first).await.usage.cost_nano_usd, 9);
    database.end().await;
}

/// What was paid at a model became, once that was gone, what it costs at the one that has taken its name over.
#[tokio::test]
async fn what_was_paid_at_a_model_that_is_gone_is_not_priced_as_another_that_has_its_name() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let first = session(&stores, ours).await;
    appended(&stores, append(ours, first, vec![attempt("a", Some(9)), attempt("b", None)])).await;
    let mut admin = database.admin().await;
    execute(&mut admin, "delete from prices where model_id = 'scripted-1'").await.unwrap();
    execute(&mut admin, "delete from models where model_id = 'scripted-1'").await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let heir = "[{modelId: scripted-9, provider: scripted, aliases: [scripted-1], prices: [{
        effectiveFrom: '2020-01-01T00:00:00Z', inputUsd: '2', outputUsd: '10', source: ours}]}]";
    std::fs::write(file.path(), heir).unwrap();
    models_command::apply(file.path(), &database.admin_url()).await.unwrap();
    let all = Choice { all: true, ..Choice::default() };
    let told = reprice(&database.admin_url(), all).await.unwrap();
    assert_eq!(told, Repriced { looked_at: 2, changed: 1, unpriced: 1, difference_nano_usd: 2 * COST });
    assert_eq!(get(&stores, ours, first).await.usage.cost_nano_usd, 9 + 2 * COST);
    database.end().await;
}
