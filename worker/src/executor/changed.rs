//! A call as a person has it made.

use std::sync::{Arc, OnceLock};

use croft_proto::conversation;
use croft_proto::v1::ToolCall;

/// The call as it is made, once that is another than what the model asked for. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Changed(Arc<OnceLock<ToolCall>>);

impl Changed {
    /// The first time counts: a call is changed before it is begun, and never again.
    pub(super) fn to(&self, call: &ToolCall) {
        self.0.get_or_init(|| call.clone());
    }

    pub(super) fn get(&self) -> Option<&ToolCall> {
        self.0.get()
    }

    /// What the model is told with what came of the call; nothing of one that is as the model asked for it.
    pub(super) fn note(&self) -> String {
        self.get().map_or_else(String::new, |made| conversation::changed("", &made.arguments_json))
    }
}
