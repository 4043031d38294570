use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{AgentSpec, BudgetAction, ModelCapabilities, ModelPrice, TokenUsage};
use croft_serve::Tasks;
use tokio::sync::Notify;

use super::*;
use crate::app::{Parts, assemble};
use crate::budget::period::Period;
use crate::budget::{Budget, Scope};
use crate::core::Options;
use crate::counters::memory::Memory;
use crate::counters::{Answer, Ask, Bound, Counters, Settlement, Standing, Verdict};
use crate::events::log::{Append, Appended, Authority, NewEvent};
use crate::events::relay::memory::MemoryRelay;
use crate::session::store::{Inserted, NewSession};
use crate::store::Stores;
use crate::tenants::Tenants;

/// A call of the model below with this much input, and as much output at most, costs 3,000 nano-dollars.
const TOKENS: u32 = 1_000;
const COST: i64 = 3_000;

/// Counters that can be made to wait with their word on a running call, or to be away.
#[derive(Default)]
struct Hooked {
    counters: Memory,
    mood: Mutex<Mood>,
    is_reached: Notify,
    goes_on: Notify,
    holds: AtomicUsize,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Mood {
    #[default]
    Quick,
    /// The next call that is held waits before it is.
    Late,
    /// The next call that is held waits before it is, and nobody hears of it.
    Unheard,
    Away,
}

impl Hooked {
    fn mood(&self) -> MutexGuard<'_, Mood> {
        self.mood.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Counters for Hooked {
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
        self.counters.admit(ask).await
    }

    async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
        let mood = std::mem::take(&mut *self.mood());
        self.holds.fetch_add(1, Ordering::Relaxed);
        match mood {
            Mood::Quick => {}
            Mood::Late => {
                self.is_reached.notify_one();
                self.goes_on.notified().await;
            }
            Mood::Unheard => {
                self.goes_on.notified().await;
                self.counters.hold(ask).await?;
                std::future::pending::<()>().await;
            }
            Mood::Away => return Err(Error::unavailable("redis", anyhow::anyhow!("connection refused"))),
        }
        self.counters.hold(ask).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
        self.counters.settle(settlement).await
    }
}

struct Scene {
    core: Arc<Core>,
    counters: Arc<Hooked>,
    session: Session,
    _tasks: Tasks,
}

impl Scene {
    async fn new() -> Self {
        let (tenants, tasks, counters) = (Tenants::new(), Tasks::new(), Arc::new(Hooked::default()));
        let (stores, tenant) = (Stores::memory(), TenantId::generate());
        stores.tenants.upsert(tenant, "heron").await.unwrap();
        let price = ModelPrice {
            effective_from: Some(Timestamp::default()),
            input_usd: "0.001".into(),
            output_usd: "0.002".into(),
            ..ModelPrice::default()
        };
        let parts = Parts {
            replica: "front-0".into(),
            stores: stores.clone(),
            relay: Arc::new(MemoryRelay::default()),
            counters: counters.clone(),
            tenants,
            tls: None,
            options: Options::default(),
        };
        let core = assemble(parts, &tasks, &prometheus::Registry::new()).await.unwrap();
        core.models.replace(vec![Model {
            model_id: "m".into(),
            provider: "p".into(),
            prices: vec![price],
            ..Model::default()
        }]);
        let agent = AgentSpec { name: "helper".into(), ..AgentSpec::default() };
        let created = NewEvent::now(Kind::SessionCreated(croft_proto::v1::SessionCreated::default()));
        let new = NewSession::of(SessionId::generate(), tenant, "heron", agent, vec![created]);
        let session = match stores.sessions.insert(new).await.unwrap() {
            Inserted::New { session, .. } | Inserted::Existing(session) => session,
        };
        Self { core, counters, session, _tasks: tasks }
    }

    fn purse(&self) -> Purse {
        Purse::new(Arc::clone(&self.core), self.session.clone())
    }

    async fn limit(&self, nano_usd: i64) {
        let budget = Budget {
            scope: Scope::Tenant,
            subject: String::new(),
            period: Period::Life,
            nano_usd: Some(nano_usd),
            tokens: None,
            action: BudgetAction::Block,
            is_given: false,
        };
        self.core.stores.budgets.put(self.session.tenant, &budget).await.unwrap();
        self.core.budgets.forget(self.session.tenant).await;
    }

