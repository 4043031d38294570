//! What a front is told by its flags holds in the program that `main` builds, and over two of them: rates and budgets are counted
//! together in Redis, alerts are posted, streams and origins are bounded. And both go on without Redis.

use std::panic::resume_unwind;
use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::steady::{steady, watched};
use croft_front::budget::webhook::signature;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    Budget, BudgetAction, BudgetPeriod, BudgetScope, ListBudgetsRequest, ListSessionsRequest, SetBudgetRequest,
    StopReason, StreamEventsRequest,
};
use secrecy::SecretString;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::PATIENCE;
use crate::receiver::Receiver;
use crate::stage::Stage;

/// A post that is not answered in time holds its lease for a minute, and is found at the next look.
const POSTED_WITHIN: Duration = Duration::from_mins(3);
/// A front waits for half a second for what is counted in Redis, and counts alone then.
const STALL: Duration = Duration::from_millis(300);
const TRIES_MAX: usize = 5;
/// Longer than any test takes.
const AWAY: Duration = Duration::from_hours(1);
const SECRET: &str = "what alerts are signed with";

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|&flag| flag.to_owned()).collect()
}

/// What was refused: the reason, and of which resource there was not enough.
fn refusal(status: &Status) -> (String, String) {
    let details = status.get_error_details();
    let subject = details.quota_failure().and_then(|quota| Some(quota.violations.first()?.subject.clone()));
    let reason = details.error_info().map(|info| info.reason.clone());
    (reason.unwrap_or_default(), subject.unwrap_or_default())
}

/// Says something, and tells how the turn ended.
async fn turn(client: &mut Client, session_id: &str, text: &str) -> Option<StopReason> {
    let mut events = client.lifecycle.send_message(message(session_id, text)).await.unwrap().into_inner();
    let mut ended = None;
    while let Some(response) = events.message().await.unwrap() {
        if let Some(Kind::SessionIdle(idle)) = response.event.unwrap().kind {
            ended = Some(idle.stop_reason());
        }
    }
    ended
}

/// Plays the scenario on a stage whose fronts have these flags. One that failed where a front counted alone, or where this process
/// stood still, so that a front or Redis may have, proves nothing: it is played again on another stage, five times at most in all.
async fn together<T>(flags: impl AsyncFn() -> (Vec<String>, T), scenario: impl AsyncFn(&Stage, T)) {
    let mut tries = 1;
    loop {
        let (flags, given) = flags().await;
        let stage = Stage::with(&flags).await;
        let (outcome, gap) = watched(scenario(&stage, given)).await;
        let alone = counted_alone(&stage).await;
        match outcome {
            Ok(()) => return stage.strike().await,
            Err(_) if tries < TRIES_MAX && (gap > STALL || alone) => stage.strike().await,
            Err(panic) => resume_unwind(panic),
        }
        eprintln!("a gap of {gap:?}; counted alone: {alone}: try {tries} does not count");
        tries += 1;
    }
}

