//! Reconciles [`AgentTenant`]: from a spec to a fenced namespace with workers, one builder a child.

mod apply;
mod bounds;
mod deletion;
mod disruption_budget;
mod ensure;
mod exchange;
mod fence;
mod finalizer;
#[cfg(test)]
pub(crate) mod fixtures;
mod health;
mod limit_range;
mod mounts;
mod namespace;
mod observe;
mod owners;
mod part;
mod platform;
mod platform_keys;
mod providers;
mod pull_credentials;
mod quota;
pub(crate) mod reason;
mod report;
mod service_account;
#[cfg(test)]
mod snapshots;
mod spending;
mod status;
mod stop;
mod surroundings;
mod tier;
pub(crate) mod tls;
mod upkeep;
mod wanted;
mod workers;
mod workers_service;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use croft_crds::AgentTenant;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Namespace, ResourceQuota, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt as _;
use tokio::time::Instant;

pub(crate) use bounds::{budget, limits, session_defaults, sessions_per_worker};
pub(crate) use deletion::is_going;
pub(crate) use exchange::resume as resume_rollouts;
pub(crate) use health::workers_problem;
pub use platform::PlatformProviders;
pub(crate) use platform_keys::NAME as PLATFORM_KEYS;
pub(crate) use providers::{NAME as PROVIDERS, names as provider_names};
pub(crate) use pull_credentials::NAME as PULL_CREDENTIALS;
pub(crate) use spending::reads_differently;
pub use surroundings::Surroundings;
pub use tier::Tiers;
pub use wanted::Settings;
pub(crate) use workers::{GRPC_PORT, NAME as WORKERS};

use crate::authority::{self, Authority};
use crate::certificate::{Issued, Subject};
use crate::context::Context;
use crate::controller::{Action, PassError, Retry};
use crate::mirror::is_in_part;
use observe::Observed;
use part::{Failure, Part};
use platform_keys::PlatformKeys;
use pull_credentials::PullCredentials;
use upkeep::KeptUp;
use wanted::Wanted;

/// Looks again at a tenant that nothing happened to; its certificate may have to be renewed.
const RESYNC: Duration = Duration::from_mins(10);
/// For what no watch tells us of.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// While the copy of the workers' Deployment is from before our write of it: the watch's word of that write alone wakes nobody.
const CAUGHT_UP: Duration = Duration::from_secs(1);

/// How long all else of a tenant waits for workers that shall not run to be stopped.
const STOPPED_SOON: Duration = Duration::from_secs(3);

