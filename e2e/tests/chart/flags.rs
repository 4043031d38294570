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
    for (program, command) in programs() {
        let told: BTreeSet<String> = told(program).iter().map(|row| begin(row)).collect();
        let wanted: BTreeSet<String> = rows(&command).iter().map(|row| begin(row)).collect();
        let (missing, foreign): (Vec<_>, Vec<_>) =
            (wanted.difference(&told).collect(), told.difference(&wanted).collect());
        assert!(missing.is_empty() && foreign.is_empty(), "{program} lacks {missing:#?}, and has {foreign:#?}");
    }
}

/// What an admin of the database runs by hand, each by its name with all that it takes.
fn by_hand(name: &str, command: &Command) -> Vec<(String, BTreeSet<String>)> {
    let below: Vec<_> =
        command.get_subcommands().filter(|below| !["serve", "migrate"].contains(&below.get_name())).collect();
    if !below.is_empty() {
        return below.into_iter().flat_map(|below| by_hand(&format!("{name} {}", below.get_name()), below)).collect();
    }
    let row = |argument: &Arg| {
        let flag =
            argument.get_long().map_or_else(|| argument.get_id().as_str().to_uppercase(), |long| format!("--{long}"));
        let variable = argument.get_env().map(|name| format!("`{}`", name.to_str().unwrap())).unwrap_or_default();
        let defaults = argument.get_default_values().iter().map(|value| format!("`{}`", value.to_str().unwrap()));
        let default = defaults.filter(|default| default != "`false`").collect::<String>();
        begin(&format!("| `{flag}` | {variable} | {default} |"))
    };
    vec![(name.to_owned(), command.get_arguments().map(row).collect())]
}

#[test]
fn the_page_lists_what_is_run_by_hand_with_all_that_it_takes() {
    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let commands = by_hand("croft-front", &front());
    let names: Vec<_> = commands.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"croft-front api-key create") && names.contains(&"croft-front reprice"), "{names:?}");
    for (name, wanted) in commands {
        let (_, section) = page.split_once(&format!("### {name}\n")).unwrap_or_else(|| panic!("no ### {name}"));
        let section = section.split("\n##").next().unwrap();
        let told: BTreeSet<_> = section.lines().filter(|line| line.starts_with("| `")).map(begin).collect();
        assert_eq!(told, wanted, "{name}");
    }
}

/// The rows that the page has of this program.
fn told(program: &str) -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let title = format!("## {program}\n");
    let (_, section) = page.split_once(&title).unwrap_or_else(|| panic!("docs/configuration.md has no {title}"));
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter(|line| line.starts_with("| `--")).map(str::to_owned).collect()
}

/// The first three cells of a row.
fn begin(row: &str) -> String {
    row.split('|').take(4).map(str::trim).collect::<Vec<_>>().join("|")
}

/// The chart with all on that adds variables.
fn everything() -> Vec<Value> {
    let everything = [
        "otlpEndpoint=http://collector:4317",
        "workerOtlpEndpoint=http://collector:4317",
        "images.pullSecrets[0].name=registry",
        "front.alertWebhook.url=https://alerts.example.com",
        "front.alertWebhook.existingSecret=alerts",
        "front.allowedOrigins={https://app.example.com}",
        "front.redis.ca.secret=redis",
        "front.serviceAccounts.issuer=https://kubernetes.default.svc",
        "front.serviceAccounts.jwks=\\{\\}",
    ];
    let arguments: Vec<_> = everything.iter().flat_map(|setting| ["--set", setting]).collect();
    rendered(&arguments).unwrap()
}

/// The names of the variables that a deployment's first container, or first init container, is given.
fn variables(objects: &[Value], deployment: &str, containers: &str) -> BTreeSet<String> {
    let pod = &one(objects, "Deployment", deployment).unwrap()["spec"]["template"]["spec"];
    let variables = pod[containers][0]["env"].as_array().unwrap();
    variables.iter().map(|variable| variable["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_chart_sets_nothing_that_a_program_does_not_know() {
    let objects = everything();
    let [operator, serve, migrate, _] = programs().map(|(_, command)| command);
    for (deployment, containers, command) in [
        ("croft-operator", "containers", operator),
        ("croft-front", "containers", serve),
        ("croft-front", "initContainers", migrate),
    ] {
        let known: Vec<_> = command.get_arguments().filter_map(Arg::get_env).collect();
        let names = variables(&objects, deployment, containers);
        let unknown: Vec<_> = names.iter().filter(|name| !known.iter().any(|known| *known == name.as_str())).collect();
        assert!(unknown.is_empty(), "{deployment} does not know {unknown:?}");
    }
}

#[test]
fn what_goes_in_by_its_variable_is_what_the_page_says_and_the_chart_leaves_alone() {
    let schema = std::fs::read_to_string(root().join("charts/croft/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let objects = everything();
    for (program, part) in [("croft-operator", "operator"), ("croft-front serve", "front")] {
        let names = &schema["properties"][part]["properties"]["env"]["properties"];
        let taken: BTreeSet<&str> = names.as_object().unwrap().keys().map(String::as_str).collect();
        let set = variables(&objects, &format!("croft-{part}"), "containers");
        let mut seen = 0;
        for row in told(program) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let (name, place) = (cells[2].trim_matches('`'), cells[4]);
            let by_variable = place == format!("`{part}.env`");
            assert_eq!(taken.contains(name), by_variable, "{part}.env and {name}, whose place is {place}");
            // What is the chart's own it gives, or goes by as the program has it: ports, and files of certificates.
            if place != "the chart's own" {
                let by_value = !by_variable && !place.starts_with("none");
                assert_eq!(set.contains(name), by_value, "whether the chart sets {name}, whose place is {place}");
            }
            seen += usize::from(by_variable);
        }
        assert_eq!(seen, taken.len(), "{part}.env takes names that {program} does not know: {taken:?}");
    }
}
