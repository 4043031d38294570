//! Requests that make no sense, or that are not the caller's to make, on the real ports: each has one clear answer, and the port goes on.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_front::core::Options;
use croft_front::intake::MESSAGE_BYTES_CEILING;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, CreateSessionRequest, GetSessionRequest, InterruptSessionRequest, ListSessionsRequest,
    ResolveApprovalRequest, SendMessageRequest, SessionState, StreamEventsRequest, TenantLimits,
    TerminateSessionRequest, ToolSpec,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::world::{Ground, PATIENCE, World, names, read_all, stop_reason};

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// What every call that names a session answers for this one.
async fn answers(client: &mut Client, session_id: &str) -> Vec<Status> {
    let id = || session_id.to_owned();
    let calls = &mut client.lifecycle;
    let approval = ResolveApprovalRequest { session_id: id(), approval_id: "a".into(), ..Default::default() };
    vec![
        calls.get_session(GetSessionRequest { session_id: id() }).await.unwrap_err(),
        calls.send_message(message(session_id, "hello")).await.unwrap_err(),
        calls
            .stream_events(StreamEventsRequest { session_id: id(), after_seq: 1, durable_only: false })
            .await
            .unwrap_err(),
        calls.terminate_session(TerminateSessionRequest { session_id: id(), reason: String::new() }).await.unwrap_err(),
        calls.interrupt_session(InterruptSessionRequest { session_id: id() }).await.unwrap_err(),
        calls.resolve_approval(approval).await.unwrap_err(),
    ]
}

/// All that a caller is told, down to the bytes of the details, with the id taken out.
fn told(status: &Status, session_id: &str) -> (Code, String, String) {
    let details = format!("{:?}", status.get_error_details()).replace(session_id, "…");
    let metadata: Vec<_> = status.metadata().keys().map(|key| format!("{key:?}")).collect();
    (status.code(), status.message().replace(session_id, "…"), format!("{details} {metadata:?}"))
}

#[tokio::test]
async fn a_foreign_session_and_one_that_never_was_are_the_same_to_the_byte() {
    let world = World::start().await;
    let foreign = world.client().create(scripted_agent("private")).await.unwrap().session_id;
    let unknown = SessionId::generate().to_string();
    let mut stranger = world.stranger();
    let (of_foreign, of_unknown) = (answers(&mut stranger, &foreign).await, answers(&mut stranger, &unknown).await);
    for (one, other) in of_foreign.iter().zip(&of_unknown) {
        assert_eq!(one.code(), Code::NotFound, "{one:?}");
        assert_eq!(reason(one), "SESSION_NOT_FOUND");
        assert_eq!(told(one, &foreign), told(other, &unknown));
        assert_eq!(one.details().len(), other.details().len());
    }
    assert_eq!(world.stored(&foreign).await.state, SessionState::Ready, "and nothing was done");
}

#[tokio::test]
async fn a_cursor_beyond_the_end_names_the_end() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("short")).await.unwrap().session_id;
    let request = StreamEventsRequest { session_id, after_seq: 3, durable_only: false };
    let refused = client.lifecycle.stream_events(request).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::OutOfRange, "CURSOR_BEYOND_END"));
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["last_seq"], "2");
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "after_seq");
}

#[tokio::test]
async fn a_key_that_comes_with_another_body_is_refused() {
    let world = World::start().await;
    let mut client = world.client();
    let request = |name: &str| CreateSessionRequest {
        agent: Some(scripted_agent(name)),
        idempotency_key: "order-66".into(),
        ..CreateSessionRequest::default()
    };
    let made = client.lifecycle.create_session(request("one")).await.unwrap().into_inner();
    let again = client.lifecycle.create_session(request("one")).await.unwrap().into_inner();
    assert_eq!(made, again);
    let refused = client.lifecycle.create_session(request("two")).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED"));
}

/// With a key it was an internal error, which clients try again and the log is full of.
#[tokio::test]
async fn a_value_that_no_release_knew_yet_is_refused_with_an_idempotency_key_as_without() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("patient")).await.unwrap().session_id;
    let tool = ToolSpec { name: "clock".into(), replay: 99, ..ToolSpec::default() };
    let agent = AgentSpec { tools: vec![tool], ..scripted_agent("newer") };
    for key in ["", "order-66"] {
        let idempotency_key = key.to_owned();
        let create = CreateSessionRequest { agent: Some(agent.clone()), idempotency_key, ..Default::default() };
        let send = SendMessageRequest { busy_policy: 99, idempotency_key: key.into(), ..message(&session_id, "hello") };
        for refused in [
            client.lifecycle.create_session(create).await.unwrap_err(),
            client.lifecycle.send_message(send).await.unwrap_err(),
        ] {
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
        }
    }
    assert_eq!(world.stored(&session_id).await.last_seq, 2, "nothing was stored");
}

