//! What of an AgentSession is kept in memory. Owners declare as many as their quota lets them, each with texts of its own, and every
//! replica has a copy of all.

use croft_crds::AgentSession;
use croft_crds::session::{AgentSpec, SessionPhase};

/// Drops what nobody reads: annotations, in which `kubectl apply` keeps the whole object once more, and the agent of a session that
/// is open or over. Only to open one is to read its agent; an object whose status is taken away comes whole again.
pub(super) fn slim(session: &mut AgentSession) {
    session.metadata.annotations = None;
    let status = session.status.as_ref();
    let is_opened = status.is_some_and(|status| status.session_id.is_some());
    if is_opened || status.and_then(|status| status.phase).is_some_and(SessionPhase::is_final) {
        session.spec.agent = AgentSpec::default();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_is_kept_until_its_session_is_open_or_will_never_be() {
        let kept = |status: serde_json::Value| {
            let mut session: AgentSession = serde_json::from_value(json!({
                "metadata": { "name": "talk", "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" } },
                "spec": { "agent": { "model": "scripted-1", "systemPrompt": "Be brief." }, "lifetimeSeconds": 60 },
                "status": status,
            }))
            .unwrap();
            slim(&mut session);
            assert_eq!((session.metadata.annotations, session.spec.lifetime_seconds), (None, Some(60)));
            session.spec.agent.system_prompt
        };
        assert_eq!(kept(json!(null)), "Be brief.");
        assert_eq!(kept(json!({ "phase": "Pending" })), "Be brief.");
        for over in [
            json!({ "phase": "Pending", "sessionID": "0190" }),
            json!({ "phase": "Running", "sessionID": "0190" }),
            json!({ "phase": "Terminated", "sessionID": "0190" }),
            json!({ "phase": "Failed" }),
        ] {
            assert_eq!(kept(over), "");
        }
    }
}
