//! Models and prices in Postgres.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use croft_proto::v1::{Model, ModelCapabilities, ModelPrice};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::time::Time;
use super::{Postgres, failed};
use crate::error::Error;
use crate::models::ModelStore;
use crate::models::entry::Entry;
use crate::models::seed::{Missing, missing_prices};

#[async_trait]
impl ModelStore for Postgres {
    async fn load(&self) -> Result<Vec<Model>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            stored(&mut tx).await.map_err(failed)
        })
        .await
    }
}

/// All models with their prices. Columns are named, as a newer release may have added others.
async fn stored(connection: &mut PgConnection) -> Result<Vec<Model>, sqlx::Error> {
    let models = sqlx::query(
        "select model_id, provider, aliases, tools, images, thinking, context_tokens_max, output_tokens_max
        from models order by model_id",
    )
    .fetch_all(&mut *connection)
    .await?;
    let prices = sqlx::query(
        "select model_id, effective_from, above_input_tokens, input_usd::text, cache_read_usd::text,
            cache_write_5m_usd::text, cache_write_1h_usd::text, output_usd::text, source, service_tier
        from (
            select '' as service_tier, model_id, effective_from, above_input_tokens, input_usd, cache_read_usd, cache_write_5m_usd,
                cache_write_1h_usd, output_usd, source
            from prices
            union all
            select service_tier, model_id, effective_from, above_input_tokens, input_usd, cache_read_usd, cache_write_5m_usd,
                cache_write_1h_usd, output_usd, source
            from service_tier_prices
        ) as all_prices
        order by model_id, service_tier, effective_from, above_input_tokens",
    )
    .fetch_all(&mut *connection)
    .await?;
    read(&models, &prices)
}

fn read(models: &[PgRow], prices: &[PgRow]) -> Result<Vec<Model>, sqlx::Error> {
    let mut by_model: BTreeMap<String, Vec<ModelPrice>> = BTreeMap::new();
    for row in prices {
        by_model.entry(row.try_get("model_id")?).or_default().push(price(row)?);
    }
    models
        .iter()
        .map(|row| {
            let model_id: String = row.try_get("model_id")?;
            Ok(Model {
                prices: by_model.remove(&model_id).unwrap_or_default(),
                model_id,
                provider: row.try_get("provider")?,
                aliases: row.try_get("aliases")?,
                capabilities: Some(ModelCapabilities {
                    tools: row.try_get("tools")?,
                    images: row.try_get("images")?,
                    thinking: row.try_get("thinking")?,
                    context_tokens_max: row.try_get("context_tokens_max")?,
                    output_tokens_max: row.try_get("output_tokens_max")?,
                }),
            })
        })
        .collect()
}

fn price(row: &PgRow) -> Result<ModelPrice, sqlx::Error> {
    // No price of a class is the empty text.
    let usd = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<String>, _>(column)?.unwrap_or_default());
    Ok(ModelPrice {
        effective_from: Some(row.try_get::<Time, _>("effective_from")?.0),
        above_input_tokens: row.try_get("above_input_tokens")?,
        input_usd: usd("input_usd")?,
        cache_read_usd: usd("cache_read_usd")?,
        cache_write_5m_usd: usd("cache_write_5m_usd")?,
        cache_write_1h_usd: usd("cache_write_1h_usd")?,
        output_usd: usd("output_usd")?,
        source: row.try_get("source")?,
        service_tier: row.try_get("service_tier")?,
    })
}

/// What becomes of a model or a price that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Stays,
    IsReplaced { with_aliases: bool },
}

/// A name of two models.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct SharedName {
    pub(crate) name: String,
    /// Whose alias it is, or would be its alias or its id.
    pub(crate) model: String,
    /// Whose id or alias it is, too.
    pub(crate) other: String,
}

/// Adds the models and prices of a release's seed that are not there, and changes none. A model that would share a name with one that is there is
/// left out with its prices, and told by the first such name. Of a model that is there, a price that would end one that is not the seed's own is
/// left out, too; the log has each price that is added or left out. Nobody else adds any until the transaction is over.
pub(crate) async fn add(connection: &mut PgConnection, seed: &[Model]) -> Result<Vec<SharedName>, sqlx::Error> {
    lock(connection).await?;
    let known: HashMap<_, _> =
        stored(connection).await?.into_iter().map(|model| (model.model_id.clone(), model)).collect();
    let mut left_out = Vec::new();
    for model in seed {
        let Some(known) = known.get(&model.model_id) else {
            match name_taken(connection, model).await? {
                Some(taken) => left_out.push(taken),
                None => write(connection, model, Known::Stays).await?,
            }
            continue;
        };
        for Missing { price, ends_another } in missing_prices(model, known) {
            let (model, service_tier, above) = (&model.model_id, &price.service_tier, price.above_input_tokens);
            let since = price.effective_from.unwrap_or_default().seconds;
            let from = jiff::Timestamp::from_second(since).map(|from| from.to_string()).unwrap_or_default();
            if ends_another {
                let why = "a price of the release is not added, since it would end one that is not the release's";
                tracing::warn!(model, service_tier, from, above_input_tokens = above, "{why}");
            } else {
                write_price(connection, model, price, Known::Stays).await?;
                let what = "a price of the release is added to a model that was there";
                tracing::info!(model, service_tier, from, above_input_tokens = above, "{what}");
            }
        }
    }
    Ok(left_out)
}

