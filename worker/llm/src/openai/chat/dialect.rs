//! What servers of this interface want otherwise than OpenAI, by where they are: they say so nowhere, and refuse a call for a field
//! that they don't know.

use reqwest::Url;

use crate::refusals::Part;

/// Where a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// OpenAI, there or at Azure.
    OpenAi,
    /// `DeepSeek`, and Moonshot's Kimi, which has its ways.
    DeepSeek,
    Mistral,
    /// Most models of one's own, and gateways to whatever.
    Other,
}

impl Dialect {
    /// Of the server with this address.
    pub(super) fn of(base_url: &str) -> Self {
        let url = Url::parse(base_url).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        let is_of = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        // Azure has clouds of its own for some countries, with other endings.
        let at_azure = ["openai", "cognitiveservices", "services.ai"];
        if is_of("openai.com") || at_azure.iter().any(|service| host.contains(&format!(".{service}.azure."))) {
            Self::OpenAi
        } else if ["deepseek.com", "moonshot.ai", "moonshot.cn"].into_iter().any(is_of) {
            Self::DeepSeek
        } else if is_of("mistral.ai") {
            Self::Mistral
        } else {
            Self::Other
        }
    }

    /// The field that bounds the output. OpenAI's models that think refuse `max_tokens`, also behind a gateway; Mistral refuses
    /// `max_completion_tokens`, and others ignore it. Behind an alias nobody can tell the model: what a refusal says counts more.
    pub(super) fn output_bound(self, model: &str, refused: &[Part]) -> &'static str {
        match self {
            _ if refused.contains(&Part::MaxTokens) => "max_completion_tokens",
            _ if refused.contains(&Part::MaxCompletionTokens) => "max_tokens",
            Self::OpenAi => "max_completion_tokens",
            Self::Other if is_of_openai(model) => "max_completion_tokens",
            Self::DeepSeek | Self::Mistral | Self::Other => "max_tokens",
        }
    }

    /// Mistral tells of it unasked, and refuses the question.
    pub(super) fn must_be_asked_for_usage(self) -> bool {
        match self {
            Self::OpenAi | Self::DeepSeek | Self::Other => true,
            Self::Mistral => false,
        }
    }

    /// An answer with calls is refused without what was thought before it, be it another model's that thought nothing.
    /// <https://api-docs.deepseek.com/guides/thinking_mode#tool-calls>
    pub(super) fn demands_reasoning(self) -> bool {
        match self {
            Self::DeepSeek => true,
            Self::OpenAi | Self::Mistral | Self::Other => false,
        }
    }

    /// A user's word right behind the results of calls is refused for its role.
    pub(super) fn demands_answer_to_results(self) -> bool {
        match self {
            Self::Mistral => true,
            Self::OpenAi | Self::DeepSeek | Self::Other => false,
        }
    }
}

/// By its name, such as `gpt-6-sol`, `openai/o3` or `us.openai:gpt-6-sol`. The models whose weights OpenAI gave away are served by others.
fn is_of_openai(model: &str) -> bool {
    // A version may have a dot in it, and then the whole is looked at as well.
    let parts = |at: &[char]| model.rsplit(at).next().unwrap_or(model).to_owned();
    [parts(&['/', ':', '@']), parts(&['/', ':', '@', '.'])].iter().any(|name| is_name_of_openai(name))
}

fn is_name_of_openai(name: &str) -> bool {
    let is_o = name.strip_prefix('o').is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    is_o || (name.starts_with("gpt-") && !name.starts_with("gpt-oss"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_domain() {
        for (base_url, dialect) in [
            ("https://api.openai.com/v1", Dialect::OpenAi),
            ("https://eu.api.openai.com", Dialect::OpenAi),
            ("https://acme.openai.azure.com/openai/v1", Dialect::OpenAi),
            ("https://acme.services.ai.azure.us", Dialect::OpenAi),
            ("https://mistral-acme.eastus.models.ai.azure.com", Dialect::Other),
            ("https://api.deepseek.com", Dialect::DeepSeek),
            ("https://api.moonshot.cn/v1", Dialect::DeepSeek),
            ("https://api.mistral.ai/v1", Dialect::Mistral),
            ("https://notmistral.ai", Dialect::Other),
            ("https://openai.com.example", Dialect::Other),
            ("http://vllm.models.svc:8000", Dialect::Other),
            ("nonsense", Dialect::Other),
        ] {
            assert_eq!(Dialect::of(base_url), dialect, "{base_url}");
        }
    }

    #[test]
    fn the_output_is_bounded_by_the_field_that_the_server_takes() {
        for (dialect, model, field) in [
            (Dialect::OpenAi, "anything", "max_completion_tokens"),
            (Dialect::Mistral, "magistral-medium", "max_tokens"),
            (Dialect::DeepSeek, "deepseek-v4-pro", "max_tokens"),
            (Dialect::Other, "gpt-6-sol", "max_completion_tokens"),
            (Dialect::Other, "openai/o3-mini", "max_completion_tokens"),
            (Dialect::Other, "openai:gpt-6.1-sol", "max_completion_tokens"),
            (Dialect::Other, "us.openai.gpt-6-sol", "max_completion_tokens"),
            (Dialect::Other, "gateway@o4-mini", "max_completion_tokens"),
            (Dialect::Other, "prod-chat", "max_tokens"),
            (Dialect::Other, "openai/gpt-oss-120b", "max_tokens"),
            (Dialect::Other, "openai.gpt-oss-120b", "max_tokens"),
            (Dialect::Other, "olmo-3", "max_tokens"),
            (Dialect::Other, "qwen3", "max_tokens"),
        ] {
            assert_eq!(dialect.output_bound(model, &[]), field, "{dialect:?} {model}");
        }
        let learnt = |part| [Dialect::OpenAi, Dialect::Other].map(|dialect| dialect.output_bound("prod-chat", &[part]));
        assert_eq!(learnt(Part::MaxTokens), ["max_completion_tokens"; 2]);
        assert_eq!(learnt(Part::MaxCompletionTokens), ["max_tokens"; 2]);
    }
}
