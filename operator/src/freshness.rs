//! How fresh the warm copies are: when the API server last answered the watches behind them.
//!
//! kube's watches tell of what breaks, and of nothing at all while they hold and nothing happens. So their requests are looked at:
//! each watch is made anew within [`crate::mirror::SILENCE_MAX_SECONDS`], and one that holds is answered that often.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use croft_serve::Check;
use http::header::RETRY_AFTER;
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use prometheus::IntGaugeVec;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long an answer may take: to begin, if it is a watch's, which goes on for as long as it holds; as a whole, if it is a list's. Then
/// the request is given up and tried again: a network that swallows packets answers never.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How often a page of a list is asked for at most, within the same time, that a busy API server turns away or that breaks off. After that
/// kube begins the list anew, from its first page on.
const TRIES_MAX: usize = 5;
/// Between two of them, at least: then twice as long each time, and up to as much again by chance.
const TRY_AGAIN_MIN: Duration = Duration::from_millis(250);
/// Routes to whose changes the replica has been deaf for so many times as long as makes it not ready are not told of any more. By then the
/// Service leads to another.
const DEAF_AFTER: u32 = 2;
/// Between two looks at how old the copies are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a copy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Routes are made of it, among others.
    Routes,
    /// Only passes look at it.
    Passes,
}

/// A watch whose request was given up.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer in time")]
struct Unanswered;

/// When each watch was last answered. Clones share it.
#[derive(Clone)]
pub struct Freshness {
    answered: IntGaugeVec,
    /// Of the watches that routes are made of, by name.
    routes: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
    /// What ends the streams of routes that there are.
    streams: Arc<Mutex<CancellationToken>>,
}

impl Freshness {
    /// Tells of each answer in `answered`, by watch.
    pub fn new(answered: IntGaugeVec) -> Self {
        Self { answered, routes: Arc::default(), streams: Arc::default() }
    }

