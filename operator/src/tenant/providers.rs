//! Which model providers and MCP servers the workers use, as the file that they read at start. It holds no key, only where keys lie.

use std::collections::BTreeMap;

use croft_crds::tenant::ProviderApi;
use k8s_openapi::api::core::v1::ConfigMap;
use serde::{Deserialize, Serialize};

use super::wanted::Wanted;

/// What the config map is called.
pub(crate) const NAME: &str = "providers";
/// Its one entry.
pub(crate) const FILE: &str = "providers.json";
/// Where the workers find users' tokens, a folder an MCP server.
const USER_TOKENS_FOLDER: &str = "/etc/croft/user-tokens";
/// Where the workers find keys, a file a provider.
pub(crate) const KEYS_FOLDER: &str = "/etc/croft/keys";

#[derive(Serialize)]
struct File<'a> {
    providers: BTreeMap<&'static str, Entry<'a>>,
    /// Left out when there are none: workers of an older release know nothing of them.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    mcp_servers: Vec<Server<'a>>,
}

#[derive(Serialize)]
struct Server<'a> {
    name: &'a str,
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_tokens_folder: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tools: &'a [String],
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    base_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<&'static str>,
}

/// See it with `kubectl -n tenant-acme get configmap providers -o yaml`.
pub(crate) fn providers(wanted: &Wanted) -> ConfigMap {
    ConfigMap {
        metadata: wanted.child_meta(NAME),
        data: Some(BTreeMap::from([(FILE.to_owned(), file(wanted))])),
        ..ConfigMap::default()
    }
}

/// The text of the file.
pub(crate) fn file(wanted: &Wanted) -> String {
    let entries = wanted.providers.iter().map(|provider| {
        let name = provider.name.as_str();
        let api_key_file = provider.key.as_ref().map(|_| format!("{KEYS_FOLDER}/{name}"));
        let api = provider.api.map(ProviderApi::as_str);
        (name, Entry { base_url: provider.base_url.as_deref(), api_key_file, api })
    });
    let servers = wanted.mcp_servers.iter().map(|server| Server {
        name: &server.name,
        url: &server.url,
        token_file: server.token_secret_ref.as_ref().map(|_| format!("{KEYS_FOLDER}/{}", token_file(&server.name))),
        user_tokens_folder: server.user_tokens_secret_ref.as_ref().map(|_| user_tokens_folder(&server.name)),
        tools: &server.tools,
    });
    let file = File { providers: entries.collect(), mcp_servers: servers.collect() };
    serde_json::to_string_pretty(&file).expect("plain data") + "\n"
}

/// Where the tokens of an MCP server's users lie, a file a user.
pub(crate) fn user_tokens_folder(server: &str) -> String {
    format!("{USER_TOKENS_FOLDER}/{server}")
}

/// What the file with an MCP server's token is called. No provider's name begins so.
pub(crate) fn token_file(server: &str) -> String {
    format!("mcp-{server}")
}

/// The providers that the workers use, by name, as the config map in the cluster says.
pub(crate) fn names(providers: &ConfigMap) -> Vec<String> {
    #[derive(Deserialize)]
    struct Names {
        providers: BTreeMap<String, serde_json::Value>,
    }
    let text = providers.data.as_ref().and_then(|data| data.get(FILE));
    let names = text.and_then(|text| serde_json::from_str::<Names>(text).ok());
    names.map(|names| names.providers.into_keys().collect()).unwrap_or_default()
}
