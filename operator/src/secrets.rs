//! Which Secrets there are that may hold provider keys or credentials for registries, by version and without their contents: those of tenants'
//! namespaces and of the operator's own. A change wakes the tenants that it matters to.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use croft_crds::AgentTenant;
use croft_crds::tenant::ProviderSource;
use croft_serve::Tasks;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, key_of};
use crate::freshness::{Freshness, Purpose};
use crate::mirror;
use crate::tenant::{PLATFORM_KEYS, PULL_CREDENTIALS, Settings};

/// Neither holds a provider's key, and a cluster may have thousands.
const OTHERS: &str = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token";

/// What the operator copies into tenants' namespaces out of Secrets of its own.
const COPIES: [&str; 2] = [PLATFORM_KEYS, PULL_CREDENTIALS];

const TASK: &str = "watch-secret-versions";

/// A Secret's namespace and name.
pub(crate) type SecretId = (String, String);

/// The Secrets as the watch last told them.
pub struct Secrets {
    /// The operator's own namespace.
    namespace: String,
    known: RwLock<HashMap<SecretId, Known>>,
    whole: CancellationToken,
}

struct Known {
    version: String,
    /// Of a Secret that the operator itself makes.
    own: Option<Arc<PartialObjectMeta<Secret>>>,
}

impl Secrets {
    /// Starts the watch; it runs until shutdown.
    pub fn start(
        client: &Client,
        freshness: &Freshness,
        cluster: &Arc<Cluster>,
        settings: Settings,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let secrets = Arc::new(Self::new(&settings.namespace));
        let api: Api<PartialObjectMeta<Secret>> = Api::all(freshness.listen(client, TASK, Purpose::Passes));
        let events = watcher(api, watcher::Config::default().fields(OTHERS).timeout(mirror::SILENCE_MAX_SECONDS))
            .backoff(mirror::again());
        let (followed, cluster, stopping) = (Arc::clone(&secrets), Arc::clone(cluster), tasks.stopping());
        let follow = async move {
            let mut events = std::pin::pin!(events);
            let mut listed = HashSet::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        for id in followed.take(event, &mut listed) {
                            followed.tell(&id, &cluster, &settings);
                        }
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(kind = "Secret (metadata)", error, "watch broken");
                    }
                }
            }
        };
        tasks.spawn_endless(TASK, async move { stopping.run_until_cancelled(follow).await });
        secrets
    }

    fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), known: RwLock::default(), whole: CancellationToken::new() }
    }

    /// Waits until all are known.
    pub async fn synced(&self) {
        self.whole.cancelled().await;
    }

    /// The version of a Secret, if there is one of its name.
    pub(crate) fn version(&self, id: &SecretId) -> Option<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id).map(|known| known.version.clone())
    }

    /// A Secret of a tenant's that the operator makes, without its contents.
    pub(crate) fn own(&self, id: &SecretId) -> Option<Arc<PartialObjectMeta<Secret>>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id)?.own.clone()
    }

    /// The Secrets that are different now.
    fn take(&self, event: watcher::Event<PartialObjectMeta<Secret>>, listed: &mut HashSet<SecretId>) -> Vec<SecretId> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            watcher::Event::Init => {
                listed.clear();
                Vec::new()
            }
            watcher::Event::InitApply(secret) => {
                let id = id(&secret);
                if self.matters(&id) {
                    listed.insert(id.clone());
                }
                self.put(&mut known, id, secret)
            }
            watcher::Event::Apply(secret) => self.put(&mut known, id(&secret), secret),
            watcher::Event::Delete(secret) => {
                let id = id(&secret);
                known.remove(&id).map(|_| id).into_iter().collect()
            }
            watcher::Event::InitDone => {
                let gone: Vec<_> = known.keys().filter(|&id| !listed.contains(id)).cloned().collect();
                for id in &gone {
                    known.remove(id);
                }
                listed.clear();
                self.whole.cancel();
                gone
            }
        }
    }

    fn put(
        &self,
        known: &mut HashMap<SecretId, Known>,
        id: SecretId,
        mut secret: PartialObjectMeta<Secret>,
    ) -> Vec<SecretId> {
        if !self.matters(&id) {
            return Vec::new();
        }
        let version = secret.resource_version().unwrap_or_default();
        secret.managed_fields_mut().clear();
        let own = COPIES.contains(&id.1.as_str()).then(|| Arc::new(secret));
        let before = known.insert(id.clone(), Known { version: version.clone(), own });
        if before.is_some_and(|before| before.version == version) { Vec::new() } else { vec![id] }
    }

    fn matters(&self, (namespace, _): &SecretId) -> bool {
        *namespace == self.namespace || namespace.starts_with("tenant-")
    }

    fn tell(&self, id: &SecretId, cluster: &Cluster, settings: &Settings) {
        let (namespace, name) = id;
        if COPIES.contains(&name.as_str()) && self.version(id).is_none() {
            cluster.applied.forget(&key_of::<Secret>(namespace, name), None);
        }
        if *namespace == self.namespace {
            let (is_lent, pulls) = (settings.platform.lies_in(name), settings.worker_pull_secrets.contains(name));
            let concerns = |tenant: &AgentTenant| pulls || is_lent && borrows(tenant);
            for tenant in cluster.tenants.state().iter().filter(|tenant| concerns(tenant)) {
                cluster.changes.tenants.mark(tenant.name_any());
            }
        }
        let tenant = namespace.strip_prefix("tenant-").and_then(|tenant| cluster.tenant(tenant));
        if let Some(tenant) = tenant.filter(|tenant| refers_to(tenant, name)) {
            cluster.changes.tenants.mark(tenant.name_any());
        }
    }
}