#[tokio::test]
async fn a_message_of_ten_megabytes_is_refused_by_its_field_and_a_larger_one_unread() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("patient")).await.unwrap().session_id;
    let large = message(&session_id, &"x".repeat(10 * 1024 * 1024));
    let refused = client.lifecycle.send_message(large).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, "content");
    let larger = message(&session_id, &"x".repeat(MESSAGE_BYTES_CEILING + 1));
    let refused = client.lifecycle.send_message(larger).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert_eq!(world.stored(&session_id).await.last_seq, 2, "nothing was stored");
    client.lifecycle.list_sessions(ListSessionsRequest::default()).await.unwrap();
}

/// A client of a later release, with states that this one does not know, was shown every session.
#[tokio::test]
async fn a_list_of_an_unknown_state_is_refused_by_its_field() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("patient")).await.unwrap().session_id;
    let states = |states: &[i32]| ListSessionsRequest { states: states.to_vec(), ..ListSessionsRequest::default() };
    for unknown in [&[99][..], &[0], &[SessionState::Ready.into(), -1]] {
        let refused = client.lifecycle.list_sessions(states(unknown)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{unknown:?}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, "states");
    }
    for (named, shown) in [(SessionState::Ready, 1), (SessionState::Terminated, 0)] {
        let listed = client.lifecycle.list_sessions(states(&[named.into(); 2])).await.unwrap().into_inner();
        assert_eq!(listed.sessions.len(), shown, "{session_id} among the {named:?}");
    }
}

#[tokio::test]
async fn a_tenants_streams_have_a_bound_over_all_ports_and_a_message_beyond_it_is_not_stored() {
    let options = Options { streams_per_tenant_max: 2, ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("popular")).await.unwrap().session_id;
    let watch = || StreamEventsRequest { session_id: session_id.clone(), ..StreamEventsRequest::default() };
    let first = client.lifecycle.stream_events(watch()).await.unwrap();
    // One more over HTTP.
    let mut sse = TcpStream::connect(world.http).await.unwrap();
    let request = format!(
        "GET /v1/sessions/{session_id}/events HTTP/1.1\r\nhost: croft\r\nauthorization: Bearer {}\r\n\r\n",
        world.api_key
    );
    sse.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    sse.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");

    for refused in [
        client.lifecycle.stream_events(watch()).await.unwrap_err(),
        client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap_err(),
    ] {
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "STREAM_LIMIT"));
        assert_eq!(refused.get_error_details().quota_failure().unwrap().violations[0].subject, "streams");
    }
    assert_eq!(world.stored(&session_id).await.last_seq, 2, "nothing was stored");
    let other = StreamEventsRequest { session_id: SessionId::generate().to_string(), ..Default::default() };
    let theirs = world.stranger().lifecycle.stream_events(other).await.unwrap_err();
    assert_eq!(theirs.code(), Code::NotFound, "the seats are each tenant's own");

    drop(first);
    let freed = async {
        while client.lifecycle.stream_events(watch()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("the seat is not given back");
}

/// One message of gRPC, with whatever bytes, over HTTP/1.1: gRPC-Web.
async fn raw(world: &World, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let head = format!(
        "POST /croft.v1.LifecycleService/GetSession HTTP/1.1\r\nhost: croft\r\nauthorization: Bearer {}\r\n\
         content-type: application/grpc-web+proto\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        world.api_key,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may have answered before it has read all.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer));
    let _ = reading.await.expect("no answer");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bytes_that_are_no_message_are_answered_and_the_port_goes_on() {
    let world = World::start().await;
    // No protobuf; a length that never comes; compressed by nobody knows what; nothing at all.
    for body in [&b"\0\0\0\0\x04\xff\xff\xff\xff"[..], b"\0\0\0\x10\0abc", b"\x01\0\0\0\x01a", b"", b"\x02"] {
        let answer = raw(&world, body).await;
        assert!(answer.contains("grpc-status") && !answer.contains("grpc-status: 0"), "{body:?}: {answer}");
    }
    world.client().create(scripted_agent("after")).await.unwrap();
}

/// The message and the word that its turn runs come at once: together they were more than a watcher may have waiting, and the sender
/// itself was thrown out.
#[tokio::test]
async fn a_message_of_five_mebibytes_is_answered_to_its_sender_and_to_all_who_watch() {
    let limits = TenantLimits { message_bytes_max: 8 << 20, ..TenantLimits::default() };
    let world = World::with_limits(limits).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("patient")).await.unwrap().session_id;
    let watch = StreamEventsRequest { session_id: session_id.clone(), after_seq: 2, durable_only: false };
    // A client of gRPC takes 4 MiB at a time, unless it is told otherwise.
    client.lifecycle = client.lifecycle.max_decoding_message_size(16 << 20);
    let mut watched = client.lifecycle.stream_events(watch).await.unwrap().into_inner();
    let sent = client.lifecycle.send_message(message(&session_id, &"x".repeat(5 << 20))).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert!(stop_reason(&events).is_some(), "{:?}", names(&events));
    let told = async {
        loop {
            let event = watched.message().await.unwrap().unwrap().event.unwrap();
            if matches!(event.kind, Some(Kind::SessionIdle(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the watcher sees its end");
}
