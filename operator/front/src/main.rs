//! `croft-front`: serves clients; brings the database up to date; manages API keys; takes models and prices in, and prices anew.

use std::process::ExitCode;

use croft_front::config::{ApiKey, Command, Config, Models};
use croft_front::{api_key_command, migrate, models_command, reprice_command, serve};

fn main() -> ExitCode {
    croft_serve::run(async |config: Config| match config.command {
        Command::Serve(config) => serve::serve(*config).await,
        Command::Migrate(config) => migrate::run(&config.postgres_url, &config.front_role).await,
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
