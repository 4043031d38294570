//! The models that sessions may name, with what they can do and cost.

pub mod entry;
pub mod output;
pub mod price;
pub mod recommend;
pub mod registry;
pub mod router;
pub mod seed;
pub mod takeover;

use async_trait::async_trait;
use croft_proto::v1::Model;

use crate::error::Error;

/// Where models and prices are kept; the same for all tenants.
#[async_trait]
pub trait ModelStore: Send + Sync {
    /// All models, with all their prices in the order of `service_tier`, then of `effective_from`, then of `above_input_tokens`.
    async fn load(&self) -> Result<Vec<Model>, Error>;
}