/// Whether a front had no answer of Redis in time.
async fn counted_alone(stage: &Stage) -> bool {
    let mut alone = 0.0;
    for place in 0..2 {
        alone += stage.metrics(place).await.sum("croft_counters_alone_total", &[]);
    }
    alone > 0.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_of_flags_hold_over_both_fronts_together() {
    let flags = async || {
        let flags = flags(&[
            "--sessions-per-minute=5",
            "--requests-per-minute=60",
            "--streams-per-tenant-max=2",
            "--allowed-origins=https://app.example.com",
        ]);
        (flags, ())
    };
    together(flags, async |stage, ()| rates_hold(stage).await).await;
}

async fn rates_hold(stage: &Stage) {
    let mut clients = stage.clients();
    // What they are counted by: calls of the tenant's clients since the stage was set.
    let (mut calls, mut sessions) = (0, Vec::new());
    let refused = loop {
        let place = calls % 2;
        calls += 1;
        match clients[place].create(scripted_agent("counted")).await {
            Ok(session) => sessions.push(session.session_id),
            Err(refused) => break refused,
        }
        assert!(sessions.len() <= 5, "more sessions than the rate lets through");
    };
    assert_eq!((sessions.len(), refused.code()), (5, Code::ResourceExhausted), "{refused:?}");
    assert_eq!(refusal(&refused), ("RATE_LIMITED".into(), "sessions".into()));

    // Streams are those of a replica.
    let watch = StreamEventsRequest { session_id: sessions[0].clone(), ..StreamEventsRequest::default() };
    let mut watching = Vec::new();
    for _ in 0..2 {
        watching.push(clients[0].lifecycle.stream_events(watch.clone()).await.unwrap());
    }
    let refused = clients[0].lifecycle.stream_events(watch.clone()).await.unwrap_err();
    assert_eq!(refusal(&refused).0, "STREAM_LIMIT", "{refused:?}");
    calls += 3;

    let refused = loop {
        let place = calls % 2;
        match clients[place].lifecycle.list_sessions(ListSessionsRequest::default()).await {
            Ok(_) => calls += 1,
            Err(refused) => break refused,
        }
        assert!(calls <= 60, "more calls than the rate lets through");
    };
    assert_eq!(refusal(&refused), ("RATE_LIMITED".into(), "requests".into()));
    assert_eq!(calls, 60, "both fronts together let through what the rate says, and no less");

    for place in 0..2 {
        let metrics = stage.metrics(place).await;
        for (name, value) in [("croft_event_relay_up", 1.0), ("croft_counters_away", 0.0)] {
            assert!((metrics.sum(name, &[]) - value).abs() < f64::EPSILON, "{name} of front {place}");
        }
        let preflight = reqwest::Client::new()
            .request(reqwest::Method::OPTIONS, format!("http://{}/v1/sessions", stage.http(place)))
            .header("origin", "https://app.example.com")
            .header("access-control-request-method", "GET");
        let answer = preflight.send().await.unwrap();
        let allowed = answer.headers().get("access-control-allow-origin").expect("the origin is let in");
        assert_eq!(allowed, "https://app.example.com");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_that_is_to_end_still_serves_whoever_has_not_heard_of_it() {
    steady(Duration::from_secs(1), async || {
        let mut stage = Stage::with(&flags(&["--shutdown-delay-ms=8000"])).await;
        stage.ask_front_to_end(0).await;
        let mut client = stage.clients().swap_remove(0);
        let session_id = client.create(scripted_agent("late")).await.unwrap().session_id;
        assert_eq!(turn(&mut client, &session_id, "on a new connection").await, Some(StopReason::EndTurn));
        stage.front_ends(0).await;
        assert!(client.create(scripted_agent("too late")).await.is_err(), "then nobody is there");
        stage.run_front(0).await;
        stage.strike().await;
    })
    .await;
}

/// All fronts were taken out of their Service together, and nobody came to where each counts for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fronts_serve_whoever_comes_while_redis_is_away() {
    let stage = Stage::with(&flags(&["--sessions-per-minute=100"])).await;
    stage.cut_redis(AWAY);
    for place in 0..2 {
        let status = async |path| reqwest::get(format!("http://{}{path}", stage.http(place))).await.unwrap().status();
        let told = async {
            while status("/readyz").await != 503 || status("/servingz").await != 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, told)
            .await
            .unwrap_or_else(|_| panic!("front {place} is served as if all were there, or not at all"));
    }
    // On connections that were not there before.
    for (place, mut client) in stage.clients().into_iter().enumerate() {
        let session_id = client.create(scripted_agent("alone")).await.unwrap().session_id;
        assert_eq!(turn(&mut client, &session_id, "without Redis").await, Some(StopReason::EndTurn));
        let status = reqwest::get(format!("http://{}/servingz", stage.http(place))).await.unwrap().status();
        assert_eq!(status, 200, "it is served all the while");
        assert!(stage.metrics(place).await.sum("croft_counters_alone_total", &[]) > 0.0, "Redis was there");
    }
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_holds_over_both_fronts_and_its_alerts_are_posted() {
    let rates = std::env::temp_dir().join(format!("croft-rates-{}.yaml", uuid::Uuid::new_v4()));
    std::fs::write(&rates, "scripted: { standard: { sessionsPerMinute: 2 } }\n").unwrap();
    let flags = async || {
        let receiver = Receiver::refusing(0).await;
        let flags = flags(&[
            &format!("--alert-webhook-url={}", receiver.url),
            &format!("--alert-webhook-secret={SECRET}"),
            &format!("--provider-rates-file={}", rates.display()),
        ]);
        (flags, receiver)
    };
    together(flags, async |stage, receiver| budget_holds(stage, &receiver).await).await;
    std::fs::remove_file(&rates).unwrap();
}

async fn budget_holds(stage: &Stage, Receiver { posts, .. }: &Receiver) {
    let mut clients = stage.clients();
    let session_id = clients[0].create(scripted_agent("spender")).await.unwrap().session_id;
    clients[1].create(scripted_agent("other")).await.unwrap();
    let refused = clients[0].create(scripted_agent("third")).await.unwrap_err();
    assert_eq!(refusal(&refused), ("RATE_LIMITED".into(), "sessions".into()), "the file's rate of the tier");

    // Each turn at another front than the last, each with the same few words, until the budget is used up.
    let budget = Budget {
        scope: BudgetScope::Tenant.into(),
        period: BudgetPeriod::Life.into(),
        limit_tokens: Some(1_000),
        action: BudgetAction::Block.into(),
        ..Budget::default()
    };
    clients[0].budgets.set_budget(SetBudgetRequest { budget: Some(budget) }).await.unwrap();
    let mut turns = 0;
    while turn(&mut clients[turns % 2], &session_id, "some words that are counted").await != Some(StopReason::Budget) {
        turns += 1;
        assert!(turns < 200, "the budget never holds");
    }
    let listed = clients[0].budgets.list_budgets(ListBudgetsRequest {}).await.unwrap().into_inner().budgets;
    assert!(turns > 2 && (700..=1_000).contains(&listed[0].spent_tokens), "{turns} turns: {listed:?}");

    let posted = async {
        while posts.lock().unwrap().len() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(POSTED_WITHIN, posted).await.expect("four thresholds are posted");
    for post in posts.lock().unwrap().iter() {
        let (head, body) = post.split_once("\r\n\r\n").unwrap();
        let signed = head.lines().find_map(|line| line.strip_prefix("croft-signature: ")).expect("it is signed");
        let seconds = signed.trim_start_matches("t=").split(',').next().unwrap().parse().unwrap();
        assert_eq!(signed, signature(&SecretString::from(SECRET), seconds, body));
    }
}
