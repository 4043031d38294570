//! How fresh the warm copies are: when the API server last answered the watches behind them.
//!
//! kube's watches tell of what breaks, and of nothing at all while they hold and nothing happens. So their requests are looked at:
//! each watch is made anew within [`crate::mirror::SILENCE_MAX_SECONDS`], and one that holds is answered that often.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_serve::Check;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use prometheus::IntGaugeVec;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long an answer may take: to begin, if it is a watch's, which goes on for as long as it holds; as a whole, if it is a list's. Then
/// the request is given up and tried again: a network that swallows packets answers never.
const ANSWER_MAX: Duration = Duration::from_secs(30);
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
                let answer = timeout(ANSWER_MAX, answer(&client, request)).await;
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

/// The answer, with all of its body unless that is a watch's.
async fn answer(client: &Client, request: Request<Body>) -> kube::Result<Response<Body>> {
    let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
    let response = client.send(request).await?;
    if is_watch {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, Body::from(body.collect_bytes().await?)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body as AnswerBody;
    use croft_serve::Readiness;
    use futures::stream;
    use prometheus::Opts;
    use tokio::sync::watch;

    use super::*;

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
