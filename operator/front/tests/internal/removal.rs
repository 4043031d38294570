//! `RemoveTenant`, call by call; and sessions whose time is up, at two fronts at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::audit::{Action, AuditStore, Known, Place};
use croft_front::events::log::NewEvent;
use croft_front::identity::api_key;
use croft_front::session::store::{Filter, NewSession};
use croft_front::tenants::removal::store::RemovalStore;
use croft_proto::id::TenantId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AuditRecord, ModelAttempt, RemovalPolicy, RemovalStep, RemoveTenantRequest, RemoveTenantResponse, SessionRunning,
    SessionState, VerifyAuditLogResponse,
};
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;
use tonic::Code;

use crate::scene::{Front, PATIENCE, Scene, new_session};

async fn remove(scene: &Scene, front: &Front, policy: RemovalPolicy) -> RemoveTenantResponse {
    let request = RemoveTenantRequest { policy: policy.into() };
    let request = scene.operator.for_tenant(request, "heron", scene.heron);
    scene.client(front).remove_tenant(request).await.unwrap().into_inner()
}

/// Calls until nothing is left, and tells the steps that were seen, each once.
async fn removed(scene: &Scene, front: &Front, policy: RemovalPolicy) -> Vec<RemovalStep> {
    let mut steps = Vec::new();
    let calls = async {
        loop {
            let step = remove(scene, front, policy).await.step();
            if steps.last() != Some(&step) {
                steps.push(step);
            }
            if step == RemovalStep::Done {
                return;
            }
        }
    };
    timeout(PATIENCE, calls).await.expect("the removal ends");
    steps
}

#[tokio::test]
async fn an_archived_tenant_keeps_its_sessions_and_loses_its_keys() {
    let scene = Scene::new().await;
    let front = scene.front("front-0").await;
    let (stored, _) = api_key::generate(scene.heron, "heron").unwrap();
    scene.stores.keys.insert(&stored, None).await.unwrap();
    let (ours, theirs) = (scene.session(scene.heron, true).await, scene.session(scene.plover, true).await);

    let steps = removed(&scene, &front, RemovalPolicy::Unspecified).await;
    assert!(steps.is_sorted_by_key(|step| i32::from(*step)), "{steps:?}");
    let ended = scene.stores.sessions.get(scene.heron, ours).await.unwrap().unwrap();
    assert_eq!((ended.state, &*ended.terminate_reason), (SessionState::Terminated, "TENANT_REMOVED"));
    assert_eq!(scene.stores.keys.find(&stored.prefix).await.unwrap(), None);
    assert_eq!(scene.stores.events.read(scene.heron, ours, 0, 10).await.unwrap().len(), 3);
    let refused = scene.stores.sessions.insert(new_session(scene.heron)).await;
    assert!(matches!(refused, Err(Error::TenantClosed { .. })), "{refused:?}");
    let spared = scene.stores.sessions.get(scene.plover, theirs).await.unwrap().unwrap();
    assert_eq!(spared.state, SessionState::Ready);

    // Once more, as by an operator that did not hear the answer.
    assert_eq!(remove(&scene, &front, RemovalPolicy::Archive).await.step(), RemovalStep::Done);
    front.core.audit.unwritten(PATIENCE).await;
    let audit = scene.stores.audit.list(scene.heron, 0, 10).await.unwrap();
    assert_eq!(audit.iter().map(|record| &*record.action).collect::<Vec<_>>(), ["tenant.remove"]);
}

