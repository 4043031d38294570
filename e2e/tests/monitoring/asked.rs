//! What the chart's alerts and dashboards ask Prometheus for.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// One expression, and where it stands.
pub(crate) struct Asked {
    pub(crate) place: String,
    pub(crate) expression: String,
}

/// A series that an expression names, with the labels that it chooses by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    pub(crate) labels: Vec<String>,
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn read(file: impl AsRef<Path>) -> String {
    let file = root().join(file);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The rules of the chart, each an alert.
pub(crate) fn alerts() -> Vec<Value> {
    let file: Value = serde_yaml::from_str(&read("charts/croft/alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The dashboards of the chart, by the names of their files.
pub(crate) fn dashboards() -> Vec<(String, Value)> {
    let folder = root().join("charts/croft/dashboards");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    files
        .map(|name| {
            let text = read(format!("charts/croft/dashboards/{name}"));
            (name, serde_json::from_str(&text).unwrap())
        })
        .collect()
}

/// Every expression of every alert, panel and variable.
pub(crate) fn expressions() -> Vec<Asked> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let alerts =
        alerts().into_iter().map(|alert| Asked { place: text(&alert["alert"]), expression: text(&alert["expr"]) });
    let mut all: Vec<_> = alerts.collect();
    for (name, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().into_iter().flatten();
            let place = format!("{name}: {}", text(&panel["title"]));
            all.extend(targets.map(|target| Asked { place: place.clone(), expression: text(&target["expr"]) }));
        }
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            if let Some(expression) = variable["definition"].as_str() {
                let place = format!("{name}: ${}", text(&variable["name"]));
                all.push(Asked { place, expression: expression.to_owned() });
            }
        }
    }
    all
}

/// The series of ours that are named in `expression`.
pub(crate) fn selectors(expression: &str) -> Vec<Selector> {
    let mut selectors = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find("croft_") {
        let named = &rest[start..];
        let end = named.find(|part: char| !part.is_ascii_alphanumeric() && part != '_').unwrap_or(named.len());
        let (metric, behind) = named.split_at(end);
        let matchers = behind.strip_prefix('{').and_then(|matchers| matchers.split_once('}'));
        let matchers = matchers.map_or("", |(matchers, _)| matchers).split(',').filter(|matcher| !matcher.is_empty());
        let labels = matchers.map(|matcher| matcher.split(['=', '!']).next().unwrap().trim().to_owned());
        selectors.push(Selector { metric: metric.to_owned(), labels: labels.collect() });
        rest = behind;
    }
    selectors
}

/// The labels that `expression` sums over.
pub(crate) fn grouped_by(expression: &str) -> Vec<String> {
    let groups = expression.split("by (").skip(1).filter_map(|behind| behind.split_once(')'));
    groups.flat_map(|(labels, _)| labels.split(',')).map(|label| label.trim().to_owned()).collect()
}

/// The metric whose series this is: those of a histogram have names of their own.
pub(crate) fn family(series: &str) -> &str {
    let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| series.strip_suffix(suffix));
    histogram.unwrap_or(series)
}