    /// `client` for the watch of this task alone, whose answers are noted from now on.
    pub(crate) fn listen(&self, client: &Client, task_name: &'static str, purpose: Purpose) -> Client {
        let watch = task_name.strip_prefix("watch-").unwrap_or(task_name);
        // One that is never answered is as old as the program.
        self.note(watch, purpose);
        let (client, noted, namespace) = (client.clone(), self.clone(), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, noted) = (client.clone(), noted.clone());
            async move {
                let answer = timeout(ANSWER_MAX, answer(&client, request, Instant::now() + ANSWER_MAX)).await;
                let response = answer.map_err(|_| kube::Error::Service(Box::new(Unanswered)))??;
                if response.status().is_success() {
                    noted.note(watch, purpose);
                }
                Ok::<_, kube::Error>(response)
            }
        });
        Client::new(service, namespace)
    }

    /// Keeps `check` ready while routes are fresh, and not ready from when one of their watches has gone unanswered for `max`.
    ///
    /// The Service then leads fronts that connect to a replica that is better off. While one of their watches is answered still, nobody
    /// loses anything else by it: a stream that is there stays, as a tenant that is stopped may be heard of. When none has been for
    /// twice as long, nothing can be told on any stream, so those that there are end, again and again after each `max`: a front keeps what
    /// it has, and connects anew. Routes go on being served as they were last known to whoever asks. When the API server itself is away,
    /// no replica is ready, and nobody can take them out of the Service either, as it is the API server that would be told.
    pub(crate) async fn keep(self, check: Check, max: Duration, stopping: CancellationToken) {
        let keep = async {
            let mut ended: Option<Instant> = None;
            loop {
                if !self.is_deaf(max * DEAF_AFTER) {
                    ended = None;
                } else if ended.is_none_or(|ended| ended.elapsed() >= max) {
                    ended = Some(Instant::now());
                    self.end_streams();
                }
                match self.stale(max) {
                    Some(watch) => {
                        let seconds = max.as_secs();
                        check.not_ready(format!("they may be old: the watch of {watch} had no answer for {seconds} s"));
                    }
                    None => check.ready(),
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        stopping.run_until_cancelled(keep).await;
    }

    /// Ends when a stream of routes that begins now has nothing to tell any more.
    pub(crate) fn stream(&self) -> CancellationToken {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end_streams(&self) {
        tracing::warn!("no watch of routes is answered: fronts are to connect to a replica that is better off");
        std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner)).cancel();
    }

    /// Whether all watches of routes went unanswered for so long.
    fn is_deaf(&self, max: Duration) -> bool {
        let routes = self.routes();
        !routes.is_empty() && routes.values().all(|answered| answered.elapsed() >= max)
    }

    /// The first watch that went unanswered for so long.
    fn stale(&self, max: Duration) -> Option<&'static str> {
        self.routes().iter().find(|(_, answered)| answered.elapsed() >= max).map(|(watch, _)| *watch)
    }

    fn note(&self, watch: &'static str, purpose: Purpose) {
        self.answered.with_label_values(&[watch]).set(jiff::Timestamp::now().as_second());
        if purpose == Purpose::Routes {
            self.routes().insert(watch, Instant::now());
        }
    }

    fn routes(&self) -> MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer, with all of its body unless that is a watch's. What is no watch is tried again, as long as that can be before `ends`.
async fn answer(client: &Client, request: Request<Body>, ends: Instant) -> kube::Result<Response<Body>> {
    let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
    if is_watch || request.method() != Method::GET {
        return client.send(request).await;
    }
    let (head, _) = request.into_parts();
    let pauses =
        ExponentialBuilder::default().with_min_delay(TRY_AGAIN_MIN).with_max_times(TRIES_MAX - 1).with_jitter();
    let mut pauses = pauses.build();
    loop {
        let answer = whole(client, Request::from_parts(head.clone(), Body::empty())).await;
        let Some(wished) = again_after(&answer) else { return answer };
        match pauses.next().map(|pause| wished + pause) {
            Some(pause) if Instant::now() + pause < ends => tokio::time::sleep(pause).await,
            _ => return answer,
        }
    }
}

async fn whole(client: &Client, request: Request<Body>) -> kube::Result<Response<Body>> {
    let (head, body) = client.send(request).await?.into_parts();
    Ok(Response::from_parts(head, Body::from(body.collect_bytes().await?)))
}

/// How long the API server wishes to be left alone, if it may answer otherwise then. `None` if there is nothing to try again.
fn again_after(answer: &kube::Result<Response<Body>>) -> Option<Duration> {
    let Ok(answer) = answer else { return Some(Duration::ZERO) };
    let is_busy = matches!(answer.status().as_u16(), 429 | 502 | 503 | 504);
    is_busy.then(|| {
        let wished = answer.headers().get(RETRY_AFTER).and_then(|header| header.to_str().ok()?.parse().ok());
        Duration::from_secs(wished.unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body as AnswerBody;
    use croft_serve::{Readiness, Tasks};
    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::Api;
    use kube::runtime::watcher;
    use prometheus::Opts;
    use serde_json::json;
    use tokio::sync::watch;

    use super::*;
    use crate::mirror::{Copies, StatusChange};

    const MAX: Duration = Duration::from_mins(1);

    #[derive(Clone, Copy)]
    enum Answer {
        Never,
        With(u16),
        /// It begins, and nothing follows.
        Begun,
    }

    /// An API server that answers everything like this, until told otherwise.
    fn api_server() -> (Client, watch::Sender<Answer>) {
        let (sender, answers) = watch::channel(Answer::With(200));
        let service = tower::service_fn(move |_: Request<Body>| {
            let answer = *answers.borrow();
            async move {
                match answer {
                    Answer::Never => std::future::pending().await,
                    Answer::With(code) => {
                        Ok::<_, Infallible>(Response::builder().status(code).body(AnswerBody::empty()).unwrap())
                    }
                    Answer::Begun => {
                        let nothing = stream::pending::<Result<&[u8], Infallible>>();
                        Ok(Response::new(AnswerBody::from_stream(nothing)))
                    }
                }
            }
        });
        (Client::new(service, "plots"), sender)
    }

    fn freshness() -> Freshness {
        Freshness::new(IntGaugeVec::new(Opts::new("answered", "When."), &["watch"]).unwrap())
    }

    async fn ask(client: &Client) -> Option<u16> {
        let request = Request::get("/").body(Body::empty()).unwrap();
        client.send(request).await.ok().map(|response| response.status().as_u16())
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_answered_well_keeps_a_copy_fresh() {
        let (freshness, (client, answers)) = (freshness(), api_server());
        let pods = freshness.listen(&client, "watch-pods", Purpose::Routes);
        let roles = freshness.listen(&client, "watch-roles", Purpose::Passes);
        let told = freshness.answered.with_label_values(&["pods"]);
        assert!(told.get() > 0, "as old as the program");
        told.set(0);
        tokio::time::advance(MAX / 2).await;
        assert_eq!(ask(&pods).await, Some(200));
        assert!(told.get() > 0);
        for answer in [Answer::With(403), Answer::With(503), Answer::Never] {
            assert_eq!(freshness.stale(MAX), None);
            answers.send_replace(answer);
            ask(&pods).await;
        }
        tokio::time::advance(MAX).await;
        answers.send_replace(Answer::With(200));
        assert_eq!(ask(&roles).await, Some(200));
        assert_eq!(freshness.stale(MAX), Some("pods"));
        assert_eq!(ask(&pods).await, Some(200));
        assert_eq!(freshness.stale(MAX), None, "no route is made of roles");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_never_answered_is_given_up() {
        let (client, answers) = api_server();
        answers.send_replace(Answer::Never);
        let begun = Instant::now();
        assert_eq!(ask(&freshness().listen(&client, "watch-pods", Purpose::Routes)).await, None);
        assert_eq!(begun.elapsed(), ANSWER_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_whose_body_never_ends_is_given_up_and_a_watch_goes_on() {
        let (client, answers) = api_server();
        answers.send_replace(Answer::Begun);
        let client = freshness().listen(&client, "watch-pods", Purpose::Routes);
        let begun = Instant::now();
        assert_eq!(ask(&client).await, None);
        assert_eq!(begun.elapsed(), ANSWER_MAX);
        let watch = Request::get("/api/v1/pods?&watch=true&timeoutSeconds=20").body(Body::empty()).unwrap();
        assert!(client.send(watch).await.is_ok_and(|response| response.status().is_success()));
        assert_eq!(begun.elapsed(), ANSWER_MAX, "at once");
    }

    /// Once, a page that was turned away began its list anew, and a long one did not come to its end while the API server was busy.
    #[tokio::test(start_paused = true)]
    async fn a_long_list_comes_to_its_end_though_every_fortieth_page_is_turned_away() {
        const PAGES: usize = 100;
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let is_turned_away = (counted.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(40);
            async move {
                if query.contains("watch=true") {
                    return std::future::pending().await;
                }
                if is_turned_away {
                    let busy = Response::builder().status(429).header(RETRY_AFTER, "1");
                    return Ok(busy.body(AnswerBody::empty()).unwrap());
                }
                let page = query.split('&').find_map(|part| part.strip_prefix("continue=")).unwrap_or("0");
                let page: usize = page.parse().unwrap();
                let list = json!({
                    "apiVersion": "v1", "kind": "ConfigMapList",
                    "metadata": { "resourceVersion": "7", "continue": (page + 1 < PAGES).then(|| (page + 1).to_string()) },
                    "items": [{ "metadata": { "name": format!("plot-{page}"), "resourceVersion": "5" } }],
                });
                Ok::<_, Infallible>(Response::new(AnswerBody::from(list.to_string())))
            }
        });
        let client = freshness().listen(&Client::new(service, "plots"), "watch-plots", Purpose::Passes);
        let all = watcher::Config::default();
        let nothing = |_: &ConfigMap, _| {};
        let copies = Copies::start(&Tasks::new(), "watch-plots", Api::all(client), all, StatusChange::AsAny, nothing);
        timeout(10 * MAX, copies.whole()).await.expect("it is whole");
        let asked = asked.load(Ordering::SeqCst);
        assert!(asked < PAGES * 12 / 10, "{asked} requests");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_asked_again_as_it_wishes_a_few_times_and_not_past_the_time_there_is() {
        for (code, wish, tries) in [
            (429, Some("1"), TRIES_MAX),
            (502, None, TRIES_MAX),
            (503, Some("in a while"), TRIES_MAX),
            (504, None, TRIES_MAX),
            (429, Some("31"), 1),
            (500, None, 1),
            (410, None, 1),
        ] {
            let asked = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&asked);
            let service = tower::service_fn(move |_: Request<Body>| {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = wish
                    .into_iter()
                    .fold(Response::builder().status(code), |answer, wish| answer.header(RETRY_AFTER, wish));
                std::future::ready(Ok::<_, Infallible>(answer.body(AnswerBody::empty()).unwrap()))
            });
            let client = freshness().listen(&Client::new(service, "plots"), "watch-plots", Purpose::Passes);
            let begun = Instant::now();
            assert_eq!(ask(&client).await, Some(code));
            assert_eq!(asked.load(Ordering::SeqCst), tries, "{code} {wish:?}");
            let wished = Duration::from_secs(wish.and_then(|wish| wish.parse().ok()).unwrap_or(0));
            let least = if tries > 1 { 4 * wished + 15 * TRY_AGAIN_MIN } else { Duration::ZERO };
            assert!((least..ANSWER_MAX).contains(&begun.elapsed()), "{code} {wish:?}: {:?}", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_end_once_nothing_is_heard_of_any_route_and_again_while_it_stays_so() {
        let (freshness, readiness, stopping) = (freshness(), Readiness::new(), CancellationToken::new());
        let client = api_server().0;
        let [pods, tenants] =
            ["watch-pods", "watch-tenants"].map(|watch| freshness.listen(&client, watch, Purpose::Routes));
        let keep = freshness.clone().keep(readiness.check("routes"), MAX, stopping.clone());
        let story = async {
            let stream = freshness.stream();
            for _ in 0..5 {
                tokio::time::sleep(MAX).await;
                ask(&tenants).await;
            }
            assert!(!readiness.is_ready() && !stream.is_cancelled(), "tenants are heard of, though pods are not");
            let silent = Instant::now();
            stream.cancelled().await;
            assert!((2 * MAX..2 * MAX + 2 * LOOK_EVERY).contains(&silent.elapsed()), "{:?}", silent.elapsed());
            let again = freshness.stream();
            assert!(!again.is_cancelled(), "whoever comes is told what is known");
            again.cancelled().await;
            assert!((3 * MAX..3 * MAX + 3 * LOOK_EVERY).contains(&silent.elapsed()), "{:?}", silent.elapsed());

            let heard = freshness.stream();
            ask(&pods).await;
            ask(&tenants).await;
            tokio::time::sleep((2 * MAX).saturating_sub(LOOK_EVERY)).await;
            assert!(!heard.is_cancelled());
            stopping.cancel();
        };
        tokio::join!(keep, story);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_ready_while_its_routes_are_fresh() {
        let (freshness, readiness, stopping) = (freshness(), Readiness::new(), CancellationToken::new());
        let client = freshness.listen(&api_server().0, "watch-pods", Purpose::Routes);
        let keep = freshness.keep(readiness.check("routes"), MAX, stopping.clone());
        let story = async {
            let begun = Instant::now();
            let mut changes = readiness.watch();
            while changes.next().await != Some(true) {}
            assert_eq!(changes.next().await, Some(false));
            assert_eq!(begun.elapsed().as_secs(), MAX.as_secs());
            assert_eq!(readiness.problems(), ["routes: they may be old: the watch of pods had no answer for 60 s"]);
            ask(&client).await;
            assert_eq!(changes.next().await, Some(true));
            stopping.cancel();
        };
        tokio::join!(keep, story);
    }
}
