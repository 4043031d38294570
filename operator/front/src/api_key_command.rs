//! `croft-front api-key create`: a key for a tenant's people, made by an admin of the database.

use std::io::Write;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};

use crate::identity::api_key::{self, KeyStore, StoredKey};
use crate::identity::role::Role;
use crate::store::postgres::Postgres;

/// Makes a key and prints it to stdout. Fails when no front has yet heard of the tenant.
pub async fn create(tenant: &str, role: Role, postgres_url: &SecretString) -> anyhow::Result<()> {
    let postgres = Postgres::connect(postgres_url.expose_secret(), 1)
        .await
        .context("cannot reach PostgreSQL at --postgres-url (CROFT_POSTGRES_URL)")?;
    let key = make_for(tenant, role, &postgres).await?;
    writeln!(std::io::stdout(), "{}", key.expose_secret()).context("cannot print the key")
}

/// Records a new key for the tenant of this name, which allows every call.
pub async fn make(tenant: &str, postgres: &Postgres) -> anyhow::Result<SecretString> {
    make_for(tenant, Role::Admin, postgres).await
}

/// Records a new key for those who have this role at the tenant of this name.
pub async fn make_for(tenant: &str, role: Role, postgres: &Postgres) -> anyhow::Result<SecretString> {
    let id = postgres.tenant_named(tenant).await?;
    let id = id.with_context(|| format!("tenant {tenant} of --tenant is not known to the fronts; is it Ready?"))?;
    let (stored, key) = api_key::generate(id, tenant)?;
    KeyStore::insert(postgres, &StoredKey { role, ..stored }).await?;
    Ok(key)
}
