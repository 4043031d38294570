//! `croft-front`: serves clients; brings the database up to date; manages API keys; takes models and prices in, and prices anew.

use std::process::ExitCode;

use croft_front::config::{ApiKey, Command, Config, Models};
use croft_front::{api_key_command, migrate, models_command, reprice_command, serve};
use croft_serve::log;
use croft_serve::trace::Telemetry;

fn main() -> ExitCode {
    croft_serve::run(async |config: Config| match config.command {
        Command::Serve(config) => serve::serve(*config).await,
        Command::Migrate(config) => {
            // It runs where nobody stands by, and has things to tell besides how it ended.
            log::install("info", Telemetry::start("croft-front", None)?.tracer())?;
            migrate::run(&config.postgres_url, &config.front_role).await
        }
        Command::ApiKey(ApiKey::Create { tenant, role, expires, postgres_url }) => {
            api_key_command::create(&tenant, role, expires, &postgres_url).await
        }
        Command::ApiKey(ApiKey::List { tenant, postgres_url }) => api_key_command::list(&tenant, &postgres_url).await,
        Command::ApiKey(ApiKey::Revoke { tenant, prefix, postgres_url }) => {
            api_key_command::revoke(&tenant, &prefix, &postgres_url).await
        }
        Command::Models(Models::Apply { file, postgres_url }) => models_command::apply(&file, &postgres_url).await,
        Command::Reprice(config) => reprice_command::run(&config.postgres_url, config.choice()).await,
    })
}
