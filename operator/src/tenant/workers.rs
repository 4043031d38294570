//! The worker pods: under the `restricted` standard, without a token, with the tenant's own keys and certificate.

use std::collections::BTreeMap;

use croft_crds::labels;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, TopologySpreadConstraint, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use super::wanted::Wanted;
use super::{mounts, providers, pull_credentials, service_account, tls};
use crate::certificate::Issued;
use crate::drift;

/// `RuntimeService`, mutual TLS.
pub(crate) const GRPC_PORT: i32 = 50052;
/// `/metrics`, `/healthz` and `/readyz`, plain HTTP. Probes come here: the kubelet has no certificate for the other.
const METRICS_PORT: i32 = 9090;
/// The Deployment's name, and the Service's.
pub(crate) const NAME: &str = "workers";
/// The user of the images.
const USER: i64 = 65532;
const PROVIDERS_FOLDER: &str = "/etc/croft/providers";
/// What a worker may write, as nothing else in it can be written. Ours writes nothing; a tenant's own image that writes more is evicted
/// before it fills the node's disk.
const SCRATCH_MAX: &str = "1Gi";
const TLS_FOLDER: &str = "/etc/croft/tls";

/// See it with `kubectl -n tenant-acme get deployment workers -o yaml`.
pub(crate) fn workers(wanted: &Wanted, issued: &Issued) -> Deployment {
    let selector = wanted.worker_selector();
    let mut pod_labels = wanted.labels();
    pod_labels.extend(selector.clone());
    // One more first, then one less: a rollout never has fewer workers than are wanted. In a quota that is full the new
    // one would never come, and the rollout stand still.
    let hash = config_hash(&providers::file(wanted).text(), issued);
    let (surge, unavailable) = if wanted.workers.surges { (1, 0) } else { (0, 1) };
    Deployment {
        metadata: wanted.child_meta(NAME),
        spec: Some(DeploymentSpec {
            replicas: Some(wanted.workers.replicas),
            revision_history_limit: Some(2),
            progress_deadline_seconds: Some(120),
            selector: LabelSelector { match_labels: Some(selector), ..LabelSelector::default() },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(surge)),
                    max_unavailable: Some(IntOrString::Int(unavailable)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: Some(BTreeMap::from([(labels::CONFIG_HASH.to_owned(), hash)])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(wanted)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// Of what workers read at their start, so that a change of it is a rollout: the file of providers, and the certificate. A key that is
/// exchanged for another is none: workers see it in its file. One that is gone or can't be a key is, since the file then names its
/// provider no more: what was taken back must not stay in a worker's memory.
pub(crate) fn config_hash(providers: &str, issued: &Issued) -> String {
    drift::hash(&(providers, &issued.cert))
}

fn pod(wanted: &Wanted) -> PodSpec {
    PodSpec {
        service_account_name: Some(service_account::NAME.to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        runtime_class_name: wanted.workers.runtime_class.clone(),
        // The worker's own shutdown grace is 25 s; what is left then is handed back within the rest.
        termination_grace_period_seconds: Some(40),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        // Named in the pod rather than in its ServiceAccount, so that pods that wait for an image are made anew when it comes.
        image_pull_secrets: wanted
            .workers
            .has_pull_credentials
            .then(|| vec![LocalObjectReference { name: pull_credentials::NAME.to_owned() }]),
        node_selector: (!wanted.workers.node_selector.is_empty()).then(|| wanted.workers.node_selector.clone()),
        tolerations: (!wanted.workers.tolerations.is_empty()).then(|| wanted.workers.tolerations.clone()),
        topology_spread_constraints: Some(vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some(wanted.worker_selector()),
                ..LabelSelector::default()
            }),
            ..TopologySpreadConstraint::default()
        }]),
        containers: vec![container(wanted)],
        volumes: Some(volumes(wanted)),
        ..PodSpec::default()
    }
}

fn container(wanted: &Wanted) -> Container {
    let port = |name: &str, port| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        ..ContainerPort::default()
    };
    Container {
        name: "worker".to_owned(),
        image: Some(wanted.workers.image.clone()),
        image_pull_policy: Some(wanted.workers.image_pull_policy.clone()),
        env: Some(environment(wanted)),
        ports: Some(vec![port("grpc", GRPC_PORT), port("metrics", METRICS_PORT)]),
        resources: Some(ResourceRequirements {
            requests: Some(wanted.workers.requests.to_map()),
            limits: Some(wanted.workers.limits.to_map()),
            ..ResourceRequirements::default()
        }),
        readiness_probe: Some(probe("/readyz", 2)),
        liveness_probe: Some(probe("/healthz", 10)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts(wanted)),
        ..Container::default()
    }
}

fn environment(wanted: &Wanted) -> Vec<EnvVar> {
    let plain =
        |name: &str, value: &str| EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None };
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() }),
            ..EnvVarSource::default()
        }),
    };
    let mut variables = vec![
        plain("CROFT_TENANT", &wanted.name),
        field("CROFT_WORKER_NAME", "metadata.name"),
        field("CROFT_WORKER_NAMESPACE", "metadata.namespace"),
        plain("CROFT_SESSIONS_MAX", &wanted.workers.sessions_per_worker.to_string()),
        plain("CROFT_PROVIDERS", &format!("{PROVIDERS_FOLDER}/{}", providers::FILE)),
        plain("CROFT_TLS_CERT", &format!("{TLS_FOLDER}/tls.crt")),
        plain("CROFT_TLS_KEY", &format!("{TLS_FOLDER}/tls.key")),
        plain("CROFT_TLS_CA", &format!("{TLS_FOLDER}/ca.crt")),
    ];
    let told = [("CROFT_LOG", &wanted.workers.log), ("CROFT_OTLP_ENDPOINT", &wanted.workers.otlp_endpoint)];
    variables.extend(told.into_iter().filter_map(|(name, value)| Some(plain(name, value.as_deref()?))));
    variables
}

fn probe(path: &str, period_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(METRICS_PORT),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

fn mounts(wanted: &Wanted) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        // The API server leaves `false` out, and would be told again and again.
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount("tls", TLS_FOLDER, true),
        mount("providers", PROVIDERS_FOLDER, true),
        mount("scratch", "/tmp", false),
    ];
    mounts.extend(mounts::keys_volume(wanted).map(|keys| mount(&keys.name, providers::KEYS_FOLDER, true)));
    mounts.extend(
        mounts::folders(wanted)
            .map(|(server, folder)| mount(&folder.volume, &providers::user_tokens_folder(server), true)),
    );
    mounts
}

fn volumes(wanted: &Wanted) -> Vec<Volume> {
    let volume = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    let mut volumes = vec![
        Volume {
            secret: Some(SecretVolumeSource {
                secret_name: Some(tls::NAME.to_owned()),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..volume("tls")
        },
        Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: providers::NAME.to_owned(),
                ..ConfigMapVolumeSource::default()
            }),
            ..volume("providers")
        },
        Volume {
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity(SCRATCH_MAX.to_owned())),
                ..EmptyDirVolumeSource::default()
            }),
            ..volume("scratch")
        },
    ];
    volumes.extend(mounts::keys_volume(wanted));
    volumes.extend(mounts::folders(wanted).map(|(_, folder)| folder.into_volume()));
    volumes
}
