//! Checks of what goes into an agent and what comes out of it: of the user's words, of a tool's arguments and results, and
//! of what the model says. What an enforced check refuses goes no further; a shadow only tells.

mod arguments;
mod aside;
mod asked;
mod json;
mod pattern;
mod personal;
mod scan;
mod stream;

use std::borrow::Cow;
use std::sync::Arc;

use croft_proto::v1::guardrail_spec::Check as CheckSpec;
use croft_proto::v1::{AgentSpec, GuardrailMode, GuardrailSpec, GuardrailStage, GuardrailViolation};
use serde_json::Value;

use crate::http_client::HttpClient;
use crate::json_schema::{JsonSchema, Unfit};
use crate::patterns::Patterns;
use crate::refusal::Refusal;
use arguments::Arguments;
use aside::{Late, ON_STEP_BYTES_MAX, aside};
use asked::Asked;
use personal::PersonalData;
use scan::{Scanner, redacted};
pub(crate) use stream::Output;

/// Checks of one agent. At the bound the agent is refused.
const GUARDRAILS_MAX: usize = 16;

/// The checks of one agent, in its order.
#[derive(Default)]
pub(crate) struct Guardrails {
    guards: Vec<Guard>,
}

struct Guard {
    name: String,
    stages: Vec<GuardrailStage>,
    shadow: bool,
    check: Check,
}

enum Check {
    /// Characters.
    Length(usize),
    Scan {
        scanner: Arc<dyn Scanner>,
        redact: bool,
    },
    Schema(JsonSchema),
    Http(Asked),
}

/// What one check says of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// What was found was replaced.
    Replaced(String),
    /// With the fixed word for why.
    Refused(&'static str),
}

/// What a check finds in a text, without the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Replaced,
    Refused(&'static str),
}

impl Verdict {
    fn found(&self) -> Option<Found> {
        match self {
            Self::Passed => None,
            Self::Replaced(_) => Some(Found::Replaced),
            Self::Refused(reason) => Some(Found::Refused(reason)),
        }
    }
}

/// What all checks say of a text.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Review {
    pub(crate) violations: Vec<GuardrailViolation>,
    /// The check that lets the text go no further.
    pub(crate) blocked_by: Option<String>,
    /// That check is a server's, which is away or overloaded: another time the text may pass.
    pub(crate) is_unanswered: bool,
}

impl Guardrails {
    /// The agent's checks, or why one of them can't be made.
    pub(crate) fn open(agent: &AgentSpec, client: &HttpClient, patterns: &mut Patterns) -> Result<Self, Refusal> {
        let invalid = |name: &str, problem: String| Refusal::GuardrailInvalid { guardrail: name.to_owned(), problem };
        if agent.guardrails.len() > GUARDRAILS_MAX {
            return Err(invalid("", format!("there are more than {GUARDRAILS_MAX}")));
        }
        let open = |spec: &GuardrailSpec| {
            let unsupported =
                |problem: &'static str| Refusal::GuardrailUnsupported { guardrail: spec.name.clone(), problem };
            // The front knows all that there is: what is not known here is of a newer release.
            let kind = spec.check.as_ref().ok_or_else(|| unsupported("it checks nothing that this worker knows"))?;
            let stages = spec.stages.iter().map(|stage| GuardrailStage::try_from(*stage)).collect::<Result<_, _>>();
            let stages = stages.map_err(|_| unsupported("one of its stages is not known to this worker"))?;
            let mode = GuardrailMode::try_from(spec.mode);
            let mode = mode.map_err(|_| unsupported("its mode is not known to this worker"))?;
            let check = check(kind, client, patterns).map_err(|problem| invalid(&spec.name, problem))?;
            Ok(Guard { name: spec.name.clone(), stages, shadow: mode == GuardrailMode::Shadow, check })
        };
        Ok(Self { guards: agent.guardrails.iter().map(open).collect::<Result<_, _>>()? })
    }

    fn at(&self, stage: GuardrailStage) -> impl Iterator<Item = &Guard> {
        self.guards.iter().filter(move |guard| guard.looks_at(stage))
    }

    /// A check could hold back what is said at that stage, so that none of it may be shown before it is whole.
    pub(crate) fn enforces(&self, stage: GuardrailStage) -> bool {
        self.at(stage).any(|guard| !guard.shadow)
    }

    /// A check has something to say of that stage.
    pub(crate) fn look_at(&self, stage: GuardrailStage) -> bool {
        self.at(stage).next().is_some()
    }

