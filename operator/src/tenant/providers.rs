//! Which model providers the workers use, as the file that they read at start. It holds no key, only where keys lie.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;

use super::wanted::Wanted;

/// What the config map is called.
pub(crate) const NAME: &str = "providers";
/// Its one entry.
pub(crate) const FILE: &str = "providers.json";
/// Where the workers find keys, a file a provider.
pub(crate) const KEYS_FOLDER: &str = "/etc/croft/keys";

#[derive(Serialize)]
struct File<'a> {
    providers: BTreeMap<&'static str, Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    base_url: Option<&'a str>,
    api_key_file: String,
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
        (name, Entry { base_url: provider.base_url.as_deref(), api_key_file: format!("{KEYS_FOLDER}/{name}") })
    });
    let file = File { providers: entries.collect() };
    serde_json::to_string_pretty(&file).expect("plain data") + "\n"
}
