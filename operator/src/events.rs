//! Events for people: what has turned, told once, off the path of passes.
//!
//! kube's own recorder searches all that it told in six minutes at each call, under a lock. Here a pass puts its news into
//! a queue and goes on; a task of its own writes them, so many a second. An Event is a courtesy: at the queue's end it is
//! dropped and counted, and the condition that it told of stands in the status all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use croft_serve::log::chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::Resource;
use kube::api::ObjectMeta;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::writes::{FIELD_MANAGER, Writer};

/// News that wait; more are dropped.
const WAITING_MAX: usize = 1_024;
/// Between two writes: fifty a second at most.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a write may take: one that is never answered must not be the last.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// The same news of the same object is told again after this at the earliest.
const AGAIN: Duration = Duration::from_mins(10);
/// What the API server takes as a note, in characters.
const NOTE_CHARACTERS_MAX: usize = 1_000;

/// A condition that has turned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    is_problem: bool,
    condition: String,
    reason: String,
    message: String,
}

/// One Event to be.
#[derive(Debug, Clone)]
pub(crate) struct News {
    regarding: ObjectReference,
    turn: Turn,
}

impl News {
    /// About an object of any kind.
    pub(crate) fn about<K: Resource<DynamicType = ()>>(object: &K, turn: Turn) -> Self {
        let regarding = ObjectReference { resource_version: None, ..object.object_ref(&()) };
        Self { regarding, turn }
    }
}

/// What people should hear of: a condition that stops holding or does so for another reason, and `Ready` when it holds
/// again. That an object is being made is no news.
pub(crate) fn turns(before: &[Condition], now: &[Condition]) -> Vec<Turn> {
    let told = now.iter().filter_map(|condition| {
        let older = before.iter().find(|older| older.type_ == condition.type_);
        let is_new = older.is_none_or(|older| older.status != condition.status || older.reason != condition.reason);
        let is_ready = condition.type_ == "Ready";
        let does_not_hold = condition.status == "False" && !is_ready;
        let is_calm = matches!(condition.reason.as_str(), "Starting" | "Creating" | "Stopping" | "RolloutWaiting");
        let is_news = does_not_hold && !is_calm || is_ready && condition.status == "True";
        let is_problem = does_not_hold && !is_asked_for(&condition.reason);
        // `Applied` repeats what a part says, or has it alone when no part is to blame.
        let repeats = condition.type_ == "Applied"
            && now
                .iter()
                .any(|other| other.type_ != "Applied" && other.type_ != "Ready" && other.reason == condition.reason);
        (is_new && is_news && !repeats).then(|| Turn {
            is_problem,
            condition: condition.type_.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        })
    });
    told.collect()
}

/// Whether it goes as somebody wanted it to.
fn is_asked_for(reason: &str) -> bool {
    matches!(reason, "Suspended" | "RemovalBegun" | "EndingSessions" | "Draining" | "Erasing" | "DeletingNamespace")
}

/// Where news are put. Clones share the queue.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<News>,
    metrics: Metrics,
}

/// The other end of the queue.
pub struct Waiting {
    queue: mpsc::Receiver<News>,
    metrics: Metrics,
}

impl Events {
    /// A queue; nothing is written until [`Waiting::write`] runs.
    pub fn new(metrics: Metrics) -> (Self, Waiting) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self { queue: sender, metrics: metrics.clone() }, Waiting { queue: receiver, metrics })
    }

    /// Never waits.
    pub(crate) fn tell(&self, news: News) {
        if self.queue.try_send(news).is_err() {
            self.metrics.events.with_label_values(&["dropped"]).inc();
        }
    }
}

impl Waiting {
    /// Writes news as they come, until `stopping`.
    pub async fn write(mut self, writer: Arc<Writer>, identity: String, stopping: CancellationToken) {
        let write = async {
            let mut told = Told::default();
            while let Some(news) = self.queue.recv().await {
                if told.is_old(&news) {
                    self.metrics.events.with_label_values(&["repeated"]).inc();
                    continue;
                }
                let event = event(&news, &identity, Timestamp::now());
                let outcome = match tokio::time::timeout(WRITE_MAX, writer.create(&event)).await {
                    Ok(Ok(_)) => "written",
                    Ok(Err(error)) => {
                        tracing::debug!(error = chain(&error), "an Event can't be written");
                        "failed"
                    }
                    Err(_) => {
                        tracing::debug!("an Event can't be written: the API server does not answer");
                        "failed"
                    }
                };
                self.metrics.events.with_label_values(&[outcome]).inc();
                tokio::time::sleep(PAUSE).await;
            }
        };
        stopping.run_until_cancelled(write).await;
    }
}

/// What was told, and when. It holds no more than was told within [`AGAIN`], or twice that between two cleanings.
#[derive(Default)]
struct Told {
    at: HashMap<(String, String, String), Instant>,
}

