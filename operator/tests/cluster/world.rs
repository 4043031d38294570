//! One operator for all tests of this program, and what a test needs to talk to it and its cluster.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use croft_crds::session::SessionPhase;
use croft_crds::{AgentSession, AgentSessionStatus, AgentTenant};
use croft_operator::config::Args;
use croft_operator::operator;
use croft_serve::{Metrics, Program, tls};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;

use crate::front::FakeFront;
use crate::kinds;
use crate::proxy::Proxy;

/// On everything that a test makes, so that the next run can clear away what a killed one left.
pub(crate) const TEST_LABEL: &str = "croft.dev/made-by-test";
/// The operator's file of tiers. None has a number of AgentSessions: the write by which they begin to be counted, when a tenant is a
/// minute old, would be among those that tests count.
const TIERS: &str = "
free: { budget: { monthlyUsd: '5' } }
standard: {}
enterprise: { quota: { pods: 57 }, limits: { maxSessions: 1234 } }
";
/// Nothing here takes that long unless it is broken.
pub(crate) const LONG: Duration = Duration::from_mins(2);

static ALONE: RwLock<()> = RwLock::const_new(());

/// The operator under test.
pub(crate) struct World {
    pub(crate) namespace: String,
    pub(crate) routes_port: u16,
    pub(crate) front: FakeFront,
    /// Between the operator and the API server. The tests themselves go past it.
    pub(crate) proxy: Proxy,
    metrics: Metrics,
}

/// A test's own connection to the cluster, while others may be at work too.
pub(crate) struct Session {
    pub(crate) world: &'static World,
    pub(crate) client: Client,
    _shared: Option<RwLockReadGuard<'static, ()>>,
    _alone: Option<RwLockWriteGuard<'static, ()>>,
}

impl World {
    /// For a test that minds only its own tenants.
    pub(crate) async fn shared() -> Session {
        let shared = ALONE.read().await;
        Session { world: world(), client: client().await, _shared: Some(shared), _alone: None }
    }

    /// For a test that counts what the operator does: no other test runs meanwhile.
    pub(crate) async fn alone() -> Session {
        let alone = ALONE.write().await;
        Session { world: world(), client: client().await, _shared: None, _alone: Some(alone) }
    }

    /// The sum of a counter's values whose labels contain all of `labels`, each as `name="value"`.
    pub(crate) fn count(&self, counter: &str, labels: &[&str]) -> u64 {
        let text = self.metrics.text().expect("metrics can be written");
        let lines = text.lines().filter(|line| line.starts_with(&format!("{counter}{{")));
        let matching = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        matching.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    pub(crate) fn writes(&self) -> u64 {
        self.count("croft_operator_api_writes_total", &[])
    }

    pub(crate) fn passes(&self, kind: &str) -> u64 {
        self.count("croft_operator_reconciles_total", &[&format!("kind=\"{kind}\"")])
    }
}

impl Session {
    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub(crate) fn within<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes a namespace with a name that begins with `name`, and that no other test has.
    pub(crate) async fn namespace(&self, name: &str) -> String {
        let name = format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let made = json!({ "metadata": { "name": name, "labels": { TEST_LABEL: "true" } } });
        let made: Namespace = serde_json::from_value(made).expect("reads as the kind");
        self.all().create(&PostParams::default(), &made).await.expect("a namespace can be made");
        name
    }

    /// Makes a tenant with a name that begins with `name`, and that no other test has.
    pub(crate) async fn tenant(&self, name: &str, spec: Value) -> AgentTenant {
        let name = format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        self.all().create(&PostParams::default(), &tenant(&name, &spec)).await.expect("the tenant can be made")
    }

    /// Makes a tenant and waits for its namespace.
    pub(crate) async fn settled_tenant(&self, name: &str, spec: Value) -> AgentTenant {
        let tenant = self.tenant(name, spec).await;
        until("the tenant is applied", async || {
            let tenant: AgentTenant = self.all().get(&tenant.name_any()).await.ok()?;
            condition(&tenant, "Applied")?.starts_with("True").then_some(tenant)
        })
        .await
    }