#[tokio::test]
async fn an_erased_tenant_leaves_usage_and_audit() {
    let scene = Scene::new().await;
    let (one, other) = (scene.front("front-0").await, scene.front("front-1").await);
    for _ in 0..300 {
        scene.session(scene.heron, false).await;
    }
    // Two fronts at once, as when an operator hands over to another.
    let (steps, _) =
        tokio::join!(removed(&scene, &one, RemovalPolicy::Erase), removed(&scene, &other, RemovalPolicy::Erase));
    assert_eq!(steps.last(), Some(&RemovalStep::Done));
    assert_eq!(scene.stores.sessions.list(scene.heron, &Filter::default(), None, 10).await.unwrap().sessions, []);
    assert_eq!(scene.stores.removal.count_rows(scene.heron, 10).await.unwrap(), 0);
    for front in [&one, &other] {
        front.core.audit.unwritten(PATIENCE).await;
    }
    let audit = scene.stores.audit.list(scene.heron, 0, 10).await.unwrap();
    let begun = audit.iter().filter(|record| record.action == "tenant.remove").count();
    assert_eq!(begun, 1, "{audit:?}");
    assert!(scene.stores.audit.verify(scene.heron, None).await.unwrap().intact);
}

/// A database that is busy, and answers when the work is done already.
struct Slow {
    removal: Arc<dyn RemovalStore>,
    begins_for: Duration,
    erases_for: Duration,
    begins: Arc<Notify>,
    alone: Mutex<()>,
    /// For how long behind the end of a session its last turn may tell what it used.
    late_max: Arc<OnceLock<Duration>>,
}

#[async_trait]
impl RemovalStore for Slow {
    async fn begin(&self, tenant: TenantId, name: &str) -> Result<bool, Error> {
        let _alone = self.alone.try_lock().expect("an earlier call is over");
        let begun = self.removal.begin(tenant, name).await;
        self.begins.notify_one();
        tokio::time::sleep(self.begins_for).await;
        begun
    }

    async fn count_cut_short(&self, tenant: TenantId, within: Duration) -> Result<u64, Error> {
        self.late_max.get_or_init(|| within);
        self.removal.count_cut_short(tenant, within).await
    }

    async fn erase_credentials(&self, tenant: TenantId) -> Result<u64, Error> {
        self.removal.erase_credentials(tenant).await
    }

    async fn erase_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        let erased = self.removal.erase_rows(tenant, rows_max).await;
        tokio::time::sleep(self.erases_for).await;
        erased
    }

    async fn count_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        self.removal.count_rows(tenant, rows_max).await
    }
}

async fn recorded(scene: &Scene, front: &Front) -> Vec<String> {
    front.core.audit.unwritten(PATIENCE).await;
    let audit = scene.stores.audit.list(scene.heron, 0, 10).await.unwrap();
    audit.into_iter().map(|record| record.action).collect()
}

/// The last rows went when the call's time was over, and the next call found none to tell of.
#[tokio::test]
async fn an_erasure_that_takes_all_of_a_calls_time_is_recorded() {
    let mut scene = Scene::new().await;
    scene.stores.removal = Arc::new(Slow {
        removal: Arc::clone(&scene.stores.removal),
        begins_for: Duration::ZERO,
        erases_for: Duration::from_millis(2100),
        begins: Arc::default(),
        alone: Mutex::default(),
        late_max: Arc::default(),
    });
    let front = scene.front("front-0").await;
    scene.session(scene.heron, false).await;
    removed(&scene, &front, RemovalPolicy::Erase).await;
    assert_eq!(recorded(&scene, &front).await, ["tenant.remove", "tenant.erase"]);
}

/// The operator gave up while the beginning was being stored, and no later call was the first. Nor was any carried out beside it.
#[tokio::test]
async fn a_removal_whose_caller_goes_away_meanwhile_is_recorded() {
    let (mut scene, begins) = (Scene::new().await, Arc::new(Notify::new()));
    scene.stores.removal = Arc::new(Slow {
        removal: Arc::clone(&scene.stores.removal),
        begins_for: Duration::from_millis(500),
        erases_for: Duration::ZERO,
        begins: Arc::clone(&begins),
        alone: Mutex::default(),
        late_max: Arc::default(),
    });
    let front = scene.front("front-0").await;
    tokio::select! {
        answer = remove(&scene, &front, RemovalPolicy::Archive) => panic!("it gave up before that: {answer:?}"),
        () = begins.notified() => {}
    }
    removed(&scene, &front, RemovalPolicy::Archive).await;
    assert_eq!(recorded(&scene, &front).await, ["tenant.remove"]);
}

