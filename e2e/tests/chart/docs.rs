//! What `README.md`, `docs` and `examples` show: links that lead somewhere, calls that there are, and models that a tenant has.

use std::path::PathBuf;

use croft_e2e::helm::root;
use croft_front::models::seed::seed;
use serde_json::Value;

/// Each page with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let files = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = files.chain([root().join("README.md"), root().join("ARCHITECTURE.md")]);
    pages.map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect()
}

/// As those who show Markdown make it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    for (page, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|behind| behind.split_once(')')).map(|(link, _)| link) {
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            if file.starts_with("http") {
                continue;
            }
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let mut headings = std::fs::read_to_string(&target).unwrap_or_default();
            headings.retain(|letter| letter != '`');
            let is_there = |wanted: &str| {
                let headings = headings.lines().filter(|line| line.starts_with('#'));
                headings.map(|line| anchor(line.trim_start_matches('#').trim())).any(|heading| heading == wanted)
            };
            if !target.exists() || (!wanted.is_empty() && !is_there(wanted)) {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "nothing is at {dead:#?}");
}

/// What `grpcurl` is asked for: `croft.v1.AuditService/VerifyAuditLog`, with the file that is named for it, if there is one.
fn calls(text: &str) -> Vec<(String, Option<String>)> {
    let mut file = None;
    let mut calls = Vec::new();
    for word in text.split_whitespace().map(|word| word.trim_matches(['`', ',', '.', ';'])) {
        if word.starts_with("croft/v1/") {
            file = Some(word.to_owned());
        }
        if word.starts_with("croft.v1.") && word.contains('/') {
            calls.push((word.to_owned(), file.clone()));
        }
    }
    calls
}

/// The file of the contract that has this service.
fn home(service: &str) -> Option<String> {
    let mut files = std::fs::read_dir(root().join("proto/croft/v1")).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|file| std::fs::read_to_string(file).unwrap().contains(&format!("service {service} {{")))?;
    Some(format!("croft/v1/{}", file.file_name()?.to_str()?))
}

#[test]
fn calls_are_of_the_contract_and_name_their_file_where_a_front_does_not_tell_of_itself() {
    let mut seen = 0;
    for (page, text) in pages() {
        if !text.contains("grpcurl") {
            continue;
        }
        for (call, file) in calls(&text) {
            let (service, method) = call.trim_start_matches("croft.v1.").split_once('/').unwrap();
            if !method.chars().all(char::is_alphanumeric) {
                continue;
            }
            // README's are for `make up`, whose fronts have reflection on.
            let file = file.or_else(|| page.ends_with("README.md").then(|| home(service)).flatten());
            let file = file.unwrap_or_else(|| panic!("{}: {call} without -proto", page.display()));
            let contract = std::fs::read_to_string(root().join("proto").join(&file)).unwrap();
            let (_, of_service) = contract.split_once(&format!("service {service} {{")).unwrap();
            let of_service = of_service.split("\n}").next().unwrap();
            assert!(of_service.contains(&format!("rpc {method}(")), "{}: {call} is not in {file}", page.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} calls");
}

/// Whoever copies one that there isn't has a session that never opens.
#[test]
fn the_models_of_agents_on_pages_are_in_the_registry() {
    let (known, mut seen) = (seed(), 0);
    for (page, text) in pages().into_iter().filter(|(page, _)| !page.ends_with("ARCHITECTURE.md")) {
        let said = ["model: ", "\"model\": \""].into_iter().flat_map(|before| text.split(before).skip(1));
        for model in said.filter_map(|behind| behind.split(['\n', '"', ',', ' ', '}']).next()) {
            let is_there = model.starts_with("scripted-") || known.iter().any(|known| known.model_id == model);
            assert!(is_there, "{}: there is no {model:?}", page.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} models");
}

fn example(name: &str) -> Value {
    serde_yaml::from_str(&std::fs::read_to_string(root().join("examples").join(name)).unwrap()).unwrap()
}

#[test]
fn the_session_runs_on_models_that_the_tenant_has_a_key_of_its_own_for() {
    let (tenant, session) = (example("tenant.yaml"), example("session.yaml"));
    let providers = tenant["spec"]["llm"]["providers"].as_array().unwrap();
    for provider in providers {
        assert!(provider["apiKeySecretRef"].is_object(), "a new installation lends no key: {provider}");
    }
    let agent = &session["spec"]["agent"];
    let models: Vec<_> = std::iter::once(&agent["model"]).chain(agent["fallbackModels"].as_array().unwrap()).collect();
    let known = seed();
    for model in models {
        let model =
            known.iter().find(|known| *model == known.model_id).unwrap_or_else(|| panic!("there is no {model}"));
        let has = providers.iter().any(|provider| provider["name"] == model.provider);
        assert!(has, "examples/tenant.yaml has no {} for {}", model.provider, model.model_id);
    }
}
