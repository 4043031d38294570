//! A tenant's children are deleted and edited, one at a time, and come back as they were.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::bench::api;
use crate::bench::row::Row;
use crate::bench::samples::Samples;
use crate::bench::stage::{PATIENCE, Stage};

const REACH: Duration = Duration::from_secs(1);
/// Whose children they are.
const TENANT: &str = "sample";

/// Every child, each way, `rounds` times.
pub async fn all(stage: &Stage, rounds: u32) -> anyhow::Result<[Row; 2]> {
    let namespace = format!("tenant-{TENANT}");
    let (mut deleted, mut edited) = (Vec::new(), Vec::new());
    for kind in api::child_kinds() {
        let is_namespace = kind.kind == "Namespace";
        let objects =
            if is_namespace { api::all(&stage.trusted, &kind) } else { api::within(&stage.trusted, &namespace, &kind) };
        let ours =
            ListParams::default().labels(&format!("app.kubernetes.io/managed-by=croft,croft.dev/tenant={TENANT}"));
        for object in objects.list(&ours).await?.items {
            let name = object.metadata.name.clone().unwrap_or_default();
            for round in 0..rounds {
                for edit in edits(&kind.kind) {
                    let what = || format!("round {round}: {} {name} edited by {edit}", kind.kind);
                    edited.push(by_edit(&objects, &name, &edit).await.with_context(what)?);
                    stage.quiet().await?;
                }
                // To delete the namespace is to delete all.
                if !is_namespace {
                    deleted.push(by_deletion(&objects, &name).await.with_context(|| format!("{} deleted", kind.kind))?);
                    stage.quiet().await?;
                }
            }
        }
    }
    let row = |how: &str, times: Vec<Duration>| {
        Row::times(format!("drift: child {how} → repaired"), times.into_iter().collect::<Samples>()).all_within(REACH)
    };
    Ok([row("deleted", deleted), row("edited", edited)])
}

/// What is done to an object of this kind.
fn edits(kind: &str) -> Vec<Value> {
    let label = json!({ "metadata": { "labels": { "app.kubernetes.io/name": "someone-elses" } } });
    let own = match kind {
        "NetworkPolicy" => Some(json!({ "spec": { "ingress": null } })),
        "ResourceQuota" => Some(json!({ "spec": { "hard": { "pods": "9999" } } })),
        "Deployment" => Some(json!({ "spec": { "replicas": 2 } })),
        _ => None,
    };
    [label].into_iter().chain(own).collect()
}

async fn by_edit(objects: &Api<DynamicObject>, name: &str, edit: &Value) -> anyhow::Result<Duration> {
    let before = serde_json::to_value(objects.get(name).await?)?;
    let is_as_before = |object: &DynamicObject| {
        serde_json::to_value(object)
            .is_ok_and(|now| leaves(edit).all(|leaf| now.pointer(&leaf) == before.pointer(&leaf)))
    };
    let act = async { objects.patch(name, &PatchParams::default(), &Patch::Merge(edit)).await.map(drop) };
    repaired(objects, name, act, is_as_before).await
}

async fn by_deletion(objects: &Api<DynamicObject>, name: &str) -> anyhow::Result<Duration> {
    let before = objects.get(name).await?.metadata.uid;
    let act = async { objects.delete(name, &DeleteParams::default()).await.map(drop) };
    repaired(objects, name, act, |object| object.metadata.uid != before).await
}

/// From before `act` to when a watch sees what shall be.
async fn repaired(
    objects: &Api<DynamicObject>,
    name: &str,
    act: impl Future<Output = kube::Result<()>>,
    is_repaired: impl Fn(&DynamicObject) -> bool,
) -> anyhow::Result<Duration> {
    let one = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(objects.clone(), one));
    while !matches!(events.next().await, Some(Ok(watcher::Event::InitDone))) {}
    let begun = Instant::now();
    act.await?;
    let wait = async {
        loop {
            match events.next().await {
                Some(Ok(watcher::Event::Apply(object))) if is_repaired(&object) => return Ok(begun.elapsed()),
                Some(Ok(_)) => {}
                Some(Err(error)) => bail!("the watch broke: {error}"),
                None => bail!("the watch ended"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.context("it is not repaired")?
}

/// JSON pointers of all that `patch` sets.
fn leaves(patch: &Value) -> impl Iterator<Item = String> {
    fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (field, value) in fields {
                    walk(value, &format!("{path}/{}", field.replace('~', "~0").replace('/', "~1")), found);
                }
            }
            _ => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    walk(patch, "", &mut found);
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patchs_leaves_are_found() {
        let patch = json!({ "metadata": { "labels": { "app.kubernetes.io/name": "x" } }, "spec": { "hard": null } });
        let found: Vec<_> = leaves(&patch).collect();
        assert_eq!(found, ["/metadata/labels/app.kubernetes.io~1name", "/spec/hard"]);
    }
}
