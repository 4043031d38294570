//! What workers did, on the front's own page.

use croft_e2e::client::{message, scripted_agent};
use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, GuardrailSpec, GuardrailStage, Model, PersonalDataCheck, ProviderMode, ProviderRoute,
    ReplayClass, StopReason, ToolSpec,
};
use prometheus::proto::{LabelPair, MetricType};

use crate::world::{World, read_all, stop_reason};

/// What the front counts of workers and is not 0, by name and labels.
fn counted(world: &World) -> Vec<String> {
    let families = world.metrics.registry().gather();
    let ours = ["croft_model_", "croft_tool_", "croft_guardrail_", "croft_unpriced_"];
    let families = families.iter().filter(|family| ours.iter().any(|ours| family.name().starts_with(ours)));
    let all = families.flat_map(|family| family.get_metric().iter().map(move |metric| (family, metric)));
    let lines = all.filter_map(|(family, metric)| {
        let count = match family.get_field_type() {
            MetricType::HISTOGRAM => metric.get_histogram().get_sample_count().to_string(),
            _ => metric.get_counter().get_value().to_string(),
        };
        let labels: Vec<_> = metric.get_label().iter().map(LabelPair::value).collect();
        (count != "0").then(|| format!("{} {} {count}", family.name(), labels.join(" ")))
    });
    lines.collect()
}

#[tokio::test]
async fn a_turn_with_a_fallback_a_tool_and_a_guardrail_is_counted_exactly() {
    let world = World::start().await;
    let known = (*world.core.models.get("scripted-1").unwrap()).clone();
    // The tenant has a key for it, and the worker that runs has none yet.
    let away = Model {
        model_id: "elsewhere-0".into(),
        provider: "elsewhere".into(),
        aliases: Vec::new(),
        prices: Vec::new(),
        ..known.clone()
    };
    world.core.models.replace(vec![known, away]);
    world.reroute(|route| {
        route.providers = vec![ProviderRoute { name: "elsewhere".into(), mode: ProviderMode::TenantKey.into() }];
    });
    assert_eq!(counted(&world), Vec::<String>::new());

    let clock = ToolSpec {
        name: "clock".into(),
        source: Some(Source::Builtin(BuiltinTool { name: "clock".into() })),
        replay: ReplayClass::Safe.into(),
        ..ToolSpec::default()
    };
    let people = GuardrailSpec {
        name: "people".into(),
        check: Some(Check::PersonalData(PersonalDataCheck { kinds: Vec::new(), redact: true })),
        stages: vec![GuardrailStage::Output.into()],
        ..GuardrailSpec::default()
    };
    let agent = AgentSpec {
        model: "elsewhere-0".into(),
        fallback_models: vec!["scripted-1".into()],
        tools: vec![clock],
        guardrails: vec![people],
        ..scripted_agent("busy")
    };
    let mut client = world.client();
    let session = client.create(agent).await.unwrap();
    let script = r#"{"script": [{"tool_call": {"name": "clock"}}, {"text": "Ask jo@doe.example."}]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
    assert_eq!(
        counted(&world),
        [
            "croft_guardrail_violations_total redacted output 1",
            "croft_model_attempt_seconds other 1",
            "croft_model_attempt_seconds scripted 2",
            "croft_model_attempts_total platform ok scripted 2",
            "croft_model_attempts_total tenant auth other 1",
            "croft_model_fallbacks_total error 1",
            "croft_model_first_token_seconds scripted 2",
            "croft_tool_calls_total  1",
            "croft_tool_results_total ok 1",
            "croft_tool_seconds  1",
            "croft_unpriced_attempts_total  1",
        ],
        "{events:?}"
    );
}
