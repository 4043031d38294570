//! The registry in memory: answers by id or alias.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use croft_proto::v1::{Model, ModelAttempt};
use croft_serve::Tasks;
use moka::future::Cache;

use super::{ModelStore, price};
use crate::error::Error;

/// How old what the registry tells may be: prices and models are edited in the database.
const REFRESH: Duration = Duration::from_mins(1);
/// A name that is not known costs one look at the store in so long, however many ask for it.
const LOAD_AT_MOST_EVERY: Duration = Duration::from_secs(5);
const ABSENT_MAX: u64 = 1_000;
/// All models, cheap to clone. Refreshed every minute; when the store is away, what was known stays.
#[derive(Clone, Default)]
pub struct Registry {
    known: Arc<RwLock<Known>>,
    /// Where a model is looked for that is not known; none in tests.
    source: Option<Source>,
}

#[derive(Clone)]
struct Source {
    store: Arc<dyn ModelStore>,
    loads: Cache<(), ()>,
    /// Names that a look did not find, for as long as the look stands. One that has no room here is asked for again.
    absent: Cache<String, ()>,
}

#[derive(Default)]
struct Known {
    models: Vec<Arc<Model>>,
    by_name: HashMap<String, Arc<Model>>,
}

impl Registry {
    /// Loads the registry and keeps it fresh.
    pub async fn start(store: Arc<dyn ModelStore>, tasks: &Tasks) -> Result<Self, Error> {
        let loads = Cache::builder().max_capacity(1).time_to_live(LOAD_AT_MOST_EVERY).build();
        let absent = Cache::builder().max_capacity(ABSENT_MAX).time_to_live(LOAD_AT_MOST_EVERY).build();
        let source = Some(Source { store: Arc::clone(&store), loads, absent });
        let registry = Self { source, ..Self::default() };
        registry.replace(store.load().await?);
        let (refreshed, stopping) = (registry.clone(), tasks.stopping());
        tasks.spawn_endless("model-registry", async move {
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(REFRESH) => {}
                }
                match store.load().await {
                    Ok(models) => refreshed.replace(models),
                    Err(error) => tracing::warn!(%error, "models not refreshed, the old ones stand"),
                }
            }
        });
        Ok(registry)
    }

    /// A registry that knows just these, for tests.
    pub fn of(models: Vec<Model>) -> Self {
        let registry = Self::default();
        registry.replace(models);
        registry
    }

    /// Knows these from now on, until the next refresh.
    pub fn replace(&self, models: Vec<Model>) {
        let models: Vec<_> = models.into_iter().map(Arc::new).collect();
        let by_alias = models.iter().flat_map(|model| model.aliases.iter().map(move |alias| (alias, model)));
        let by_id = models.iter().map(|model| (&model.model_id, model));
        // A name that is one model's id is no other's, whatever that one's aliases say.
        let by_name = by_alias.chain(by_id).map(|(name, model)| (name.clone(), Arc::clone(model))).collect();
        *self.known.write().expect("no holder panics") = Known { models, by_name };
    }

    /// The model of this id or alias.
    pub fn get(&self, name: &str) -> Result<Arc<Model>, Error> {
        let known = self.known.read().expect("no holder panics");
        known.by_name.get(name).cloned().ok_or_else(|| Error::ModelNotFound { model: name.to_owned() })
    }

    /// The model of this id or alias; one that is not known may have been added a moment ago. Callers at the same time share one
    /// look. Fails with [`Error::ModelNotFound`] only for a name that was looked for, and with [`Error::Unavailable`] while nobody
    /// can tell: the store is away, or was looked at for another name a moment ago.
    pub async fn find(&self, name: &str) -> Result<Arc<Model>, Error> {
        let (Err(unknown), Some(Source { store, loads, absent })) = (self.get(name), &self.source) else {
            return self.get(name);
        };
        let load = async { store.load().await.map(|models| self.replace(models)) };
        let look = match loads.entry(()).or_try_insert_with(load).await {
            Ok(look) => look,
            Err(error) => {
                tracing::warn!(%error, "models not looked for, the known ones stand");
                return Err(untold(Duration::from_secs(1)));
            }
        };
        if let Ok(found) = self.get(name) {
            return Ok(found);
        }
        if look.is_fresh() {
            absent.insert(name.to_owned(), ()).await;
        }
        if absent.contains_key(name) { Err(unknown) } else { Err(untold(LOAD_AT_MOST_EVERY)) }
    }

    /// The provider of that model; empty when there is no such model.
    pub fn provider_of(&self, name: &str) -> String {
        self.get(name).map(|model| model.provider.clone()).unwrap_or_default()
    }

    /// All models of a provider; of all when it is empty.
    pub fn list(&self, provider: &str) -> Vec<Arc<Model>> {
        let known = self.known.read().expect("no holder panics");
        known.models.iter().filter(|model| provider.is_empty() || model.provider == provider).cloned().collect()
    }

    /// What an attempt cost at this time (seconds since 1970), in billionths of a US dollar; `None` when its model or the price is not
    /// known: see [`price::cost_nano_usd`].
    pub fn cost_nano_usd(&self, attempt: &ModelAttempt, at_seconds: i64) -> Option<i64> {
        price::cost_nano_usd(&*self.get(&attempt.model).ok()?, attempt, at_seconds)
    }

    /// The same at the model of this id alone, and not at one that has it for an alias.
    pub fn own_cost_nano_usd(&self, attempt: &ModelAttempt, at_seconds: i64) -> Option<i64> {
        let model = self.get(&attempt.model).ok().filter(|model| model.model_id == attempt.model)?;
        price::cost_nano_usd(&model, attempt, at_seconds)
    }
}

