//! The objects, as Helm renders them.

use std::process::Output;

use croft_e2e::helm;
use serde_json::{Value, json};

use crate::asked::{alerts, dashboards};

const ALL: &str = "monitoring.podMonitor.enabled=true,monitoring.rules.enabled=true,monitoring.dashboards.enabled=true";

fn said(settings: &[&str]) -> Output {
    helm::template(&settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>()).unwrap()
}

fn rendered(settings: &[&str]) -> Vec<Value> {
    helm::rendered(&settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>()).unwrap()
}

fn of_kind<'all>(objects: &'all [Value], kind: &str) -> Vec<&'all Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn one<'all>(objects: &'all [Value], kind: &str, name: &str) -> &'all Value {
    helm::one(objects, kind, name).unwrap()
}

#[test]
fn without_a_wish_nothing_needs_the_prometheus_operator() {
    let objects = rendered(&[]);
    let foreign =
        objects.iter().filter(|object| object["apiVersion"].as_str().unwrap().contains("monitoring.coreos.com"));
    assert_eq!(foreign.count(), 0);
    assert!(of_kind(&objects, "ConfigMap").iter().all(|map| map["metadata"]["name"] != "croft-dashboards"));
}

#[test]
fn prometheus_is_led_to_the_pods_that_tell_of_themselves() {
    let objects = rendered(&[ALL, "monitoring.podMonitor.labels.release=mine", "monitoring.podMonitor.interval=15s"]);
    let monitor = one(&objects, "PodMonitor", "croft");
    assert_eq!(monitor["metadata"]["labels"]["release"], "mine");
    let endpoints = &monitor["spec"]["podMetricsEndpoints"];
    assert_eq!(endpoints, &json!([{ "port": "metrics", "interval": "15s" }]));
    let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let components = &monitor["spec"]["selector"]["matchExpressions"][0];
    assert_eq!((&components["key"], &components["operator"]), (&json!("app.kubernetes.io/component"), &json!("In")));
    let deployments = of_kind(&objects, "Deployment");
    assert_eq!(deployments.len(), 2);
    for deployment in deployments {
        let template = &deployment["spec"]["template"];
        let labels = &template["metadata"]["labels"];
        assert!(wanted.iter().all(|(label, value)| labels[label] == *value), "{labels} is not {wanted:?}");
        assert!(components["values"].as_array().unwrap().contains(&labels["app.kubernetes.io/component"]));
        let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
        assert!(ports.contains(&json!({ "name": "metrics", "containerPort": 9090 })), "{ports:?}");
    }
}

#[test]
fn the_rules_are_the_file_with_links_to_where_the_page_is() {
    let page = "monitoring.rules.runbookUrl=https://example.com/monitoring.md";
    let objects = rendered(&[ALL, page, "monitoring.rules.labels.release=mine"]);
    let rule = one(&objects, "PrometheusRule", "croft");
    assert_eq!(rule["metadata"]["labels"]["release"], "mine");
    let groups = rule["spec"]["groups"].as_array().unwrap().iter();
    let rules: Vec<Value> = groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
    let mut wanted = alerts();
    for alert in &mut wanted {
        let link = &mut alert["annotations"]["runbook_url"];
        *link = json!(link.as_str().unwrap().replace("docs/monitoring.md", "https://example.com/monitoring.md"));
    }
    assert_eq!(rules, wanted);
}

#[test]
fn the_dashboards_are_the_files() {
    let objects = rendered(&[ALL, "monitoring.dashboards.annotations.grafana_folder=Croft"]);
    let map = one(&objects, "ConfigMap", "croft-dashboards");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(map["metadata"]["annotations"]["grafana_folder"], "Croft");
    let data = map["data"].as_object().unwrap();
    let files = dashboards();
    assert_eq!(data.len(), files.len());
    for (name, dashboard) in files {
        let given: Value = serde_json::from_str(data[&name].as_str().unwrap()).unwrap();
        assert_eq!(given, dashboard);
        assert_eq!(dashboard["uid"], format!("croft-{}", name.trim_end_matches(".json")));
        let ids = dashboard["panels"].as_array().unwrap().iter().map(|panel| panel["id"].as_u64().unwrap());
        assert!(ids.eq(1..=dashboard["panels"].as_array().unwrap().len() as u64), "{name}: panels are numbered");
    }
}

/// What each network policy lets to the port of metrics.
fn readers(objects: &[Value]) -> Vec<Value> {
    let policies = ["croft-front", "croft-operator"].map(|name| one(objects, "NetworkPolicy", name));
    let rules = policies.map(|policy| {
        let rules = policy["spec"]["ingress"].as_array().unwrap().iter();
        let to_metrics = rules.filter(|rule| rule["ports"].as_array().unwrap().iter().any(|port| port["port"] == 9090));
        to_metrics.cloned().collect::<Vec<_>>()
    });
    rules.into_iter().flatten().collect()
}

#[test]
fn metrics_are_for_the_scraper_alone() {
    let ports = json!([{ "protocol": "TCP", "port": 9090 }]);
    let namespace = |name: &str| json!({ "matchLabels": { "kubernetes.io/metadata.name": name } });
    let given = json!({ "ports": ports, "from": [{ "namespaceSelector": namespace("monitoring") }] });
    assert_eq!(readers(&rendered(&[])), [given.clone(), given]);

    let scraper = "monitoring.scraper.namespace=watch,monitoring.scraper.podLabels.app=prometheus";
    let pods = json!({ "matchLabels": { "app": "prometheus" } });
    let given = json!({ "ports": ports, "from": [{ "namespaceSelector": namespace("watch"), "podSelector": pods }] });
    assert_eq!(readers(&rendered(&[scraper])), [given.clone(), given]);

    let given = json!({ "ports": ports });
    assert_eq!(readers(&rendered(&["monitoring.scraper.namespace="])), [given.clone(), given], "anyone, when asked to");
}

#[test]
fn nonsense_is_refused() {
    for nonsense in [
        "monitoring.podMonitor.interval=soon",
        "monitoring.scraper.namespace=Not A Name",
        "monitoring.rules.runbookUrl=",
        "monitoring.dashboards.labels.grafana_dashboard=1",
        "monitoring.serviceMonitor.enabled=true",
    ] {
        let output = said(&[nonsense]);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && complaint.contains("monitoring"), "{nonsense}: {complaint}");
    }
}