    /// Asks for a call; its grant.
    async fn granted(&self, purse: &Purse) -> Grant {
        let request = GrantRequest {
            request_id: "r".into(),
            input_tokens_estimated: TOKENS,
            output_tokens_max: TOKENS,
            ..GrantRequest::default()
        };
        match purse.clone().grant(request, self.core.models.get("m").unwrap()).await {
            Told::Granted { grant, .. } => grant,
            other => panic!("no grant: {}", name(&other)),
        }
    }

    /// Another of the tenant's calls has cost this much, as the ledger has it.
    async fn spend(&self, cost: i64) {
        let attempt = ModelAttempt {
            attempt_id: uuid::Uuid::new_v4().to_string(),
            model: "m".into(),
            usage: Some(TokenUsage { input_uncached_tokens: cost, ..TokenUsage::default() }),
            cost_nano_usd: Some(cost),
            ..ModelAttempt::default()
        };
        let told = vec![NewEvent::now(Kind::ModelAttempt(attempt))];
        let append = Append::of(self.session.tenant, self.session.id, Authority::Caller, told);
        assert!(matches!(self.core.stores.events.append(append).await.unwrap(), Appended::New(_)));
        self.core.budgets.forget(self.session.tenant).await;
    }

    /// What is reserved in the tenant's account.
    async fn reserved(&self) -> i64 {
        let keep = Duration::from_hours(1);
        let ask = Ask {
            tenant: self.session.tenant,
            id: uuid::Uuid::new_v4().to_string(),
            // Of a reservation that runs out nobody knows what was used.
            ttl: Duration::from_hours(1),
            nano_usd: 0,
            tokens: 0,
            windows: Vec::new(),
            bounds: vec![Bound {
                key: "tenant::life".into(),
                nano_usd: None,
                tokens: None,
                keep,
                ledger: None,
                insists: false,
            }],
        };
        match self.counters.counters.admit(&ask).await.unwrap().verdict {
            Verdict::Granted(standings) => standings[0].reserved.nano_usd,
            other => panic!("{other:?}"),
        }
    }
}

fn name(told: &Told) -> String {
    match told {
        Told::Granted { .. } => "granted".into(),
        Told::Refused(refused) => format!("refused {}: {}", refused.reason, refused.message),
        Told::Reached(reached, _) => format!("reached: {}", reached.message),
        Told::Nothing => "nothing".into(),
    }
}

async fn held(purse: &Purse) -> String {
    name(&purse.clone().hold().await)
}

#[tokio::test]
async fn a_call_that_stays_within_its_budgets_is_not_spoken_of() {
    let scene = Scene::new().await;
    scene.limit(COST).await;
    let purse = scene.purse();
    assert_eq!(held(&purse).await, "nothing", "nothing runs");
    scene.granted(&purse).await;
    assert_eq!(held(&purse).await, "nothing");
    assert_eq!((purse.is_open(), purse.has_ended(), scene.reserved().await), (true, false, COST));
    purse.close().await;
    assert_eq!((purse.is_open(), scene.reserved().await), (false, 0));
}

#[tokio::test]
async fn a_worker_hears_whether_the_model_sees_as_far_as_that_is_known() {
    let scene = Scene::new().await;
    // Of a model that an admin added, false is what was left out.
    for (images, told) in [(None, None), (Some(false), None), (Some(true), Some(true))] {
        let model = (*scene.core.models.get("m").unwrap()).clone();
        let capabilities = images.map(|images| ModelCapabilities { images, ..ModelCapabilities::default() });
        scene.core.models.replace(vec![Model { capabilities, ..model }]);
        assert_eq!(scene.granted(&scene.purse()).await.images, told);
    }
}

