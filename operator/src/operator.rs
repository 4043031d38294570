//! Puts the parts together: what every replica does, and what only the one that leads does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use croft_crds::AgentSession;
use croft_serve::{Program, Tasks, grpc};
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Config as KubeConfig, ResourceExt as _};
use tokio::sync::Semaphore;
use tonic::service::Routes as GrpcRoutes;

use crate::authority::Authority;
use crate::cluster::Cluster;
use crate::config::Args;
use crate::context::{CHILD_WRITES_MAX, Context};
use crate::controller::{Limits, Source};
use crate::events::Events;
use crate::freshness::Freshness;
use crate::front::Front;
use crate::keyring::Keyring;
use crate::leader::{self, Fence};
use crate::marks::Marks;
use crate::metrics::Metrics;
use crate::own_certificate::OwnCertificate;
use crate::recent::Recent;
use crate::routes::{self, RouteTable, Routes};
use crate::secrets::Secrets;
use crate::token::TokenMaker;
use crate::totals::Totals;
use crate::writes::Writer;
use crate::{controller, front_certificate, session, tenant, totals};

/// A tenant that can't be mended is looked at seldom: whatever happens to its parts wakes it sooner.
const TENANT_RETRY_MAX: Duration = Duration::from_mins(5);
/// A worker that is ready, room, and a change of the tenant wake sessions that wait; a front that is there again does not.
const SESSION_RETRY_MAX: Duration = Duration::from_secs(20);
/// How emergency stops are made, in places of their own: what passes wait for must not hold them up. One that is not done by then is
/// begun again, which also stops the workers that were made meanwhile.
const STOPS: Limits = Limits { concurrency: 64, deadline: Duration::from_secs(5), retry_max: Duration::from_secs(5) };

/// What has been started.
#[derive(Debug)]
pub struct Started {
    /// Where the routes are served.
    pub routes_addr: SocketAddr,
}

/// Starts everything in tasks of `program`. Fails when the cluster can't be reached or an address is taken.
pub async fn start(args: &Args, kube_config: KubeConfig, program: &Program) -> anyhow::Result<Started> {
    let tasks = &program.tasks;
    let (known, fresh) = (program.readiness.check("cluster"), program.readiness.check("routes"));
    let lease_clients = leader::Clients::new(&kube_config)?;
    let patient = Client::try_from(kube_config.clone())?;
    let client = hasty(kube_config)?;
    let metrics = Metrics::register(program.metrics.registry())?;
    let fence = Fence::closed();
    let writer = Writer::new(client.clone(), metrics.clone(), fence.clone());

    let now = jiff::Timestamp::now().as_second();
    let secrets: Api<Secret> = Api::namespaced(patient.clone(), &args.namespace);
    // Every replica makes it if it is missing, and only the first one's counts.
    let first = Writer::new(patient, metrics.clone(), Fence::unguarded());
    let authority = Arc::new(Authority::load_or_create(&secrets, &first, &args.namespace, now).await?);
    let certificate = OwnCertificate::issue(&args.namespace, &authority, now, controller::chance())?;
    let tls = certificate.files();
    tls.register(&program.metrics)?;
    let tokens = Arc::new(TokenMaker::new(&authority)?);

    let settings = args.settings().map_err(|mistakes| anyhow::anyhow!(mistakes.join(" ")))?;
    let freshness = Freshness::new(metrics.watch_answered.clone());
    let cluster = Arc::new(Cluster::start(&client, &freshness, &metrics, &settings.tiers, tasks));
    let secrets = Secrets::start(&client, &freshness, &cluster, settings.clone(), tasks);
    let keyring = Keyring::new(client.clone(), secrets, &authority);
    let (events, waiting) = Events::new(metrics.clone());
    let written = waiting.write(Arc::new(writer.clone()), args.identity.clone(), tasks.stopping());
    tasks.spawn_endless("events", written);
    let table = Arc::new(RouteTable::new(metrics.clone()));
    let listener = grpc::bind(args.routes_addr, "--routes-addr (CROFT_ROUTES_ADDR)").await?;
    let started = Started { routes_addr: listener.local_addr()? };
    tracing::info!(routes_addr = %started.routes_addr, "serving routes");
    let served = GrpcRoutes::new(Routes::server(Arc::clone(&table), freshness.clone(), tasks.stopping()));
    grpc::serve("routes", listener, Some(tls.server()), served, croft_proto::METHODS, tasks, &program.metrics)?;
    tasks.spawn_endless(
        "route-table",
        routes::follow(Arc::clone(&cluster), Arc::clone(&settings.tiers), table, known, tasks.stopping()),
    );

    let context = Arc::new(Context {
        cluster: Arc::clone(&cluster),
        client,
        writer,
        child_turns: Semaphore::new(CHILD_WRITES_MAX),
        settings,
        authority,
        keyring,
        events,
        front: Front::new(&args.front_url(), &tls, tokens)?,
        pass_max: args.pass_max(),
        clock: jiff::Timestamp::now,
        tenant_statuses: Recent::default(),
        session_statuses: Recent::default(),
        told: session::Told::default(),
        totals: Totals::default(),
        endings: Marks::new(),
    });
    tasks.spawn_endless("freshness", freshness.keep(fresh, args.routes_stale_after(), tasks.stopping()));
    tasks.spawn_vital("certificate", certificate.keep(|| jiff::Timestamp::now().as_second(), tasks.stopping()));
    let (args, stopping, for_passes) = (args.clone(), tasks.stopping(), tasks.clone());
    tasks.spawn_vital("leader", async move {
        // Whoever has the Lease keeps others out, so it is taken only by who can work at once.
        if stopping.run_until_cancelled(whole(&context)).await.is_none() {
            return Ok(());
        }
        let lead = || Box::pin(lead(context, &args, metrics, for_passes));
        args.election().run(lease_clients, fence, lead, stopping).await
    });
    Ok(started)
}

