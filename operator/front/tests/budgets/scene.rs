//! Keepers of several replicas over one ledger and one Redis.

use std::sync::Arc;
use std::time::Duration;

use croft_front::budget::keeper::{Keeper, Outcome, Parts, Wish};
use croft_front::budget::period::Period;
use croft_front::budget::reservation::Reservation;
use croft_front::budget::{Account, Budget, Scope};
use croft_front::counters::guard::{Guarded, Metrics};
use croft_front::counters::redis::RedisCounters;
use croft_front::counters::{Ask, Bound, Counters, Ledger, Standing, Verdict};
use croft_front::events::fanout::Hub;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::limits::Limiter;
use croft_front::limits::rates::{ProviderRates, Rates};
use croft_front::session::Session;
use croft_front::store::Stores;
use croft_front::tenants::Tenants;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BudgetAction, Model, ModelAttempt, ModelPrice, TokenUsage};
use croft_serve::Tasks;
use prometheus::Registry;
use uuid::Uuid;

use crate::database::Database;
use crate::fixtures::{append, appended, insert, new_session, tenant};

/// A call of the model below with this much input and output costs 3,000 nano-dollars.
pub(crate) const INPUT: i64 = 1_000;
pub(crate) const OUTPUT: i64 = 1_000;
pub(crate) const COST: i64 = 3_000;

/// Longer than anything takes, however busy the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Scene {
    database: Database,
    pub(crate) stores: Stores,
    pub(crate) tenant: TenantId,
    pub(crate) sessions: Vec<Session>,
    pub(crate) model: Arc<Model>,
    tasks: Tasks,
}

fn url() -> String {
    std::env::var("CROFT_TEST_REDIS_URL")
        .expect("CROFT_TEST_REDIS_URL is not set: `make test-services` starts a Redis and tells its URL")
}

/// It may be busy: what is slow is not away.
pub(crate) fn redis() -> RedisCounters {
    RedisCounters::connect(&croft_front::redis_client::open(&url(), None).unwrap(), PATIENCE).unwrap()
}

impl Scene {
    pub(crate) async fn new(sessions: usize) -> Self {
        let database = Database::migrated().await;
        let tasks = Tasks::new();
        let stores = Stores::postgres(&database.front().await, &tasks);
        let tenant = tenant(&stores, "ours").await;
        let mut opened = Vec::new();
        for _ in 0..sessions {
            opened.push(insert(&stores, new_session(tenant)).await);
        }
        let price = ModelPrice {
            effective_from: Some(Timestamp::default()),
            input_usd: "0.001".into(),
            output_usd: "0.002".into(),
            ..ModelPrice::default()
        };
        let model =
            Arc::new(Model { model_id: "m".into(), provider: "p".into(), prices: vec![price], ..Model::default() });
        Self { database, stores, tenant, sessions: opened, model, tasks }
    }

    /// The keeper of another replica.
    pub(crate) fn keeper(&self, reservation_ttl: Duration) -> Keeper {
        self.keeper_over(Arc::new(redis()), reservation_ttl)
    }

    pub(crate) fn keeper_over(&self, counters: Arc<dyn Counters>, reservation_ttl: Duration) -> Keeper {
        let registry = Registry::new();
        let counters: Arc<dyn Counters> = Arc::new(Guarded::new(counters, 1, Metrics::register(&registry).unwrap()));
        let tenants = Tenants::new();
        let (rates, of_providers) = (Rates::default(), ProviderRates::default());
        let limiter = Limiter::new(Arc::clone(&counters), tenants.clone(), rates, of_providers, 0, &registry);
        let parts = Parts {
            store: Arc::clone(&self.stores.budgets),
            events: Arc::clone(&self.stores.events),
            counters,
            limiter: limiter.unwrap(),
            tenants,
            hub: Hub::new(Arc::new(MemoryRelay::default()), &self.tasks, &registry).unwrap(),
            reservation_ttl,
        };
        Keeper::start(parts, &self.tasks, &registry).unwrap()
    }

    pub(crate) async fn set(&self, nano_usd: i64, action: BudgetAction) {
        let budget = Budget {
            scope: Scope::Tenant,
            subject: String::new(),
            period: Period::Life,
            nano_usd: Some(nano_usd),
            tokens: None,
            action,
            is_given: false,
        };
        self.stores.budgets.put(self.tenant, &budget).await.unwrap();
    }

    pub(crate) fn wish(&self, session: usize) -> Wish {
        Wish {
            session: self.sessions[session % self.sessions.len()].clone(),
            model: Arc::clone(&self.model),
            input_tokens: INPUT,
            output_tokens_max: OUTPUT,
            patience: PATIENCE,
        }
    }

    /// One that waits for nothing.
    pub(crate) fn hasty_wish(&self, session: usize) -> Wish {
        Wish { patience: Duration::ZERO, ..self.wish(session) }
    }

    /// Writes what a call used into the ledger, as a turn does.
    pub(crate) async fn used(&self, session: &Session, grant: &Reservation, output: i64) -> ModelAttempt {
        let usage = TokenUsage { input_uncached_tokens: INPUT, output_tokens: output, ..TokenUsage::default() };
        let attempt = ModelAttempt {
            attempt_id: Uuid::new_v4().to_string(),
            grant_id: grant.ask.id.clone(),
            model: "m".into(),
            usage: Some(usage),
            cost_nano_usd: Some(INPUT + 2 * output),
            ..ModelAttempt::default()
        };
        appended(&self.stores, append(self.tenant, session.id, vec![Kind::ModelAttempt(attempt.clone())])).await;
        attempt
    }

    pub(crate) async fn ledger(&self) -> Ledger {
        let account = Account { scope: Scope::Tenant, subject: String::new(), period: "life".into() };
        self.stores.budgets.ledgers(self.tenant, &[account]).await.unwrap()[0]
    }

    /// The counter in Redis, without the ledger's help.
    pub(crate) async fn counter(&self) -> Option<Standing> {
        let (key, keep) = ("tenant::life".to_owned(), Duration::from_hours(1));
        let ask = Ask {
            tenant: self.tenant,
            id: Uuid::new_v4().to_string(),
            ttl: Duration::from_millis(1),
            nano_usd: 0,
            tokens: 0,
            windows: Vec::new(),
            bounds: vec![Bound { key, nano_usd: None, tokens: None, keep, ledger: None, insists: false }],
        };
        match redis().admit(&ask).await.unwrap().verdict {
            Verdict::Granted(standings) => standings.first().copied(),
            _ => None,
        }
    }

    pub(crate) async fn end(self) {
        self.tasks.shutdown(PATIENCE).await;
        self.database.end().await;
    }
}

/// The reservation, if there was a grant.
pub(crate) fn granted(outcome: Outcome) -> Option<Reservation> {
    match outcome {
        Outcome::Granted(reservation) => Some(*reservation),
        Outcome::Limited(_) | Outcome::Reached(_) => None,
    }
}
