//! Postgres and its twin in memory are told the same at random, and must answer the same.

use std::fmt::Debug;
use std::time::Duration;

use croft_front::Error;
use croft_front::events::log::{Append, Authority, NewEvent};
use croft_front::session::store::{Filter, NewSession};
use croft_front::store::Stores;
use croft_front::turn::store::Begin;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    SessionCheckpoint, SessionIdle, SessionRunning, SessionState, StepStarted, StopReason, UsageDimension,
};
use croft_serve::Tasks;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::contract::fixtures::{agent, at, attempt, created, key, ready, said, terminated};
use crate::database::Database;
use croft_front::usage::Selection;

const SESSIONS: u8 = 3;
/// Either nobody can wait for it, or nobody needs to.
const TTLS: [Duration; 2] = [Duration::ZERO, Duration::from_mins(10)];

#[derive(Debug, Clone)]
enum Step {
    Insert { session: u8, key: Option<(u8, u8)>, limit: Option<u32>, label: u8 },
    Append { session: u8, authority: u8, kinds: Vec<u8>, key: Option<(u8, u8)>, checkpoint: bool, input: Option<u64> },
    Acquire { session: u8, ttl: bool },
    Renew { session: u8, epoch: u64, ttl: bool },
    Release { session: u8, epoch: u64 },
    Begin { session: u8, kinds: Vec<u8>, key: Option<(u8, u8)>, ttl: bool },
    End { session: u8, epoch: u64, kinds: Vec<u8>, checkpoint: bool, input: Option<u64> },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = 0..SESSIONS;
    let key = || prop::option::weighted(0.3, (0..3_u8, 0..2_u8));
    let step = prop_oneof![
        2 => (session.clone(), key(), prop::option::weighted(0.3, 0..4_u32), 0..2_u8)
            .prop_map(|(session, key, limit, label)| Step::Insert { session, key, limit, label }),
        6 => (
            session.clone(), 0..11_u8, prop::collection::vec(0..10_u8, 1..4), key(), any::<bool>(),
            prop::option::of(0..9_u64),
        )
            .prop_map(|(session, authority, kinds, key, checkpoint, input)| {
                Step::Append { session, authority, kinds, key, checkpoint, input }
            }),
        3 => (session.clone(), any::<bool>()).prop_map(|(session, ttl)| Step::Acquire { session, ttl }),
        1 => (session.clone(), 0..4_u64, any::<bool>())
            .prop_map(|(session, epoch, ttl)| Step::Renew { session, epoch, ttl }),
        1 => (session.clone(), 0..4_u64).prop_map(|(session, epoch)| Step::Release { session, epoch }),
        3 => (session.clone(), prop::collection::vec(lasting(), 1..3), key(), any::<bool>())
            .prop_map(|(session, kinds, key, ttl)| Step::Begin { session, kinds, key, ttl }),
        2 => (
            session, 0..4_u64, prop::collection::vec(lasting(), 1..3), any::<bool>(), prop::option::of(0..9_u64),
        )
            .prop_map(|(session, epoch, kinds, checkpoint, input)| {
                Step::End { session, epoch, kinds, checkpoint, input }
            }),
    ];
    prop::collection::vec(step, 1..40)
}

/// Kinds that end no session.
fn lasting() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![0_u8, 1, 2, 3, 4, 5, 9])
}

/// Every kind that changes a session, and one that doesn't.
fn event(number: usize, kind: u8) -> NewEvent {
    let turn = TurnId(Uuid::from_u128(u128::from(kind)));
    let kind = match kind {
        0 => Kind::SessionRunning(SessionRunning {}),
        1 => Kind::SessionIdle(SessionIdle { stop_reason: StopReason::EndTurn.into() }),
        2 => ready("worker-1"),
        3 => Kind::StepStarted(StepStarted { worker: "worker-2".into(), ..StepStarted::default() }),
        4 => attempt("first", Some(5)),
        5 => attempt("second", None),
        // Rare, as nothing follows it.
        6 if number.is_multiple_of(4) => terminated("by chance"),
        _ => said("hello"),
    };
    let create_time = at(i64::try_from(number).expect("a few"));
    NewEvent { kind, turn: Some(turn), elapsed_ms: 5, create_time }
}

/// What a store answers, comparable: of an error the reason is what counts.
fn told<T: Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(error) => error.reason().to_owned(),
    }
}

struct Case {
    tenant: TenantId,
    sessions: Vec<SessionId>,
}