impl Told {
    fn is_old(&mut self, news: &News) -> bool {
        let now = Instant::now();
        if self.at.len() == self.at.capacity() {
            self.at.retain(|_, at| now.duration_since(*at) < AGAIN);
        }
        let uid = news.regarding.uid.clone().unwrap_or_default();
        let key = (uid, news.turn.condition.clone(), news.turn.reason.clone());
        if self.at.get(&key).is_some_and(|at| now.duration_since(*at) < AGAIN) {
            return true;
        }
        self.at.insert(key, now);
        false
    }
}

fn event(news: &News, identity: &str, now: Timestamp) -> Event {
    let News { regarding, turn } = news;
    // Of an object without a namespace it is told in `default`, which is where `kubectl describe` looks.
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", regarding.name.as_deref().unwrap_or_default())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(format!("croft.dev/{FIELD_MANAGER}")),
        reporting_instance: Some(identity.chars().take(128).collect()),
        action: Some(turn.condition.clone()),
        reason: Some(turn.reason.clone()),
        note: Some(turn.message.chars().take(NOTE_CHARACTERS_MAX).collect()),
        type_: Some(if turn.is_problem { "Warning" } else { "Normal" }.to_owned()),
        regarding: Some(regarding.clone()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use croft_crds::AgentTenant;
    use serde_json::json;

    use super::*;

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        serde_json::from_value(json!({
            "type": kind, "status": status, "reason": reason, "message": format!("because {reason}"),
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    fn told(before: &[Condition], now: &[Condition]) -> Vec<(String, bool)> {
        turns(before, now).into_iter().map(|turn| (turn.reason, turn.is_problem)).collect()
    }

    fn tenant() -> AgentTenant {
        serde_json::from_value(json!({ "metadata": { "name": "heron", "uid": "0c9e" }, "spec": {} })).unwrap()
    }

    #[test]
    fn only_what_turns_is_told() {
        let starting = [condition("Ready", "False", "Starting"), condition("WorkersReady", "False", "Starting")];
        assert_eq!(told(&[], &starting), []);
        let waiting = [condition("WorkersReady", "False", "RolloutWaiting")];
        assert_eq!((told(&[], &waiting), told(&starting, &waiting)), (vec![], vec![]));
        let crashing = [condition("Ready", "False", "Crashing"), condition("WorkersReady", "False", "Crashing")];
        assert_eq!(told(&starting, &crashing), [("Crashing".to_owned(), true)]);
        assert_eq!(told(&crashing, &crashing), []);
        let well = [condition("Ready", "True", "AllWell"), condition("WorkersReady", "True", "AllReady")];
        assert_eq!(told(&crashing, &well), [("AllWell".to_owned(), false)]);
        let part = [condition("Applied", "False", "ApiFailed"), condition("FenceApplied", "False", "ApiFailed")];
        assert_eq!(told(&[], &part).len(), 1);
        assert_eq!(told(&[], &part[..1]).len(), 1);
    }

    #[test]
    fn a_removal_in_order_is_no_problem() {
        let removed = |reason: &str| told(&[], &[condition("Removed", "False", reason)]);
        for reason in ["RemovalBegun", "EndingSessions", "DeletingNamespace"] {
            assert_eq!(removed(reason), [(reason.to_owned(), false)]);
        }
        for reason in ["FrontAway", "PastDeadline", "DeletionPrevented"] {
            assert_eq!(removed(reason), [(reason.to_owned(), true)]);
        }
        let suspended = told(&[], &[condition("WorkersReady", "False", "Suspended")]);
        assert_eq!(suspended, [("Suspended".to_owned(), false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_news_is_told_again_only_after_a_while() {
        let mut told = Told::default();
        let problem = |reason: &str| turns(&[], &[condition("WorkersReady", "False", reason)]).remove(0);
        let news = News::about(&tenant(), problem("Crashing"));
        assert!(!told.is_old(&news));
        assert!(told.is_old(&news));
        assert!(!told.is_old(&News::about(&tenant(), problem("Refused"))));
        tokio::time::advance(AGAIN).await;
        assert!(!told.is_old(&news));
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_never_waits() {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let (events, _waiting) = Events::new(metrics.clone());
        let turn = turns(&[], &[condition("Ready", "True", "AllWell")]).remove(0);
        for _ in 0..WAITING_MAX + 3 {
            events.tell(News::about(&tenant(), turn.clone()));
        }
        assert_eq!(metrics.events.with_label_values(&["dropped"]).get(), 3);
    }

    #[test]
    fn an_event_of_a_tenant_is_found_by_describe() {
        let turn = turns(&[], &[condition("WorkersReady", "False", "Crashing")]).remove(0);
        let event = event(&News::about(&tenant(), turn), "operator-1", Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        let regarding = event.regarding.unwrap();
        assert_eq!((regarding.kind.as_deref(), regarding.uid.as_deref()), (Some("AgentTenant"), Some("0c9e")));
        assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("Crashing")));
    }
}