/// The kubeconfig that `KUBECONFIG` names, or that of the pod's service account.
pub async fn kube_config() -> anyhow::Result<KubeConfig> {
    KubeConfig::infer().await.context("cannot find the cluster: neither KUBECONFIG nor a service account leads to one")
}

/// The usual client tries a request again for minutes, in which its pass would keep others waiting. A pass that fails is
/// tried again anyway, and says so.
fn hasty(mut config: KubeConfig) -> kube::Result<Client> {
    config.default_retry = false;
    Client::try_from(config)
}

/// Waits until all that passes look at has been copied.
async fn whole(context: &Context) {
    tokio::join!(context.cluster.synced(), context.keyring.synced());
}

/// The work of the one replica that writes, until `tasks` stop; passes that have begun then end.
async fn lead(context: Arc<Context>, args: &Args, metrics: Metrics, tasks: Tasks) {
    let stopping = tasks.stopping();
    metrics.leader.set(1);
    let changes = &context.cluster.changes;
    changes.open();
    for tenant in context.cluster.tenants.state() {
        changes.stops.mark(tenant.name_any());
        changes.tenants.mark(tenant.name_any());
    }
    for session in context.cluster.sessions.state() {
        changes.sessions.mark(ObjectRef::from_obj(&*session));
    }
    let stops = stops(&context, &metrics, &tasks);
    let tenants = tenants(&context, args.limits(TENANT_RETRY_MAX), &metrics, &tasks);
    let sessions = sessions(&context, args.limits(SESSION_RETRY_MAX), &metrics, &tasks);
    let of = |context: &Arc<Context>| Arc::clone(context);
    let interval = Duration::from_millis(args.session_status_ms);
    let followed = session::follow::run(of(&context), interval, stopping.clone());
    let ended = session::endings::run(of(&context), stopping.clone());
    let interval = Duration::from_millis(args.tenant_totals_ms);
    let totalled = totals::run(of(&context), interval, stopping.clone());
    let certificate = stopping.run_until_cancelled(front_certificate::keep(of(&context)));
    let resumed = stopping.run_until_cancelled(tenant::resume_rollouts(of(&context)));
    tokio::join!(resumed, stops, tenants, sessions, followed, ended, totalled, certificate);
    metrics.leader.set(0);
}

/// Emergency stops, beside the passes.
fn stops(context: &Arc<Context>, metrics: &Metrics, tasks: &Tasks) -> impl Future<Output = ()> + use<> {
    let (for_passes, stopped) = (Arc::clone(context), Arc::clone(context));
    let source = Source {
        name: "stops",
        marks: context.cluster.changes.stops.clone(),
        find: Box::new(move |name: &String| stopped.cluster.tenant(name).filter(|tenant| tenant.spec.emergency_stop)),
        tenant: |name| name,
    };
    let pass = move |tenant| tenant::stop_in_emergency(tenant, Arc::clone(&for_passes));
    controller::run(source, pass, STOPS, metrics.clone(), tasks.clone(), tasks.stopping())
}

fn tenants(
    context: &Arc<Context>,
    limits: Limits,
    metrics: &Metrics,
    tasks: &Tasks,
) -> impl Future<Output = ()> + use<> {
    let (for_passes, all) = (Arc::clone(context), Arc::clone(context));
    let source = Source {
        name: "tenants",
        marks: context.cluster.changes.tenants.clone(),
        find: Box::new(move |name: &String| {
            let found = all.cluster.tenant(name);
            if found.is_none() {
                // Its last pass may have asked for a permit after it had gone.
                all.cluster.rollouts.settle(name);
            }
            found
        }),
        tenant: |name| name,
    };
    let pass = move |tenant| tenant::reconcile(tenant, Arc::clone(&for_passes));
    controller::run(source, pass, limits, metrics.clone(), tasks.clone(), tasks.stopping())
}

fn sessions(
    context: &Arc<Context>,
    limits: Limits,
    metrics: &Metrics,
    tasks: &Tasks,
) -> impl Future<Output = ()> + use<> {
    let (for_passes, declared) = (Arc::clone(context), Arc::clone(context));
    let source = Source {
        name: "sessions",
        marks: context.cluster.changes.sessions.clone(),
        find: Box::new(move |session: &ObjectRef<AgentSession>| declared.cluster.sessions.get(session)),
        tenant: |session| session.namespace.as_deref().unwrap_or_default(),
    };
    let pass = move |session| session::reconcile(session, Arc::clone(&for_passes));
    controller::run(source, pass, limits, metrics.clone(), tasks.clone(), tasks.stopping())
}