fn id(secret: &PartialObjectMeta<Secret>) -> SecretId {
    (secret.namespace().unwrap_or_default(), secret.name_any())
}

/// Whether a tenant uses keys of the platform's.
fn borrows(tenant: &AgentTenant) -> bool {
    tenant.spec.llm.providers.iter().any(|provider| provider.source == ProviderSource::Platform)
}

fn refers_to(tenant: &AgentTenant, secret: &str) -> bool {
    let mut references = tenant.spec.llm.providers.iter().filter_map(|provider| provider.api_key_secret_ref.as_ref());
    COPIES.contains(&secret) || references.any(|reference| reference.name == secret)
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::*;

    fn secret(namespace: &str, name: &str, version: &str) -> PartialObjectMeta<Secret> {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        };
        PartialObjectMeta { metadata, ..PartialObjectMeta::default() }
    }

    #[test]
    fn only_what_differs_is_told_and_only_where_it_matters() {
        let secrets = Secrets::new("croft-test-system");
        let mut listed = HashSet::new();
        let mut feed = |event| secrets.take(event, &mut listed).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(feed(Init), [""; 0]);
        assert_eq!(feed(InitApply(secret("tenant-heron", "models", "1"))), ["models"]);
        assert_eq!(feed(InitApply(secret("tenant-heron", "other", "1"))), ["other"]);
        assert_eq!(feed(InitApply(secret("shop", "models", "1"))), [""; 0], "nobody's business");
        assert_eq!(feed(InitDone), [""; 0]);
        assert!(secrets.whole.is_cancelled());
        assert_eq!(feed(Apply(secret("tenant-heron", "models", "1"))), [""; 0], "the same again");
        assert_eq!(feed(Apply(secret("croft-test-system", "lent", "7"))), ["lent"]);
        assert_eq!(feed(Delete(secret("tenant-heron", "other", "8"))), ["other"]);
        assert_eq!(feed(Init), [""; 0]);
        assert_eq!(feed(InitApply(secret("croft-test-system", "lent", "7"))), [""; 0]);
        assert_eq!(feed(InitDone), ["models"], "it went while the watch was broken");
        assert_eq!(secrets.version(&("tenant-heron".into(), "models".into())), None);
        assert_eq!(secrets.version(&("croft-test-system".into(), "lent".into())).as_deref(), Some("7"));
    }
}
