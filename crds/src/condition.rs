//! Conditions in a status: the standard shape, and the rule that a time changes only with the status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator, json_schema};

/// What a condition says; the time is added by [`set`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The condition's type, for example `Ready`.
    pub kind: &'static str,
    /// `None` is written as `Unknown`.
    pub holds: Option<bool>,
    /// A fixed word; it carries no data.
    pub reason: &'static str,
    /// A sentence for people; it may carry data, but no secret.
    pub message: String,
}

/// Puts `verdict` into `conditions`, in the place of the older one of its type.
///
/// The transition time stays unless the status changed, so the same verdict twice gives the same conditions.
pub fn set(conditions: &mut Vec<Condition>, verdict: Verdict, observed_generation: Option<i64>, now: &Time) {
    let status = match verdict.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let older = conditions.iter().position(|condition| condition.type_ == verdict.kind);
    let last_transition_time = match older.map(|index| &conditions[index]) {
        Some(older) if older.status == status => older.last_transition_time.clone(),
        _ => now.clone(),
    };
    let condition = Condition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.to_owned(),
        message: verdict.message,
        observed_generation,
        last_transition_time,
    };
    match older {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

/// The schema of a list of conditions, keyed by type.
///
/// Written by hand because `k8s_openapi` has it only behind a feature that slows every build down.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "What holds of this object, each with the reason.",
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(holds: bool, reason: &'static str) -> Verdict {
        Verdict { kind: "Ready", holds: Some(holds), reason, message: String::new() }
    }

    fn at(text: &str) -> Time {
        Time(text.parse().unwrap())
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        let [first, second, third] = ["2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"].map(at);
        set(&mut conditions, verdict(false, "Waiting"), Some(1), &first);
        set(&mut conditions, verdict(false, "WaitingStill"), Some(2), &second);
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, first);
        assert_eq!(conditions[0].reason, "WaitingStill");
        set(&mut conditions, verdict(true, "AllWell"), Some(2), &third);
        assert_eq!(conditions[0].last_transition_time, third);
    }
}
