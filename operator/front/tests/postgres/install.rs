//! What the page on installing says of the database.

use croft_front::migrate;
use croft_front::store::postgres::Postgres;
use secrecy::SecretString;

use crate::database::{Database, PASSWORD, execute};

/// The statements of `docs/install.md`.
fn statements() -> &'static str {
    let page = include_str!("../../../../docs/install.md");
    let (_, from) = page.split_once("```sql\n").expect("statements");
    from.split_once("```").expect("their end").0
}

/// As hosted servers have one: the admin makes roles and databases, and is no superuser.
#[tokio::test]
async fn its_statements_work_for_an_admin_who_is_no_superuser() {
    let database = Database::unmade();
    let name = &database.name;
    let [hosted, owner, front] = ["hosted", "admin", "front"].map(|role| format!("{name}_{role}"));
    let mut server = database.server().await;
    let made = format!("create role {hosted} login createrole createdb password '{PASSWORD}'");
    execute(&mut server, &made).await.unwrap();

    let statements = statements()
        .replace("database croft ", &format!("database {name} "))
        .replace("croft_admin", &owner)
        .replace("croft_front", &front)
        .replace('…', PASSWORD);
    let mut admin = database.server_as(&hosted).await;
    for statement in statements.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        let done = execute(&mut admin, statement).await;
        assert!(done.is_ok(), "{statement}: {done:?}");
    }
    migrate::run(&SecretString::from(database.url_of(&owner)), &front).await.unwrap();
    Postgres::connect(&database.url_of(&front), 1).await.unwrap().check().await.unwrap();

    database.end().await;
    for role in [front, owner, hosted] {
        execute(&mut server, &format!("drop role {role}")).await.unwrap();
    }
}
