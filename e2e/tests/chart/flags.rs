//! What the programs can be told, what the chart tells them, and what `docs/configuration.md` lists.

use std::collections::BTreeSet;

use clap::{Arg, Command, CommandFactory};
use croft_e2e::helm::{one, rendered, root};
use serde_json::Value;

/// A program's flags that have a variable, each as the page's table begins its row: flag, variable, default.
fn rows(command: &Command) -> Vec<String> {
    let row = |argument: &Arg| {
        let variable = argument.get_env()?.to_str().unwrap().to_owned();
        let defaults = argument.get_default_values().iter().map(|value| format!("`{}`", value.to_str().unwrap()));
        // A name that is made up at each start.
        let default = if variable == "CROFT_IDENTITY" { String::new() } else { defaults.collect() };
        // A switch has `false`, which nobody needs to be told.
        let default = if default == "`false`" { String::new() } else { default };
        Some(format!("| `--{}` | `{variable}` | {default} |", argument.get_long().unwrap()))
    };
    command.get_arguments().filter_map(row).collect()
}

fn front() -> Command {
    croft_front::config::Config::command()
}

fn programs() -> [(&'static str, Command); 4] {
    let of_front = |name| front().find_subcommand(name).unwrap().clone();
    [
        ("croft-operator", croft_operator::config::Args::command()),
        ("croft-front serve", of_front("serve")),
        ("croft-front migrate", of_front("migrate")),
        ("croft-worker", croft_worker::config::Args::command()),
    ]
}

#[test]
fn the_page_lists_every_flag_of_every_program_with_its_default() {
    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    for (program, command) in programs() {
        let title = format!("## {program}\n");
        let (_, section) = page.split_once(&title).unwrap_or_else(|| panic!("docs/configuration.md has no {title}"));
        let section = section.split("\n## ").next().unwrap();
        let told: BTreeSet<String> = section.lines().filter(|line| line.starts_with("| `--")).map(begin).collect();
        let wanted: BTreeSet<String> = rows(&command).iter().map(|row| begin(row)).collect();
        let (missing, foreign): (Vec<_>, Vec<_>) =
            (wanted.difference(&told).collect(), told.difference(&wanted).collect());
        assert!(missing.is_empty() && foreign.is_empty(), "{program} lacks {missing:#?}, and has {foreign:#?}");
    }
}

/// The first three cells of a row.
fn begin(row: &str) -> String {
    row.split('|').take(4).map(str::trim).collect::<Vec<_>>().join("|")
}

#[test]
fn the_chart_sets_nothing_that_a_program_does_not_know() {
    let everything = [
        "otlpEndpoint=http://collector:4317",
        "workerOtlpEndpoint=http://collector:4317",
        "images.pullSecrets[0].name=registry",
        "front.alertWebhook.url=https://alerts.example.com",
        "front.alertWebhook.existingSecret=alerts",
        "front.allowedOrigins={https://app.example.com}",
        "front.serviceAccounts.issuer=https://kubernetes.default.svc",
        "front.serviceAccounts.jwks=\\{\\}",
    ];
    let arguments: Vec<_> = everything.iter().flat_map(|setting| ["--set", setting]).collect();
    let objects = rendered(&arguments).unwrap();
    let [operator, serve, migrate, _] = programs().map(|(_, command)| command);
    for (deployment, containers, command) in [
        ("croft-operator", "containers", operator),
        ("croft-front", "containers", serve),
        ("croft-front", "initContainers", migrate),
    ] {
        let known: Vec<_> = command.get_arguments().filter_map(Arg::get_env).collect();
        let pod = &one(&objects, "Deployment", deployment).unwrap()["spec"]["template"]["spec"];
        let variables = pod[containers][0]["env"].as_array().unwrap();
        let names = variables.iter().map(|variable: &Value| variable["name"].as_str().unwrap());
        let unknown: Vec<_> = names.filter(|name| !known.iter().any(|known| *known == *name)).collect();
        assert!(unknown.is_empty(), "{deployment} does not know {unknown:?}");
    }
}
