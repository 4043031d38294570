//! Which model providers and MCP servers the workers use, as the file that they read at start. It holds no key, only where keys lie.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::{Deserialize, Serialize};

use super::wanted::{Provider, Wanted};

/// What the config map is called.
pub(crate) const NAME: &str = "providers";
/// Its one entry.
pub(crate) const FILE: &str = "providers.json";
/// Where the workers find users' tokens, a folder an MCP server.
const USER_TOKENS_FOLDER: &str = "/etc/croft/user-tokens";
/// Where the workers find keys, a file a provider.
pub(crate) const KEYS_FOLDER: &str = "/etc/croft/keys";

/// What the file says. Written anew from what was read, it is the same text.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct File {
    pub(crate) providers: BTreeMap<String, Entry>,
    /// Left out when there are none: workers of an older release know nothing of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mcp_servers: Vec<Server>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user_tokens_folder: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tools: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api_key_file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<String>,
}

/// See it with `kubectl -n tenant-acme get configmap providers -o yaml`.
pub(crate) fn providers(wanted: &Wanted) -> ConfigMap {
    config_map(wanted, file(wanted).text())
}

/// With another text than the spec wants.
pub(crate) fn config_map(wanted: &Wanted, text: String) -> ConfigMap {
    ConfigMap {
        metadata: wanted.child_meta(NAME),
        data: Some(BTreeMap::from([(FILE.to_owned(), text)])),
        ..ConfigMap::default()
    }
}

/// The file as the spec wants it.
pub(crate) fn file(wanted: &Wanted) -> File {
    let entries = wanted.providers.iter().map(|provider| (provider.name.as_str().to_owned(), Entry::of(provider)));
    let servers = wanted.mcp_servers.iter().map(|server| Server {
        name: server.name.clone(),
        url: server.url.clone(),
        token_file: server.token_secret_ref.as_ref().map(|_| format!("{KEYS_FOLDER}/{}", token_file(&server.name))),
        user_tokens_folder: server.user_tokens_secret_ref.as_ref().map(|_| user_tokens_folder(&server.name)),
        tools: server.tools.clone(),
    });
    File { providers: entries.collect(), mcp_servers: servers.collect() }
}

impl Entry {
    /// As the spec wants it.
    pub(crate) fn of(provider: &Provider) -> Self {
        Self {
            base_url: provider.base_url.clone(),
            api_key_file: provider.key.as_ref().map(|_| format!("{KEYS_FOLDER}/{}", provider.name.as_str())),
            api: provider.api.map(|api| api.as_str().to_owned()),
        }
    }
}

impl File {
    /// As it is written.
    pub(crate) fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data") + "\n"
    }
}

/// The file's text in the cluster, and what it says. One that is not there, or can't be read, names nobody.
pub(crate) fn read(providers: &ConfigMap) -> Option<(&str, File)> {
    let text = providers.data.as_ref()?.get(FILE)?;
    Some((text, serde_json::from_str(text).ok()?))
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
    read(providers).map(|(_, file)| file.providers.into_keys().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;

    #[test]
    fn what_is_read_is_written_anew_as_the_same_text() {
        let minimal = Wanted::parse(&fixtures::minimal(), &fixtures::keys(), &fixtures::settings()).unwrap();
        let full = Wanted::parse(&fixtures::full(), &fixtures::keys(), &fixtures::settings()).unwrap();
        for wanted in [minimal, full] {
            let file = file(&wanted);
            let map = providers(&wanted);
            let (text, read) = read(&map).unwrap();
            assert_eq!((text, &read), (file.text().as_str(), &file));
            assert_eq!(read.text(), text);
        }
    }
}
