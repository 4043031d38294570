//! Who leads, when, and that nobody else writes.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use croft_operator::leader::{Clients, Election, Fence, LEASE};
use croft_operator::metrics::Metrics;
use croft_operator::writes::Writer;
use croft_serve::Tasks;
use http::Method;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Config};
use prometheus::Registry;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::freshness::kubeconfig;
use crate::program;
use crate::proxy::{Proxy, What};
use crate::world::{LONG, Session, World, kube_config, until};

/// So long that whoever takes over sooner has not waited for it.
const LONG_LEASE: u64 = 300;
/// Longer than a busy machine may stall, so that a Lease is lost to nothing but what a test does.
const SHORT_LEASE: u64 = 45;

/// A replica that does nothing but lead.
struct Replica {
    fence: Fence,
    stopping: CancellationToken,
    leads: Arc<Notify>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// What the work of a leader does when it is told to stop.
#[derive(Clone, Copy)]
enum Work {
    Ends,
    GoesOn,
}

impl Replica {
    fn start(config: &Config, namespace: &str, identity: &str, lease_seconds: u64, work: Work, tasks: &Tasks) -> Self {
        let (fence, stopping, leads) = (Fence::closed(), CancellationToken::new(), Arc::new(Notify::new()));
        let election = Election {
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
            lease_seconds,
            renew_before_seconds: lease_seconds * 2 / 3,
        };
        let clients = Clients::new(config).expect("clients can be made");
        let (told, stop) = (Arc::clone(&leads), stopping.clone());
        let lead = move || async move {
            told.notify_one();
            match work {
                Work::Ends => stop.cancelled().await,
                Work::GoesOn => std::future::pending().await,
            }
        };
        let task = tasks.spawn("replica", election.run(clients, fence.clone(), lead, stopping.clone()));
        Self { fence, stopping, leads, task }
    }

    async fn leads(&self) {
        tokio::time::timeout(LONG, self.leads.notified()).await.expect("it leads in time");
        assert!(self.fence.is_open());
    }

