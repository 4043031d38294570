//! What the chart gives Prometheus and Grafana: alerts and dashboards that ask for what the programs tell of, and objects that take both there.
//! `promtool` judges the alerts beside this: see `e2e/alerts.yaml`.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[expect(dead_code, reason = "other tests need more of it")]
mod asked;
mod chart;

use std::collections::BTreeSet;
use std::sync::Arc;

use croft_e2e::bench::chart::run;
use croft_front::app::{Parts, assemble, public_routes};
use croft_front::budget::webhook::Hook;
use croft_front::core::Options;
use croft_front::counters::memory::Memory;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::gateway;
use croft_front::store::Stores;
use croft_front::store::postgres::connections;
use croft_front::tenants::{Tenants, watch};
use croft_serve::connections::{Bounds, Connections};
use croft_serve::tls::TlsFiles;
use croft_serve::{Metrics, Readiness, Tasks};
use prometheus::IntGauge;
use secrecy::SecretString;
use serde_json::json;
use tokio::net::TcpListener;

use asked::{alerts, expressions, family, read, selectors};

/// The registry of a front, as its `main` fills it.
async fn front() -> Metrics {
    let (metrics, tasks, readiness) = (Metrics::new("croft-front").unwrap(), Tasks::new(), Readiness::new());
    tasks.register(&metrics).unwrap();
    readiness.register(&metrics).unwrap();
    TlsFiles { cert: Vec::new(), key: Vec::new(), ca: Vec::new() }.register(&metrics).unwrap();
    let registry = metrics.registry();
    watch::Metrics::register(registry).unwrap();
    connections::register(registry, connections::Connections::default).unwrap();
    let hook = Hook { url: "http://127.0.0.1:9".into(), secret: SecretString::from("a secret of sixteen") };
    let parts = Parts {
        replica: "front-0".into(),
        stores: Stores::memory(),
        relay: Arc::new(MemoryRelay::default()),
        counters: Arc::new(Memory::default()),
        tenants: Tenants::new(),
        tls: None,
        options: Options { hook: Some(hook), ..Options::default() },
    };
    let core = assemble(parts, &tasks, registry).await.unwrap();
    let routes = public_routes(&core, &readiness, false).await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = Connections::new(http, "http", Bounds::default(), &metrics);
    gateway::serve(http, &core, routes, Vec::new(), &readiness, registry).unwrap();
    metrics
}

/// The registry of an operator, as its `main` fills it.
fn operator() -> Metrics {
    let metrics = Metrics::new("croft-operator").unwrap();
    Tasks::new().register(&metrics).unwrap();
    croft_operator::metrics::Metrics::register(metrics.registry()).unwrap();
    metrics
}

/// Whether something of this name is registered, also if it has not been counted yet and so is on no page.
fn tells_of(metrics: &Metrics, name: &str) -> bool {
    let same = Box::new(IntGauge::new(name, "whether the name is taken").unwrap());
    let is_free = metrics.registry().register(same.clone()).is_ok();
    if is_free {
        metrics.registry().unregister(same).unwrap();
    }
    !is_free
}

#[tokio::test]
async fn alerts_and_dashboards_ask_for_what_front_or_operator_tell_of() {
    let programs = [front().await, operator()];
    let mut unknown = Vec::new();
    for asked in expressions() {
        let selectors = selectors(&asked.expression);
        assert!(!selectors.is_empty(), "{} asks for nothing of ours: {}", asked.place, asked.expression);
        for selector in selectors {
            let is_told = |name: &str| programs.iter().any(|program| tells_of(program, name));
            // A whole name first: a counter may be called …_count, too.
            if !is_told(&selector.metric) && !is_told(family(&selector.metric)) {
                unknown.push(format!("{}: {}", asked.place, selector.metric));
            }
        }
    }
    assert!(unknown.is_empty(), "nobody tells of {unknown:#?}");
}

