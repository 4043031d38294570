//! Alerts reach the platform's webhook: signed, and again until they are taken.

use std::sync::Arc;
use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::budget::webhook::{Hook, Poster, signature};
use croft_front::core::Options;
use croft_proto::v1::{Budget, BudgetAction, BudgetPeriod, BudgetScope, SetBudgetRequest};
use prometheus::Registry;
use secrecy::SecretString;
use tokio::net::TcpListener;

use crate::receiver::Receiver;
use crate::world::{Ground, World, read_all};

const SECRET: &str = "a secret of sixteen";
/// One that is not answered in time holds its lease for a minute, and is found at the next look.
const POSTED_WITHIN: Duration = Duration::from_mins(3);

fn hook(receiver: &Receiver) -> Hook {
    Hook { url: receiver.url.clone(), secret: SecretString::from(SECRET) }
}

fn header<'post>(post: &'post str, name: &str) -> &'post str {
    let of = |line: &'post str| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name));
    post.lines().find_map(of).unwrap_or_else(|| panic!("{name} is missing: {post}")).1
}

/// Uses half of a budget.
async fn alert(world: &World) {
    let mut client = world.client();
    let session = client.create(scripted_agent("watched")).await.unwrap();
    let budget = Budget {
        scope: BudgetScope::Tenant.into(),
        period: BudgetPeriod::Life.into(),
        limit_tokens: Some(10),
        action: BudgetAction::Warn.into(),
        ..Budget::default()
    };
    client.budgets.set_budget(SetBudgetRequest { budget: Some(budget) }).await.unwrap();
    let sent = client.lifecycle.send_message(message(&session.session_id, "a few words for a few tokens")).await;
    read_all(sent.unwrap().into_inner()).await;
}

#[tokio::test]
async fn an_alert_is_posted_with_a_signature_that_can_be_checked() {
    let receiver = Receiver::refusing(0).await;
    let options = Options { hook: Some(hook(&receiver)), ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    alert(&world).await;
    let posted = async {
        while receiver.posts.lock().unwrap().len() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(POSTED_WITHIN, posted).await.expect("four thresholds are posted");
    let posts = receiver.posts.lock().unwrap().clone();
    let mut percents = Vec::new();
    for post in &posts {
        let (_, body) = post.split_once("\r\n\r\n").unwrap();
        let signed = header(post, "croft-signature");
        let seconds = signed.trim_start_matches("t=").split(',').next().unwrap().parse().unwrap();
        assert_eq!(signed, signature(&SecretString::from(SECRET), seconds, body));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((body["type"].as_str(), body["tenant"].as_str()), (Some("budget.alert"), Some("acme")));
        assert_eq!(body["id"].as_str(), Some(header(post, "croft-delivery")));
        percents.push(body["percent"].as_u64().unwrap());
    }
    percents.sort_unstable();
    assert_eq!(percents, [50, 80, 90, 100]);
}

#[tokio::test]
async fn a_refused_alert_is_posted_again_and_one_that_is_never_taken_is_given_up() {
    let world = World::start().await;
    alert(&world).await;
    let receiver = Receiver::refusing(6).await;
    let stores = &world.core.stores;
    let poster = Poster::new(Arc::clone(&stores.budgets), hook(&receiver), &Registry::new()).unwrap();
    let poster = poster.with_pause(Duration::ZERO);
    // Four alerts, of which six posts are refused.
    let mut rounds = 0;
    while poster.post_what_is_due().await.unwrap() > 0 {
        rounds += 1;
    }
    assert!(rounds >= 3, "{rounds}");
    assert_eq!(receiver.posts.lock().unwrap().len(), 4 + 6);

    let world = World::start().await;
    alert(&world).await;
    // Nobody listens there.
    let hook = Hook { url: "http://127.0.0.1:9/".into(), secret: SecretString::from(SECRET) };
    let registry = Registry::new();
    let poster = Poster::new(Arc::clone(&world.core.stores.budgets), hook, &registry).unwrap();
    let poster = poster.with_pause(Duration::ZERO);
    while poster.post_what_is_due().await.unwrap() > 0 {}
    let told = registry.gather();
    let dead = told[0].get_metric().iter().find(|metric| metric.get_label()[0].value() == "dead").unwrap();
    assert!((dead.get_counter().get_value() - 4.0).abs() < f64::EPSILON, "{told:?}");
}

/// It takes the connection and says nothing: the next try comes, and nobody's turn waits for it.
#[tokio::test]
async fn a_webhook_that_hangs_holds_up_nobody() {
    steady(Duration::from_secs(1), async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hook =
            Hook { url: format!("http://{}/", listener.local_addr().unwrap()), secret: SecretString::from(SECRET) };
        let options = Options { hook: Some(hook), ..Options::default() };
        let world = World::on(Ground { options, ..Ground::default() }).await;
        alert(&world).await;
        let mut silent = Vec::new();
        let mut take = async |count: usize| {
            let taken = async {
                while silent.len() < count {
                    silent.push(listener.accept().await.unwrap());
                }
            };
            tokio::time::timeout(POSTED_WITHIN, taken).await.expect("it is tried");
        };
        take(4).await;
        let asked = tokio::time::Instant::now();
        alert(&world).await;
        assert!(asked.elapsed() < Duration::from_secs(8), "a turn waited for the webhook: {:?}", asked.elapsed());
        take(5).await;
    })
    .await;
}
