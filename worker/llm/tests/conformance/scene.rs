//! What a model does in a call, in no provider's terms: each fixture plays it in its own.

use croft_llm::{Class, Stop};

/// One answer.
#[derive(Debug, Clone)]
pub struct Scene {
    pub acts: Vec<Act>,
    pub end: End,
}

#[derive(Debug, Clone, Copy)]
pub enum Act {
    Say(&'static str),
    Think(&'static str),
    Call { id: &'static str, name: &'static str, arguments: &'static str },
}

#[derive(Debug, Clone, Copy)]
pub enum End {
    Stop(Stop),
    /// An error after a status that said all is well.
    Fail,
    /// The connection ends in mid answer.
    Cut,
}

/// Why a call is refused at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub Class);

/// Of the prompt, in every scene.
pub const PROMPT_TOKENS: i64 = 1_240;
pub const CACHED_TOKENS: i64 = 1_024;
/// Of the answer, thoughts included.
pub const OUTPUT_TOKENS: i64 = 48;
pub const REASONING_TOKENS: i64 = 31;

pub fn scene(acts: &[Act], end: End) -> Scene {
    Scene { acts: acts.to_vec(), end }
}
