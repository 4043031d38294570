//! Two operators as programs, with the chart's rights on an API server of their own. The one that leads is told to end, is killed, or
//! stands still for longer than its Lease: the other one leads in time, goes on with the work, and nothing that the first one wrote comes
//! behind it.
//!
//! Needs what `make test` builds for a control plane.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod operator;

use std::time::Duration;

use croft_e2e::bench::api;
use croft_e2e::bench::audit::{Audit, Entry};
use croft_e2e::bench::launch::{self, Ports};
use croft_e2e::bench::stage::{NAMESPACE, until};
use croft_e2e::control_plane::ControlPlane;
use croft_e2e::helm::root;
use croft_e2e::steady::steady;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;

use crate::operator::Operator;

/// `--lease-seconds` as it is unless told.
const LEASE: Duration = Duration::from_secs(15);
/// Within which another one leads when the one before gives its Lease back.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(2);
/// A crash comes so long behind a renewal: the Lease's end is to be so much nearer, for what it takes to lead then.
const SINCE_RENEWAL: Duration = Duration::from_secs(3);
/// A pause of this process in which those bounds may be missed for no fault of the operators'.
const STALL: Duration = Duration::from_millis(300);

/// How the leader goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By SIGTERM.
    ToldTo,
    /// By SIGKILL.
    Killed,
    /// It is stopped in mid work, and goes on when another leads.
    StandsStill,
}

/// The API server, and what is needed to start operators.
struct Scene {
    plane: ControlPlane,
    client: Client,
    audit: Audit,
    ports: Ports,
    operators: usize,
    tenants: usize,
}

impl Scene {
    async fn set() -> Self {
        croft_serve::tls::install_provider();
        let plane = ControlPlane::up("croft-handover").unwrap();
        plane.install(&root().join("charts/croft")).unwrap();
        let client = launch::client(&plane.kubeconfig()).await.unwrap();
        let audit = Audit::new(plane.audit_log());
        Self { plane, client, audit, ports: Ports::default(), operators: 0, tenants: 0 }
    }

    /// The Lease, as the API server has it.
    async fn lease(&self) -> LeaseSpec {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get("croft-operator").await.unwrap().spec.unwrap()
    }

    /// Waits until the holder has renewed its Lease and so long has passed since.
    async fn renewed_since(&self, since: Duration) {
        let renewed = || async { self.lease().await.renew_time.map(|time| time.0) };
        let before = renewed().await;
        let new = until("the Lease is renewed", async || renewed().await.filter(|time| Some(*time) != before)).await;
        let rest = SignedDuration::try_from(since).unwrap() - Timestamp::now().duration_since(new.unwrap());
        tokio::time::sleep(rest.try_into().unwrap_or_default()).await;
    }

    async fn make_tenant(&mut self) -> String {
        self.tenants += 1;
        let name = format!("orphan-{}", self.tenants);
        let tenants = api::all(&self.client, &api::agent_tenants());
        tenants.create(&PostParams::default(), &api::tenant(&name, &json!({ "tier": "free" }))).await.unwrap();
        name
    }

    /// Waits until the tenant has its workers, which come last.
    async fn made_whole(&self, tenant: &str) {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &format!("tenant-{tenant}"));
        let made = until("the tenant has workers", async || {
            let found = deployments.list(&ListParams::default()).await.ok()?;
            (!found.items.is_empty()).then_some(())
        });
        made.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_operator_leads_in_time_and_nothing_comes_behind_it_of_the_one_before() {
    let mut scene = Scene::set().await;
    for end in [End::ToldTo, End::Killed, End::StandsStill] {
        steady(STALL, async || handover(&mut scene, end).await).await;
    }
}

async fn handover(scene: &mut Scene, end: End) {
    let noted = scene.audit.end().unwrap();
    let mut leader = Operator::start(scene).await;
    leader.leads().await;
    let mut standby = Operator::start(scene).await;
    let first = scene.make_tenant().await;
    scene.made_whole(&first).await;
    scene.renewed_since(SINCE_RENEWAL).await;
    let held = scene.lease().await;
    assert_eq!(held.holder_identity.as_ref(), Some(&leader.identity));

    let (wall, gone) = (Timestamp::now(), leader.goes(end).await);
    let orphan = scene.make_tenant().await;
    let took = standby.leads().await - gone;
    let taken = scene.lease().await;
    assert_eq!(taken.holder_identity.as_ref(), Some(&standby.identity));
    let acquired = taken.acquire_time.expect("it is held").0;
    let reach = if end == End::ToldTo { HANDED_OVER_WITHIN } else { LEASE };
    assert!(took <= reach, "{end:?}: the other leads after {took:?}");
    let took = Duration::try_from(acquired.duration_since(wall)).expect("it takes it behind that");
    assert!(took <= reach, "{end:?}: the other has the Lease after {took:?}");
    if end != End::ToldTo {
        // Until then the one before may still write.
        let renewed = held.renew_time.expect("it is held").0;
        let waited = Duration::try_from(acquired.duration_since(renewed)).unwrap();
        assert!(waited >= LEASE, "{end:?}: it was taken {waited:?} behind a renewal");
    }
    scene.made_whole(&orphan).await;

    if end == End::StandsStill {
        // It finds all that came meanwhile, and more that comes now.
        leader.program.resume().await.unwrap();
        let latest = scene.make_tenant().await;
        scene.made_whole(&latest).await;
    }
    leader.program.wait().await.unwrap();
    let lease = scene.lease().await;
    assert_eq!(
        (lease.holder_identity, lease.acquire_time.map(|time| time.0)),
        (Some(standby.identity.clone()), Some(acquired))
    );

    let entries = scene.audit.since(noted).unwrap();
    let changes: Vec<_> = entries.iter().filter(|entry| is_change(entry)).collect();
    let by_first = |entry: &&Entry| entry.credential == leader.credential;
    let by_other = |entry: &&Entry| entry.credential == standby.credential;
    let led = changes.iter().position(by_other).expect("the other writes");
    let (before, behind) = changes.split_at(led);
    assert!(before.iter().any(by_first), "the API server tells one from the other");
    let late: Vec<_> = behind.iter().copied().filter(by_first).collect();
    assert!(late.is_empty(), "{end:?}: behind the other's taking over: {late:?}");

    standby.program.terminate().await.unwrap();
    standby.program.wait().await.unwrap();
}

/// Whether it changed anything, the Lease too.
fn is_change(entry: &Entry) -> bool {
    entry.code < 300 && !matches!(entry.verb.as_str(), "get" | "list" | "watch")
}
