//! Whether a model can take over a conversation from another that failed: a hop to one that can't costs a call and helps
//! nobody.

use croft_proto::v1::{GrantRequest, Model, ModelCapabilities, Takeover};

/// Why it can't, in a sentence's end; `None` when it can, or when too little is known of it to say so.
pub fn unfit(model: &Model, from: Option<&Model>, request: &GrantRequest) -> Option<String> {
    let takeover = request.takeover.as_ref()?;
    let Takeover { reason, tools, images, .. } = takeover;
    let can = model.capabilities.unwrap_or_default();
    if *tools && !can.tools {
        return Some("can't call tools".to_owned());
    }
    if *images && !can.images {
        return Some("can't see the conversation's images".to_owned());
    }
    let context = context(&can)?;
    if i64::from(request.input_tokens_estimated) >= context {
        return Some(format!("takes {context} tokens, and there are about {}", request.input_tokens_estimated));
    }
    let before = from.and_then(|from| self::context(&from.capabilities.unwrap_or_default()))?;
    (reason == "context" && context <= before).then(|| "takes no larger conversation".to_owned())
}

/// How much fits it, if that is known.
fn context(capabilities: &ModelCapabilities) -> Option<i64> {
    (capabilities.context_tokens_max > 0).then_some(capabilities.context_tokens_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(context_tokens_max: i64) -> Model {
        let capabilities = ModelCapabilities { tools: true, images: true, context_tokens_max, ..Default::default() };
        Model { capabilities: Some(capabilities), ..Model::default() }
    }

    fn request(reason: &str) -> GrantRequest {
        let takeover = Takeover { from_model: "a".into(), reason: reason.into(), tools: true, images: true };
        GrantRequest { input_tokens_estimated: 1_000, takeover: Some(takeover), ..GrantRequest::default() }
    }

    #[test]
    fn what_a_conversation_needs_its_next_model_must_have() {
        let blind = |capabilities: ModelCapabilities| Model { capabilities: Some(capabilities), ..Model::default() };
        let can = model(200_000).capabilities.unwrap();
        for (model, told) in [
            (blind(ModelCapabilities { tools: false, ..can }), Some("can't call tools")),
            (blind(ModelCapabilities { images: false, ..can }), Some("can't see the conversation's images")),
            (model(1_000), Some("takes 1000 tokens, and there are about 1000")),
            (model(1_001), None),
            (model(0), None),
        ] {
            assert_eq!(unfit(&model, None, &request("error")).as_deref(), told);
        }
    }

    #[test]
    fn after_a_conversation_that_was_too_large_only_a_larger_context_will_do() {
        let from = model(200_000);
        assert!(unfit(&model(200_000), Some(&from), &request("context")).is_some());
        assert_eq!(unfit(&model(1_000_000), Some(&from), &request("context")), None);
        assert_eq!(unfit(&model(200_000), Some(&from), &request("error")), None);
        assert_eq!(unfit(&model(200_000), Some(&model(0)), &request("context")), None, "nobody knows");
    }

    #[test]
    fn the_agents_own_model_is_never_unfit() {
        let own = GrantRequest { input_tokens_estimated: 9_000, ..GrantRequest::default() };
        assert_eq!(unfit(&model(1_000), None, &own), None);
    }
}