/// A database whose answer to what it has done is lost, once for each.
struct Unheard {
    removal: Arc<dyn RemovalStore>,
    begins: AtomicBool,
    erases: AtomicBool,
}

impl Unheard {
    fn lost<T>(first: &AtomicBool, answer: Result<T, Error>) -> Result<T, Error> {
        if first.swap(false, Ordering::SeqCst) {
            return Err(Error::unavailable("postgres", anyhow::anyhow!("the connection is gone")));
        }
        answer
    }
}

#[async_trait]
impl RemovalStore for Unheard {
    async fn begin(&self, tenant: TenantId, name: &str) -> Result<bool, Error> {
        Self::lost(&self.begins, self.removal.begin(tenant, name).await)
    }

    async fn count_cut_short(&self, tenant: TenantId, within: Duration) -> Result<u64, Error> {
        self.removal.count_cut_short(tenant, within).await
    }

    async fn erase_credentials(&self, tenant: TenantId) -> Result<u64, Error> {
        self.removal.erase_credentials(tenant).await
    }

    async fn erase_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        let erased = self.removal.erase_rows(tenant, rows_max).await;
        if self.removal.count_rows(tenant, 1).await? == 0 { Self::lost(&self.erases, erased) } else { erased }
    }

    async fn count_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        self.removal.count_rows(tenant, rows_max).await
    }
}

/// A log whose end was set back: it takes no record any more.
struct Refusing(Arc<dyn AuditStore>);

#[async_trait]
impl AuditStore for Refusing {
    async fn append(&self, _: Place, _: Vec<Action>) -> Result<u64, Error> {
        Err(Error::invalid("records", "duplicate key value"))
    }

    async fn list(&self, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        self.0.list(tenant, after_number, limit).await
    }

    async fn verify(&self, tenant: TenantId, known: Option<Known>) -> Result<VerifyAuditLogResponse, Error> {
        self.0.verify(tenant, known).await
    }
}

/// Its sessions ran on, and its keys stayed good.
#[tokio::test]
async fn a_tenant_whose_audit_log_takes_nothing_is_removed_all_the_same() {
    let mut scene = Scene::new().await;
    scene.stores.audit = Arc::new(Refusing(Arc::clone(&scene.stores.audit)));
    let front = scene.front("front-0").await;
    let (stored, _) = api_key::generate(scene.heron, "heron").unwrap();
    scene.stores.keys.insert(&stored, None).await.unwrap();
    scene.session(scene.heron, true).await;
    removed(&scene, &front, RemovalPolicy::Erase).await;
    assert_eq!(scene.stores.removal.count_rows(scene.heron, 10).await.unwrap(), 0);
    assert_eq!(scene.stores.keys.find(&stored.prefix).await.unwrap(), None);
    assert_eq!(remove(&scene, &front, RemovalPolicy::Erase).await.step(), RemovalStep::Done);
    front.core.audit.unwritten(PATIENCE).await;
    // The session's end is nobody's call. Of the removal each record is set aside once, however many calls it took.
    assert_eq!(front.core.metrics.audit_refused.get(), 2);
}

/// Who called again was not the first, and found nothing to erase: neither was ever recorded.
#[tokio::test]
async fn a_removal_of_which_no_answer_was_heard_is_recorded() {
    let mut scene = Scene::new().await;
    let removal = Arc::clone(&scene.stores.removal);
    scene.stores.removal = Arc::new(Unheard { removal, begins: AtomicBool::new(true), erases: AtomicBool::new(true) });
    let front = scene.front("front-0").await;
    scene.session(scene.heron, false).await;
    let request = RemoveTenantRequest { policy: RemovalPolicy::Erase.into() };
    let request = scene.operator.for_tenant(request, "heron", scene.heron);
    let told = scene.client(&front).remove_tenant(request).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable, "{told:?}");
    // The rows' end is tried again in the same call, and finds none.
    removed(&scene, &front, RemovalPolicy::Erase).await;
    assert_eq!(recorded(&scene, &front).await, ["tenant.remove", "tenant.erase"]);
    assert_eq!(remove(&scene, &front, RemovalPolicy::Erase).await.step(), RemovalStep::Done);
    assert_eq!(recorded(&scene, &front).await, ["tenant.remove", "tenant.erase"], "once");
}

