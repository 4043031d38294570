//! A name for the workers. Fronts dial pods by address, told by the operator; the name is for people and monitoring.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::wanted::Wanted;
use super::workers::{GRPC_PORT, NAME};

/// See it with `kubectl -n tenant-acme get service workers -o yaml`.
pub(crate) fn workers_service(wanted: &Wanted) -> Service {
    Service {
        metadata: wanted.child_meta(NAME),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(wanted.worker_selector()),
            ports: Some(vec![ServicePort {
                name: Some("grpc".to_owned()),
                port: GRPC_PORT,
                target_port: Some(IntOrString::Int(GRPC_PORT)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
