//! What every `SessionStore` promises of sessions in which people are asked.

use std::time::Duration;

use croft_front::events::log::{Append, Authority};
use croft_front::session::store::PAGE_BYTES;
use croft_front::store::Stores;
use croft_front::turn::store::{Begin, Begun};
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ApprovalRequired, ApprovalResolved, SessionIdle, SessionRunning, SessionState, StopReason};

use super::fixtures::{append, appended, get, insert, new_session, said, session, tenant, terminated, two_tenants};

/// A session that runs a turn, and under which epoch.
#[derive(Clone, Copy)]
struct Running {
    tenant: TenantId,
    session: SessionId,
    epoch: u64,
    input_seq: u64,
}

impl Running {
    /// Of a new session.
    async fn new(stores: &Stores, tenant: TenantId) -> Self {
        let session = session(stores, tenant).await;
        Self::begin(stores, tenant, session, Duration::from_mins(1)).await
    }

    /// Begins a turn of this one's.
    async fn begin(stores: &Stores, tenant: TenantId, session: SessionId, ttl: Duration) -> Self {
        let message = append(tenant, session, vec![said("hello"), Kind::SessionRunning(SessionRunning {})]);
        let begin = Begin { message, holder: "front-0".into(), ttl };
        let Begun::New(opened) = stores.turns.begin(begin).await.unwrap() else { panic!("the lease is free") };
        Self { tenant, session, epoch: opened.epoch, input_seq: opened.events[0].seq }
    }

    fn append(self, kinds: Vec<Kind>) -> Append {
        let (authority, input_seq) = (Authority::Lease { epoch: self.epoch }, Some(self.input_seq));
        Append { authority, input_seq, ..append(self.tenant, self.session, kinds) }
    }

    async fn says(self, stores: &Stores, kind: Kind) -> Self {
        appended(stores, self.append(vec![kind])).await;
        self
    }

    async fn asks(self, stores: &Stores) -> Self {
        let asked = ApprovalRequired { approval_id: "a".into(), ..ApprovalRequired::default() };
        self.says(stores, Kind::ApprovalRequired(asked)).await
    }

    async fn ends(self, stores: &Stores, why: StopReason) -> Self {
        let idle = Kind::SessionIdle(SessionIdle { stop_reason: why.into() });
        stores.turns.end(self.append(vec![idle])).await.unwrap();
        self
    }

    /// A session whose turn has left a question open.
    async fn left_open(stores: &Stores, tenant: TenantId) -> Self {
        Self::new(stores, tenant).await.asks(stores).await.ends(stores, StopReason::RequiresAction).await
    }
}

/// The sessions that ask.
async fn listed(stores: &Stores, tenant: TenantId) -> Vec<SessionId> {
    let page = stores.sessions.asking(tenant, None, 100).await.unwrap();
    assert_eq!(page.next(), None);
    page.sessions.into_iter().map(|session| session.id).collect()
}

pub(crate) async fn are_those_that_were_left_with_a_question_or_run_and_have_asked(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let asks = async |of: Running| listed(stores, tenant).await.contains(&of.session);
    session(stores, tenant).await;
    let running = Running::new(stores, tenant).await;
    assert!(!asks(running).await, "it has not asked");
    running.asks(stores).await;
    assert!(asks(running).await);
    let yes = ApprovalResolved { approval_id: "a".into(), approved: true, ..ApprovalResolved::default() };
    running.says(stores, Kind::ApprovalResolved(yes)).await;
    assert!(asks(running).await, "whether that was all only the log tells");
    running.ends(stores, StopReason::EndTurn).await;
    assert!(!asks(running).await, "the turn waits for nobody");

    let left = Running::left_open(stores, tenant).await;
    assert!(asks(left).await);
    let next = Running::begin(stores, tenant, left.session, Duration::from_mins(1)).await;
    next.says(stores, Kind::Error(croft_proto::v1::SessionError::default())).await;
    assert!(!asks(next).await, "the next turn has taken up its message");
    next.asks(stores).await;
    assert!(asks(next).await);
    appended(stores, append(tenant, next.session, vec![terminated("done")])).await;
    assert!(!asks(next).await, "it has ended");
    let left = Running::left_open(stores, tenant).await;
    appended(stores, append(tenant, left.session, vec![terminated("done")])).await;
    assert_eq!(listed(stores, tenant).await, []);
}

pub(crate) async fn are_there_while_their_turn_is_nobodys_or_a_message_waits(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let id = session(stores, tenant).await;
    let lost = Running::begin(stores, tenant, id, Duration::ZERO).await.asks(stores).await;
    assert_eq!(listed(stores, tenant).await, [lost.session]);
    appended(stores, append(tenant, lost.session, vec![terminated("done")])).await;
    let waited = Running::new(stores, tenant).await.asks(stores).await;
    appended(stores, append(tenant, waited.session, vec![said("one more thing")])).await;
    assert_eq!(listed(stores, tenant).await, [waited.session]);
    waited.ends(stores, StopReason::RequiresAction).await;
    assert_eq!(get(stores, tenant, waited.session).await.state, SessionState::Idle);
    assert_eq!(listed(stores, tenant).await, [waited.session]);
}

pub(crate) async fn come_in_pages_newest_first_and_to_their_tenant_alone(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let mut ids = Vec::new();
    for place in 0..6 {
        let of = if place % 2 == 0 {
            Running::left_open(stores, ours).await
        } else {
            Running::new(stores, ours).await.asks(stores).await
        };
        ids.insert(0, of.session);
        session(stores, ours).await;
        Running::left_open(stores, theirs).await;
    }
    let page = async |after, limit| {
        let page = stores.sessions.asking(ours, after, limit).await.unwrap();
        let next = page.next();
        (page.sessions.into_iter().map(|session| session.id).collect::<Vec<_>>(), next)
    };
    assert_eq!(page(None, 4).await, (ids[..4].to_vec(), Some(ids[3])));
    assert_eq!(page(Some(ids[3]), 4).await, (ids[4..].to_vec(), None));
    assert_eq!(page(None, 6).await, (ids.clone(), None));
    assert_eq!(page(Some(ids[0]), 1).await, (ids[1..2].to_vec(), Some(ids[1])));
    assert_eq!(page(Some(ids[5]), 4).await, (vec![], None));
    assert_eq!(listed(stores, theirs).await.len(), 6);
    let foreign = stores.sessions.asking(theirs, Some(ids[0]), 100).await.unwrap().sessions;
    assert!(foreign.iter().all(|session| session.tenant == theirs && !ids.contains(&session.id)), "{foreign:?}");
}

pub(crate) async fn end_a_page_that_is_full_of_agents(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut new = new_session(tenant);
        new.agent.system_prompt = "x".repeat(PAGE_BYTES as usize / 2);
        let id = insert(stores, new).await.id;
        Running::begin(stores, tenant, id, Duration::from_mins(1)).await.asks(stores).await;
        ids.insert(0, id);
    }
    let page = stores.sessions.asking(tenant, None, 100).await.unwrap();
    assert_eq!(page.next(), Some(ids[1]));
    assert_eq!(page.sessions.into_iter().map(|session| session.id).collect::<Vec<_>>(), ids[..2]);
    let page = stores.sessions.asking(tenant, Some(ids[1]), 100).await.unwrap();
    assert_eq!((page.next(), page.sessions.len()), (None, 1));
}
