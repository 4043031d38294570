//! The temperatures that models refuse, as they told. Newer ones take none, or one alone, and nothing but the refusal of a call
//! says which: <https://platform.claude.com/docs/en/api/messages/create#create.temperature>,
//! <https://platform.openai.com/docs/guides/latest-model>.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Class, Error};

/// Refusals that are kept. At the bound all are forgotten, and each costs one refused call more.
const REFUSALS_MAX: usize = 1_024;

/// What is known of the models of one worker. Clones share it.
#[derive(Clone, Default)]
pub struct Temperatures {
    /// By provider, model, and the temperature's bits: another may be taken.
    refused: Arc<Mutex<HashSet<(String, String, u64)>>>,
}

impl Temperatures {
    /// The temperature, unless that model is known to refuse it.
    pub fn taken(&self, provider: &str, model: &str, temperature: f64) -> Option<f64> {
        let key = (provider.to_owned(), model.to_owned(), temperature.to_bits());
        (!self.lock().contains(&key)).then_some(temperature)
    }

    /// Keeps in mind that a call with this temperature failed like that. True when it is the temperature that was refused: the
    /// same call may go through without it.
    pub fn learn(&self, provider: &str, model: &str, temperature: f64, error: &Error) -> bool {
        if error.was_not_made || error.class != Class::Invalid || !names_it(&error.message) {
            return false;
        }
        let mut refused = self.lock();
        if refused.len() >= REFUSALS_MAX {
            refused.clear();
        }
        refused.insert((provider.to_owned(), model.to_owned(), temperature.to_bits()));
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(String, String, u64)>> {
        // No code that holds the lock can leave it half changed.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The word stands by itself, and is not part of the name of a tool that the provider complains of.
fn names_it(message: &str) -> bool {
    let of_a_name = |character: char| character.is_alphanumeric() || matches!(character, '_' | '-');
    message.to_lowercase().split(|character| !of_a_name(character)).any(|word| word == "temperature")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(message: &str) -> Error {
        Error::new("test", Class::Invalid, message)
    }

    #[test]
    fn a_refusal_that_names_it_is_kept_for_that_model_and_value() {
        let temperatures = Temperatures::default();
        let error = refusal("`temperature` is deprecated for this model.");
        assert!(temperatures.learn("anthropic", "claude-x", 0.2, &error));
        let taken = |provider, model, temperature| temperatures.clone().taken(provider, model, temperature);
        assert_eq!(taken("anthropic", "claude-x", 0.2), None);
        for (provider, model, temperature) in [("anthropic", "claude-x", 1.0), ("anthropic", "y", 0.2), ("z", "y", 0.2)]
        {
            assert_eq!(taken(provider, model, temperature), Some(temperature));
        }
    }

    #[test]
    fn whatever_else_was_refused_is_no_word_on_the_temperature() {
        let temperatures = Temperatures::default();
        for message in ["Unsupported value: 'temperature' does not support 0.2", "bad (temperature)"] {
            assert!(names_it(message), "{message}");
        }
        for message in ["tools.0: get_temperature has no schema", "temperatures", "max_tokens: must be positive"] {
            assert!(!temperatures.learn("p", "m", 0.2, &refusal(message)), "{message}");
        }
        let overload = Error::new("p", Class::Overload, "temperature of the machine is too high");
        assert!(!temperatures.learn("p", "m", 0.2, &overload));
        assert_eq!(temperatures.taken("p", "m", 0.2), Some(0.2));
    }

    #[test]
    fn at_the_bound_all_are_forgotten() {
        let temperatures = Temperatures::default();
        for model in 0..=REFUSALS_MAX {
            assert!(temperatures.learn("p", &model.to_string(), 0.2, &refusal("temperature")));
        }
        assert_eq!(temperatures.lock().len(), 1);
    }
}