fn untold(retry_after: Duration) -> Error {
    Error::Unavailable { part: "the registry of models", retry_after, source: None }
}

#[cfg(test)]
mod tests {
    use croft_proto::Timestamp;
    use croft_proto::v1::{ModelPrice, TokenUsage};

    use super::*;

    fn registry() -> Registry {
        let price = ModelPrice {
            effective_from: Some(Timestamp { seconds: 100, nanos: 0 }),
            input_usd: "0.10".into(),
            output_usd: "0.50".into(),
            ..ModelPrice::default()
        };
        Registry::of(vec![Model {
            model_id: "tiny-1".into(),
            aliases: vec!["tiny".into()],
            prices: vec![price],
            ..Model::default()
        }])
    }

    /// A store that counts how often it is looked at, and has a model from the second look on.
    #[derive(Default)]
    struct Counted(std::sync::atomic::AtomicU32);

    #[async_trait::async_trait]
    impl ModelStore for Counted {
        async fn load(&self) -> Result<Vec<Model>, Error> {
            let looks = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let new = Model { model_id: "new".into(), ..Model::default() };
            Ok(if looks == 0 { Vec::new() } else { vec![new] })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_was_added_is_found_at_once_and_many_who_ask_share_one_look() {
        let (store, tasks) = (Arc::new(Counted::default()), Tasks::new());
        let registry = Registry::start(Arc::clone(&store) as _, &tasks).await.unwrap();
        assert!(registry.get("new").is_err());
        let found = futures::future::join_all((0..50).map(|_| registry.find("new"))).await;
        assert!(found.iter().all(Result::is_ok));
        for _ in 0..50 {
            assert!(registry.find("nothing").await.is_err());
        }
        assert_eq!(store.0.load(std::sync::atomic::Ordering::SeqCst), 2, "one at the start, one for all of them");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_was_not_looked_for_is_not_said_to_be_unknown() {
        let (store, tasks) = (Arc::new(Counted::default()), Tasks::new());
        let registry = Registry::start(Arc::clone(&store) as _, &tasks).await.unwrap();
        for _ in 0..2 {
            assert!(matches!(registry.find("nothing").await, Err(Error::ModelNotFound { .. })));
        }
        let other = registry.find("added just now").await;
        assert!(matches!(other, Err(Error::Unavailable { retry_after: LOAD_AT_MOST_EVERY, .. })), "{other:?}");
    }

    #[tokio::test]
    async fn a_store_that_is_away_makes_no_model_unknown() {
        #[derive(Default)]
        struct Away(std::sync::atomic::AtomicBool);

        #[async_trait::async_trait]
        impl ModelStore for Away {
            async fn load(&self) -> Result<Vec<Model>, Error> {
                if self.0.swap(true, std::sync::atomic::Ordering::SeqCst) {
                    return Err(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
                }
                Ok(vec![Model { model_id: "known".into(), ..Model::default() }])
            }
        }

        let (store, tasks) = (Arc::new(Away::default()), Tasks::new());
        let registry = Registry::start(store as _, &tasks).await.unwrap();
        assert!(registry.find("known").await.is_ok());
        assert!(matches!(registry.find("new").await, Err(Error::Unavailable { .. })));
    }

    #[test]
    fn an_alias_finds_its_model_and_nonsense_finds_none() {
        assert_eq!(registry().get("tiny").unwrap().model_id, "tiny-1");
        assert!(matches!(registry().get("huge"), Err(Error::ModelNotFound { .. })));
    }

    /// Once, what a model used was priced as what another did whose alias its id was.
    #[test]
    fn an_alias_takes_no_other_models_id() {
        let model = |model_id: &str, aliases: &[&str]| Model {
            model_id: model_id.into(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            ..Model::default()
        };
        let (old, new) = (model("m-5", &[]), model("m-5-2027", &["m-5", "m"]));
        for models in [vec![old.clone(), new.clone()], vec![new, old]] {
            let registry = Registry::of(models);
            let found = ["m-5", "m-5-2027", "m"].map(|name| registry.get(name).unwrap().model_id.clone());
            assert_eq!(found, ["m-5", "m-5-2027", "m-5-2027"]);
        }
    }

    #[test]
    fn what_an_attempt_cost_is_known_by_id_and_alias_and_of_no_other_model() {
        let usage = TokenUsage { input_uncached_tokens: 1_000, output_tokens: 100, ..TokenUsage::default() };
        let cost = |model: &str| {
            let attempt = ModelAttempt { model: model.into(), usage: Some(usage), ..ModelAttempt::default() };
            registry().cost_nano_usd(&attempt, 100)
        };
        assert_eq!([cost("tiny-1"), cost("tiny"), cost("huge")], [Some(150_000), Some(150_000), None]);
        let own_cost = |model: &str| {
            let attempt = ModelAttempt { model: model.into(), usage: Some(usage), ..ModelAttempt::default() };
            registry().own_cost_nano_usd(&attempt, 100)
        };
        assert_eq!([own_cost("tiny-1"), own_cost("tiny"), own_cost("huge")], [Some(150_000), None, None]);
    }
}
