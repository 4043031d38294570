//! What `kubectl get agenttenants,agentsessions` shows.

use croft_crds::generate::definitions;
use serde_json::Value;

/// The columns that are shown without `-o wide`, with where each comes from.
fn columns(plural: &str) -> Vec<(String, String)> {
    let kind = definitions().into_iter().find(|kind| kind.spec.names.plural == plural).expect("our kind");
    let columns = kind.spec.versions[0].additional_printer_columns.clone().expect("it has columns");
    let shown = columns.into_iter().filter(|column| column.priority.unwrap_or(0) == 0);
    shown.map(|column| (column.name, column.json_path)).collect()
}

#[test]
fn the_columns_answer_the_daily_questions() {
    let reason = ".status.conditions[?(@.type=='Ready')].reason";
    let tenants = [
        ("Tier", ".spec.tier"),
        ("Phase", ".status.phase"),
        ("Ready", ".status.workers.ready"),
        ("Workers", ".status.workers.desired"),
        ("Sessions", ".status.sessions.open"),
        ("Max", ".status.sessions.max"),
        ("Spend", ".status.spend.usd"),
        ("Reason", reason),
        ("Age", ".metadata.creationTimestamp"),
    ];
    let sessions = [
        ("Phase", ".status.phase"),
        ("Reason", reason),
        ("Model", ".spec.agent.model"),
        ("Session", ".status.sessionID"),
        ("Events", ".status.lastSeq"),
        ("Cost", ".status.usage.costUsd"),
        ("Age", ".metadata.creationTimestamp"),
    ];
    for (plural, wanted) in [("agenttenants", &tenants[..]), ("agentsessions", &sessions[..])] {
        let shown = columns(plural);
        let shown: Vec<_> = shown.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
        assert_eq!(shown, wanted, "{plural}");
    }
}

#[test]
fn every_column_is_of_a_field_that_there_is() {
    for kind in definitions() {
        let schema = kind.spec.versions[0].schema.clone().and_then(|schema| schema.open_api_v3_schema);
        let schema = serde_json::to_value(schema).expect("plain data");
        let columns = kind.spec.versions[0].additional_printer_columns.clone().expect("it has columns");
        for path in columns.into_iter().map(|column| column.json_path).filter(|path| !path.starts_with(".metadata.")) {
            let path = path.replace("[?(@.type=='Ready')]", ".items");
            let field = path.split('.').skip(1).fold(&schema, |schema, field| match field {
                "items" => &schema["items"],
                field => &schema["properties"][field],
            });
            assert_ne!(field, &Value::Null, "{} has no {path}", kind.spec.names.plural);
        }
    }
}