    /// Checks texts that belong together, and replaces in them what is to be replaced.
    pub(crate) async fn review(&self, stage: GuardrailStage, texts: &mut [&mut String]) -> Review {
        self.review_by(|_| true, stage, texts).await
    }

    /// Checks once more what was said before, as it was said, by what says the same of it each time.
    pub(crate) async fn review_again(&self, stage: GuardrailStage, texts: &mut [&mut String]) -> Review {
        self.review_by(|check| !matches!(check, Check::Http(_)), stage, texts).await
    }

    /// Checks what the model thinks while it comes to its answer. It is of no shape, and what was kept secret is not looked at.
    pub(crate) async fn review_thinking(&self, text: &mut String) -> Review {
        if text.is_empty() {
            return Review::default();
        }
        self.review_by(|check| !matches!(check, Check::Schema(_)), GuardrailStage::Output, &mut [text]).await
    }

    async fn review_by(
        &self,
        looks: impl Fn(&Check) -> bool,
        stage: GuardrailStage,
        texts: &mut [&mut String],
    ) -> Review {
        let mut review = Review::default();
        for guard in self.at(stage).filter(|guard| looks(&guard.check)) {
            let mut verdicts = Vec::new();
            if guard.redacts() {
                for text in texts.iter_mut() {
                    let verdict = guard.verdict(stage, text).await;
                    if let (Verdict::Replaced(replaced), false) = (&verdict, guard.shadow) {
                        text.clone_from(replaced);
                    }
                    verdicts.push(verdict);
                }
            } else if let [text] = texts {
                verdicts.push(guard.verdict(stage, text).await);
            } else {
                // Of one thing that is said in pieces the whole counts.
                let whole: Vec<&str> = texts.iter().map(|text| text.as_str()).collect();
                verdicts.push(guard.verdict(stage, &whole.join("\n")).await);
            }
            if review.take(guard, stage, &verdicts) {
                break;
            }
        }
        review
    }

    /// Checks a tool's arguments, and replaces in them what is to be replaced.
    pub(crate) async fn review_arguments(&self, arguments_json: &mut String) -> Review {
        let stage = GuardrailStage::ToolArguments;
        let Some(arguments) = Arguments::read(arguments_json) else {
            return self.review(stage, &mut [arguments_json]).await;
        };
        let mut arguments = Arc::new(arguments);
        if self.look_at(stage) {
            // As it was understood: of a key that is there twice the text has more to say than what the checks see.
            *arguments_json = arguments.written();
        }
        let mut review = Review::default();
        for guard in self.at(stage) {
            let verdict = match &guard.check {
                Check::Scan { scanner, redact } => {
                    let (verdict, replaced) = if arguments_json.len() > ON_STEP_BYTES_MAX {
                        let (arguments, redact) = (Arc::clone(&arguments), *redact);
                        let looked =
                            aside(Arc::clone(scanner), move |scanner| arguments.scanned(scanner, redact)).await;
                        looked.unwrap_or_else(|Late| (guard.late(), None))
                    } else {
                        arguments.scanned(scanner.as_ref(), *redact)
                    };
                    if let (Verdict::Replaced(text), Some(replaced), false) = (&verdict, replaced, guard.shadow) {
                        arguments_json.clone_from(text);
                        arguments = Arc::new(replaced);
                    }
                    verdict
                }
                Check::Length(_) | Check::Schema(_) | Check::Http(_) => guard.verdict(stage, arguments_json).await,
            };
            if review.take(guard, stage, &[verdict]) {
                break;
            }
        }
        review
    }

    /// The checks of one answer's text while it comes; `None` when nothing looks at it.
    pub(crate) fn output(&self) -> Option<Output<'_>> {
        let guards: Vec<_> = self.at(GuardrailStage::Output).collect();
        (!guards.is_empty()).then(|| Output::new(guards))
    }
}

impl Guard {
    fn looks_at(&self, stage: GuardrailStage) -> bool {
        self.stages.is_empty() || self.stages.contains(&stage)
    }

    fn redacts(&self) -> bool {
        matches!(self.check, Check::Scan { redact: true, .. })
    }

