//! What the control plane itself needs for a tenant's children: the same objects, posted side by side by a client that does
//! nothing else. No operator on the same machine can be quicker.

use std::time::Duration;

use futures::future::try_join_all;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ObjectMeta, PostParams};
use tokio::time::Instant;

use crate::bench::api;
use crate::bench::pace::Pace;
use crate::bench::row::Row;
use crate::bench::samples::Samples;
use crate::bench::stage::Stage;

/// Whose children are the pattern.
const TENANT: &str = "sample";

/// Makes `count` namespaces with what a tenant has in its own, `per_second` of them. They stay, and are nobody's.
pub async fn at(stage: &Stage, per_second: u32, count: u32) -> anyhow::Result<Row> {
    let patterns = patterns(stage).await?;
    stage.settled().await?;
    let cpu = stage.cpu()?;
    let made = Pace { per_second, count }.run(async |number| make(stage, &patterns, number).await).await;
    let times: Vec<Duration> = made.into_iter().map(|(due, done)| Ok(done? - due)).collect::<kube::Result<_>>()?;
    let cpu = stage.cpu_since(&cpu)?;
    let what = format!("the same {} objects posted by a bare client, {per_second}/s", patterns.len() + 1);
    Ok(Row::times(what, times.into_iter().collect::<Samples>()).besides(cpu))
}

async fn make(stage: &Stage, patterns: &[(ApiResource, DynamicObject)], number: u32) -> kube::Result<Instant> {
    let namespaces: Api<DynamicObject> = api::all(&stage.trusted, &api::namespaces());
    let name = format!("bare-{number:05}");
    namespaces.create(&PostParams::default(), &DynamicObject::new(&name, &api::namespaces())).await?;
    let posted = patterns.iter().map(|(kind, object)| {
        let objects = api::within(&stage.trusted, &name, kind);
        async move { objects.create(&PostParams::default(), object).await }
    });
    try_join_all(posted).await?;
    Ok(Instant::now())
}

/// A tenant's children without what makes them a tenant's.
async fn patterns(stage: &Stage) -> anyhow::Result<Vec<(ApiResource, DynamicObject)>> {
    let ours = ListParams::default().labels(&format!("{}={TENANT}", api::CHILDREN));
    let mut patterns = Vec::new();
    for kind in api::child_kinds().into_iter().filter(|kind| kind.kind != "Namespace") {
        for mut object in api::within(&stage.client, &format!("tenant-{TENANT}"), &kind).list(&ours).await?.items {
            object.metadata = ObjectMeta { name: object.metadata.name, ..ObjectMeta::default() };
            if let Some(fields) = object.data.as_object_mut() {
                fields.remove("status");
            }
            // A list leaves out what its items are.
            let DynamicObject { types, .. } = DynamicObject::new("", &kind);
            patterns.push((kind.clone(), DynamicObject { types, ..object }));
        }
    }
    Ok(patterns)
}
