//! Ends sessions at the front whose object no longer wants them: it was deleted, or it says so.
//!
//! There is no finalizer, so that an operator that is away holds no object back. What is missed meanwhile is found when
//! the front's picture is compared with the objects.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use croft_crds::AgentSession;
use croft_serve::log::chain;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::api::Api;
use tokio_util::sync::CancellationToken;

use super::told::Declared;
use super::{Error, refused};
use crate::context::Context;
use crate::controller::{Backoff, Queue};
use crate::marks::Marks;
use crate::token::TenantRef;

/// Calls at a time; more wait.
const AT_A_TIME: usize = 8;
/// Calls of one tenant at a time. Tenants take turns, so however many sessions of one are to end, those of others end beside them.
const OF_ONE_TENANT: usize = 6;
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long one call may take, with the look at the API server before it: one that is never answered must not keep its place for ever. The
/// front gives an answer within ten seconds or none.
const END_MAX: Duration = Duration::from_secs(13);

/// A session that shall end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ending {
    pub(super) tenant: TenantRef,
    pub(super) session_id: String,
    pub(super) why: Why,
}

/// Why it shall end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// `spec.terminate` is set.
    Terminate,
    /// We saw its object go.
    Deleted,
    /// We know of no such object. The copies may be behind another operator that has just made this session, so the API
    /// server has the last word.
    Orphan { name: String, uid: String },
}

impl Why {
    pub(super) fn sentence(&self) -> &'static str {
        match self {
            Self::Terminate => "spec.terminate is set",
            Self::Deleted | Self::Orphan { .. } => "its AgentSession has been deleted",
        }
    }
}

/// An AgentSession that has been deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bereaved {
    pub namespace: String,
    pub uid: String,
    /// As its status had it.
    pub session_id: Option<String>,
    /// Whether its status said that the session has ended.
    pub is_over: bool,
}

/// How far an ending is that is not over. Of one there is never more than one call on its way, or one pause.
enum Stage {
    UnderWay,
    /// It was marked again since the call began, which may have looked before whatever it was marked for.
    MarkedAgain,
    /// It has failed, and its pause is not over.
    Waits,
}

/// Ends what is to be ended until `stopping`. What fails is tried again later and later, and holds up nothing else.
pub(crate) async fn run(context: Arc<Context>, stopping: CancellationToken) {
    let take = async {
        loop {
            take_bereaved(context.cluster.changes.bereaved.next().await, &context);
        }
    };
    let end_all = end_all(&context.endings, |ending| {
        let context = Arc::clone(&context);
        async move {
            match tokio::time::timeout(END_MAX, end(&ending, &context)).await {
                Ok(outcome) => outcome.map_err(|error| chain(&error)),
                Err(_) => Err(format!("there is no answer within {} s", END_MAX.as_secs())),
            }
        }
    });
    tokio::select! {
        () = stopping.cancelled() => {}
        () = take => {}
        () = end_all => {}
    }
}

/// Has each one ended that is marked, and does not return. Those that wait are as many as there are sessions at most. One that fails is tried again when its pause is over, however often it is
/// marked meanwhile.
async fn end_all<E>(endings: &Marks<Ending>, end: impl Fn(Ending) -> E)
where
    E: Future<Output = Result<(), String>>,
{
    let pauses = Backoff::new(PAUSE_MAX);
    let mut waiting = Queue::new(OF_ONE_TENANT, |ending: &Ending| &ending.tenant.name);
    let mut stages: HashMap<Ending, Stage> = HashMap::new();
    let mut calls = FuturesUnordered::new();
    let mut later = FuturesUnordered::new();
    loop {
        while calls.len() < AT_A_TIME
            && let Some(ending) = waiting.take()
        {
            stages.insert(ending.clone(), Stage::UnderWay);
            let call = end(ending.clone());
            calls.push(async move { (ending, call.await) });
        }
        // Marks come one by one, and very many with a namespace that is deleted.
        tokio::task::coop::consume_budget().await;
        tokio::select! {
            ending = endings.next() => match stages.get_mut(&ending) {
                Some(Stage::Waits) => {}
                Some(stage) => *stage = Stage::MarkedAgain,
                None => waiting.push(ending),
            },
            Some((ending, outcome)) = calls.next() => {
                waiting.ended(&ending);
                match outcome {
                    Ok(()) => {
                        pauses.succeeded(&ending);
                        if let Some(Stage::MarkedAgain) = stages.remove(&ending) {
                            waiting.push(ending);
                        }
                    }
                    Err(error) => {
                        let (tenant, session) = (&ending.tenant.name, &ending.session_id);
                        tracing::warn!(tenant, session, error, "cannot end a session");
                        let pause = pauses.failed(ending.clone());
                        stages.insert(ending.clone(), Stage::Waits);
                        later.push(async move {
                            tokio::time::sleep(pause).await;
                            ending
                        });
                    }
                }
            }
            Some(ending) = later.next() => {
                stages.remove(&ending);
                waiting.push(ending);
            }
        }
    }
}