impl Case {
    async fn take(&self, stores: &Stores, number: usize, step: &Step) -> String {
        let tenant = self.tenant;
        let id = |session: &u8| self.sessions[usize::from(*session)];
        match step {
            Step::Insert { session, key: used, limit, label } => {
                told(stores.sessions.insert(self.new_session(id(session), *used, *limit, *label)).await)
            }
            Step::Append { session, authority, kinds, key: used, checkpoint, input } => {
                let authority = match authority {
                    0 | 1 => Authority::Caller,
                    2 => Authority::Fence,
                    3 | 4 => Authority::Overdue { as_of: at(i64::from(*authority) * 5) },
                    // The turn that may have begun: see `event`.
                    9 => Authority::AtRest,
                    10 => Authority::Behind { input_seq: 1 },
                    8 => Authority::During { turn: TurnId(Uuid::nil()) },
                    epoch => Authority::Lease { epoch: u64::from(*epoch) - 4 },
                };
                let superstep = u32::try_from(number).expect("a few");
                let append = Append {
                    authority,
                    checkpoint: checkpoint.then(|| SessionCheckpoint { superstep, ..SessionCheckpoint::default() }),
                    idempotency_key: used.map(|(name, body)| key(&name.to_string(), body)),
                    input_seq: *input,
                    ..self.append(id(session), number, kinds)
                };
                told(stores.events.append(append).await)
            }
            Step::Acquire { session, ttl } => {
                told(stores.leases.acquire(tenant, id(session), "front-0", TTLS[usize::from(*ttl)]).await)
            }
            Step::Renew { session, epoch, ttl } => {
                told(stores.leases.renew(tenant, id(session), *epoch, TTLS[usize::from(*ttl)]).await)
            }
            Step::Release { session, epoch } => told(stores.leases.release(tenant, id(session), *epoch).await),
            Step::Begin { session, kinds, key: used, ttl } => {
                let message = Append {
                    idempotency_key: used.map(|(name, body)| key(&name.to_string(), body)),
                    ..self.append(id(session), number, kinds)
                };
                let begin = Begin { message, holder: "front-0".into(), ttl: TTLS[usize::from(*ttl)] };
                told(stores.turns.begin(begin).await)
            }
            Step::End { session, epoch, kinds, checkpoint, input } => {
                let superstep = u32::try_from(number).expect("a few");
                let last = Append {
                    authority: Authority::Lease { epoch: *epoch },
                    checkpoint: checkpoint.then(|| SessionCheckpoint { superstep, ..SessionCheckpoint::default() }),
                    input_seq: *input,
                    ..self.append(id(session), number, kinds)
                };
                told(stores.turns.end(last).await)
            }
        }
    }

    fn append(&self, session: SessionId, number: usize, kinds: &[u8]) -> Append {
        Append::of(self.tenant, session, Authority::Caller, kinds.iter().map(|kind| event(number, *kind)).collect())
    }

    fn new_session(&self, id: SessionId, used: Option<(u8, u8)>, sessions_max: Option<u32>, label: u8) -> NewSession {
        let create = NewEvent { turn: None, ..event(0, 9) };
        NewSession {
            id,
            tenant: self.tenant,
            tenant_name: "ours".into(),
            agent: agent("helper"),
            config_hash: "c0ffee".into(),
            labels: [("label".to_owned(), label.to_string())].into(),
            events: vec![
                NewEvent { kind: created(), ..create.clone() },
                NewEvent { kind: ready("worker-0"), ..create },
            ],
            // Some rest for too long within a case, some grow too old, some do neither.
            idle_timeout_ms: i64::from(label) * 7_000,
            expire_time: (sessions_max == Some(3)).then(|| at(15)),
            sessions_max,
            idempotency_key: used.map(|(name, body)| key(&name.to_string(), body)),
            parent: None,
        }
    }

    /// All that can be seen of the tenant.
    async fn view(&self, stores: &Stores) -> Vec<String> {
        let tenant = self.tenant;
        let labelled = Filter {
            states: vec![SessionState::Ready, SessionState::Terminated],
            labels: [("label".to_owned(), "1".to_owned())].into(),
            ids: vec![self.sessions[0], self.sessions[1]],
            parent: None,
        };
        let by = [UsageDimension::Session, UsageDimension::Model];
        let mut abandoned = stores.leases.abandoned(1_000).await.unwrap();
        abandoned.retain(|lease| lease.tenant == tenant);
        // In no order: a moment's difference is not for both to see.
        abandoned.sort_by_key(|lease| lease.session);
        let mut due = stores.across.due(at(30), 1_000).await.unwrap();
        due.retain(|(owner, _)| *owner == tenant);
        let mut view = vec![
            format!("{due:?}"),
            told(stores.sessions.list(tenant, &Filter::default(), None, 10).await),
            told(stores.sessions.list(tenant, &labelled, Some(self.sessions[2]), 10).await),
            told(stores.sessions.count_open(tenant).await),
            told(stores.usage.list(tenant, None, None, None, 10).await),
            told(stores.usage.list(tenant, Some(self.sessions[0]), None, Some("second"), 10).await),
            told(
                stores
                    .usage
                    .summarize(tenant, Selection { agent: None, start: Some(at(5)), end: Some(at(20)) }, &by)
                    .await,
            ),
            format!("{abandoned:?}"),
        ];
        for session in &self.sessions {
            view.push(told(stores.events.read(tenant, *session, 1, 5).await));
            view.push(told(stores.events.checkpoint(tenant, *session).await));
            for name in 0..3_u8 {
                view.push(told(stores.events.find_sent(tenant, *session, &key(&name.to_string(), 0)).await));
                view.push(told(stores.sessions.find_created(tenant, &key(&name.to_string(), 1)).await));
            }
        }
        view
    }
}

#[test]
fn postgres_and_memory_answer_alike() {
    let runtime = Runtime::new().unwrap();
    let database = runtime.block_on(Database::migrated());
    let postgres = Stores::postgres(&runtime.block_on(database.front()), &Tasks::new());
    let memory = Stores::memory();
    let config = Config { cases: 60, max_shrink_iters: 500, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(async {
            let case =
                Case { tenant: TenantId::generate(), sessions: (0..SESSIONS).map(|_| SessionId::generate()).collect() };
            for stores in [&postgres, &memory] {
                stores.tenants.upsert(case.tenant, "ours").await.unwrap();
            }
            for (number, step) in steps.iter().enumerate() {
                let (real, twin) = (case.take(&postgres, number, step).await, case.take(&memory, number, step).await);
                prop_assert_eq!(real, twin, "step {}: {:?}", number, step);
            }
            let (real, twin) = (case.view(&postgres).await, case.view(&memory).await);
            for (real, twin) in real.into_iter().zip(twin) {
                prop_assert_eq!(real, twin);
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    runtime.block_on(database.end());
}