    /// Declares a session in a tenant's namespace.
    pub(crate) async fn declare(&self, namespace: &str, name: &str, spec: Value) -> AgentSession {
        let session = json!({
            "apiVersion": "croft.dev/v1alpha1", "kind": "AgentSession",
            "metadata": { "name": name, "namespace": namespace }, "spec": spec,
        });
        let session: AgentSession = serde_json::from_value(session).expect("reads as the kind");
        self.within(namespace).create(&PostParams::default(), &session).await.expect("the session can be declared")
    }

    /// Merges `patch` into an object that this test owns.
    pub(crate) async fn merge<K>(&self, api: &Api<K>, name: &str, patch: Value)
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("the patch is taken");
    }

    /// Waits until the operator has had nothing to do for thirty looks in a row. They are counted, and not timed: a machine that stalls
    /// is not at rest.
    pub(crate) async fn quiet(&self) {
        let work = || self.world.passes("AgentTenant") + self.world.passes("AgentSession") + self.world.writes();
        let (mut before, mut unchanged, begun) = (work(), 0, Instant::now());
        while unchanged < 30 {
            assert!(begun.elapsed() < LONG, "the operator never comes to rest");
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = work();
            unchanged = if now == before { unchanged + 1 } else { 0 };
            before = now;
        }
    }
}

/// What the API server has noted of writes to one kind in one namespace, as `verb subresource`.
pub(crate) fn audited_writes(plural: &str, namespace: &str) -> Vec<String> {
    let log = std::fs::read_to_string(audit_log()).expect("the API server's audit log can be read");
    let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let about = entries.filter(|entry| {
        let object = &entry["objectRef"];
        object["resource"] == plural && object["namespace"] == namespace && entry["stage"] == "ResponseComplete"
    });
    let told = about.map(|entry| {
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        format!("{} {}", part(&entry["verb"]), part(&entry["objectRef"]["subresource"]))
    });
    told.filter(|told| ["create", "update", "patch", "delete"].iter().any(|verb| told.starts_with(verb))).collect()
}

/// A condition as `status reason: message`.
pub(crate) fn condition(tenant: &AgentTenant, kind: &str) -> Option<String> {
    let conditions = &tenant.status.as_ref()?.conditions;
    let condition = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some(format!("{} {}: {}", condition.status, condition.reason, condition.message))
}

pub(crate) fn tenant(name: &str, spec: &Value) -> AgentTenant {
    let tenant = json!({
        "apiVersion": "croft.dev/v1alpha1", "kind": "AgentTenant",
        "metadata": { "name": name, "labels": { TEST_LABEL: "true" } }, "spec": spec,
    });
    serde_json::from_value(tenant).expect("reads as the kind")
}

/// What a test declares that minds no particular agent.
pub(crate) fn spec() -> Value {
    json!({ "agent": { "model": "scripted-1", "systemPrompt": "Be brief." } })
}

/// The status of a session once it is in a phase.
pub(crate) async fn in_phase(api: &Api<AgentSession>, name: &str, phase: SessionPhase) -> AgentSessionStatus {
    until(&format!("{name} is {phase:?}"), async || {
        api.get(name).await.ok()?.status.filter(|status| status.phase == Some(phase))
    })
    .await
}

/// Asks until there is an answer. Fails when that takes too long.
pub(crate) async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(LONG, what, ask).await
}

/// Asks until there is an answer, as often as `patience` has room for. While the machine stalls nobody is asked, and nothing is late.
pub(crate) async fn within<T>(patience: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    const PAUSE: Duration = Duration::from_millis(20);
    for _ in 0..=patience.as_millis() / PAUSE.as_millis() {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("not within {patience:?}: {what}");
}

/// Most of it took no longer than this. The machine may have stood still in the rest.
pub(crate) fn assert_mostly_within(bound: Duration, mut took: Vec<Duration>) {
    took.sort();
    let median = took[took.len() / 2];
    assert!(median < bound, "half of them took {median:?} and more: {took:?}");
}

pub(crate) fn kubeconfig_path() -> String {
    std::env::var("CROFT_TEST_KUBECONFIG")
        .expect("CROFT_TEST_KUBECONFIG must name the kubeconfig of an API server: `make test-services` starts one")
}

/// The API server that `make test-services` starts keeps it beside its kubeconfig.
fn audit_log() -> PathBuf {
    match std::env::var_os("CROFT_KUBE_AUDIT_LOG") {
        Some(path) => path.into(),
        None => Path::new(&kubeconfig_path()).with_file_name("audit.log"),
    }
}

pub(crate) async fn kube_config() -> Config {
    tls::install_provider();
    let kubeconfig = Kubeconfig::read_from(kubeconfig_path()).expect("CROFT_TEST_KUBECONFIG is a kubeconfig");
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("the kubeconfig is usable")
}

async fn client() -> Client {
    Client::try_from(kube_config().await).expect("a client can be made")
}

/// Starts the operator once, on a thread of its own: each test has a runtime that ends with it.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let (started, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
            runtime.block_on(async move {
                let (world, program) = start().await;
                started.send(world).expect("a test waits for it");
                std::future::pending::<()>().await;
                drop(program);
            });
        });
        wait.recv().expect("the operator starts")
    })
}

