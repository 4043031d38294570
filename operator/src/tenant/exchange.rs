//! When a tenant's workers are exchanged for others. At once where the tenant's own doing asks for it: an edit of its spec that is about
//! them, and a key of its own that came. With a permit of [`crate::rollouts`] where it is the platform's doing, as another image is: one
//! that fails at its start must not take the workers of all tenants.
//!
//! Workers that wait for a permit run on as they are: template and file of providers stay together, since new pods of the old template read
//! that file too. All else of them is kept up. Another certificate restarts them, and so does a key that was taken back, which goes from the
//! file at once and comes back with the key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use croft_crds::tenant::{AgentTenantSpec, WorkersSpec};
use croft_crds::{AgentTenant, AgentTenantStatus, labels};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::mounts::Mounts;
use super::observe::{self, Observed};
use super::status::WORKERS_READY;
use super::wanted::{Provider, Wanted};
use super::{Children, Error, Plan, ensure, health, providers, report, workers};
use crate::certificate::Issued;
use crate::cluster::{CHILDREN, is_owned, key_of};
use crate::context::Context;
use crate::drift;

/// Workers that are read at a time when a leader begins.
const PAGE: u32 = 50;
/// Between two tries to read them.
const PAUSE: Duration = Duration::from_secs(2);

/// What is done about a tenant's workers.
pub(super) enum Exchange {
    /// They are made what this is.
    Now(Box<Deployment>),
    /// They wait.
    Waits(Held),
}

/// Workers that keep their template for now.
pub(super) struct Held {
    live: Arc<Deployment>,
    /// All that is wanted of them but the template.
    rest: Value,
}

impl Held {
    /// Puts right what is not as it shall be, the template aside.
    pub(super) async fn keep_up(mut self, context: &Context) -> Result<(), Error> {
        if drift::covers(&*self.live, &self.rest) {
            return Ok(());
        }
        self.rest["metadata"]["uid"] = json!(self.live.uid());
        let namespace = self.live.namespace();
        let written = context.writer.merge::<Deployment>(namespace.as_deref(), workers::NAME, &self.rest).await;
        let written = written.map_err(ensure::failed::<Deployment>(workers::NAME))?;
        // As nobody wants it in the end: all of it is applied when its turn comes.
        let noted = format!("held {}", drift::hash(&self.rest));
        ensure::remember(&*self.live, &written, noted, context);
        Ok(())
    }
}

