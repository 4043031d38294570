//! `WatchSessions`: the declared sessions and the totals, as they stand and as they change, wherever they do.

use std::sync::Arc;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::budget::alert::{Alert, Unit};
use croft_front::budget::period::Period;
use croft_front::budget::{Account, Scope};
use croft_front::events::log::NewEvent;
use croft_front::usage::{Selection, UsageStore};
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    ModelAttempt, RouteSnapshot, SessionRunning, SessionState, TenantLimits, TenantRoute, UsageDimension, UsageEvent,
    UsageSummary, WatchRoutesResponse, WatchSessionsRequest, WatchSessionsResponse, WatchedSession,
};
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::doubles::{Call, Outage, hooked};
use crate::scene::{Front, PATIENCE, Scene, new_session, terminated};

async fn watch(scene: &Scene, front: &Front) -> Streaming<WatchSessionsResponse> {
    let asked = scene.operator.for_all(WatchSessionsRequest { interval_ms: 200 });
    scene.client(front).watch_sessions(asked).await.unwrap().into_inner()
}

async fn next(answers: &mut Streaming<WatchSessionsResponse>) -> WatchSessionsResponse {
    timeout(PATIENCE, answers.message()).await.expect("an answer comes").unwrap().expect("the watch goes on")
}

/// Everything up to the end of the first picture.
async fn first_picture(answers: &mut Streaming<WatchSessionsResponse>) -> WatchSessionsResponse {
    let mut picture = WatchSessionsResponse::default();
    while !picture.synced {
        let answer = next(answers).await;
        picture.sessions.extend(answer.sessions);
        picture.tenants.extend(answer.tenants);
        picture.synced = answer.synced;
    }
    picture
}

/// The next session that is told of.
async fn next_session(answers: &mut Streaming<WatchSessionsResponse>) -> WatchedSession {
    loop {
        if let Some(watched) = next(answers).await.sessions.into_iter().next() {
            return watched;
        }
    }
}

#[tokio::test]
async fn what_stands_is_told_and_then_what_changes_at_any_front() {
    let scene = Scene::new().await;
    let front = scene.front("front-0").await;
    let (ours, theirs) = (scene.session(scene.heron, true).await, scene.session(scene.plover, true).await);
    scene.session(scene.heron, false).await;
    let ended = scene.session(scene.heron, true).await;
    scene.append(scene.heron, ended, vec![terminated()]).await;

    let mut answers = watch(&scene, &front).await;
    let picture = first_picture(&mut answers).await;
    let mut named: Vec<_> = picture.sessions.iter().map(|one| one.session.clone().unwrap().session_id).collect();
    named.sort();
    assert_eq!(named, [ours.to_string(), theirs.to_string()], "declared ones that are open");
    assert!(picture.sessions.iter().all(|one| one.session.as_ref().unwrap().agent.is_none()));
    let mut open: Vec<_> = picture.tenants.iter().map(|one| (one.tenant_id.clone(), one.sessions_open)).collect();
    open.sort();
    let mut expected = [(scene.heron.to_string(), 2), (scene.plover.to_string(), 1)];
    expected.sort();
    assert_eq!(open, expected);

    let attempt = ModelAttempt { attempt_id: "a".into(), cost_nano_usd: Some(5), ..ModelAttempt::default() };
    let running = vec![Kind::ModelAttempt(attempt), Kind::SessionRunning(SessionRunning {})];
    scene.append(scene.plover, theirs, running).await;
    let told = next_session(&mut answers).await;
    assert_eq!(told.tenant_id, scene.plover.to_string());
    let session = told.session.unwrap();
    assert_eq!((session.session_id.as_str(), session.state()), (&*theirs.to_string(), SessionState::Running));
    assert_eq!((session.last_seq, session.usage.unwrap().cost_nano_usd), (4, 5));

    scene.append(scene.heron, ours, vec![terminated()]).await;
    let session = next_session(&mut answers).await.session.unwrap();
    assert_eq!((session.session_id.as_str(), session.state()), (&*ours.to_string(), SessionState::Terminated));
    assert!(session.terminate_time.is_some());

    let made = scene.session(scene.heron, true).await;
    assert_eq!(next_session(&mut answers).await.session.unwrap().session_id, made.to_string());
}

