//! Follows the fronts: what becomes of declared sessions, and what tenants use.
//!
//! One stream tells of everything, first the whole picture and then what changes, each session at most once in an
//! interval. Here it only leads to marks: passes write, so an object never has two writers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::{WatchSessionsResponse, WatchedSession};
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::endings::{Ending, Why};
use super::known::{Known, object_name};
use super::status;
use super::told::Declared;
use crate::context::Context;
use crate::controller::Backoff;
use crate::token::TenantRef;

const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A stream that held for longer was a good one: the next try is made at once.
const GOOD: Duration = Duration::from_secs(30);

/// Follows until `stopping`; a stream that breaks is begun anew, with a new picture.
pub(crate) async fn run(context: Arc<Context>, interval: Duration, stopping: CancellationToken) {
    let pauses = Backoff::new(PAUSE_MAX);
    let follow = async {
        loop {
            let begun = Instant::now();
            let status = follow(&context, interval).await;
            tracing::warn!(error = %status, "the fronts tell nothing of sessions; trying again");
            if begun.elapsed() > GOOD {
                pauses.succeeded(&());
            }
            tokio::time::sleep(pauses.failed(())).await;
        }
    };
    stopping.run_until_cancelled(follow).await;
}

/// Ends with why it did.
async fn follow(context: &Context, interval: Duration) -> Status {
    let mut stream = match context.front.watch_sessions(interval).await {
        Ok(stream) => stream,
        Err(status) => return status,
    };
    let mut picture = Some(Picture::default());
    loop {
        match stream.message().await {
            Ok(Some(response)) => take(response, &mut picture, context),
            Ok(None) => return Status::unavailable("the front has ended the stream"),
            Err(status) => return status,
        }
    }
}

/// What the first messages of a stream have named so far.
#[derive(Default)]
struct Picture {
    objects: HashSet<Declared>,
    tenants: HashSet<String>,
}

fn take(response: WatchSessionsResponse, picture: &mut Option<Picture>, context: &Context) {
    let WatchSessionsResponse { sessions, tenants, synced } = response;
    for totals in tenants {
        if let Some(picture) = picture {
            picture.tenants.insert(totals.tenant_id.clone());
        }
        context.totals.tell(&totals);
    }
    for watched in sessions {
        let Some(declared) = take_session(&watched, context) else { continue };
        if let Some(picture) = picture {
            picture.objects.insert(declared);
        }
    }
    if synced && let Some(picture) = picture.take() {
        complete(&picture, context);
    }
}

/// The object that it was made for; none if that is another tenant's. Labels are a client's to choose, where a front lets it: they
/// make no session of one tenant that of another's object.
fn take_session(watched: &WatchedSession, context: &Context) -> Option<Declared> {
    let session = watched.session.as_ref()?;
    let declared = Declared::of(session)?;
    let known = Known::of(session);
    let ending = |why| Ending {
        tenant: TenantRef { name: session.tenant.clone(), id: watched.tenant_id.clone() },
        session_id: session.session_id.clone(),
        why,
    };
    match context.cluster.session_by_uid(&declared.uid) {
        Some(object) if Declared::is(&object) != declared => return None,
        Some(object) => {
            if object.spec.terminate && known.is_open() {
                context.endings.mark(ending(Why::Terminate));
            }
            let is_news = context.told.tell(&declared, &known);
            if is_news && status::would_change(&object, &known, context) {
                context.cluster.changes.sessions.mark(ObjectRef::from_obj(&*object));
            }
        }
        None if known.is_open() => {
            let name = object_name(session).unwrap_or_default().to_owned();
            context.endings.mark(ending(Why::Orphan { name, uid: declared.uid.clone() }));
        }
        None => {}
    }
    Some(declared)
}

/// What the picture doesn't name, the fronts don't have, or it ended long ago.
fn complete(picture: &Picture, context: &Context) {
    context.told.complete(&picture.objects);
    context.totals.complete(&picture.tenants);
    for object in context.cluster.sessions.state() {
        if !picture.objects.contains(&Declared::is(&object)) && status::awaits_word(&object, context) {
            context.cluster.changes.sessions.mark(ObjectRef::from_obj(&*object));
        }
    }
}