/// Decides whether the workers are exchanged now, and notes in `observed` if they wait.
pub(super) async fn in_turn(
    tenant: &AgentTenant,
    plan: Plan,
    observed: &mut Observed,
    context: &Context,
) -> Result<(Children, Exchange), Error> {
    let Plan { mut children, workers, wanted, issued } = plan;
    let (name, namespace, rollouts) = (tenant.name_any(), tenant.namespace_name(), &context.cluster.rollouts);
    let (template, spec) = (template_hash(&wanted), spec_hash(tenant));
    let now = |children, has_permit| {
        Ok((children, Exchange::Now(Box::new(marked(workers.clone(), &template, &spec, has_permit)))))
    };
    let live = context.cluster.get::<Deployment>(Some(&namespace), workers::NAME);
    let runs = |live: &Arc<Deployment>| {
        is_owned(&**live, tenant) && live.spec.as_ref().and_then(|spec| spec.replicas) != Some(0)
    };
    let Some(live) = live.filter(|live| wanted.workers.replicas > 0 && runs(live)) else {
        // Nobody's work is at stake.
        rollouts.settle(&name);
        return now(children, false);
    };
    if is_of(&live, &template, &workers) {
        let has_permit = has_permit(&live);
        judge(&name, &live, context);
        // Without the mark once they are exchanged: what restarts them later needed no permit.
        return now(children, has_permit);
    }
    let file = observe::latest::<ConfigMap>(&namespace, providers::NAME, context).await?;
    let file = file.filter(|file| is_owned(&**file, tenant));
    let has_permit_already = || rollouts.holder(&name).is_some_and(|holder| holder.was_served);
    let is_edited = is_edited(tenant, &report::current(tenant, context))
        && live.annotations().get(labels::SPEC_HASH) != Some(&spec);
    if is_edited || rollouts.is_owed(&name) || has_new_key(file.as_deref(), &wanted) {
        rollouts.owe(&name);
        return now(children, has_permit_already());
    }
    // The copy may be from before our last write, to which nobody wants to go back, or of what went with an older namespace.
    let live = if context.cluster.is_from_before::<Deployment>(Some(&namespace), workers::NAME) {
        observe::read::<Deployment>(&namespace, workers::NAME, context).await?
    } else {
        observe::latest::<Deployment>(&namespace, workers::NAME, context).await?
    };
    let Some(live) = live.filter(runs) else { return now(children, false) };
    if is_of(&live, &template, &workers) {
        return now(children, has_permit(&live));
    }
    let (tenants, percent) = (context.cluster.tenants.len(), context.settings.worker_rollouts_percent);
    match rollouts.ask(&name, health::is_served(&live), tenants, percent) {
        Ok(holder) => now(children, holder.was_served),
        Err(waiting) => {
            let kept = file.as_deref().and_then(|file| kept_text(file, &live, &wanted, &issued));
            if kept.is_none() && has_lost_key(file.as_deref(), &wanted) {
                // What was taken back must not stay with them, and nobody knows what they read.
                rollouts.owe(&name);
                return now(children, has_permit_already());
            }
            observed.waiting = Some(waiting);
            let config_hash = kept.as_deref().map(|text| workers::config_hash(text, &issued));
            if let Some(text) = kept {
                children.providers = providers::config_map(&wanted, text);
            }
            let rest = rest_of(&workers, config_hash.as_deref());
            Ok((children, Exchange::Waits(Held { live, rest })))
        }
    }
}

/// Of a tenant whose pass could not go on, nothing waits for a permit, and it keeps one only while its workers are being exchanged.
pub(super) fn give_up(tenant: &AgentTenant, context: &Context) {
    let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
    let live = context.cluster.get::<Deployment>(Some(&namespace), workers::NAME);
    let version = context.cluster.version::<Deployment>(Some(&namespace), workers::NAME);
    let key = key_of::<Deployment>(&namespace, workers::NAME);
    let is_outdated = context.cluster.applied.newer_than(&key, version.as_deref()).is_some();
    context.cluster.rollouts.give_up(&name);
    if let Some(live) = live.filter(|_| !is_outdated && context.cluster.rollouts.holder(&name).is_some()) {
        judge(&name, &live, context);
    }
}

