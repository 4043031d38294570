//! Tools that write down what they are asked to do, wherever their worker is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_llm::scripted::Scripted;
use croft_llm::{DeltaStream, Provider, Request};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, Text};
use croft_worker::tools::{Builtins, Error, Invocation, Tool};
use serde_json::{Value, json};

/// What was done in the world outside, and what models were asked.
#[derive(Clone, Default)]
pub(crate) struct Deeds {
    calls: Arc<Mutex<Vec<Deed>>>,
    models: Arc<Mutex<u64>>,
}

/// A tool was told to do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deed {
    pub(crate) tool: &'static str,
    pub(crate) of: String,
    pub(crate) idempotency_key: String,
}

impl Deeds {
    pub(crate) fn builtins(&self) -> Builtins {
        let tool = |name| Recorded { name, deeds: self.clone() };
        ["look", "pay", "launch", "ask", "fire"]
            .into_iter()
            .fold(Builtins::default(), |all, name| all.with(name, tool(name)))
    }

    pub(crate) fn calls(&self) -> Vec<Deed> {
        self.calls.lock().unwrap().clone()
    }

    /// How often a model was asked.
    pub(crate) fn models(&self) -> u64 {
        *self.models.lock().unwrap()
    }
}

struct Recorded {
    name: &'static str,
    deeds: Deeds,
}

#[async_trait]
impl Tool for Recorded {
    fn description(&self) -> &'static str {
        "Does something."
    }

    fn input_schema(&self) -> Value {
        json!({"type": "object", "properties": {"of": {"type": "string"}, "takes_ms": {"type": "integer"}}})
    }

    async fn call(&self, invocation: Invocation) -> Result<Vec<ContentBlock>, Error> {
        let Invocation { arguments, idempotency_key } = invocation;
        let of = arguments["of"].as_str().unwrap_or_default().to_owned();
        let deed = Deed { tool: self.name, of: of.clone(), idempotency_key };
        self.deeds.calls.lock().unwrap().push(deed);
        tokio::time::sleep(Duration::from_millis(arguments["takes_ms"].as_u64().unwrap_or_default())).await;
        Ok(vec![ContentBlock { block: Some(Block::Text(Text { text: format!("{} of {of} is done", self.name) })) }])
    }
}

/// The scripted model, with a count of its calls.
pub(crate) struct Counted(pub(crate) Deeds);

impl Provider for Counted {
    fn name(&self) -> &'static str {
        croft_llm::scripted::NAME
    }

    fn stream(&self, request: Request) -> DeltaStream {
        *self.0.models.lock().unwrap() += 1;
        Scripted::new().stream(request)
    }
}