async fn start() -> (World, Program) {
    let client = client().await;
    kinds::install(&client).await;
    clear_away(&client).await;
    let namespace = format!("croft-test-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let made: Namespace = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": namespace, "labels": { TEST_LABEL: "true" } },
    }))
    .expect("reads as the kind");
    Api::all(client.clone()).create(&PostParams::default(), &made).await.expect("a namespace can be made");

    let providers = std::env::temp_dir().join(format!("{namespace}-providers.yaml"));
    let lent = "providers: [{ name: anthropic, secretName: lent, key: api-key, baseUrl: 'https://lent.example.com' }]";
    std::fs::write(&providers, lent).expect("a file can be written");
    let fence = std::env::temp_dir().join(format!("{namespace}-fence.yaml"));
    let collectors = "collectors: [{ namespace: tracing, podLabels: { app: collector }, port: 14317 }]";
    std::fs::write(&fence, collectors).expect("a file can be written");
    let tiers = std::env::temp_dir().join(format!("{namespace}-tiers.yaml"));
    std::fs::write(&tiers, TIERS).expect("a file can be written");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let front_port = listener.local_addr().expect("it is bound").port();
    let args: Args = croft_serve::config::try_parse_from([
        "croft-operator",
        "--routes-addr=127.0.0.1:0",
        "--metrics-addr=127.0.0.1:0",
        "--session-status-ms=300",
        "--tenant-totals-ms=500",
        "--reconcile-deadline-ms=30000",
        "--tenant-removal-seconds=20",
        "--worker-pull-secrets=registry",
        "--log=warn",
        "--worker-log=debug",
        "--worker-otlp-endpoint=http://collector.tracing:4317",
        &format!("--platform-providers={}", providers.display()),
        &format!("--fence={}", fence.display()),
        &format!("--tiers={}", tiers.display()),
        &format!("--namespace={namespace}"),
        &format!("--front-url=https://localhost:{front_port}"),
    ])
    .expect("the arguments are usable");
    let program = Program::start("croft-operator", &args.serve).await.expect("the program starts");
    let proxy = Proxy::start(kube_config().await, &program.tasks).await;
    let started = operator::start(&args, proxy.config(), &program).await.expect("the operator starts");

    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let secret = until("the fronts have a certificate", async || secrets.get_opt("croft-front-tls").await.ok()?).await;
    let front = FakeFront::serve(listener, &secret, &program.tasks);
    for file in [&providers, &fence, &tiers] {
        std::fs::remove_file(file).expect("it was read and is ours");
    }
    let (routes_port, metrics) = (started.routes_addr.port(), program.metrics.clone());
    (World { namespace, routes_port, front, proxy, metrics }, program)
}

/// What a run left that was killed before its end.
async fn clear_away(client: &Client) {
    let ours = ListParams::default().labels(TEST_LABEL);
    let tenants: Api<AgentTenant> = Api::all(client.clone());
    for tenant in tenants.list(&ours).await.expect("tenants can be listed") {
        let unfinished = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        // Either may find that it is gone already.
        let _ = tenants.patch(&tenant.name_any(), &PatchParams::default(), &unfinished).await;
        let _ = tenants.delete(&tenant.name_any(), &DeleteParams::default()).await;
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for namespace in namespaces.list(&ours).await.expect("namespaces can be listed") {
        let _ = namespaces.delete(&namespace.name_any(), &DeleteParams::default()).await;
    }
}