/// A budget that is set while a call runs, over what has been spent.
#[tokio::test]
async fn a_budget_that_is_passed_while_a_call_runs_ends_the_turn_once() {
    let scene = Scene::new().await;
    let purse = scene.purse();
    scene.granted(&purse).await;
    scene.granted(&purse).await;
    scene.spend(COST).await;
    scene.limit(COST).await;
    let reached = held(&purse).await;
    assert!(reached.starts_with("reached: "), "{reached}");
    assert!(purse.has_ended() && purse.is_open(), "the call is cut by who hears of it");
    assert_eq!(held(&purse).await, "nothing", "it is said once");
    let request = GrantRequest { request_id: "next".into(), ..GrantRequest::default() };
    let refused = name(&purse.grant(request, scene.core.models.get("m").unwrap()).await);
    assert!(refused.starts_with("refused BUDGET"), "{refused}");
}

/// Our word comes behind the settlement, and the counters take the reservation again, which nobody would give back.
#[tokio::test]
async fn a_call_that_is_settled_while_it_is_looked_at_leaves_nothing_reserved() {
    let scene = Scene::new().await;
    scene.limit(10 * COST).await;
    let purse = scene.purse();
    let grant = scene.granted(&purse).await;
    *scene.counters.mood() = Mood::Late;
    let settled = async {
        scene.counters.is_reached.notified().await;
        let attempt = ModelAttempt { grant_id: grant.grant_id.clone(), ..ModelAttempt::default() };
        purse.settle(&[attempt]).await;
        assert_eq!(scene.reserved().await, 0);
        scene.counters.goes_on.notify_one();
    };
    let (told, ()) = tokio::join!(held(&purse), settled);
    assert_eq!((told.as_str(), scene.reserved().await), ("nothing", 0));
}

/// The turn ends before we hear that our word came behind the settlement.
#[tokio::test]
async fn a_look_that_is_given_up_behind_the_settlement_leaves_nothing_reserved() {
    let scene = Scene::new().await;
    scene.limit(10 * COST).await;
    let purse = scene.purse();
    let grant = scene.granted(&purse).await;
    *scene.counters.mood() = Mood::Unheard;
    let mut look = Box::pin(held(&purse));
    while scene.counters.holds.load(Ordering::Relaxed) == 0 {
        assert!(futures::poll!(look.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let attempt = ModelAttempt { grant_id: grant.grant_id.clone(), ..ModelAttempt::default() };
    purse.settle(&[attempt]).await;
    scene.counters.goes_on.notify_one();
    let is_reserved = || scene.counters.counters.holds(scene.session.tenant, &grant.grant_id);
    while !is_reserved() {
        assert!(futures::poll!(look.as_mut()).is_pending());
    }
    drop(look);
    while is_reserved() {
        tokio::task::yield_now().await;
    }
}

/// Once, each look at a running call waited behind those before it.
#[tokio::test(start_paused = true)]
async fn looks_do_not_pile_up_behind_counters_that_do_not_answer() {
    let scene = Scene::new().await;
    scene.limit(10 * COST).await;
    let purse = scene.purse();
    scene.granted(&purse).await;
    *scene.counters.mood() = Mood::Late;
    let mut looks = Vec::new();
    for _ in 0..20 {
        let mut look = Box::pin(held(&purse));
        while looks.is_empty() && scene.counters.holds.load(Ordering::Relaxed) == 0 {
            assert!(futures::poll!(look.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        looks.push(look);
    }
    let first = looks.remove(0);
    for look in looks {
        assert_eq!(look.await, "nothing");
    }
    assert_eq!(scene.counters.holds.load(Ordering::Relaxed), 1);
    scene.counters.goes_on.notify_one();
    assert_eq!(first.await, "nothing");
    assert_eq!(held(&purse).await, "nothing");
    assert_eq!(scene.counters.holds.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn counters_that_are_away_cut_no_call() {
    let scene = Scene::new().await;
    scene.limit(COST).await;
    let purse = scene.purse();
    scene.granted(&purse).await;
    *scene.counters.mood() = Mood::Away;
    assert_eq!(held(&purse).await, "nothing");
    assert_eq!((purse.is_open(), purse.has_ended()), (true, false));
    assert_eq!(held(&purse).await, "nothing");
    assert_eq!(scene.reserved().await, COST, "it goes on as before");
}
