//! The issuer's keys: fetched seldom, replaced when the issuer replaces them, kept while it is away.

use std::time::Duration;

use axum::http::StatusCode;
use croft_front::identity::Role;
use croft_front::identity::settings::Timing;
use futures::future::join_all;
use tokio::time::Instant;

use crate::issuer::Signer;
use crate::scene::{PATIENCE, Scene, is_refused, is_unavailable, timing};

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let held = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("{what} never happens"));
}

#[tokio::test]
async fn a_key_that_is_rotated_in_is_found_and_the_one_before_forgotten() {
    let scene = Scene::new().await;
    let before = scene.people.sign(&scene.claims());
    scene.taken(&before).await;
    let (next, after) = (Signer::rsa("people-2"), scene.claims());
    let after = next.sign(&after);
    assert!(is_refused(&scene.identify(&after).await), "nobody has published it");
    scene.issuer.publish(&[&scene.people, &next]);
    scene.taken(&after).await;
    scene.taken(&before).await;
    // Now the old one is taken back, which shows with the next look.
    scene.issuer.publish(&[&next]);
    let stranger = Signer::ec("people-3").sign(&scene.claims());
    eventually("the old key is forgotten", async || {
        assert!(is_refused(&scene.identify(&stranger).await));
        is_refused(&scene.identify(&before).await)
    })
    .await;
    scene.taken(&after).await;
}

#[tokio::test]
async fn a_key_that_is_taken_back_is_forgotten_without_anyone_asking() {
    let refresh_every = Duration::from_millis(100);
    let scene = Scene::with(Timing { cooldown: Duration::from_millis(50), refresh_every, ..timing() }, |_| {}).await;
    let token = scene.people.sign(&scene.claims());
    scene.taken(&token).await;
    scene.issuer.publish(&[&Signer::ec("people-2")]);
    eventually("the key is forgotten", async || is_refused(&scene.identify(&token).await)).await;
}

/// Once, an issuer that took back the only key it had went on being trusted for it.
#[tokio::test]
async fn an_issuer_that_takes_back_all_its_keys_is_trusted_no_longer() {
    let refresh_every = Duration::from_millis(100);
    let scene = Scene::with(Timing { cooldown: Duration::from_millis(50), refresh_every, ..timing() }, |_| {}).await;
    let token = scene.people.sign(&scene.claims());
    scene.taken(&token).await;
    scene.issuer.publish(&[]);
    eventually("its keys are forgotten", async || is_refused(&scene.identify(&token).await)).await;
    scene.issuer.publish(&[&scene.people]);
    scene.taken(&token).await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_no_flood_of_fetches() {
    let cooldown = Duration::from_secs(1);
    let scene = Scene::with(Timing { cooldown, ..timing() }, |_| {}).await;
    let good = scene.people.sign(&scene.claims());
    scene.taken(&good).await;
    assert_eq!(scene.issuer.fetches(), 1);
    let stranger = Signer::ec("stranger");
    let claims = scene.claims();
    let flood: Vec<_> = (0..500).map(|number| stranger.sign_as(&format!("k{number}"), &claims)).collect();

    // They come together, when a fetch is due: one is made for all of them.
    tokio::time::sleep(cooldown).await;
    let began = Instant::now();
    scene.issuer.delay(Duration::from_millis(100));
    let outcomes = join_all(flood.iter().map(|token| scene.identify(token))).await;
    assert!(outcomes.iter().all(is_refused));
    // And again and again, each for the second time.
    for token in &flood {
        assert!(is_refused(&scene.identify(token).await));
    }
    let due = 2 + usize::try_from(began.elapsed().as_millis() / cooldown.as_millis()).unwrap();
    assert!(scene.issuer.fetches() <= due, "{} fetches, where {due} are due", scene.issuer.fetches());
    assert!(scene.issuer.fetches() >= 2, "the flood has caused none at all");

    // Those that nobody would sign with cause none, however many keys they name.
    let before = scene.issuer.fetches();
    tokio::time::sleep(cooldown).await;
    for foreign in ["https://login.example.com", "croft-operator"] {
        assert!(is_refused(&scene.identify(&scene.changed("iss", foreign.into())).await));
    }
    assert_eq!(scene.issuer.fetches(), before);
    scene.taken(&good).await;
}

#[tokio::test]
async fn a_caller_who_hangs_up_takes_the_fetch_from_nobody() {
    let scene = Scene::with(Timing { cooldown: Duration::from_secs(1), ..timing() }, |_| {}).await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    let next = Signer::ec("people-2");
    scene.issuer.publish(&[&scene.people, &next]);
    scene.issuer.delay(Duration::from_secs(2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stranger = Signer::ec("stranger").sign(&scene.claims());
    let hung_up = tokio::time::timeout(Duration::from_millis(50), scene.identify(&stranger)).await;
    assert!(hung_up.is_err(), "it was answered before the issuer was");
    eventually("the fetch arrives", async || scene.issuer.fetches() == 2).await;
    // Within the cooldown nothing else could have brought the key.
    let began = Instant::now();
    scene.taken(&next.sign(&scene.claims())).await;
    assert!(began.elapsed() >= Duration::from_secs(1) || scene.issuer.fetches() == 2);
}

#[tokio::test]
async fn the_keys_of_an_issuer_that_went_away_go_on() {
    let scene = Scene::new().await;
    let good = scene.people.sign(&scene.claims());
    scene.taken(&good).await;
    scene.issuer.fail(StatusCode::SERVICE_UNAVAILABLE);
    let next = Signer::ec("people-2");
    let unknown = next.sign(&scene.claims());
    // It may have a new key by now, and nobody can say.
    eventually("the fetch has failed", async || is_unavailable(&scene.identify(&unknown).await)).await;
    for _ in 0..50 {
        scene.identify(&good).await.unwrap();
    }
    scene.issuer.publish(&[&next]);
    scene.taken(&unknown).await;
}

#[tokio::test]
async fn an_issuer_that_is_away_at_the_start_is_waited_for_and_holds_up_nobody_else() {
    let scene = Scene::with(timing(), |issuer| issuer.fail(StatusCode::BAD_GATEWAY)).await;
    let token = scene.people.sign(&scene.claims());
    let outcome = scene.identify(&token).await;
    assert!(is_unavailable(&outcome), "{outcome:?}");
    scene.identify(&scene.api_key(Role::Viewer).await).await.unwrap();
    scene.taken(&scene.cluster.sign(&scene.service_account("tenant-heron"))).await;
    scene.issuer.publish(&[&scene.people]);
    scene.taken(&token).await;
}

#[tokio::test]
async fn an_issuer_that_never_answers_is_given_up_on() {
    let scene = Scene::with(Timing { fetch_timeout: Duration::from_millis(100), ..timing() }, |issuer| {
        issuer.delay(Duration::from_mins(1));
    })
    .await;
    let token = scene.people.sign(&scene.claims());
    let outcome = tokio::time::timeout(PATIENCE, scene.identify(&token)).await.unwrap();
    assert!(is_unavailable(&outcome), "{outcome:?}");
}