/// The metrics that are asked for where `is_one` says so.
fn asked_at(is_one: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let all = expressions().into_iter().filter(|asked| is_one(&asked.place));
    let named = all.flat_map(|asked| selectors(&asked.expression));
    named.map(|selector| family(&selector.metric).to_owned()).collect()
}

#[test]
fn whatever_an_alert_asks_for_is_in_a_dashboard() {
    let on_dashboards = asked_at(|place| place.contains(".json: "));
    let in_alerts = asked_at(|place| !place.contains(".json: "));
    assert!(in_alerts.contains("croft_audit_lag_seconds") && on_dashboards.contains("croft_turn_stage_seconds"));
    let missing: Vec<_> = in_alerts.difference(&on_dashboards).collect();
    assert!(missing.is_empty(), "an alert sends people to a dashboard without {missing:?}");
}

#[tokio::test]
async fn dashboards_ask_what_prometheus_understands() {
    let of_dashboards = expressions().into_iter().filter(|asked| !asked.expression.starts_with("label_values("));
    // As rules, with Grafana's variables filled in: so promtool reads them.
    let rules = of_dashboards.enumerate().map(|(number, asked)| {
        let expression = asked.expression.replace("$__rate_interval", "5m").replace("$namespace", "croft-system");
        json!({ "record": format!("asked_{number}"), "expr": expression })
    });
    let file = json!({ "groups": [{ "name": "dashboards", "rules": rules.collect::<Vec<_>>() }] });
    run("promtool", &["check", "rules", "/dev/stdin"], &file.to_string()).await.unwrap();
}

#[test]
fn a_name_that_nobody_tells_of_is_noticed() {
    let operator = operator();
    assert!(tells_of(&operator, "croft_operator_leader"));
    assert!(tells_of(&operator, "croft_operator_api_writes_total"), "it has labels, and no count yet");
    assert!(!tells_of(&operator, "croft_operator_writes_total"));
    let named = selectors(r#"rate(croft_a_total{x!~"b|c",y="d"}[5m]) / croft_b"#);
    let named: Vec<_> = named.iter().map(|selector| (selector.metric.as_str(), selector.labels.join(" "))).collect();
    assert_eq!(named, [("croft_a_total", "x y".to_owned()), ("croft_b", String::new())]);
}

/// The alerts that some test of `e2e/alerts.yaml` wants to fire.
fn tested() -> BTreeSet<String> {
    let file: serde_json::Value = serde_yaml::from_str(&read("e2e/alerts.yaml")).unwrap();
    let mut names = BTreeSet::new();
    for test in file["tests"].as_array().unwrap() {
        for rule in test["alert_rule_test"].as_array().into_iter().flatten() {
            if !rule["exp_alerts"].as_array().unwrap().is_empty() {
                names.insert(rule["alertname"].as_str().unwrap().to_owned());
            }
        }
        for expression in test["promql_expr_test"].as_array().into_iter().flatten() {
            for sample in expression["exp_samples"].as_array().unwrap() {
                let labels = sample["labels"].as_str().unwrap();
                let name = labels.split_once("alertname=\"").unwrap().1.split('"').next().unwrap();
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[test]
fn each_alert_says_how_bad_it_is_and_has_a_test_and_an_entry_in_the_page_that_it_links_to() {
    let page = read("docs/monitoring.md");
    let entries: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.iter().map(|alert| alert["alert"].as_str().unwrap()).collect();
    assert_eq!(names.len(), alerts.len(), "no name twice");
    assert_eq!(names, entries, "alerts, and entries of docs/monitoring.md");
    assert_eq!(names, tested().iter().map(String::as_str).collect(), "alerts, and those that e2e/alerts.yaml has fire");
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        let says = |what: &str| alert["annotations"][what].as_str().unwrap_or_default();
        assert!(!says("summary").is_empty() && !says("description").is_empty(), "{name} says nothing");
        assert_eq!(says("runbook_url"), format!("docs/monitoring.md#{}", name.to_lowercase()));
    }
}
