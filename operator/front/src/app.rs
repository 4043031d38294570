//! Puts the front together: out of its stores, its relay and its tenants comes one [`Core`], and out of that the services on each port.

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state};
use croft_proto::v1::audit_service_server::AuditServiceServer;
use croft_proto::v1::budget_service_server::BudgetServiceServer;
use croft_proto::v1::lifecycle_service_server::LifecycleServiceServer;
use croft_proto::v1::model_registry_service_server::ModelRegistryServiceServer;
use croft_proto::v1::tenant_service_server::TenantServiceServer;
use croft_proto::v1::usage_service_server::UsageServiceServer;
use croft_proto::{DESCRIPTORS, METHODS};
use croft_serve::connections::Connections;
use croft_serve::grpc::RpcLayer;
use croft_serve::http::{self, Speaks};
use croft_serve::tls::TlsFiles;
use croft_serve::{Readiness, Tasks, health};
use tonic::service::Routes;

use crate::audit::writer::AuditWriter;
use crate::budget::keeper::{self, Keeper};
use crate::budget::webhook::Poster;
use crate::core::{Core, Options};
use crate::counters::Counters;
use crate::counters::guard::{self, Guarded};
use crate::deadline;
use crate::door::{self, Door};
use crate::events::fanout::Hub;
use crate::events::relay::Relay;
use crate::identity::Authenticator;
use crate::intake::{Intake, MESSAGE_BYTES_CEILING, anybody};
use crate::lifecycle::Lifecycle;
use crate::limits::Limiter;
use crate::metrics::Metrics;
use crate::models::registry::Registry;
use crate::reads::Reads;
use crate::routing::Router;
use crate::seats::Seats;
use crate::services::{Audit, Budgets, Models, Tenants as TenantsService, Usage};
use crate::session::open::OpenSessions;
use crate::session::{watch_for_sessions_due, watch_for_sessions_to_erase};
use crate::store::Stores;
use crate::tenants::Tenants;
use crate::turn::held::Held;
use crate::turn::{keep_leases, leave_turns_behind, watch_for_abandoned_turns};
use crate::unread::{self, Unread};
use crate::worker_client::WorkerPool;

/// What a front is made from.
pub struct Parts {
    /// Unique among the replicas that run.
    pub replica: String,
    pub stores: Stores,
    pub relay: Arc<dyn Relay>,
    /// What all replicas share; each is guarded against its being away.
    pub counters: Arc<dyn Counters>,
    pub tenants: Tenants,
    /// For calls to workers, and to know the operator by. `None` only in tests: then workers are called without TLS, and the
    /// internal door stays shut.
    pub tls: Option<TlsFiles>,
    pub options: Options,
}