/// Finds the exchanges that a leader before has begun, by what the API server has; only then are further ones begun.
pub(crate) async fn resume(context: Arc<Context>) {
    loop {
        match under_way(&context).await {
            Ok(under_way) => return context.cluster.rollouts.open(under_way),
            Err(error) => tracing::warn!(%error, "cannot find which workers are being exchanged"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn under_way(context: &Context) -> kube::Result<Vec<String>> {
    let all: Api<Deployment> = Api::all(context.client.clone());
    let (mut page, mut found) = (ListParams::default().labels(CHILDREN).limit(PAGE), Vec::new());
    loop {
        let listed = all.list(&page).await?;
        let names = listed.items.iter().filter_map(|live| Some((live, live.labels().get(labels::TENANT)?)));
        let exchanged = names.filter(|(live, name)| {
            context.cluster.tenant(name).is_some_and(|tenant| are_exchanged_with_permit(live, &tenant))
        });
        found.extend(exchanged.map(|(_, name)| name.clone()));
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// Whether these are the tenant's workers, and are being exchanged with a permit. Anyone may make something that has their labels.
fn are_exchanged_with_permit(live: &Deployment, tenant: &AgentTenant) -> bool {
    live.name_any() == workers::NAME && is_owned(live, tenant) && has_permit(live)
}

/// Whether a tenant whose workers are of the wanted template keeps a permit. One that was not served before keeps it for as long as they may
/// take: they fail by something that was there before.
fn judge(name: &str, live: &Deployment, context: &Context) {
    let rollouts = &context.cluster.rollouts;
    match rollouts.holder(name) {
        _ if health::is_exchanged(live) => rollouts.end(name),
        Some(holder) if !holder.was_served && health::is_stalled(live) => rollouts.settle(name),
        Some(_) => {}
        None if has_permit(live) => rollouts.note_under_way(name),
        None => rollouts.settle(name),
    }
}

/// Of the template, without what the tenant's keys and its certificate make of it: these change by themselves.
fn template_hash(wanted: &Wanted) -> String {
    let mut plain = wanted.clone();
    plain.providers.retain(is_lent);
    let nobody = Issued { cert: String::new(), key: String::new() };
    drift::hash(&workers::workers(&plain, &nobody).spec.map(|spec| spec.template))
}

fn is_lent(provider: &Provider) -> bool {
    provider.key.as_ref().is_some_and(|key| key.lent_from.is_some())
}

/// Of what the tenant itself says of its workers' template and of the file that they read, whatever the platform makes of it. Their number is
/// no part of it, nor is what other parts of the tenant are made of.
fn spec_hash(tenant: &AgentTenant) -> String {
    let AgentTenantSpec { tier, workers, llm, mcp_servers, .. } = &tenant.spec;
    drift::hash(&(tier, WorkersSpec { replicas: None, ..workers.clone() }, llm, mcp_servers))
}

fn marked(mut workers: Deployment, template: &str, spec: &str, has_permit: bool) -> Deployment {
    let annotations = workers.annotations_mut();
    annotations.insert(labels::TEMPLATE_HASH.to_owned(), template.to_owned());
    annotations.insert(labels::SPEC_HASH.to_owned(), spec.to_owned());
    if has_permit {
        annotations.insert(labels::ROLLOUT_PERMIT.to_owned(), "true".to_owned());
    }
    workers
}

/// Whether the workers are being exchanged with a permit.
fn has_permit(live: &Deployment) -> bool {
    live.annotations().contains_key(labels::ROLLOUT_PERMIT) && !health::is_exchanged(live)
}

/// Whether the template is the wanted one. Of workers that an earlier release made, their template itself tells.
fn is_of(live: &Deployment, template: &str, workers: &Deployment) -> bool {
    let of = |deployment: &Deployment| deployment.spec.as_ref().map(|spec| spec.template.clone());
    match live.annotations().get(labels::TEMPLATE_HASH) {
        Some(hash) => hash == template,
        None => drift::covers(&of(live), &of(workers)),
    }
}

/// Whether the tenant's spec was edited since a pass last came past its workers.
fn is_edited(tenant: &AgentTenant, status: &AgentTenantStatus) -> bool {
    let told = status.conditions.iter().find(|condition| condition.type_ == WORKERS_READY);
    told.is_none_or(|told| told.observed_generation != tenant.metadata.generation)
}

/// Whether there is a key of the tenant's own that the workers don't have.
fn has_new_key(file: Option<&ConfigMap>, wanted: &Wanted) -> bool {
    let Some((_, file)) = file.and_then(providers::read) else { return false };
    let is_there = |provider: &Provider| file.providers.contains_key(provider.name.as_str());
    wanted.providers.iter().any(|provider| !is_lent(provider) && !is_there(provider))
}

/// Whether the workers have a key, whoever's, that they shall have no more.
fn has_lost_key(file: Option<&ConfigMap>, wanted: &Wanted) -> bool {
    file.and_then(providers::read).is_some_and(|(_, file)| !file.providers.keys().all(|name| is_wanted(name, wanted)))
}

fn is_wanted(name: &str, wanted: &Wanted) -> bool {
    wanted.providers.iter().any(|provider| provider.name.as_str() == name)
}

/// The file's text, if it is what the workers go by: neither edited by hand nor left by something else. Without what was taken back, and again
/// with what was and is there once more, as far as their template has its key.
fn kept_text(file: &ConfigMap, live: &Deployment, wanted: &Wanted, issued: &Issued) -> Option<String> {
    let (text, mut read) = providers::read(file)?;
    let template = live.spec.as_ref()?.template.metadata.as_ref()?;
    let is_theirs = || template.annotations.as_ref()?.get(labels::CONFIG_HASH);
    let is_applied = || file.annotations().get(labels::APPLIED_HASH);
    let applied = drift::hash(&providers::config_map(wanted, text.to_owned()));
    let is_kept = is_theirs() == Some(&workers::config_hash(text, issued)) || is_applied() == Some(&applied);
    let (before, mounts) = (read.providers.len(), Mounts::of(live));
    read.providers.retain(|name, _| is_wanted(name, wanted));
    let is_changed = read.providers.len() < before;
    let lacking = |provider: &&Provider| !read.providers.contains_key(provider.name.as_str());
    let back: Vec<_> = wanted.providers.iter().filter(lacking).filter(|provider| mounts.have_key(provider)).collect();
    if !is_changed && back.is_empty() {
        return is_kept.then(|| text.to_owned());
    }
    read.providers.extend(back.into_iter().map(|one| (one.name.as_str().to_owned(), providers::Entry::of(one))));
    is_kept.then(|| read.text())
}

/// All of the workers but their template, of which nothing but the hash of what they read at their start may change.
fn rest_of(workers: &Deployment, config_hash: Option<&str>) -> Value {
    let mut rest = serde_json::to_value(workers).expect("an object of Kubernetes is plain data");
    if let Some(spec) = rest["spec"].as_object_mut() {
        spec.remove("template");
        // It never changes.
        spec.remove("selector");
        if let Some(hash) = config_hash {
            let annotations = BTreeMap::from([(labels::CONFIG_HASH, hash)]);
            spec.insert("template".to_owned(), json!({ "metadata": { "annotations": annotations } }));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;
    use crate::tenant::wanted::{Key, Keys, Settings};

    fn issued(cert: &str) -> Issued {
        Issued { cert: cert.to_owned(), key: "the key".to_owned() }
    }

    fn wanted(tenant: &AgentTenant, settings: &Settings) -> Wanted {
        Wanted::parse(tenant, &fixtures::keys_of(tenant), settings).unwrap()
    }

    #[test]
    fn the_platforms_settings_change_the_template_and_keys_and_certificates_do_not() {
        let (tenant, settings) = (fixtures::full(), fixtures::settings());
        let before = template_hash(&wanted(&tenant, &settings));
        let keyless = Wanted::parse(&tenant, &Keys::new(), &settings).unwrap();
        assert_eq!(before, template_hash(&keyless));
        let other_image = Settings { worker_image: "croft/worker:2".to_owned(), ..settings.clone() };
        assert_eq!(before, template_hash(&wanted(&tenant, &other_image)), "it has an image of its own");
        let log = Settings { worker_log: Some("trace".to_owned()), ..settings.clone() };
        assert_ne!(before, template_hash(&wanted(&tenant, &log)));
        let minimal = fixtures::minimal();
        assert_ne!(template_hash(&wanted(&minimal, &settings)), template_hash(&wanted(&minimal, &other_image)),);
    }

    #[test]
    fn a_lent_key_that_comes_is_the_platforms_doing_and_one_that_goes_or_the_tenants_own_is_not() {
        let own = fixtures::full();
        let mut lent = fixtures::minimal();
        let provider = json!({ "name": "anthropic", "source": "Platform" });
        lent.spec.llm.providers = vec![serde_json::from_value(provider).unwrap()];
        let settings = fixtures::settings();
        let none = |tenant: &AgentTenant| Wanted::parse(tenant, &Keys::new(), &settings).unwrap();
        let all = |tenant: &AgentTenant| {
            let there =
                |provider: &croft_crds::tenant::ProviderSpec| (provider.name, Key::There(fixtures::fingerprint("17")));
            Wanted::parse(tenant, &tenant.spec.llm.providers.iter().map(there).collect(), &settings).unwrap()
        };
        for (tenant, comes) in [(&own, true), (&lent, false)] {
            let [without, with] = [none(tenant), all(tenant)].map(|wanted| providers::providers(&wanted));
            let of = |file, wanted: &Wanted| [has_new_key(Some(file), wanted), has_lost_key(Some(file), wanted)];
            assert_eq!(of(&without, &all(tenant)), [comes, false]);
            assert_eq!(of(&with, &none(tenant)), [false, true]);
            assert_eq!(of(&with, &all(tenant)), [false, false]);
            // Of what went nothing stays with workers that wait: they start anew without it, and with all else that they had.
            let live = workers::workers(&all(tenant), &issued("one"));
            let kept = kept_text(&with, &live, &none(tenant), &issued("one"));
            assert_eq!(kept, Some(providers::file(&none(tenant)).text()));
            let live = workers::workers(&none(tenant), &issued("one"));
            assert_eq!(kept_text(&without, &live, &all(tenant), &issued("one")), kept, "its template has no such key");
            let mut live = workers::workers(&all(tenant), &issued("one"));
            let hash = workers::config_hash(kept.as_deref().unwrap(), &issued("one"));
            let template = live.spec.as_mut().unwrap().template.metadata.as_mut().unwrap();
            template.annotations = Some(BTreeMap::from([(labels::CONFIG_HASH.to_owned(), hash)]));
            let back = kept_text(&without, &live, &all(tenant), &issued("one"));
            assert_eq!(back, Some(providers::file(&all(tenant)).text()), "the key is there again");
        }
        assert_ne!(template_hash(&none(&lent)), template_hash(&all(&lent)));
    }

    /// Once, whoever was cordoned or given another budget while it waited got the template that fails elsewhere.
    #[test]
    fn an_edit_that_is_not_about_the_workers_is_no_reason_to_exchange_them() {
        let tenant = fixtures::full();
        let changes = |edit: Value| {
            let mut edited = serde_json::to_value(&tenant).unwrap();
            for (part, fields) in edit.as_object().unwrap() {
                match edited["spec"].get_mut(part).and_then(Value::as_object_mut) {
                    Some(spec) => spec.extend(fields.as_object().unwrap().clone()),
                    None => edited["spec"][part] = fields.clone(),
                }
            }
            let edited = serde_json::from_value::<AgentTenant>(edited).unwrap();
            assert_ne!(edited.spec, tenant.spec);
            spec_hash(&edited) != spec_hash(&tenant)
        };
        for edit in [
            json!({ "cordon": false }),
            json!({ "preventDeletion": true }),
            json!({ "budget": { "monthlyTokens": 7 } }),
            json!({ "limits": { "maxSessions": 7 } }),
            json!({ "owners": [] }),
            json!({ "workers": { "replicas": 17 } }),
        ] {
            assert!(!changes(edit.clone()), "{edit}");
        }
        for edit in [
            json!({ "tier": "free" }),
            json!({ "workers": { "sessionsPerWorker": 17 } }),
            json!({ "workers": { "image": "croft/worker:17" } }),
            json!({ "llm": { "providers": [] } }),
            json!({ "mcpServers": [] }),
        ] {
            assert!(changes(edit.clone()), "{edit}");
        }
    }

    /// Once, the mark stayed, so that a later restart of any cause held a permit, and names that anyone gave held some for ever.
    #[test]
    fn a_permit_ends_with_its_exchange_and_is_a_tenants_own() {
        let tenant = fixtures::minimal();
        let template = wanted(&tenant, &fixtures::settings());
        let workers = workers::workers(&template, &issued("one"));
        let of = |has_permit: bool, updated: i32| {
            let mut live = marked(workers.clone(), "a template", "a spec", has_permit);
            live.metadata.generation = Some(7);
            live.status = serde_json::from_value(json!({
                "observedGeneration": 7, "replicas": 2, "updatedReplicas": updated, "availableReplicas": 2,
            }))
            .unwrap();
            live
        };
        assert_eq!(
            [(true, 1), (true, 2), (false, 1)].map(|(marked, of_it)| has_permit(&of(marked, of_it))),
            [true, false, false]
        );
        let live = of(true, 1);
        assert!(are_exchanged_with_permit(&live, &tenant) && !are_exchanged_with_permit(&of(true, 2), &tenant));
        assert!(!are_exchanged_with_permit(&live, &fixtures::full()), "of another owner");
        let mut other = live.clone();
        other.metadata.name = Some("others".to_owned());
        assert!(!are_exchanged_with_permit(&other, &tenant));
    }

    /// Once, an edit whose first try failed at the workers waited for a permit under the next leader.
    #[test]
    fn an_edit_counts_until_it_has_come_past_the_workers() {
        let tenant = fixtures::minimal();
        let condition = |kind: &str, generation: i64| {
            json!({
                "type": kind, "status": "False", "reason": "ApiFailed", "message": "", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let of = |conditions: Vec<Value>| {
            let status = AgentTenantStatus {
                conditions: serde_json::from_value(Value::Array(conditions)).unwrap(),
                ..AgentTenantStatus::default()
            };
            is_edited(&tenant, &status)
        };
        assert!(of(vec![condition("WorkersApplied", 3)]), "nothing was told of its workers");
        assert!(of(vec![condition("WorkersApplied", 3), condition("WorkersReady", 2)]));
        assert!(!of(vec![condition("WorkersApplied", 2), condition("WorkersReady", 3)]));
    }

    #[test]
    fn what_is_kept_up_of_workers_that_wait_is_not_their_template() {
        let wanted = wanted(&fixtures::minimal(), &fixtures::settings());
        let workers = workers::workers(&wanted, &issued("one"));
        let rest = rest_of(&workers, None);
        assert_eq!(rest["spec"]["template"], Value::Null);
        let mut live = workers.clone();
        live.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("older".to_owned());
        assert!(drift::covers(&live, &rest));
        live.spec.as_mut().unwrap().replicas = Some(7);
        assert!(!drift::covers(&live, &rest));
        let restarted = rest_of(&workers, Some("another"));
        assert_eq!(
            restarted["spec"]["template"],
            json!({ "metadata": { "annotations": { labels::CONFIG_HASH: "another" } } })
        );
    }

    #[test]
    fn the_file_stays_with_its_template_unless_somebody_edited_it() {
        let wanted = wanted(&fixtures::full(), &fixtures::settings());
        let (one, other) = (issued("one"), issued("another"));
        let live = workers::workers(&wanted, &one);
        let mut file = providers::providers(&wanted);
        let text = providers::read(&file).unwrap().0.to_owned();
        assert_eq!(kept_text(&file, &live, &wanted, &one).as_ref(), Some(&text));
        assert_eq!(kept_text(&file, &live, &wanted, &other), None, "nobody says that it is ours");
        let applied = drift::hash(&file);
        file.annotations_mut().insert(labels::APPLIED_HASH.to_owned(), applied);
        assert_eq!(kept_text(&file, &live, &wanted, &other), Some(text), "the certificate was renewed");
        file.data = Some(BTreeMap::from([(providers::FILE.to_owned(), "{\"providers\":{}}".to_owned())]));
        assert_eq!(kept_text(&file, &live, &wanted, &one), None);
    }
}
