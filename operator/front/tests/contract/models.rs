//! What every `ModelStore` promises.

use croft_front::models::seed::seed;
use croft_front::store::Stores;

pub(crate) async fn holds_the_seed(stores: &Stores) {
    let models = stores.models.load().await.unwrap();
    assert_eq!(models, seed());
    assert!(models.iter().any(|model| model.prices.len() > 1), "a model with several prices");
}