#[tokio::test]
async fn totals_follow_sessions_that_nobody_declared() {
    let scene = Scene::new().await;
    let front = scene.front("front-0").await;
    let mut answers = watch(&scene, &front).await;
    first_picture(&mut answers).await;
    let attempt = ModelAttempt { attempt_id: "a".into(), cost_nano_usd: Some(7), ..ModelAttempt::default() };
    let mut new = new_session(scene.heron);
    new.events.push(NewEvent::now(Kind::ModelAttempt(attempt)));
    scene.insert(new).await;
    let answer = next(&mut answers).await;
    assert_eq!(answer.sessions, []);
    let totals = &answer.tenants[0];
    assert_eq!((&totals.tenant_id, totals.sessions_open), (&scene.heron.to_string(), 1));
    assert_eq!(totals.month.unwrap().cost_nano_usd, 7);
    assert!(totals.month_start.is_some_and(|start| start.seconds % 86_400 == 0));
}

/// Once, the operator heard only of what was spent, and called a budget that had no room for a call any more nearly spent for the rest of the
/// month.
#[tokio::test]
async fn a_budget_that_has_no_room_for_a_call_is_told_with_the_totals() {
    let scene = Scene::new().await;
    let limits = TenantLimits { monthly_budget_nano_usd: 5_000_000_000, ..TenantLimits::default() };
    let id = scene.heron.to_string();
    let heron =
        TenantRoute { tenant_id: id.clone(), name: "heron".into(), limits: Some(limits), ..TenantRoute::default() };
    let routes = RouteSnapshot { tenants: vec![heron] };
    scene.tenants.apply(WatchRoutesResponse { version: 2, change: Some(Change::Snapshot(routes)) });
    let front = scene.front("front-0").await;
    let session = scene.session(scene.heron, true).await;
    let mut answers = watch(&scene, &front).await;
    let picture = first_picture(&mut answers).await;
    assert_eq!(picture.tenants[0].alerts, [], "nothing was told");

    let attempt =
        ModelAttempt { attempt_id: "a".into(), cost_nano_usd: Some(4_970_000_000), ..ModelAttempt::default() };
    let month = Period::Month.name(&picture.tenants[0].month_start.unwrap());
    for percent in [90, 100] {
        let account = Account { scope: Scope::Tenant, subject: String::new(), period: month.clone() };
        let (unit, limit) = (Unit::NanoUsd, 5_000_000_000);
        let alert = Alert { account, unit, limit, percent, spent: 4_970_000_000, session };
        assert!(scene.stores.budgets.alert(scene.heron, &alert).await.unwrap());
    }
    let running = vec![Kind::ModelAttempt(attempt), Kind::SessionRunning(SessionRunning {})];
    scene.append(scene.heron, session, running).await;
    let totals = loop {
        let told = next(&mut answers).await.tenants.into_iter().find(|totals| totals.tenant_id == id);
        if let Some(totals) = told.filter(|totals| totals.month.unwrap().cost_nano_usd > 0) {
            break totals;
        }
    };
    assert_eq!(totals.month.unwrap().cost_nano_usd, 4_970_000_000);
    let told: Vec<_> = totals.alerts.iter().map(|alert| (alert.percent, alert.unit.as_str(), alert.limit)).collect();
    assert_eq!(told, [(100, "nano_usd", 5_000_000_000)]);
}

/// A ledger that is too long to be summed up for one tenant.
struct Long {
    ledger: Arc<dyn UsageStore>,
    of: TenantId,
}

