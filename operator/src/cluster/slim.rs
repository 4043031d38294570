//! What of an AgentSession is kept in memory. Owners declare as many as their quota lets them, each with texts of its own, and every
//! replica has a copy of all.

use croft_crds::AgentSession;
use croft_crds::session::AgentSpec;
use kube::api::ObjectMeta;

use crate::mirror::{is_in_part, mark_in_part};

/// Drops what is of any length and nobody reads here: the agent, which the pass that opens the session reads at the API server, and labels,
/// annotations, owners, finalizers. It is a few hundred bytes then, and what the status says.
pub(super) fn slim(session: &mut AgentSession) {
    let is_in_part = is_in_part(session);
    let ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        generation,
        creation_timestamp,
        deletion_timestamp,
        annotations: _,
        deletion_grace_period_seconds: _,
        finalizers: _,
        generate_name: _,
        labels: _,
        managed_fields: _,
        owner_references: _,
        self_link: _,
    } = std::mem::take(&mut session.metadata);
    session.metadata = ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        generation,
        creation_timestamp,
        deletion_timestamp,
        ..ObjectMeta::default()
    };
    if is_in_part {
        mark_in_part(session);
    }
    session.spec.agent = AgentSpec::default();
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slimmed(status: &Value) -> AgentSession {
        let long = |bytes: usize| "x".repeat(bytes);
        let labels: serde_json::Map<_, _> =
            (0..500).map(|number| (format!("label-{number}"), json!(long(63)))).collect();
        let mut session: AgentSession = serde_json::from_value(json!({
            "metadata": {
                "name": "talk",
                "namespace": "tenant-heron",
                "uid": "3b0c",
                "resourceVersion": "17",
                "generation": 2,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "deletionTimestamp": "2026-01-02T00:00:00Z",
                "labels": labels,
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": long(100_000) },
                "finalizers": (0..500).map(|number| format!("egret.example/{number}")).collect::<Vec<_>>(),
                "ownerReferences": (0..500).map(|number| json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "name": long(63), "uid": number.to_string(),
                })).collect::<Vec<_>>(),
                "managedFields": [{ "manager": "kubectl", "fieldsV1": { "f:spec": { "f:agent": {} } } }],
            },
            "spec": {
                "agent": { "model": "scripted-1", "systemPrompt": long(256 * 1024) },
                "terminate": true,
                "lifetimeSeconds": 60,
            },
            "status": status,
        }))
        .unwrap();
        slim(&mut session);
        session
    }

    #[test]
    fn next_to_nothing_is_kept_of_one_with_long_texts_whether_it_is_open_or_waits() {
        for status in [
            json!(null),
            json!({ "phase": "Pending" }),
            json!({ "phase": "Pending", "sessionID": "0190" }),
            json!({ "phase": "Running", "sessionID": "0190" }),
            json!({ "phase": "Terminated", "sessionID": "0190" }),
            json!({ "phase": "Failed" }),
        ] {
            let kept = serde_json::to_string(&slimmed(&status)).unwrap();
            assert!(kept.len() < 1_024, "{kept}");
        }
    }

    #[test]
    fn all_that_a_pass_reads_is_kept() {
        let kept = slimmed(&json!({ "phase": "Running", "sessionID": "0190" }));
        let metadata = &kept.metadata;
        let texts = [&metadata.name, &metadata.namespace, &metadata.uid, &metadata.resource_version];
        assert_eq!(texts.map(Option::as_deref), ["talk", "tenant-heron", "3b0c", "17"].map(Some));
        assert_eq!(metadata.generation, Some(2));
        assert!(metadata.creation_timestamp.is_some() && metadata.deletion_timestamp.is_some());
        assert_eq!((kept.spec.terminate, kept.spec.lifetime_seconds), (true, Some(60)));
        assert_eq!(kept.status.unwrap().session_id.as_deref(), Some("0190"));
        assert_eq!(kept.spec.agent.system_prompt, "");
    }

    #[test]
    fn what_is_known_in_part_stays_known_as_that() {
        let mut session: AgentSession = serde_json::from_value(json!({
            "metadata": { "name": "talk" }, "spec": { "agent": { "model": "scripted-1" } },
        }))
        .unwrap();
        slim(&mut session);
        assert!(!is_in_part(&session));
        mark_in_part(&mut session);
        slim(&mut session);
        assert!(is_in_part(&session));
    }
}
