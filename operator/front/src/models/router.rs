//! The cost router: which model answers, when the one that was asked for costs more than the budget at hand has room for. It
//! chooses among the models that the agent names for that, by what its answers are worth to its people.

use std::sync::Arc;

use croft_proto::v1::{AgentRole, AgentSpec, Model, ModelRouted};

use super::output;
use super::price::Quote;
use super::registry::Registry;

/// From this much of the tightest budget of money on, in percent, agents of each role save.
const BACKGROUND_SAVES_AT: u32 = 50;
const STANDARD_SAVES_AT: u32 = 80;

/// What a decision is made from.
pub struct Question<'a> {
    pub agent: &'a AgentSpec,
    /// What was asked for.
    pub requested: &'a Arc<Model>,
    pub input_tokens: i64,
    /// As the worker asks for it.
    pub output_tokens_max: u32,
    /// How much of the tightest budget of money is spent or reserved, in percent; `None` without such a budget.
    pub pressure: Option<u32>,
    /// Seconds since 1970.
    pub at_seconds: i64,
}

/// The model that is to answer, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub model: Arc<Model>,
    /// A sentence's end, for people.
    pub reason: String,
}

impl Choice {
    /// As an event.
    pub fn event(&self, requested: &Model) -> ModelRouted {
        ModelRouted {
            requested_model: requested.model_id.clone(),
            chosen_model: self.model.model_id.clone(),
            reason: self.reason.clone(),
        }
    }
}

/// The decision; `None` for an agent that names no model to save with: nothing is decided for it.
///
/// `is_open` tells whether the tenant's workers can reach a provider.
pub fn choose(registry: &Registry, question: &Question<'_>, is_open: impl Fn(&str) -> bool) -> Option<Choice> {
    let Question { agent, requested, pressure, .. } = question;
    let routing = agent.routing.as_ref().filter(|routing| !routing.economy_models.is_empty())?;
    let keep = |reason: String| Some(Choice { model: Arc::clone(requested), reason });
    let saves_at = match routing.role() {
        AgentRole::Critical => return keep("the agent is critical: its model stays".to_owned()),
        AgentRole::Background => BACKGROUND_SAVES_AT,
        AgentRole::Standard | AgentRole::Unspecified => STANDARD_SAVES_AT,
    };
    let Some(pressure) = *pressure else { return keep("there is no budget of money to save".to_owned()) };
    if pressure < saves_at {
        return keep(format!("{pressure} % of the budget is used, and the agent saves from {saves_at} % on"));
    }
    let mut unfit = Vec::new();
    let mut cheapest: Option<(i64, Arc<Model>)> = None;
    for name in &routing.economy_models {
        match fit(registry, question, name, &is_open) {
            Ok((cost, model)) if cheapest.as_ref().is_none_or(|(least, _)| cost < *least) => {
                cheapest = Some((cost, model));
            }
            Ok(_) => {}
            Err(why) => unfit.push(format!("{name} {why}")),
        }
    }
    match cheapest {
        Some((_, model)) => {
            let reason = format!("{pressure} % of the budget is used: the cheapest that can do it answers");
            Some(Choice { model, reason })
        }
        None => keep(format!("{pressure} % of the budget is used, but {}", unfit.join(", and "))),
    }
}

/// What the call would cost with that model; or why it can't or need not stand in.
fn fit(
    registry: &Registry,
    question: &Question<'_>,
    name: &str,
    is_open: impl Fn(&str) -> bool,
) -> Result<(i64, Arc<Model>), &'static str> {
    let Question { agent, requested, input_tokens, at_seconds, .. } = question;
    let model = registry.get(name).map_err(|_| "does not exist")?;
    if !is_open(&model.provider) {
        return Err("is of a provider that the tenant has no key for");
    }
    let (can, own) = (model.capabilities.unwrap_or_default(), requested.capabilities.unwrap_or_default());
    if !agent.tools.is_empty() && !can.tools {
        return Err("can't call tools");
    }
    // The conversation may hold what the model asked for can see.
    if own.images && !can.images {
        return Err("can't see images");
    }
    if own.thinking && !can.thinking {
        return Err("can't think");
    }
    let output = |can| output::bound(can, *input_tokens, question.output_tokens_max);
    if can.context_tokens_max > 0 && input_tokens.saturating_add(output(&can)) > can.context_tokens_max {
        return Err("takes no conversation of this size");
    }
    // By the same output, or one that may say less would seem cheaper.
    let output = output(&own);
    let cost =
        |model: &Model| Quote::of(model, *input_tokens, *at_seconds).map(|quote| quote.nano_usd(*input_tokens, output));
    let (theirs, ours) = (cost(&model).ok_or("has no known price")?, cost(requested));
    if ours.is_some_and(|ours| theirs >= ours) {
        return Err("is no cheaper");
    }
    Ok((theirs, model))
}