/// Wires the parts, and starts what runs beside the calls: the audit writer, the registry's refresh, the watch for
/// abandoned turns, the end of sessions whose time is up, and of what is kept of them.
pub async fn assemble(parts: Parts, tasks: &Tasks, registry: &prometheus::Registry) -> anyhow::Result<Arc<Core>> {
    let Parts { replica, stores, relay, counters, tenants, tls, options } = parts;
    let metrics = Metrics::register(registry)?;
    let models = Registry::start(Arc::clone(&stores.models), tasks).await?;
    let authority = tls.as_ref().map(|tls| tls.ca.as_slice());
    let authenticator = Authenticator::new(Arc::clone(&stores.keys), tenants.clone(), authority)?;
    let guarded = Arc::new(Guarded::new(counters, options.replicas, guard::Metrics::register(registry)?));
    let (counters, stopping): (Arc<dyn Counters>, _) = (Arc::clone(&guarded) as _, tasks.stopping());
    tasks.spawn_endless("counters-watch", async move { guarded.watch(stopping).await });
    let (rates, provider_rates) = (options.rates, options.provider_rates.clone());
    let hub = Hub::new(relay, tasks, registry)?;
    let streams_max = options.streams_per_tenant_max;
    let limiter = Limiter::new(Arc::clone(&counters), tenants.clone(), rates, provider_rates, streams_max, registry)?;
    let budgets = keeper::Parts {
        store: Arc::clone(&stores.budgets),
        events: Arc::clone(&stores.events),
        counters,
        limiter: limiter.clone(),
        tenants: tenants.clone(),
        hub: hub.clone(),
        reservation_ttl: keeper::RESERVATION_TTL,
    };
    let core = Arc::new(Core {
        replica,
        hub,
        router: Router::new(tenants.clone()),
        workers: WorkerPool::new(tenants.clone(), tls.clone(), tasks),
        held: Held::default(),
        limiter,
        budgets: Keeper::start(budgets, tasks, registry)?,
        intake: Intake::default(),
        reads: Reads::default(),
        unread: Unread::start(unread::Options::default(), tasks, registry)?,
        seats: Seats::new(options.streams_per_tenant_max, options.streams_max),
        open_sessions: OpenSessions::default(),
        authenticator: authenticator.with_issuers(&options.identity, tasks, registry)?,
        audit: AuditWriter::start(Arc::clone(&stores.audit), options.audit_folder.as_ref(), metrics.clone(), tasks)
            .await?,
        models,
        stores,
        tenants,
        metrics,
        tasks: tasks.clone(),
        options,
    });
    if let Some(hook) = core.options.hook.clone() {
        let poster = Poster::new(Arc::clone(&core.stores.budgets), hook, registry)?;
        tasks.spawn_endless("alert-hooks", poster.run(tasks.clone()));
    }
    tasks.spawn_last("lease-heartbeat", keep_leases(Arc::clone(&core)));
    tasks.spawn_last("turns-left", leave_turns_behind(Arc::clone(&core)));
    tasks.spawn_endless("turn-takeover", watch_for_abandoned_turns(Arc::clone(&core)));
    tasks.spawn_endless("session-reaper", watch_for_sessions_due(Arc::clone(&core)));
    tasks.spawn_endless("session-retention", watch_for_sessions_to_erase(Arc::clone(&core)));
    Ok(core)
}

/// The services on the clients' port.
pub async fn public_routes(core: &Arc<Core>, readiness: &Readiness, reflection: bool) -> anyhow::Result<Routes> {
    let lifecycle = Lifecycle::new(Arc::clone(core), Door::Public);
    let mut routes = Routes::new(health::service(readiness, &core.tasks, &["croft.v1.LifecycleService"]).await)
        .add_service(LifecycleServiceServer::new(lifecycle).max_decoding_message_size(MESSAGE_BYTES_CEILING))
        .add_service(UsageServiceServer::new(Usage::new(Arc::clone(core))))
        .add_service(ModelRegistryServiceServer::new(Models::new(Arc::clone(core))))
        .add_service(BudgetServiceServer::new(Budgets::new(Arc::clone(core))))
        .add_service(AuditServiceServer::new(Audit::new(Arc::clone(core))));
    if reflection {
        let reflection =
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
        routes = routes.add_service(reflection.build_v1()?.max_decoding_message_size(anybody::BYTES_MAX));
    }
    let guarded = from_fn_with_state(Arc::clone(core), door::guard);
    Ok(Routes::from(routes.into_axum_router().route_layer(guarded)))
}

/// Serves the calls of clients, in a vital task.
pub fn serve_public(connections: Connections, core: &Core, routes: Routes) {
    let routes = core.unread.layered(routes.into_axum_router());
    http::serve("grpc", connections, Speaks::Http2, routes, &core.tasks);
}

/// Services for a server that sees to no calls itself: each is traced and counted as it is at the clients' port.
pub fn seen(routes: Routes, metrics: &croft_serve::Metrics) -> Routes {
    Routes::from(routes.into_axum_router().layer(from_fn(deadline::kept)).layer(RpcLayer::new(metrics, METHODS)))
}

/// The services on the operator's port.
pub async fn internal_routes(core: &Arc<Core>, readiness: &Readiness) -> Routes {
    let lifecycle = Lifecycle::new(Arc::clone(core), Door::Internal);
    Routes::new(health::service(readiness, &core.tasks, &["croft.v1.LifecycleService"]).await)
        .add_service(LifecycleServiceServer::new(lifecycle).max_decoding_message_size(MESSAGE_BYTES_CEILING))
        .add_service(TenantServiceServer::new(TenantsService::new(Arc::clone(core))))
}
