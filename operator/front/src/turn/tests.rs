use croft_proto::v1::{AgentSpec, ContentBlock, Image, SessionCreated, content_block, image};
use croft_serve::Tasks;

use super::*;
use crate::app::{Parts, assemble};
use crate::core::Options;
use crate::counters::memory::Memory;
use crate::events::relay::memory::MemoryRelay;
use crate::session::store::{Inserted, NewSession};
use crate::store::Stores;
use crate::tenants::Tenants;

fn new_session(tenant: TenantId) -> NewSession {
    NewSession {
        id: SessionId::generate(),
        tenant,
        tenant_name: "heron".into(),
        agent: AgentSpec { name: "helper".into(), ..AgentSpec::default() },
        config_hash: String::new(),
        labels: std::collections::BTreeMap::new(),
        idle_timeout_ms: 0,
        expire_time: None,
        events: vec![NewEvent {
            kind: Kind::SessionCreated(SessionCreated::default()),
            turn: None,
            elapsed_ms: 0,
            create_time: now(),
        }],
        sessions_max: None,
        idempotency_key: None,
        parent: None,
    }
}

/// An earlier release stored the message, with the hash of what it was sent. It is sent again, behind an upgrade.
#[tokio::test]
async fn a_repeated_message_is_known_by_what_was_sent_and_not_by_what_is_stored_of_it() {
    let (tasks, stores, tenant) = (Tasks::new(), Stores::memory(), TenantId::generate());
    stores.tenants.upsert(tenant, "heron").await.unwrap();
    let parts = Parts {
        replica: "front-0".into(),
        stores: stores.clone(),
        relay: Arc::new(MemoryRelay::default()),
        counters: Arc::new(Memory::default()),
        tenants: Tenants::new(),
        tls: None,
        options: Options::default(),
    };
    let core = assemble(parts, &tasks, &prometheus::Registry::new()).await.unwrap();
    let (Inserted::New { session, .. } | Inserted::Existing(session)) =
        stores.sessions.insert(new_session(tenant)).await.unwrap();
    let source = Some(image::Source::Data((b"\x89PNG\r\n\x1a\n\0" as &[u8]).into()));
    let misnamed = Image { media_type: "image/jpg".into(), source };
    let content = vec![ContentBlock { block: Some(content_block::Block::Image(misnamed)) }];
    let body = SendMessageRequest { session_id: session.id.to_string(), content, ..SendMessageRequest::default() };

    let turn = TurnId::generate();
    let said = UserMessage { content: body.content.clone(), sender: "them".into() };
    let append = Append {
        tenant,
        session: session.id,
        authority: Authority::Caller,
        events: vec![turn_event(turn, Kind::UserMessage(said))],
        checkpoint: None,
        idempotency_key: idempotency_key("k", &body).unwrap(),
        input_seq: None,
    };
    let Appended::New(events) = stores.events.append(append).await.unwrap() else { panic!("it is new") };

    let again = SendMessageRequest { idempotency_key: "k".into(), ..body };
    let sent = Turns::new(core).send(tenant, "them", again).await.unwrap();
    assert_eq!((sent.accepted, sent.is_new()), (Accepted { turn, seq: events[0].seq }, false));
}
