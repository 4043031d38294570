//! Grants that are out: a model may be called, and what came of it is not stored. When the worker is lost, what it used and has not told is
//! reckoned, since its provider charges for it all the same.

use croft_proto::estimate;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{Grant, GrantRequest, ModelAttempt, TokenUsage};
use tokio::time::Instant;

/// The fixed word for an attempt whose worker was lost.
const LOST: &str = "lost";

/// See the module.
#[derive(Default)]
pub(super) struct Granted {
    /// What came of them has not been told.
    open: Vec<Open>,
    /// What came of others, as it was told or reckoned, until it is stored: whoever stores it may be cut off before.
    unstored: Vec<Kind>,
}

struct Open {
    grant: Grant,
    given: Instant,
    input_tokens_estimated: u32,
    /// Of its answer, as far as it was shown: see [`estimate`].
    weight: usize,
}

impl Granted {
    pub(super) fn give(&mut self, request: &GrantRequest, grant: Grant) {
        let input_tokens_estimated = request.input_tokens_estimated;
        self.open.push(Open { grant, given: Instant::now(), input_tokens_estimated, weight: 0 });
    }

    /// How many are out of which nothing was told.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// A piece of the answer was shown.
    pub(super) fn shown(&mut self, preview: &Kind) {
        // A worker makes one attempt at a time. Of two, it tells what came of the one that it gave up first.
        if let Some(open) = self.open.last_mut() {
            open.weight += weight(preview);
        }
    }

    /// What came of grants was told, and is about to be stored.
    pub(super) fn settle(&mut self, kinds: &[Kind]) {
        for kind in kinds {
            if let Kind::ModelAttempt(attempt) = kind {
                self.open.retain(|open| open.grant.grant_id != attempt.grant_id);
                self.unstored.push(kind.clone());
            }
        }
    }

    /// The same for the last that the worker tells: the calls of which it has not told were not made.
    pub(super) fn finish(&mut self, last_words: &[Kind]) {
        self.settle(last_words);
        self.open.clear();
    }

    /// What was about to be stored is.
    pub(super) fn stored(&mut self) {
        self.unstored.clear();
    }

    /// The attempts that are to be stored, since nobody will tell of them any more: the same ones until they [are](Self::stored).
    pub(super) fn lost(&mut self) -> Vec<Kind> {
        self.unstored.extend(self.open.drain(..).map(|open| Kind::ModelAttempt(open.attempt())));
        self.unstored.clone()
    }
}

/// What a preview shows of an answer, as texts are weighed.
pub(super) fn weight(preview: &Kind) -> usize {
    let text = match preview {
        Kind::TextDelta(delta) => &delta.text,
        Kind::ThinkingDelta(delta) => &delta.text,
        Kind::ToolArgumentDelta(delta) => &delta.partial_json,
        _ => return 0,
    };
    estimate::weight(text)
}

impl Open {
    fn attempt(self) -> ModelAttempt {
        let output_tokens = i64::from(estimate::tokens(self.weight));
        let usage = TokenUsage {
            input_uncached_tokens: i64::from(self.input_tokens_estimated),
            output_tokens,
            ..TokenUsage::default()
        };
        ModelAttempt {
            // As its worker names it: should it be heard of after all, it counts once.
            attempt_id: self.grant.grant_id.clone(),
            grant_id: self.grant.grant_id,
            provider: self.grant.provider,
            model: self.grant.model,
            usage: Some(usage),
            usage_estimated: true,
            latency_ms: i64::try_from(self.given.elapsed().as_millis()).unwrap_or(i64::MAX),
            finish_reason: LOST.to_owned(),
            error_class: "truncated".to_owned(),
            ..ModelAttempt::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::TextDelta;

    use super::*;

    fn given(granted: &mut Granted, grant_id: &str) {
        let request = GrantRequest { input_tokens_estimated: 30, ..GrantRequest::default() };
        granted.give(&request, Grant { grant_id: grant_id.into(), ..Grant::default() });
    }

    #[tokio::test]
    async fn what_was_told_is_not_reckoned_and_what_was_not_is_reckoned_once() {
        let mut granted = Granted::default();
        given(&mut granted, "told");
        let told = [Kind::ModelAttempt(ModelAttempt { grant_id: "told".into(), ..ModelAttempt::default() })];
        granted.settle(&told);
        assert_eq!(granted.lost(), told, "it is not stored");
        granted.stored();
        given(&mut granted, "lost");
        granted.shown(&Kind::TextDelta(TextDelta { text: "neun é, ü".into() }));
        let lost = granted.lost();
        let [Kind::ModelAttempt(attempt)] = &lost[..] else { panic!("{lost:?}") };
        let usage = attempt.usage.unwrap();
        assert_eq!((attempt.grant_id.as_str(), attempt.usage_estimated), ("lost", true));
        assert_eq!((usage.input_uncached_tokens, usage.output_tokens), (30, 3));
        assert_eq!(granted.lost(), lost, "they are not stored");
        granted.stored();
        assert!(granted.lost().is_empty());
    }
}