#[async_trait]
impl UsageStore for Long {
    async fn list(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        before: Option<Timestamp>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageEvent>, Error> {
        self.ledger.list(tenant, session, before, after, limit).await
    }

    async fn summarize(
        &self,
        tenant: TenantId,
        selection: Selection<'_>,
        group_by: &[UsageDimension],
    ) -> Result<Vec<UsageSummary>, Error> {
        if tenant == self.of {
            return Err(Error::unavailable(
                "postgres",
                anyhow::anyhow!("canceling statement due to statement timeout"),
            ));
        }
        self.ledger.summarize(tenant, selection, group_by).await
    }

    async fn add_behind_end(&self, tenant: TenantId, session: SessionId, events: &[NewEvent]) -> Result<u64, Error> {
        self.ledger.add_behind_end(tenant, session, events).await
    }
}

/// Once, no watch came to its first picture while one tenant's sum failed, and no session of anyone was told.
#[tokio::test]
async fn a_ledger_that_cannot_be_summed_up_costs_its_tenants_month_alone() {
    let mut scene = Scene::new().await;
    scene.stores.usage = Arc::new(Long { ledger: scene.stores.usage.clone(), of: scene.heron });
    let front = scene.front("front-0").await;
    let (ours, theirs) = (scene.session(scene.heron, true).await, scene.session(scene.plover, true).await);
    let mut answers = watch(&scene, &front).await;
    let picture = first_picture(&mut answers).await;
    assert_eq!(picture.sessions.len(), 2, "both tenants' sessions are told");
    let of = |tenant: TenantId| {
        let mut named = picture.tenants.iter().filter(|one| one.tenant_id == tenant.to_string());
        let (totals, None) = (named.next().expect("it is named"), named.next()) else { panic!("it is named twice") };
        (totals.sessions_open, totals.month.is_some(), totals.month_start.is_some())
    };
    assert_eq!((of(scene.heron), of(scene.plover)), ((1, false, false), (1, true, true)));

    let mut totals = Vec::new();
    for (tenant, session) in [(scene.heron, ours), (scene.plover, theirs)] {
        scene.append(tenant, session, vec![terminated()]).await;
        let told = loop {
            let answer = next(&mut answers).await;
            totals.extend(answer.tenants);
            if let Some(watched) = answer.sessions.into_iter().next() {
                break watched.session.unwrap();
            }
        };
        assert_eq!((told.session_id.as_str(), told.state()), (&*session.to_string(), SessionState::Terminated));
    }
    while totals.len() < 2 {
        totals.extend(next(&mut answers).await.tenants);
    }
    let mut told: Vec<_> =
        totals.iter().map(|one| (one.tenant_id.clone(), one.sessions_open, one.month.is_some())).collect();
    told.sort();
    let mut expected = [(scene.heron.to_string(), 0, false), (scene.plover.to_string(), 0, true)];
    expected.sort();
    assert_eq!(told, expected, "what is open goes on being told, well before the month is tried again");
}

/// Once, the watch was over for all, time and again, while one tenant's sessions could not be read.
#[tokio::test]
async fn a_tenant_whose_sessions_cannot_be_had_is_told_later_and_the_others_meanwhile() {
    let mut scene = Scene::new().await;
    let outage = Outage::of(1);
    scene.stores.sessions = hooked(scene.stores.sessions, outage.before(|call| matches!(call, Call::List)));
    let front = scene.front("front-0").await;
    let mut sessions = [scene.session(scene.heron, true).await, scene.session(scene.plover, true).await];
    sessions.sort();
    let mut answers = watch(&scene, &front).await;
    let picture = first_picture(&mut answers).await;
    assert!(outage.is_over(), "all could be had at once");
    let mut named: Vec<_> = picture.sessions.iter().map(|one| one.session.clone().unwrap().session_id).collect();
    named.sort();
    assert_eq!(named, sessions.map(|session| session.to_string()), "it is whole, and nobody is named twice");

    // Where nobody's can be had, another front may do better.
    outage.begin();
    let refused = timeout(PATIENCE, watch(&scene, &front).await.message()).await.expect("it ends").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

#[tokio::test]
async fn a_watch_ends_with_its_front_and_gives_its_seat_back() {
    let scene = Scene::new().await;
    let front = scene.front("front-0").await;
    let mut watches = Vec::new();
    for _ in 0..8 {
        let mut answers = watch(&scene, &front).await;
        first_picture(&mut answers).await;
        watches.push(answers);
    }
    let asked = || scene.operator.for_all(WatchSessionsRequest::default());
    let mut client = scene.client(&front);
    assert_eq!(client.watch_sessions(asked()).await.unwrap_err().code(), Code::Unavailable, "there are enough");
    watches.pop();
    let seated = async {
        loop {
            match client.watch_sessions(asked()).await {
                Ok(answers) => return answers.into_inner(),
                Err(refused) => assert_eq!(refused.code(), Code::Unavailable),
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let mut last = timeout(PATIENCE, seated).await.expect("the seat comes back");
    first_picture(&mut last).await;
    scene.tasks.stopping().cancel();
    let cut = timeout(PATIENCE, last.message()).await.expect("the watch ends").unwrap_err();
    assert_eq!(cut.code(), Code::Unavailable, "the operator goes to another front: {cut:?}");
}