/// Why a pass could not do all of its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {what}")]
    Read { what: String, source: kube::Error },
    #[error("cannot apply {kind} {name}")]
    Apply { kind: String, name: String, source: kube::Error },
    #[error("cannot delete {kind} {name}")]
    Delete { kind: String, name: String, source: kube::Error },
    #[error("namespace {name} exists and belongs to someone else")]
    NamespaceTaken { name: String },
    #[error("namespace {name} is being deleted; it is made again when it is gone")]
    NamespaceEnding { name: String },
    #[error("spec.{field} is not usable: {problem}")]
    Spec { field: &'static str, problem: String },
    #[error("cannot make the workers' certificate")]
    Certificate(#[from] authority::Error),
    #[error("cannot write the status")]
    Status(#[source] kube::Error),
    #[error("the pass took longer than {} ms: something that it waited for does not answer in time", .max.as_millis())]
    DeadlineExceeded { max: Duration },
}

impl PassError for Error {
    fn reason(&self) -> &'static str {
        match self {
            Self::Read { source, .. } | Self::Apply { source, .. } | Self::Delete { source, .. } => {
                reason::of_api_error(source)
            }
            Self::NamespaceTaken { .. } => "NamespaceTaken",
            Self::NamespaceEnding { .. } => "NamespaceEnding",
            Self::Spec { .. } => "SpecNotUsable",
            Self::Certificate(_) => "CertificateFailed",
            Self::Status(_) => "StatusFailed",
            Self::DeadlineExceeded { .. } => "DeadlineExceeded",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Read { .. }
            | Self::Apply { .. }
            | Self::Delete { .. }
            | Self::Certificate(_)
            | Self::Status(_)
            | Self::DeadlineExceeded { .. } => Retry::Backoff,
            // A foreign namespace is not watched, nor is one that has lost our labels.
            Self::NamespaceTaken { .. } | Self::NamespaceEnding { .. } => Retry::After(LOOK_AGAIN),
            // The edit that mends it wakes us, but not the time at which a certificate must be renewed.
            Self::Spec { .. } => Retry::After(RESYNC),
        }
    }
}

/// Brings one tenant one step closer to its spec. Safe to repeat, safe to interrupt.
pub async fn reconcile(tenant: Arc<AgentTenant>, context: Arc<Context>) -> Result<Action, Error> {
    // Nothing may be made by half a spec. Its emergency stop is no part of this.
    if is_in_part(&*tenant) {
        context.cluster.rollouts.settle(&tenant.name_any());
        return Ok(Action::await_change());
    }
    let ends = Instant::now() + context.pass_max;
    // While its deletion is prevented a tenant is kept up as any other.
    if is_going(&tenant, &report::current(&tenant, &context)) {
        context.cluster.rollouts.settle(&tenant.name_any());
        let stopped = in_time(ends, stop::stop(&tenant, &context), &context).await;
        let action = deletion::step(&tenant, &context).await?;
        return stopped.map(|()| action).map_err(|failure| failure.error);
    }
    let (mut observed, mut kept_up) = (None, KeptUp::new());
    let stopped = Box::pin(stop_or_keep_up(ends, &tenant, &mut kept_up, &context)).await;
    let pass = async {
        stopped?;
        let observed = observed.insert(observe::observe(&tenant, &context).await?);
        match plan(&tenant, observed, &context) {
            Ok(plan) => {
                let (children, workers) = Box::pin(exchange::in_turn(&tenant, plan, observed, &context)).await?;
                Box::pin(apply::apply(&tenant, children, workers, observed, ends, &context)).await
            }
            Err(unusable @ Error::Spec { .. }) => {
                kept_up = Box::pin(upkeep::keep_up(ends, &tenant, observed, &context)).await;
                Err(unusable.into())
            }
            Err(error) => Err(error.into()),
        }
    };
    let outcome: Result<(), Failure> = in_time(ends, Box::pin(pass), &context).await;
    let waits = observed.as_ref().is_some_and(|observed| observed.waiting.is_some());
    // Whoever waits keeps its place whatever part of it fails: with a permit, such a pass may well come to its workers.
    if outcome.is_err() && !waits {
        exchange::give_up(&tenant, &context);
    }
    let told = report::Pass { outcome: outcome.as_ref().copied(), observed: observed.as_ref(), kept_up: &kept_up };
    let reported = report::report(&tenant, told, &context).await;
    // Tried again sooner than what only an edit can mend.
    kept_up.into_values().collect::<Result<(), Error>>()?;
    if let Err(Failure { error, .. }) = outcome {
        // Before an error that is looked at again much later a status must be told of it that says something else.
        return Err(if error.retry() == Retry::Backoff { error } else { reported.err().unwrap_or(error) });
    }
    let is_outdated = reported?;
    let counted = bounds::quota(&tenant, &context.settings.tiers).agent_sessions.is_some();
    let countable_in = quota::countable_in(&tenant, context.now()).filter(|_| counted).unwrap_or(RESYNC);
    Ok(Action::requeue(if is_outdated { CAUGHT_UP } else { countable_in.min(RESYNC) }))
}

/// Stops the workers that shall not run. Where that fails, or takes its time, it must not keep rights with owners who shall have them no
/// more.
async fn stop_or_keep_up(
    ends: Instant,
    tenant: &AgentTenant,
    kept_up: &mut KeptUp,
    context: &Context,
) -> Result<(), Failure> {
    let mut stopped = pin!(in_time(ends, stop::stop(tenant, context), context));
    let in_time = tokio::time::timeout(STOPPED_SOON, &mut stopped).await;
    if let Ok(Ok(())) = in_time {
        return Ok(());
    }
    let stopped = async {
        match in_time {
            Ok(stopped) => stopped,
            Err(_) => stopped.await,
        }
    };
    let (stopped, owners) = tokio::join!(stopped, upkeep::keep_owners_up(ends, tenant, context));
    if stopped.is_err() {
        kept_up.extend(owners.map(|owners| (Part::Owners, owners)));
    }
    stopped
}

/// Stops the workers of a tenant with `spec.emergencyStop`, beside the passes, which find it done or do the same. Says nothing of it: that
/// is for the pass.
pub async fn stop_in_emergency(tenant: Arc<AgentTenant>, context: Arc<Context>) -> Result<Action, Error> {
    // It may be over since somebody asked for it.
    let stopped = if tenant.spec.emergency_stop { stop::stop(&tenant, &context).await } else { Ok(()) };
    // What was written after its end wakes no pass, being our own.
    if stop::is_over(&tenant, &context) {
        context.cluster.changes.tenants.mark(tenant.name_any());
    }
    stopped.map_err(|failure| failure.error)?;
    Ok(Action::await_change())
}

/// Gives `work` up at `ends`: a pass that its controller ends could say nothing of it, and the status would stay as it was.
async fn in_time<T, E: From<Error>>(
    ends: Instant,
    work: impl Future<Output = Result<T, E>>,
    context: &Context,
) -> Result<T, E> {
    let late = |_| Error::DeadlineExceeded { max: context.pass_max };
    tokio::time::timeout_at(ends, work).await.map_err(late)?
}

/// All that is made for a tenant, the workers aside.
struct Children {
    namespace: Namespace,
    fence: NetworkPolicy,
    quota: ResourceQuota,
    limit_range: LimitRange,
    service_account: ServiceAccount,
    owner_role: Option<Role>,
    owner_binding: Option<RoleBinding>,
    providers: ConfigMap,
    platform_keys: Option<PlatformKeys>,
    pull_credentials: Option<PullCredentials>,
    tls: Secret,
    workers_service: Service,
    disruption_budget: PodDisruptionBudget,
}

/// All that is made for a tenant, and by what.
struct Plan {
    children: Children,
    workers: Deployment,
    wanted: Wanted,
    issued: Issued,
}

fn plan(tenant: &AgentTenant, observed: &Observed, context: &Context) -> Result<Plan, Error> {
    let mut wanted = Wanted::parse(tenant, &observed.keys, &context.settings)?;
    if quota::countable_in(tenant, context.now()).is_some() {
        wanted.quota.agent_sessions = None;
    }
    wanted.workers.surges &= !observed.must_make_room;
    let issued = certificate(&wanted, observed, &context.authority, context.now())?;
    let children = Children {
        namespace: namespace::namespace(&wanted),
        fence: fence::fence(&wanted),
        quota: quota::quota(&wanted),
        limit_range: limit_range::limit_range(&wanted),
        service_account: service_account::service_account(&wanted),
        owner_role: owners::role(&wanted),
        owner_binding: owners::role_binding(&wanted),
        providers: providers::providers(&wanted),
        platform_keys: platform_keys::platform_keys(&wanted),
        pull_credentials: pull_credentials::pull_credentials(&wanted, &observed.pull_sources),
        tls: tls::tls(&wanted, &context.authority, &issued),
        workers_service: workers_service::workers_service(&wanted),
        disruption_budget: disruption_budget::disruption_budget(&wanted),
    };
    Ok(Plan { children, workers: workers::workers(&wanted, &issued), wanted, issued })
}

/// The certificate that is there while it holds, else a new one.
fn certificate(
    wanted: &Wanted,
    observed: &Observed,
    authority: &Authority,
    now: i64,
) -> Result<Issued, authority::Error> {
    let subject = Subject::workers(&wanted.name, &wanted.namespace);
    match observed.tls.as_deref().and_then(|secret| tls::holding(secret, &subject, authority, now)) {
        Some(issued) => Ok(issued),
        None => subject.issue(authority, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing else would wake a tenant whose spec nobody mends when its certificate must be renewed.
    #[test]
    fn a_tenant_with_an_unusable_spec_is_looked_at_again() {
        let unusable = Error::Spec { field: "egress.allow", problem: "it is not".to_owned() };
        assert_eq!(unusable.retry(), Retry::After(RESYNC));
    }
}
