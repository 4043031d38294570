//! Only our own may call, and the server knows which of them does.

use croft_serve::tls::{PeerRole, TlsFiles, only};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceServiceServer;
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::authority::Authority;
use crate::collector::{Collector, Running, something};

/// Makes one call; the error is that of whichever step failed.
async fn call(server: &Running, tls: ClientTlsConfig) -> Result<(), Option<Code>> {
    let endpoint = Endpoint::from_shared(format!("https://{}", server.addr)).unwrap().tls_config(tls).unwrap();
    let channel = endpoint.connect().await.map_err(|_| None)?;
    let outcome = TraceServiceClient::new(channel).export(something()).await;
    outcome.map(drop).map_err(|status| Some(status.code()))
}

fn without_certificate(files: &TlsFiles) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&files.ca)).domain_name("localhost")
}

#[tokio::test]
async fn the_server_is_told_who_calls() {
    let (authority, collector) = (Authority::new(), Collector::new());
    let own = authority.issue(&PeerRole::Worker { tenant: "acme".into() });
    let server = Running::start(collector.routes(), Some(own.server())).await;
    for role in [PeerRole::Operator, PeerRole::Front] {
        assert_eq!(call(&server, authority.issue(&role).client("localhost")).await, Ok(()));
    }
    assert_eq!(*collector.callers.lock().unwrap(), [Some(PeerRole::Operator), Some(PeerRole::Front)]);
}

#[tokio::test]
async fn strangers_do_not_get_as_far_as_a_call() {
    let (authority, collector) = (Authority::new(), Collector::new());
    let own = authority.issue(&PeerRole::Front);
    let server = Running::start(collector.routes(), Some(own.server())).await;

    assert!(call(&server, without_certificate(&own)).await.is_err(), "no certificate");
    let foreign = Authority::new().issue(&PeerRole::Operator);
    let foreign = TlsFiles { ca: own.ca.clone(), ..foreign };
    assert!(call(&server, foreign.client("localhost")).await.is_err(), "another authority's certificate");
    let worker = authority.issue(&PeerRole::Worker { tenant: "acme".into() });
    assert!(call(&server, worker.client("localhost")).await.is_err(), "a certificate that is no client's");
    assert!(collector.callers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_hangs_up_on_a_server_of_another_name() {
    let (authority, collector) = (Authority::new(), Collector::new());
    let server = Running::start(collector.routes(), Some(authority.issue(&PeerRole::Front).server())).await;
    let client = authority.issue(&PeerRole::Operator);
    assert_eq!(call(&server, client.client("workers.tenant-acme.svc")).await, Err(None));
    assert_eq!(call(&server, client.client("localhost")).await, Ok(()));
}

#[tokio::test]
async fn a_call_meant_for_one_role_is_refused_to_the_others() {
    let (authority, collector) = (Authority::new(), Collector::new());
    let service = TraceServiceServer::with_interceptor(collector.clone(), only(PeerRole::Front));
    let server = Running::start(Routes::new(service), Some(authority.issue(&PeerRole::Operator).server())).await;
    let operator = authority.issue(&PeerRole::Operator).client("localhost");
    assert_eq!(call(&server, operator).await, Err(Some(Code::PermissionDenied)));
    assert_eq!(call(&server, authority.issue(&PeerRole::Front).client("localhost")).await, Ok(()));
}
