//! What can't be changed about a session that the operator has opened. All else that is refused is in `tests/admission`.

use croft_crds::AgentSession;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::world::World;

#[tokio::test]
async fn a_declared_agent_is_fixed_and_an_end_is_final() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("fixed", json!({})).await;
    let namespace = kube::ResourceExt::name_any(&tenant);
    let namespace = croft_crds::labels::tenant_namespace(&namespace);
    session.declare(&namespace, "talk", json!({ "agent": { "model": "scripted-1" } })).await;
    let sessions = session.within::<AgentSession>(&namespace);
    let edit = async |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        sessions.patch("talk", &PatchParams::default(), &patch).await.map(drop).map_err(|error| error.to_string())
    };
    let told = edit(json!({ "agent": { "model": "claude-haiku-4-5" } })).await.unwrap_err();
    assert!(told.contains("the agent is fixed once the session is declared"), "{told}");
    edit(json!({ "terminate": true })).await.unwrap();
    for back in [json!({ "terminate": false }), json!({ "terminate": null })] {
        let told = edit(back).await.unwrap_err();
        assert!(told.contains("a terminated session can't be brought back"), "{told}");
    }
}
