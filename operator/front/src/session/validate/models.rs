//! What the models that an agent names must look like. Whether there are such models the registry says.

use std::collections::HashSet;

use croft_proto::v1::{AgentRole, AgentSpec};

use crate::error::Error;

/// Each is looked at before each call.
const OTHERS_MAX: usize = 8;
const NAME_CHARS_MAX: usize = 128;

/// The models of a new session's agent.
pub(super) fn models(agent: &AgentSpec) -> Result<(), Error> {
    if agent.model.is_empty() {
        return Err(Error::invalid("agent.model", "is empty"));
    }
    if agent.model.chars().count() > NAME_CHARS_MAX {
        return Err(Error::invalid("agent.model", format!("is longer than {NAME_CHARS_MAX} characters")));
    }
    others("agent.fallback_models", &agent.fallback_models)?;
    if agent.fallback_models.contains(&agent.model) {
        return Err(Error::invalid("agent.fallback_models", "names the model itself"));
    }
    let Some(routing) = &agent.routing else { return Ok(()) };
    if AgentRole::try_from(routing.role).is_err() {
        return Err(Error::invalid("agent.routing.role", "is no role that this release knows"));
    }
    others("agent.routing.economy_models", &routing.economy_models)
}

fn others(field: &str, models: &[String]) -> Result<(), Error> {
    if models.len() > OTHERS_MAX {
        return Err(Error::invalid(field, format!("has more than {OTHERS_MAX} entries")));
    }
    if models.iter().any(|model| model.is_empty() || model.chars().count() > NAME_CHARS_MAX) {
        return Err(Error::invalid(field, format!("has one that is not 1 to {NAME_CHARS_MAX} characters")));
    }
    let mut seen = HashSet::new();
    if !models.iter().all(|model| seen.insert(model)) {
        return Err(Error::invalid(field, "names a model twice"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::RoutingSpec;

    use super::*;

    fn refusal(agent: &AgentSpec) -> String {
        models(agent).err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn falling_back(others: &[String]) -> AgentSpec {
        AgentSpec { model: "scripted-1".into(), fallback_models: others.to_vec(), ..AgentSpec::default() }
    }

    fn saving(role: i32, others: &[String]) -> AgentSpec {
        let routing = RoutingSpec { role, economy_models: others.to_vec() };
        AgentSpec { routing: Some(routing), ..falling_back(&[]) }
    }

    #[test]
    fn a_model_has_a_name_of_at_most_128_characters() {
        let named = |model: String| AgentSpec { model, ..AgentSpec::default() };
        assert_eq!(refusal(&named("ü".repeat(128))), "");
        assert_eq!(refusal(&named("ü".repeat(129))), "agent.model is longer than 128 characters");
        assert_eq!(refusal(&named(String::new())), "agent.model is empty");
    }

    #[test]
    fn others_are_few_and_each_is_one_of_its_own() {
        let nine: Vec<_> = (0..9).map(|number| format!("other-{number}")).collect();
        let cases = [
            (nine[..8].to_vec(), ""),
            (nine, "has more than 8 entries"),
            (vec!["ü".repeat(128)], ""),
            (vec!["x".repeat(129)], "has one that is not 1 to 128 characters"),
            (vec![String::new()], "has one that is not 1 to 128 characters"),
            (vec!["other".into(), "other".into()], "names a model twice"),
        ];
        for (others, problem) in cases {
            let expected = |field: &str| if problem.is_empty() { String::new() } else { format!("{field} {problem}") };
            assert_eq!(refusal(&falling_back(&others)), expected("agent.fallback_models"));
            assert_eq!(refusal(&saving(0, &others)), expected("agent.routing.economy_models"));
        }
        let itself = ["other".to_owned(), "scripted-1".to_owned()];
        assert_eq!(refusal(&falling_back(&itself)), "agent.fallback_models names the model itself");
        assert_eq!(refusal(&saving(0, &itself)), "", "the kind takes it too");
        assert_eq!(refusal(&saving(4, &[])), "agent.routing.role is no role that this release knows");
    }
}