    async fn verdict(&self, stage: GuardrailStage, text: &str) -> Verdict {
        match &self.check {
            Check::Length(characters_max) if text.chars().count() > *characters_max => Verdict::Refused("length"),
            Check::Length(_) => Verdict::Passed,
            Check::Scan { scanner, redact } if text.len() > ON_STEP_BYTES_MAX => {
                let (text, redact) = (text.to_owned(), *redact);
                let looked = aside(Arc::clone(scanner), move |scanner| scanned(scanner, redact, &text)).await;
                looked.unwrap_or_else(|Late| self.late())
            }
            Check::Scan { scanner, redact } => scanned(scanner.as_ref(), *redact, text),
            Check::Schema(schema) => {
                let Ok(value) = serde_json::from_str(text) else { return Verdict::Refused("schema") };
                match schema.hold(value).await {
                    Ok(_) => Verdict::Passed,
                    Err(Unfit::Fault(_)) => Verdict::Refused("schema"),
                    Err(Unfit::Late) => {
                        tracing::warn!(guardrail = self.name, "a text took too long to hold to a guardrail's schema");
                        Verdict::Refused("schema_late")
                    }
                }
            }
            Check::Http(asked) => asked.about(&self.name, point(stage), text).await,
        }
    }

    /// What counts of a text that was not looked through.
    fn late(&self) -> Verdict {
        tracing::warn!(guardrail = self.name, "a text waited too long to be looked through by a guardrail");
        Verdict::Refused("scan_late")
    }

    fn violation(&self, stage: GuardrailStage, found: Found) -> GuardrailViolation {
        let (blocked, redacted, reason) = match found {
            Found::Replaced => (false, !self.shadow, "personal_data"),
            Found::Refused(reason) => (!self.shadow, false, reason),
        };
        GuardrailViolation {
            guardrail: self.name.clone(),
            point: point(stage).to_owned(),
            blocked,
            redacted,
            reason: reason.to_owned(),
            tool_call_id: String::new(),
        }
    }
}

fn scanned(scanner: &dyn Scanner, redact: bool, text: &str) -> Verdict {
    if !redact {
        return scanner.find(text, 0).map_or(Verdict::Passed, |finding| Verdict::Refused(finding.what));
    }
    match redacted(scanner, text) {
        Cow::Borrowed(_) => Verdict::Passed,
        Cow::Owned(replaced) => Verdict::Replaced(replaced),
    }
}

impl Review {
    /// Takes in what a check says, told once however often it was found; true when it lets nothing through.
    fn take(&mut self, guard: &Guard, stage: GuardrailStage, verdicts: &[Verdict]) -> bool {
        let Some(found) = verdicts.iter().find_map(Verdict::found) else { return false };
        let violation = guard.violation(stage, found);
        let blocked = violation.blocked;
        self.violations.push(violation);
        if blocked {
            self.blocked_by = Some(guard.name.clone());
            self.is_unanswered = found == Found::Refused(asked::UNANSWERED);
        }
        blocked
    }
}

/// The fixed word for a stage in events and metrics.
fn point(stage: GuardrailStage) -> &'static str {
    match stage {
        GuardrailStage::Input => "input",
        GuardrailStage::ToolArguments => "tool_arguments",
        GuardrailStage::ToolResult => "tool_result",
        GuardrailStage::Output => "output",
        GuardrailStage::Unspecified => "unspecified",
    }
}

fn check(kind: &CheckSpec, client: &HttpClient, patterns: &mut Patterns) -> Result<Check, String> {
    match kind {
        CheckSpec::Length(length) if length.characters_max == 0 => Err("characters_max is 0".to_owned()),
        CheckSpec::Length(length) => Ok(Check::Length(usize::try_from(length.characters_max).unwrap_or(usize::MAX))),
        CheckSpec::Pattern(pattern) => {
            Ok(Check::Scan { scanner: Arc::new(pattern::Denied::open(&pattern.denied, patterns)?), redact: false })
        }
        CheckSpec::PersonalData(data) => {
            Ok(Check::Scan { scanner: Arc::new(PersonalData::open(&data.kinds)?), redact: data.redact })
        }
        CheckSpec::JsonSchema(schema) => {
            let schema: Value = serde_json::from_str(&schema.schema_json)
                .map_err(|error| format!("its schema is not valid JSON: {error}"))?;
            Ok(Check::Schema(JsonSchema::open(&schema).map_err(|problem| format!("its schema {problem}"))?))
        }
        CheckSpec::Http(http) => Ok(Check::Http(Asked::open(http, client)?)),
    }
}

#[cfg(test)]
mod tests;