/// Adds models and prices, in the place of those that are there. Aliases and capabilities that are not named stay. Nobody else adds any
/// until the transaction is over.
pub(crate) async fn apply(connection: &mut PgConnection, entries: &[Entry]) -> Result<(), sqlx::Error> {
    lock(connection).await?;
    for Entry { model, names_aliases } in entries {
        write(connection, model, Known::IsReplaced { with_aliases: *names_aliases }).await?;
    }
    Ok(())
}

/// Holds up all that write models, and none that read them.
async fn lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("lock table models in share row exclusive mode").execute(connection).await.map(drop)
}

/// A name of a model which is not there that is one of another that is.
async fn name_taken(connection: &mut PgConnection, model: &Model) -> Result<Option<SharedName>, sqlx::Error> {
    let names: Vec<_> = model.aliases.iter().chain([&model.model_id]).collect();
    sqlx::query_as(
        "select name, $1 as model, other.model_id as other
        from models as other cross join unnest($2::text[]) as name
        where (other.model_id = name or name = any (other.aliases)) and not exists (select from models where model_id = $1)
        order by name, other.model_id
        limit 1",
    )
    .bind(&model.model_id)
    .bind(names)
    .fetch_optional(connection)
    .await
}

/// An alias by which two models go of which at least one is among these.
pub(crate) async fn shared_name(
    connection: &mut PgConnection,
    entries: &[Entry],
) -> Result<Option<SharedName>, sqlx::Error> {
    let ids: Vec<_> = entries.iter().map(|entry| entry.model.model_id.as_str()).collect();
    sqlx::query_as(
        "select alias as name, named.model_id as model, other.model_id as other
        from models as named cross join unnest(named.aliases) as alias
        join models as other on other.model_id <> named.model_id and (other.model_id = alias or alias = any (other.aliases))
        where named.model_id = any ($1) or other.model_id = any ($1)
        order by alias, named.model_id, other.model_id
        limit 1",
    )
    .bind(ids)
    .fetch_optional(connection)
    .await
}

/// What of a model is replaced is what is named; a price alone leaves the rest as it is.
fn on_conflict(known: Known, model: &Model) -> String {
    let Known::IsReplaced { with_aliases } = known else { return "on conflict do nothing".to_owned() };
    let aliases = if with_aliases { ", aliases = excluded.aliases" } else { "" };
    let capabilities = match model.capabilities {
        None => "",
        Some(_) => {
            ", tools = excluded.tools, images = excluded.images, thinking = excluded.thinking,
                context_tokens_max = excluded.context_tokens_max, output_tokens_max = excluded.output_tokens_max"
        }
    };
    format!("on conflict (model_id) do update set provider = excluded.provider{aliases}{capabilities}")
}

async fn write(connection: &mut PgConnection, model: &Model, known: Known) -> Result<(), sqlx::Error> {
    let (on_conflict, can) = (on_conflict(known, model), model.capabilities.unwrap_or_default());
    sqlx::query(AssertSqlSafe(format!("insert into models values ($1, $2, $3, $4, $5, $6, $7, $8) {on_conflict}")))
        .bind(&model.model_id)
        .bind(&model.provider)
        .bind(&model.aliases)
        .bind(can.tools)
        .bind(can.images)
        .bind(can.thinking)
        .bind(can.context_tokens_max)
        .bind(can.output_tokens_max)
        .execute(&mut *connection)
        .await?;
    for price in &model.prices {
        write_price(connection, &model.model_id, price, known).await?;
    }
    Ok(())
}

async fn write_price(
    connection: &mut PgConnection,
    model_id: &str,
    price: &ModelPrice,
    known: Known,
) -> Result<(), sqlx::Error> {
    // Those of a tier have a table of their own: see `migrations/0026_service_tiers.sql`.
    let (table, tier, value) = match price.service_tier.as_str() {
        "" => ("prices", "", ""),
        _ => ("service_tier_prices", ", service_tier", ", $10"),
    };
    let on_conflict = match known {
        Known::Stays => "on conflict do nothing".to_owned(),
        Known::IsReplaced { .. } => format!(
            "on conflict (model_id, effective_from, above_input_tokens{tier}) do update set input_usd = excluded.input_usd,
                cache_read_usd = excluded.cache_read_usd, cache_write_5m_usd = excluded.cache_write_5m_usd,
                cache_write_1h_usd = excluded.cache_write_1h_usd, output_usd = excluded.output_usd, source = excluded.source"
        ),
    };
    let sql = format!(
        "insert into {table} (model_id, effective_from, above_input_tokens, input_usd, cache_read_usd, cache_write_5m_usd,
            cache_write_1h_usd, output_usd, source{tier})
        values ($1, $2, $3, $4::text::numeric, $5::text::numeric, $6::text::numeric, $7::text::numeric, $8::text::numeric,
            $9{value})
        {on_conflict}"
    );
    let usd = |text: &String| (!text.is_empty()).then(|| text.clone());
    let insert = sqlx::query(AssertSqlSafe(sql))
        .bind(model_id)
        .bind(Time(price.effective_from.unwrap_or_default()))
        .bind(price.above_input_tokens)
        .bind(&price.input_usd)
        .bind(usd(&price.cache_read_usd))
        .bind(usd(&price.cache_write_5m_usd))
        .bind(usd(&price.cache_write_1h_usd))
        .bind(&price.output_usd)
        .bind(&price.source);
    let insert = if tier.is_empty() { insert } else { insert.bind(&price.service_tier) };
    insert.execute(connection).await.map(drop)
}
