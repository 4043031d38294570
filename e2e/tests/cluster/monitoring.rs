//! What Prometheus finds: pages in order, with the labels that alerts and dashboards choose by, and a port that is its own.

#[path = "../monitoring/asked.rs"]
mod asked;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use croft_e2e::bench::chart::run;
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;

use crate::support::{Pod, eventually, front_pods, pods, whole_turn};
use asked::{expressions, family, grouped_by, selectors};

/// What Prometheus adds.
const OF_THE_TARGET: [&str; 2] = ["namespace", "pod"];

/// The labels of each metric, and whether it is a histogram, as a page tells.
#[derive(Debug, Default)]
struct Told(BTreeMap<String, (bool, BTreeSet<String>)>);

impl Told {
    fn read(&mut self, page: &str) {
        for line in page.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                self.0.entry(name.to_owned()).or_default().0 = kind == "histogram";
            } else if !line.starts_with('#') {
                let series = selectors(line).remove(0);
                let name = if self.0.contains_key(&series.metric) { &series.metric } else { family(&series.metric) };
                self.0.entry(name.to_owned()).or_default().1.extend(series.labels);
            }
        }
    }

    /// The labels of a series; `None` for one that was not counted yet.
    fn labels(&self, series: &str) -> Option<&BTreeSet<String>> {
        let whole = self.0.get(series).filter(|(is_histogram, _)| !is_histogram);
        let part = || self.0.get(family(series)).filter(|(is_histogram, _)| *is_histogram);
        whole.or_else(part).map(|(_, labels)| labels)
    }
}

async fn operator_pods(system: &System) -> Vec<Pod> {
    pods(system, "croft-system", "app.kubernetes.io/component=operator").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_in_order_and_have_the_labels_that_are_chosen_by() {
    let system = System::from_env_file().unwrap();
    let mut client = Client::new(&system.grpc, &system.api_key).unwrap();
    let session = client.create(scripted_agent("watched")).await.unwrap();
    let sent = client.lifecycle.send_message(message(&session.session_id, "be counted")).await.unwrap();
    whole_turn(sent.into_inner()).await.unwrap();

    let mut told = Told::default();
    let workers = pods(&system, "tenant-demo", "app.kubernetes.io/component=worker").await.unwrap();
    for pod in [front_pods(&system).await, operator_pods(&system).await, workers].concat() {
        let page = reqwest::get(format!("http://{}:9090/metrics", pod.ip)).await.unwrap().text().await.unwrap();
        run("promtool", &["check", "metrics"], &page).await.unwrap_or_else(|error| panic!("{}: {error:#}", pod.name));
        if !pod.name.starts_with("workers") {
            told.read(&page);
        }
    }

    let is_somebody = |label: &String| ["tenant", "session", "user"].iter().any(|word| label.contains(word));
    let of_somebody: Vec<_> = told.0.iter().filter(|(_, (_, labels))| labels.iter().any(is_somebody)).collect();
    assert!(of_somebody.is_empty(), "labels without a bound: {of_somebody:?}");

    let (mut wrong, mut looked_at) = (Vec::new(), BTreeSet::new());
    for asked in expressions() {
        let mut known = BTreeSet::from(OF_THE_TARGET.map(str::to_owned));
        let mut is_whole = true;
        for selector in selectors(&asked.expression) {
            let Some(labels) = told.labels(&selector.metric) else {
                is_whole = false;
                continue;
            };
            known.extend(labels.iter().cloned());
            let stray = |label: &&String| !labels.contains(*label) && !OF_THE_TARGET.contains(&label.as_str());
            wrong.extend(selector.labels.iter().filter(stray).map(|label| format!("{}: {label}", asked.place)));
            looked_at.insert(selector.metric);
        }
        if is_whole {
            let strays = grouped_by(&asked.expression).into_iter().filter(|label| !known.contains(label));
            wrong.extend(strays.map(|label| format!("{}: by {label}", asked.place)));
        }
    }
    assert!(wrong.is_empty(), "no such labels: {wrong:#?}");
    assert!(looked_at.len() > 30, "hardly anything was told: {looked_at:?}");
}

/// A namespace with a pod that tries what it reaches.
struct Outsider<'a> {
    system: &'a System,
    namespace: &'static str,
}

impl<'a> Outsider<'a> {
    async fn start(system: &'a System, namespace: &'static str) -> Self {
        let manifest = format!(
            "
apiVersion: v1
kind: Namespace
metadata: {{ name: {namespace} }}
---
apiVersion: v1
kind: Pod
metadata: {{ name: probe, namespace: {namespace} }}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  containers:
    - {{ name: probe, image: croft/probe:dev, imagePullPolicy: Never, args: [sleep] }}
"
        );
        // The namespace's service account comes a moment after it.
        eventually("the probe is created", async || system.apply(&manifest).await).await;
        let wait = ["wait", "pod/probe", "-n", namespace, "--for=condition=Ready", "--timeout=90s"];
        system.kubectl(&wait).await.unwrap();
        Self { system, namespace }
    }

    async fn reaches(&self, address: &str) -> anyhow::Result<bool> {
        let exec = ["exec", "-n", self.namespace, "probe", "--", "/usr/local/bin/probe", "connect", address, "2s"];
        Ok(self.system.kubectl_tries(&exec).await?.0)
    }

    async fn remove(self) {
        self.system.kubectl(&["delete", "namespace", self.namespace, "--wait=false"]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_scraper_reaches_the_port_for_metrics() {
    let system = System::from_env_file().unwrap();
    let scraper = Outsider::start(&system, "monitoring").await;
    let other = Outsider::start(&system, "not-monitoring").await;
    let (front, operator) = (front_pods(&system).await.remove(0), operator_pods(&system).await.remove(0));
    for pod in [&front, &operator] {
        let metrics = format!("{}:9090", pod.ip);
        eventually("the scraper reads metrics", async || {
            ensure!(scraper.reaches(&metrics).await?, "{} is closed to it", pod.name);
            Ok(())
        })
        .await;
        assert!(!other.reaches(&metrics).await.unwrap(), "{}'s metrics are open to anyone", pod.name);
    }
    // What is open to all shows that this probe works.
    eventually("the other probe works", async || {
        ensure!(other.reaches(&format!("{}:50051", front.ip)).await?, "the front is closed to it");
        Ok(())
    })
    .await;
    scraper.remove().await;
    other.remove().await;
}