fn take_bereaved(bereaved: Bereaved, context: &Context) {
    let Bereaved { namespace, uid, session_id, is_over } = bereaved;
    let declared = Declared { namespace: namespace.clone(), uid };
    let known = context.told.of(&declared);
    context.told.forget(&declared);
    // What ended long ago no front tells of any more, so the status has the word.
    if is_over || known.as_ref().is_some_and(|known| !known.is_open()) {
        return;
    }
    // A session that is just being opened for it is ended by the pass that opens it.
    let Some(session_id) = session_id.or(known.map(|known| known.session_id)) else { return };
    // A tenant that is gone too has had all of its sessions ended.
    let Some(tenant) = context.cluster.tenant_called_by(&namespace) else { return };
    context.endings.mark(Ending { tenant: TenantRef::from(&*tenant), session_id, why: Why::Deleted });
}

async fn end(ending: &Ending, context: &Context) -> Result<(), Error> {
    let Ending { tenant, session_id, why } = ending;
    // A tenant that is gone has had all of its sessions ended, and the fronts know of none of that name.
    if context.cluster.tenant(&tenant.name).is_none_or(|there| TenantRef::from(&*there) != *tenant) {
        return Ok(());
    }
    if let Why::Orphan { name, uid } = why
        && !is_gone(&tenant.name, name, uid, context).await?
    {
        return Ok(());
    }
    tracing::info!(tenant = tenant.name, session = session_id, why = why.sentence(), "ending a session");
    let ended = context.front.terminate(tenant, session_id, why.sentence()).await;
    ended.map(drop).map_err(|status| refused("TerminateSession", status))
}

async fn is_gone(tenant: &str, name: &str, uid: &str, context: &Context) -> Result<bool, Error> {
    let namespace = croft_crds::labels::tenant_namespace(tenant);
    let objects: Api<AgentSession> = Api::namespaced(context.client.clone(), &namespace);
    // Also of one that this release can't read.
    let found = objects.get_metadata_opt(name).await.map_err(|source| Error::Read { name: namespace, source })?;
    Ok(found.is_none_or(|found| found.metadata.uid.as_deref() != Some(uid)))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::HashSet;

    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::*;

    fn ending() -> Ending {
        ending_of("heron", "0190")
    }

    fn ending_of(tenant: &str, session_id: &str) -> Ending {
        let tenant = TenantRef { name: tenant.to_owned(), id: format!("uid-of-{tenant}") };
        Ending { tenant, session_id: session_id.to_owned(), why: Why::Deleted }
    }

    /// Once, a tenant's session ran on until all had ended that another tenant had deleted before.
    #[tokio::test(start_paused = true)]
    async fn one_tenants_many_sessions_keep_no_other_tenants_from_its_end() {
        const TAKES: Duration = Duration::from_secs(1);
        let (marks, begun, other) = (Marks::new(), RefCell::new(Vec::new()), ending_of("egret", "0191"));
        let end_all = end_all(&marks, |ending| {
            begun.borrow_mut().push((ending, Instant::now()));
            async {
                tokio::time::sleep(TAKES).await;
                Ok(())
            }
        });
        let story = async {
            for number in 0..300 {
                marks.mark(ending_of("heron", &number.to_string()));
            }
            tokio::time::sleep(5 * TAKES / 2).await;
            let marked = Instant::now();
            marks.mark(other.clone());
            tokio::time::sleep(Duration::from_mins(5)).await;
            marked
        };
        let marked = tokio::select! {
            () = end_all => unreachable!("it does not return"),
            marked = story => marked,
        };
        let begun = begun.into_inner();
        let (_, at) = begun.iter().find(|(ending, _)| *ending == other).unwrap();
        assert!(*at - marked <= TAKES, "{:?}", *at - marked);
        let all: HashSet<_> = begun.iter().map(|(ending, _)| ending).collect();
        assert_eq!((begun.len(), all.len()), (301, 301), "each is ended once");
        let running = |time: Instant| begun.iter().filter(|(_, at)| *at <= time && time < *at + TAKES).count();
        assert!(begun.iter().all(|(_, at)| running(*at) <= AT_A_TIME));
    }

    /// The fronts tell of a session every few seconds for as long as it is open.
    #[tokio::test(start_paused = true)]
    async fn one_that_always_fails_is_tried_no_more_often_for_being_marked_again_and_again() {
        let (marks, calls) = (Marks::new(), Cell::new(0));
        let end_all = end_all(&marks, |_| {
            calls.set(calls.get() + 1);
            std::future::ready(Err("it fails".to_owned()))
        });
        let an_hour = async {
            for _ in 0..720 {
                marks.mark(ending());
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        tokio::select! {
            () = end_all => {}
            () = an_hour => {}
        }
        // The pauses take from half of their longest to all of it, but for the first few.
        assert!((120..=250).contains(&calls.get()), "{} calls", calls.get());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_marked_while_it_is_being_ended_is_looked_at_once_more() {
        let (marks, calls, answers) = (Marks::new(), Cell::new(0), Notify::new());
        let end_all = end_all(&marks, |_| {
            calls.set(calls.get() + 1);
            async {
                answers.notified().await;
                Ok(())
            }
        });
        let pause = || tokio::time::sleep(Duration::from_secs(1));
        let hold_it_up = async {
            for _ in 0..4 {
                marks.mark(ending());
                pause().await;
            }
            assert_eq!(calls.get(), 1, "the first is not over");
            for _ in 0..2 {
                answers.notify_one();
                pause().await;
                assert_eq!(calls.get(), 2);
            }
        };
        tokio::select! {
            () = end_all => {}
            () = hold_it_up => {}
        }
    }
}
