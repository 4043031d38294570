//! The model providers of this worker: the file that names them, and which of them a model needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use croft_llm::anthropic::{self, Anthropic};
use croft_llm::gemini::{self, Gemini};
use croft_llm::{ApiKey, Limits, Providers, Settings, openai, scripted};
use croft_proto::v1::AgentSpec;
use croft_serve::Mistakes;
use croft_serve::config::http_url;
use croft_serve::log::chain;
use secrecy::SecretString;
use serde::Deserialize;

use crate::keys::{self, Keys};
use crate::refusal::Refusal;
use crate::tools::mcp::McpServer;

/// Families of models by how their names begin, for a front that does not say whose a model is. A name that fits nothing
/// here, such as an alias, waits for the grant.
const FAMILIES: [(&str, &str); 4] =
    [("scripted-", scripted::NAME), ("claude-", anthropic::NAME), ("gpt-", openai::NAME), ("gemini-", gemini::NAME)];

/// What a newer operator writes besides: a tenant's own image may be older than the platform.
type Unknown = serde_json::Map<String, serde_json::Value>;

#[derive(Deserialize)]
struct File {
    providers: BTreeMap<String, Entry>,
    #[serde(default)]
    mcp_servers: Vec<ServerEntry>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
struct ServerEntry {
    name: String,
    url: String,
    token_file: Option<PathBuf>,
    /// In place of `token_file`.
    user_tokens_folder: Option<PathBuf>,
    /// None means all that the server has.
    #[serde(default)]
    tools: Vec<String>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
struct Entry {
    base_url: Option<String>,
    api_key_file: Option<PathBuf>,
    /// Which of OpenAI's two interfaces; no other provider has a choice.
    api: Option<Api>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Api {
    Responses,
    Chat,
}

/// The providers that the file at `path` names, and `scripted`, with the keys to follow. Fails with a sentence per mistake,
/// none of which holds anything of a key.
pub(crate) fn open(path: Option<&Path>) -> Result<(Providers, Keys), Mistakes> {
    let mut providers = Providers::new().with(scripted::Scripted::new());
    let mut keys = Keys::default();
    let Some(path) = path else { return Ok((providers, keys)) };
    let file = read(path).map_err(|problem| Mistakes(vec![sentence(path, &problem)]))?;
    pass_over("the file", &file.unknown);
    let mut mistakes = Vec::new();
    for (name, entry) in file.providers {
        pass_over(&name, &entry.unknown);
        if let Err(problem) = add(&mut providers, &mut keys, &name, entry) {
            mistakes.push(sentence(path, &format!("provider {name}: {problem}")));
        }
    }
    if mistakes.is_empty() { Ok((providers, keys)) } else { Err(Mistakes(mistakes)) }
}

/// The MCP servers that the file at `path` names. Their tokens are read when they are needed.
pub(crate) fn mcp_servers(path: Option<&Path>) -> Result<Vec<McpServer>, Mistakes> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let file = read(path).map_err(|problem| Mistakes(vec![sentence(path, &problem)]))?;
    let mistakes: Vec<_> = file
        .mcp_servers
        .iter()
        .filter_map(|server| {
            let problem = http_url(&server.url).err()?;
            Some(sentence(path, &format!("MCP server {}: url {:?}: {problem}", server.name, server.url)))
        })
        .collect();
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    let server = |ServerEntry { name, url, token_file, user_tokens_folder, tools, unknown }| {
        pass_over(&name, &unknown);
        McpServer { name, url, token_file, user_tokens_folder, tools }
    };
    Ok(file.mcp_servers.into_iter().map(server).collect())
}

fn pass_over(of: &str, unknown: &Unknown) {
    if !unknown.is_empty() {
        let fields: Vec<_> = unknown.keys().map(String::as_str).collect();
        tracing::warn!(
            of,
            ?fields,
            "the providers' file has fields that this release doesn't know; going on without them"
        );
    }
}

fn sentence(path: &Path, problem: &str) -> String {
    format!("{} of --providers (CROFT_PROVIDERS) is not usable: {problem}.", path.display())
}

fn read(path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// Adds the provider of that name; none for `scripted`, which is there already.
fn add(providers: &mut Providers, keys: &mut Keys, name: &str, entry: Entry) -> Result<(), String> {
    if entry.api.is_some() && name != openai::NAME {
        return Err(format!("api is for {} alone", openai::NAME));
    }
    let api = entry.api.unwrap_or(Api::Responses);
    let settings = |public| settings(keys, name, entry, public);
    let added = match name {
        scripted::NAME => return Ok(()),
        anthropic::NAME => Anthropic::new(settings(anthropic::BASE_URL)?).map(|new| providers.add(new)),
        openai::NAME => {
            let settings = settings(openai::BASE_URL)?;
            match api {
                Api::Responses => openai::Responses::new(settings).map(|new| providers.add(new)),
                Api::Chat => openai::Chat::new(settings).map(|new| providers.add(new)),
            }
        }
        gemini::NAME => Gemini::new(settings(gemini::BASE_URL)?).map(|new| providers.add(new)),
        _ => {
            let known = FAMILIES.map(|(_, provider)| provider).join(", ");
            return Err(format!("there is no such provider; there are {known}"));
        }
    };
    added.map_err(|error| format!("no TLS client can be made: {}", chain(&error)))
}

/// How to reach a provider. One whose key is not there can't be used until it comes: the tenant's others must not wait for it.
fn settings(keys: &mut Keys, name: &str, entry: Entry, public: &str) -> Result<Settings, String> {
    let Entry { base_url, api_key_file, .. } = entry;
    // Without a key there is only a model of one's own, that asks for none.
    let needs_none = base_url.is_some() && api_key_file.is_none();
    let base_url = base_url.unwrap_or_else(|| public.to_owned());
    let base_url = http_url(&base_url).map_err(|problem| format!("base_url {base_url:?}: {problem}"))?;
    let api_key = if needs_none {
        ApiKey::from(SecretString::default())
    } else {
        let path = api_key_file.ok_or("api_key_file is missing")?;
        let api_key = keys::read(&path)?.map_or_else(ApiKey::missing, ApiKey::from);
        keys.follow(name, path, api_key.clone());
        api_key
    };
    if !api_key.is_there() {
        tracing::warn!(provider = name, "its key is not there; going on without it");
    }
    Ok(Settings { base_url, api_key, limits: Limits::default() })
}

/// Fails early when an agent surely can't be answered: the first turn would end with an error. `told` is the provider of
/// its model as the front's registry knows it. Of an agent with other models to fall back on nothing is sure.
pub(crate) fn check(providers: &Providers, agent: &AgentSpec, told: &str) -> Result<(), Refusal> {
    let model = &agent.model;
    let by_name = || FAMILIES.into_iter().find(|(prefix, _)| model.starts_with(prefix)).map(|(_, provider)| provider);
    let provider = if told.is_empty() { by_name() } else { Some(told) };
    match provider {
        Some(provider) if agent.fallback_models.is_empty() && providers.get(provider).is_none() => {
            Err(Refusal::ProviderMissing { provider: provider.to_owned(), model: model.to_owned() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(model: &str) -> AgentSpec {
        AgentSpec { model: model.into(), ..AgentSpec::default() }
    }

    #[test]
    fn what_the_registry_says_of_a_model_comes_before_what_its_name_does() {
        let providers = Providers::new().with(scripted::Scripted::new());
        let check = |model: &str, told: &str| super::check(&providers, &agent(model), told);
        let missing = |provider: &str, model: &str| {
            Err(Refusal::ProviderMissing { provider: provider.to_owned(), model: model.to_owned() })
        };
        assert_eq!(check("gpt-6-sol", "scripted"), Ok(()));
        assert_eq!(check("fast", "gemini"), missing("gemini", "fast"));
        assert_eq!(check("fast", ""), Ok(()), "the grant will tell");
        for (model, provider) in [("claude-x", "anthropic"), ("gpt-x", "openai"), ("gemini-x", "gemini")] {
            assert_eq!(check(model, ""), missing(provider, model));
        }
    }

    /// The file as the operator writes it, in the operator's own snapshot, with its folder in this one.
    fn written(snapshot: &str, folder: &Path) -> PathBuf {
        let line = snapshot.lines().find_map(|line| line.trim_start().strip_prefix("providers.json: ")).unwrap();
        let text: String = serde_json::from_str(line).unwrap();
        let path = folder.join("providers.json");
        std::fs::write(&path, text.replace("/etc/croft", folder.to_str().unwrap())).unwrap();
        path
    }

    #[tokio::test]
    async fn what_the_operator_writes_is_read_here() {
        let folder = tempfile::tempdir().unwrap();
        let within = |path: &str| Some(folder.path().join(path));
        std::fs::create_dir(folder.path().join("keys")).unwrap();
        std::fs::write(folder.path().join("keys/anthropic"), "sk-ant-of-a-test\n").unwrap();
        let full =
            include_str!("../../operator/src/tenant/snapshots/croft_operator__tenant__snapshots__providers_full.snap");
        let path = written(full, folder.path());
        let (providers, _) = open(Some(&path)).unwrap();
        assert!(providers.get("anthropic").is_some(), "it is there, with its key");
        let server = |name: &str, url: &str| McpServer {
            name: name.into(),
            url: url.into(),
            token_file: None,
            user_tokens_folder: None,
            tools: Vec::new(),
        };
        let tickets = McpServer {
            token_file: within("keys/mcp-tickets"),
            tools: vec!["search".into(), "book".into()],
            ..server("tickets", "https://tools.example.com/mcp")
        };
        let mail = McpServer {
            user_tokens_folder: within("user-tokens/mail"),
            ..server("mail", "https://mail.example.com/mcp")
        };
        let maps = server("maps", "https://maps.example.com/mcp");
        assert_eq!(mcp_servers(Some(&path)).unwrap(), [tickets, maps, mail]);

        let minimal = include_str!(
            "../../operator/src/tenant/snapshots/croft_operator__tenant__snapshots__providers_minimal.snap"
        );
        let path = written(minimal, folder.path());
        let (providers, _) = open(Some(&path)).unwrap();
        assert!(providers.get("anthropic").is_none() && providers.get("scripted").is_some());
        assert_eq!(mcp_servers(Some(&path)).unwrap(), []);
    }

    #[test]
    fn what_a_newer_operator_writes_besides_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("providers.json");
        let newer = serde_json::json!({
            "yet_to_come": {},
            "providers": { "anthropic": { "base_url": "http://models.test", "yet_to_come": [1] } },
            "mcp_servers": [{ "name": "maps", "url": "https://maps.example.com/mcp", "yet_to_come": true }],
        });
        std::fs::write(&path, newer.to_string()).unwrap();
        assert!(open(Some(&path)).unwrap().0.get("anthropic").is_some());
        assert_eq!(mcp_servers(Some(&path)).unwrap()[0].name, "maps");
    }

    #[test]
    fn an_agent_with_a_model_to_fall_back_on_may_run() {
        let providers = Providers::new().with(scripted::Scripted::new());
        let agent = AgentSpec { fallback_models: vec!["scripted-1".into()], ..agent("claude-x") };
        assert_eq!(check(&providers, &agent, "anthropic"), Ok(()));
    }

    #[test]
    fn the_names_of_all_models_that_the_front_is_seeded_with_tell_their_provider() {
        let seed = include_str!("../../operator/front/src/models/seed.json");
        let seed: Vec<serde_json::Value> = serde_json::from_str(seed).unwrap();
        assert!(seed.len() > 10);
        for model in &seed {
            let (id, provider) = (model["modelId"].as_str().unwrap(), model["provider"].as_str().unwrap());
            let family = FAMILIES.into_iter().find(|(prefix, _)| id.starts_with(prefix));
            assert_eq!(family.map(|(_, provider)| provider), Some(provider), "{id}");
        }
    }
}