#[cfg(test)]
mod tests {
    use croft_proto::Timestamp;
    use croft_proto::v1::{AgentRole, ModelCapabilities, ModelPrice, RoutingSpec, ToolSpec};

    use super::*;

    const ABLE: ModelCapabilities = ModelCapabilities {
        tools: true,
        images: true,
        thinking: true,
        context_tokens_max: 200_000,
        output_tokens_max: 0,
    };

    fn model(id: &str, usd: &str, capabilities: ModelCapabilities) -> Model {
        let price = ModelPrice {
            effective_from: Some(Timestamp::default()),
            input_usd: usd.into(),
            output_usd: usd.into(),
            ..ModelPrice::default()
        };
        let (prices, capabilities) = (if usd.is_empty() { vec![] } else { vec![price] }, Some(capabilities));
        let aliases = vec![format!("{id}-alias")];
        Model { model_id: id.into(), provider: id.into(), aliases, prices, capabilities }
    }

    /// Asks for the model `dear`.
    struct Case {
        role: AgentRole,
        economy: Vec<&'static str>,
        pressure: Option<u32>,
        tools: bool,
        input_tokens: i64,
        closed: &'static str,
    }

    impl Default for Case {
        fn default() -> Self {
            let (role, economy) = (AgentRole::Standard, vec!["cheap"]);
            Self { role, economy, pressure: Some(95), tools: false, input_tokens: 1_000, closed: "" }
        }
    }

    fn registry() -> Registry {
        Registry::of(vec![
            model("dear", "10", ABLE),
            model("dearer", "20", ABLE),
            model("same", "10", ABLE),
            model("cheap", "1", ABLE),
            model("cheaper", "0.5", ABLE),
            model("handless", "0.1", ModelCapabilities { tools: false, ..ABLE }),
            model("blind", "0.1", ModelCapabilities { images: false, ..ABLE }),
            model("thoughtless", "0.1", ModelCapabilities { thinking: false, ..ABLE }),
            model("small", "0.1", ModelCapabilities { context_tokens_max: 10_000, ..ABLE }),
            model("boundless", "0.2", ModelCapabilities { context_tokens_max: 0, ..ABLE }),
            model("priceless", "", ABLE),
        ])
    }

    fn chosen(case: &Case) -> Option<(String, String)> {
        let registry = registry();
        let routing = RoutingSpec {
            role: case.role.into(),
            economy_models: case.economy.iter().map(ToString::to_string).collect(),
        };
        let agent = AgentSpec {
            tools: if case.tools { vec![ToolSpec::default()] } else { vec![] },
            routing: Some(routing),
            ..AgentSpec::default()
        };
        let question = Question {
            agent: &agent,
            requested: &registry.get("dear").unwrap(),
            input_tokens: case.input_tokens,
            output_tokens_max: 1_000,
            pressure: case.pressure,
            at_seconds: 1,
        };
        let choice = choose(&registry, &question, |provider| provider != case.closed)?;
        Some((choice.model.model_id.clone(), choice.reason))
    }

    macro_rules! cases {
        ($($name:ident: $case:expr => $model:literal, $reason:literal;)+) => {
            $(#[test]
            fn $name() {
                let (model, reason) = chosen(&$case).unwrap();
                assert_eq!(model, $model);
                assert!(reason.contains($reason), "{reason}");
            })+
        };
    }

