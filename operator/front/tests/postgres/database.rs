//! A database of its own for each test.

use croft_front::migrate;
use croft_front::store::postgres::Postgres;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

/// The front's login role in tests.
pub(crate) const FRONT_ROLE: &str = "croft_test_front";
/// An owner of databases who is no superuser, as with a hosted Postgres.
pub(crate) const OWNER_ROLE: &str = "croft_test_owner";
pub(crate) const PASSWORD: &str = "croft-test";

/// A database; [`Database::end`] drops it, a test that fails leaves it to be looked at.
pub(crate) struct Database {
    /// `postgres://admin:secret@host:port/`.
    server: String,
    pub(crate) name: String,
}

impl Database {
    /// That is still to be made.
    pub(crate) fn unmade() -> Self {
        let url = std::env::var("CROFT_TEST_POSTGRES_URL")
            .expect("CROFT_TEST_POSTGRES_URL is not set: `make test-services` starts a PostgreSQL and tells its URL");
        let (server, _) = url.rsplit_once('/').expect("a URL with a database");
        Self { server: format!("{server}/"), name: format!("croft_test_{}", Uuid::new_v4().simple()) }
    }

    /// With nothing in it.
    pub(crate) async fn empty() -> Self {
        let database = Self::unmade();
        let mut server = database.server().await;
        execute(&mut server, &role(FRONT_ROLE, "")).await.unwrap();
        execute(&mut server, &role(OWNER_ROLE, "createrole")).await.unwrap();
        execute(&mut server, &format!("create database {}", database.name)).await.unwrap();
        database
    }

    /// With all tables, as `croft-front migrate` makes them.
    pub(crate) async fn migrated() -> Self {
        let database = Self::empty().await;
        migrate::run(&database.admin_url(), FRONT_ROLE).await.unwrap();
        database
    }

    pub(crate) fn admin_url(&self) -> SecretString {
        SecretString::from(format!("{}{}", self.server, self.name))
    }

    pub(crate) fn url_of(&self, role: &str) -> String {
        let (_, host) = self.server.rsplit_once('@').expect("a URL with a user");
        format!("postgres://{role}:{PASSWORD}@{host}{}", self.name)
    }

    /// The stores as the front has them.
    pub(crate) async fn front(&self) -> Postgres {
        Postgres::connect(&self.url_of(FRONT_ROLE), 8).await.unwrap()
    }

    /// A connection as a role of tests.
    pub(crate) async fn login(&self, role: &str) -> PgConnection {
        connect(&self.url_of(role)).await
    }

    /// A superuser's connection to the server.
    pub(crate) async fn server(&self) -> PgConnection {
        connect(&format!("{}postgres", self.server)).await
    }

    /// The same of a role of tests.
    pub(crate) async fn server_as(&self, role: &str) -> PgConnection {
        let (_, host) = self.server.rsplit_once('@').expect("a URL with a user");
        connect(&format!("postgres://{role}:{PASSWORD}@{host}postgres")).await
    }

    /// A superuser's connection.
    pub(crate) async fn admin(&self) -> PgConnection {
        connect(&format!("{}{}", self.server, self.name)).await
    }

    pub(crate) async fn end(self) {
        let mut server = self.server().await;
        let drop = format!("drop database {} with (force)", self.name);
        for _ in 0..50 {
            match execute(&mut server, &drop).await {
                // Whom it has ended may take a while to go: https://www.postgresql.org/docs/current/errcodes-appendix.html
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55006") => {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                dropped => {
                    dropped.unwrap();
                    return;
                }
            }
        }
        panic!("{} is in use", self.name);
    }
}

/// Runs statements, several at a time if need be.
pub(crate) async fn execute(connection: &mut PgConnection, statements: &str) -> Result<u64, sqlx::Error> {
    Ok(sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await?.rows_affected())
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("PostgreSQL at CROFT_TEST_POSTGRES_URL: `make test-services` starts one")
}

/// Makes a login role unless it is there; tests run at the same time.
fn role(name: &str, rights: &str) -> String {
    format!(
        "do $$ begin
            if not exists (select 1 from pg_roles where rolname = '{name}') then
                create role {name} login {rights} password '{PASSWORD}';
            end if;
        exception when duplicate_object or unique_violation then null; end $$"
    )
}
