//! Where the text of each of the database's functions stands that is in force: several migrations may have one.

use std::collections::BTreeMap;

use sqlx::migrate::Migrator;
use sqlx::{PgConnection, Row};

use crate::database::Database;

/// A function by its name and how many arguments it takes.
type Function = (String, i16);

#[tokio::test]
async fn the_table_in_their_folder_says_where_to_read_each_function() {
    let database = Database::empty().await;
    let mut admin = database.admin().await;
    let migrations = sqlx::migrate!("../../migrations");
    let mut stands: BTreeMap<Function, (String, String)> = BTreeMap::new();
    for number in 1..=migrations.iter().count() {
        let so_far: Vec<_> = migrations.iter().take(number).cloned().collect();
        let newest = so_far.last().unwrap();
        let file = format!("{:04}_{}.sql", newest.version, newest.description.replace(' ', "_"));
        Migrator::with_migrations(so_far).run(&mut admin).await.unwrap();
        let now = texts(&mut admin).await;
        stands.retain(|function, _| now.contains_key(function));
        for (function, text) in now {
            if stands.get(&function).is_none_or(|(known, _)| *known != text) {
                stands.insert(function, (text, file.clone()));
            }
        }
    }
    let rows = stands.iter().map(|((name, arguments), (_, file))| format!("| `{name}` | {arguments} | `{file}` |"));
    let expected = rows.collect::<Vec<_>>().join("\n");
    let readme = include_str!("../../../../migrations/README.md");
    let (_, table) = readme.split_once("| --- | --- | --- |\n").expect("the table");
    assert_eq!(table.trim_end(), expected, "in force is:\n{expected}");
    database.end().await;
}

async fn texts(admin: &mut PgConnection) -> BTreeMap<Function, String> {
    let functions = "select proname::text, pronargs, pg_get_functiondef(oid) from pg_proc
        where pronamespace = 'public'::regnamespace and prokind = 'f'";
    let rows = sqlx::query(functions).fetch_all(admin).await.unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}