    cases! {
        a_standard_agent_saves_near_its_budget: Case::default() => "cheap", "95 %";
        it_saves_from_eighty_percent_on: Case { pressure: Some(80), ..Case::default() } => "cheap", "80 %";
        it_keeps_its_model_below: Case { pressure: Some(79), ..Case::default() } => "dear", "saves from 80 % on";
        without_a_budget_nothing_is_saved: Case { pressure: None, ..Case::default() } => "dear", "no budget";
        beyond_its_budget_it_saves_too: Case { pressure: Some(140), ..Case::default() } => "cheap", "140 %";
        a_background_agent_saves_from_half_on:
            Case { role: AgentRole::Background, pressure: Some(50), ..Case::default() } => "cheap", "50 %";
        a_background_agent_keeps_its_model_below:
            Case { role: AgentRole::Background, pressure: Some(49), ..Case::default() } => "dear", "saves from 50 % on";
        a_critical_agent_is_never_downgraded:
            Case { role: AgentRole::Critical, pressure: Some(100), ..Case::default() } => "dear", "critical";
        a_role_that_is_not_said_is_standard:
            Case { role: AgentRole::Unspecified, pressure: Some(60), ..Case::default() } => "dear", "saves from 80 %";
        the_cheapest_of_several_answers:
            Case { economy: vec!["cheap", "cheaper"], ..Case::default() } => "cheaper", "cheapest";
        their_order_is_no_matter:
            Case { economy: vec!["cheaper", "cheap"], ..Case::default() } => "cheaper", "cheapest";
        an_alias_names_a_model_too: Case { economy: vec!["cheap-alias"], ..Case::default() } => "cheap", "cheapest";
        one_that_does_not_exist_is_passed_over:
            Case { economy: vec!["nothing", "cheap"], ..Case::default() } => "cheap", "cheapest";
        a_dearer_one_is_no_saving: Case { economy: vec!["dearer"], ..Case::default() } => "dear", "no cheaper";
        neither_is_one_that_costs_the_same: Case { economy: vec!["same"], ..Case::default() } => "dear", "no cheaper";
        tools_need_one_that_calls_them:
            Case { economy: vec!["handless", "cheap"], tools: true, ..Case::default() } => "cheap", "cheapest";
        without_tools_nobody_needs_to_call_any:
            Case { economy: vec!["handless", "cheap"], ..Case::default() } => "handless", "cheapest";
        what_the_model_sees_its_stand_in_must_see:
            Case { economy: vec!["blind"], ..Case::default() } => "dear", "blind can't see images";
        what_it_thinks_its_stand_in_must_think:
            Case { economy: vec!["thoughtless"], ..Case::default() } => "dear", "can't think";
        a_conversation_must_fit:
            Case { economy: vec!["small"], input_tokens: 9_001, ..Case::default() } => "dear", "of this size";
        one_that_just_fits_does: Case { economy: vec!["small"], input_tokens: 9_000, ..Case::default() } => "small", "cheapest";
        a_size_that_nobody_knows_is_no_reason:
            Case { economy: vec!["boundless"], input_tokens: 900_000, ..Case::default() } => "boundless", "cheapest";
        one_without_a_price_may_cost_anything:
            Case { economy: vec!["priceless"], ..Case::default() } => "dear", "no known price";
        one_that_the_tenant_cannot_reach_is_none:
            Case { economy: vec!["cheap"], closed: "cheap", ..Case::default() } => "dear", "no key";
        all_that_stood_in_the_way_is_said:
            Case { economy: vec!["blind", "priceless"], ..Case::default() } => "dear", "images, and priceless has";
    }

    #[test]
    fn an_agent_that_names_no_other_model_is_not_routed() {
        assert_eq!(chosen(&Case { economy: vec![], ..Case::default() }), None);
    }

    #[test]
    fn a_decision_is_an_event() {
        let registry = registry();
        let choice = Choice { model: registry.get("cheap").unwrap(), reason: "because".into() };
        let event = choice.event(&registry.get("dear").unwrap());
        assert_eq!((&*event.requested_model, &*event.chosen_model, &*event.reason), ("dear", "cheap", "because"));
    }
}