/// What a call has used may be told when its session has ended, and where the session is gone the ledger does not take it.
#[tokio::test]
async fn what_a_turn_was_cut_short_at_is_waited_for_before_its_session_is_erased() {
    let mut scene = Scene::new().await;
    scene.options.lease_ttl = Duration::from_secs(1);
    let front = scene.front("front-0").await;
    let session = scene.session(scene.heron, false).await;
    scene.append(scene.heron, session, vec![Kind::SessionRunning(SessionRunning {})]).await;
    let told = remove(&scene, &front, RemovalPolicy::Erase).await;
    assert_eq!((told.step(), told.left), (RemovalStep::Draining, 1));
    let late = ModelAttempt { attempt_id: "late".into(), ..ModelAttempt::default() };
    let late = [NewEvent::now(Kind::ModelAttempt(late))];
    scene.stores.usage.add_behind_end(scene.heron, session, &late).await.unwrap();
    assert_eq!(removed(&scene, &front, RemovalPolicy::Erase).await.last(), Some(&RemovalStep::Done));
    let used = scene.stores.usage.list(scene.heron, None, None, None, 10).await.unwrap();
    assert_eq!(used.iter().map(|used| &*used.attempt_id).collect::<Vec<_>>(), ["late"]);
}

/// What a silent worker used is reckoned six leases after its front has let go of the turn, and a session was gone ten seconds after its end.
#[tokio::test]
async fn a_session_is_not_erased_before_what_its_last_turn_used_can_be_reckoned() {
    let (mut scene, late_max) = (Scene::new().await, Arc::new(OnceLock::new()));
    scene.stores.removal = Arc::new(Slow {
        removal: Arc::clone(&scene.stores.removal),
        begins_for: Duration::ZERO,
        erases_for: Duration::ZERO,
        begins: Arc::default(),
        alone: Mutex::default(),
        late_max: Arc::clone(&late_max),
    });
    let front = scene.front("front-0").await;
    removed(&scene, &front, RemovalPolicy::Erase).await;
    // One lease until its front hears of the end, and three seconds to come to it.
    let reckoned_within = 7 * scene.options.lease_ttl + Duration::from_secs(3);
    assert!(late_max.get().is_some_and(|late_max| *late_max > reckoned_within), "{late_max:?}");
}

#[tokio::test]
async fn fronts_that_compete_end_each_session_once() {
    let scene = Scene::new().await;
    let fronts = [scene.front("front-0").await, scene.front("front-1").await, scene.front("front-2").await];
    let mut sessions = Vec::new();
    for _ in 0..250 {
        sessions.push(scene.insert(NewSession { idle_timeout_ms: 1, ..new_session(scene.heron) }).await);
    }
    let ended = async {
        while scene.stores.sessions.count_open(scene.heron).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("all are ended");
    for session in sessions {
        let events = scene.stores.events.read(scene.heron, session, 2, 10).await.unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        let Some(Kind::SessionTerminated(ended)) = &events[0].kind else { panic!("{events:?}") };
        assert_eq!(ended.reason, "IDLE_TIMEOUT");
    }
    let count = |front: &Front| front.core.metrics.sessions_expired.with_label_values(&["IDLE_TIMEOUT"]).get();
    let counted = async {
        while fronts.iter().map(count).sum::<u64>() < 250 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("each is counted");
    assert_eq!(fronts.iter().map(count).sum::<u64>(), 250, "by one front");
}