    async fn ended(self) -> anyhow::Result<()> {
        tokio::time::timeout(LONG, self.task).await.expect("it ends in time").expect("it does not panic")
    }
}

/// A namespace of the test's own: there is one Lease in each.
async fn namespace(session: &Session) -> String {
    session.namespace("croft-lease").await
}

async fn holder(session: &Session, namespace: &str) -> Option<String> {
    let leases: Api<Lease> = session.within(namespace);
    leases.get_opt(LEASE).await.ok()??.spec?.holder_identity
}

#[tokio::test]
async fn a_standby_takes_a_lease_that_is_given_back_at_once() {
    let session = World::shared().await;
    let (namespace, config, tasks) = (namespace(&session).await, kube_config().await, Tasks::new());
    for work in [Work::Ends, Work::GoesOn] {
        let first = Replica::start(&config, &namespace, "first", LONG_LEASE, work, &tasks);
        first.leads().await;
        let second = Replica::start(&config, &namespace, "second", LONG_LEASE, Work::Ends, &tasks);
        // It stands by once it has seen who leads; before that there would be nothing to hand over.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!second.fence.is_open());
        first.stopping.cancel();
        second.leads().await;
        assert!(!first.fence.is_open(), "never two");
        first.ended().await.unwrap();
        assert_eq!(holder(&session, &namespace).await.as_deref(), Some("second"));
        second.stopping.cancel();
        second.ended().await.unwrap();
        assert_eq!(holder(&session, &namespace).await, None);
    }
}

#[tokio::test]
async fn a_leader_that_crashes_is_followed_when_its_lease_has_run_out() {
    let session = World::shared().await;
    let (namespace, config, tasks) = (namespace(&session).await, kube_config().await, Tasks::new());
    let first = Replica::start(&config, &namespace, "first", SHORT_LEASE, Work::Ends, &tasks);
    first.leads().await;
    let second = Replica::start(&config, &namespace, "second", SHORT_LEASE, Work::Ends, &tasks);
    first.task.abort();
    second.leads().await;
    assert!(!first.fence.is_open(), "never two");
}

/// A container that is killed is started again in its pod, under the same name; there may be no other replica.
#[tokio::test]
async fn a_leader_that_crashes_leads_again_under_its_own_name() {
    let session = World::shared().await;
    let (namespace, config, tasks) = (namespace(&session).await, kube_config().await, Tasks::new());
    let first = Replica::start(&config, &namespace, "only", LONG_LEASE, Work::GoesOn, &tasks);
    first.leads().await;
    first.task.abort();
    let again = Replica::start(&config, &namespace, "only", LONG_LEASE, Work::Ends, &tasks);
    again.leads().await;
    assert_eq!(holder(&session, &namespace).await.as_deref(), Some("only"));
    again.stopping.cancel();
    again.ended().await.unwrap();
}

#[tokio::test]
async fn a_leader_that_is_cut_off_stops_to_write_before_another_begins() {
    let session = World::shared().await;
    let (namespace, tasks) = (namespace(&session).await, Tasks::new());
    let proxy = Proxy::start(kube_config().await, &tasks).await;
    let first = Replica::start(&proxy.config(), &namespace, "first", SHORT_LEASE, Work::GoesOn, &tasks);
    first.leads().await;
    let second = Replica::start(&kube_config().await, &namespace, "second", SHORT_LEASE, Work::Ends, &tasks);
    let client = Client::try_from(kube_config().await).unwrap();
    let writer = Writer::new(client, Metrics::register(&Registry::new()).unwrap(), first.fence.clone());
    let mark = |text: &str| -> ConfigMap {
        let metadata = json!({ "name": "mark", "namespace": namespace });
        serde_json::from_value(json!({ "metadata": metadata, "data": { "by": text } })).unwrap()
    };
    writer.apply(&mark("first")).await.expect("it leads");

    let _stalled = proxy.inject(Method::PATCH, &format!("/{namespace}/leases/"), What::Stall, None);
    second.leads().await;
    assert!(!first.fence.is_open(), "never two");
    let refused = writer.apply(&mark("stale")).await.expect_err("it does not lead any more").to_string();
    assert!(refused.contains("does not lead any more"), "{refused}");
    let there = session.within::<ConfigMap>(&namespace).get("mark").await.unwrap();
    assert_eq!(there.data.unwrap()["by"], "first");
    let told = first.ended().await.expect_err("it has lost the Lease").to_string();
    assert!(told.starts_with("the Lease is lost"), "{told}");
}

#[tokio::test]
async fn a_leader_survives_an_api_server_that_fails_for_less_than_the_lease() {
    let session = World::shared().await;
    let (namespace, tasks) = (namespace(&session).await, Tasks::new());
    let proxy = Proxy::start(kube_config().await, &tasks).await;
    let leader = Replica::start(&proxy.config(), &namespace, "first", SHORT_LEASE, Work::Ends, &tasks);
    leader.leads().await;
    for code in [409, 429, 500, 503] {
        let failing = proxy.inject(Method::PATCH, &format!("/{namespace}/leases/"), What::Answer(code), Some(1));
        until("it has failed and then gone well", async || (failing.hits() == 1 && failing.passed() > 0).then_some(()))
            .await;
        assert!(leader.fence.is_open(), "{code}");
    }
    leader.stopping.cancel();
    leader.ended().await.unwrap();
}

/// It could do nothing with it, and would keep out who can.
#[tokio::test]
async fn a_replica_that_can_list_nothing_does_not_take_the_lease() {
    let session = World::shared().await;
    let (namespace, tasks) = (namespace(&session).await, Tasks::new());
    let proxy = Proxy::start(kube_config().await, &tasks).await;
    let stalled = proxy.inject(Method::GET, "/agentsessions?", What::Stall, None);
    let kubeconfig = kubeconfig(&proxy);
    let path = kubeconfig.path().to_str().expect("it is text");
    let _unable = program::spawn(path, &namespace, &[], Stdio::null());
    until("its list hangs", async || (stalled.hits() > 0).then_some(())).await;
    // It would have the Lease long since.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(holder(&session, &namespace).await, None);
    let able = Replica::start(&kube_config().await, &namespace, "able", LONG_LEASE, Work::Ends, &tasks);
    able.leads().await;
}

#[tokio::test]
async fn a_leader_whose_lease_is_taken_ends() {
    let session = World::shared().await;
    let (namespace, config, tasks) = (namespace(&session).await, kube_config().await, Tasks::new());
    let first = Replica::start(&config, &namespace, "first", SHORT_LEASE, Work::GoesOn, &tasks);
    first.leads().await;
    let leases: Api<Lease> = session.within(&namespace);
    let theft = Patch::Merge(json!({ "spec": { "holderIdentity": "thief" } }));
    leases.patch(LEASE, &PatchParams::default(), &theft).await.unwrap();
    first.ended().await.expect_err("another has it");
    assert_eq!(holder(&session, &namespace).await.as_deref(), Some("thief"), "it is not given back in their place");
}
