//! OpenAI's two interfaces, under one name: [`Responses`], which OpenAI's own models are best spoken to by, and
//! [`Chat`], Chat Completions, which most servers of one's own speak.

pub mod chat;
mod failure;
pub mod responses;

use crate::wire::Manner;
pub use crate::wire::Settings;
pub use chat::Chat;
pub use responses::Responses;

/// The name by which it is configured and granted, whichever the interface.
pub const NAME: &str = "openai";
/// Where it is, unless configured otherwise.
pub const BASE_URL: &str = "https://api.openai.com";

const MANNER: Manner =
    Manner { provider: NAME, key_header: ("authorization", "Bearer "), headers: &[], refused: failure::of_status };
