//! Intake stops, what has begun goes on.

use std::time::Duration;

use croft_serve::connections::Bounds;
use croft_serve::{Tasks, grpc};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::collector::{Collector, Running, something};

#[tokio::test]
async fn a_call_that_has_begun_is_answered_though_intake_has_stopped() {
    let collector = Collector::with_answers(0);
    let server = Running::start(collector.routes(), None).await;
    let mut client = TraceServiceClient::connect(server.url()).await.unwrap();
    let begun = server.tasks.spawn("caller", async move { client.export(something()).await });
    collector.arrived.acquire().await.unwrap().forget();

    server.tasks.stopping().cancel();
    let closed = async {
        while TcpStream::connect(server.addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), closed).await.expect("the server should stop listening");
    collector.answers.add_permits(1);
    begun.await.unwrap().unwrap();
    assert_eq!(server.tasks.shutdown(Duration::from_secs(90)).await, 0);
}

/// Shuts a server down while a caller takes so much of an answer and no more. Whether the caller has it.
async fn answered_within(window: u32) -> bool {
    let collector = Collector::new();
    let bounds = Bounds { unread_max: Some(Duration::from_secs(1)), ..Bounds::default() };
    let server = Running::in_public(bounds, collector.routes()).await;
    let endpoint = Endpoint::from_shared(server.url()).unwrap().initial_stream_window_size(window);
    let mut client = TraceServiceClient::new(endpoint.connect().await.unwrap());
    let caller = Tasks::new().spawn("caller", async move { client.export(something()).await });
    collector.arrived.acquire().await.unwrap().forget();

    let shutdown = server.tasks.shutdown(Duration::from_mins(2));
    let left = tokio::time::timeout(Duration::from_secs(90), shutdown).await.expect("it waits for the caller");
    assert_eq!(left, 0);
    caller.is_finished()
}

/// A client that opened its window no further held a replica up for all of its grace.
#[tokio::test]
async fn a_caller_that_takes_nothing_does_not_hold_up_a_shutdown() {
    assert!(!answered_within(0).await, "it was answered");
}

/// The last piece of an answer is not the server's any more, and no call of its is left.
#[tokio::test]
async fn nor_does_one_that_takes_no_more_than_a_byte() {
    answered_within(1).await;
}

#[tokio::test]
async fn a_call_that_has_begun_at_a_public_port_is_answered_too() {
    let collector = Collector::with_answers(0);
    let server = Running::in_public(Bounds::default(), collector.routes()).await;
    let mut client = TraceServiceClient::connect(server.url()).await.unwrap();
    let begun = Tasks::new().spawn("caller", async move { client.export(something()).await });
    collector.arrived.acquire().await.unwrap().forget();
    server.tasks.stopping().cancel();
    collector.answers.add_permits(1);
    begun.await.unwrap().unwrap();
    assert_eq!(server.tasks.shutdown(Duration::from_secs(90)).await, 0);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_its_flag() {
    let taken = grpc::bind("127.0.0.1:0".parse().unwrap(), "the test").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let error = grpc::bind(addr, "--grpc-addr (CROFT_GRPC_ADDR)").await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {addr}, as --grpc-addr (CROFT_GRPC_ADDR) asks"));
    let told = format!("{:#}", anyhow::Error::from(error));
    assert!(told.contains("in use"), "{told}");
}
