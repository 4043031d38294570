//! What the API server refuses beyond the rules on the kinds: ValidatingAdmissionPolicies, which need no webhook and so
//! hold, and stop nothing else, while the operator is down.
//!
//! The expressions stand here once. The chart's YAML is made from them, with Helm's words where an installation decides;
//! Rust programs and tests judge requests by them too.

mod chart;
mod expressions;
mod judge;

use serde::Serialize;
use serde_json::Value;

pub(crate) use chart::chart;
pub use judge::{Refusal, Request, judge};

use crate::labels;
use expressions::{
    ANOTHERS_MODEL, BELONGS_TO_A_TENANT, DELETION_STANDS, IMAGE_UNCHANGED, IS_TENANT_NAMESPACE, KEEPS_FINALIZER,
    KEEPS_TENANT_LABEL, MAKES_WORKERS, MAY_BE_DELETED, MODELS_UNCHANGED, NEW_TENANT_NAMESPACE, TAKEN_APART_IN_ORDER,
    TAKES_NO_EXTERNAL_ADDRESS, TENANT_IS_NOT_ENDING,
};

/// What the expressions must know of an installation, each as CEL text.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The operator's user, as a string.
    pub operator: String,
    /// The operator's namespace, as a string.
    pub namespace: String,
    /// A list of those who may touch what belongs to tenants besides the operator and the cluster's own controllers.
    pub exempt_users: String,
    pub exempt_groups: String,
    /// A list of where a tenant's own worker image may come from.
    pub worker_images: String,
}

impl Installation {
    /// One in `namespace`, where tenants' own images come from `worker_images`, and nobody is exempt.
    pub fn new(namespace: &str, worker_images: &[&str]) -> Self {
        Self {
            operator: format!("'system:serviceaccount:{namespace}:croft-operator'"),
            namespace: format!("'{namespace}'"),
            exempt_users: "[]".to_owned(),
            exempt_groups: "[]".to_owned(),
            worker_images: serde_json::to_string(worker_images).expect("a list of texts is plain data"),
        }
    }

    fn is_operator(&self) -> String {
        format!("request.userInfo.username == {}", self.operator)
    }

    /// Whoever keeps the tenants' parts: the operator, and the cluster's own controllers, which collect garbage, empty
    /// namespaces, count revisions and make pods.
    fn is_trusted(&self) -> String {
        format!(
            "{} || request.userInfo.username in ['system:kube-controller-manager', 'system:apiserver'] || \
             'system:serviceaccounts:kube-system' in request.userInfo.groups || {}",
            self.is_operator(),
            self.is_exempt()
        )
    }

    fn is_exempt(&self) -> String {
        let Self { exempt_users, exempt_groups, .. } = self;
        format!(
            "request.userInfo.username in {exempt_users} || \
             request.userInfo.groups.exists(group, group in {exempt_groups})"
        )
    }
}

/// One ValidatingAdmissionPolicy.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    #[serde(skip)]
    pub name: &'static str,
    /// For whoever reads the chart.
    #[serde(skip)]
    pub why: &'static str,
    #[serde(rename = "failurePolicy")]
    on_failure: &'static str,
    match_constraints: MatchConstraints,
    /// Requests for which one of these is false are not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    match_conditions: Vec<MatchCondition>,
    validations: Vec<Validation>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchConstraints {
    resource_rules: Vec<ResourceRule>,
    /// The labels of the object or of what it was, or of the namespace that it is in: what they leave out is not looked at.
    /// They cost the API server next to nothing, where every expression's look at an object has it converted anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    object_selector: Option<Selector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<Selector>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_expressions: [LabelExpression; 1],
}

#[derive(Debug, Clone, Serialize)]
struct LabelExpression {
    key: &'static str,
    operator: LabelOperator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum LabelOperator {
    Exists,
    DoesNotExist,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceRule {
    api_groups: Vec<&'static str>,
    api_versions: Vec<&'static str>,
    resources: Vec<&'static str>,
    operations: Vec<&'static str>,
}

#[derive(Debug, Clone, Serialize)]
struct MatchCondition {
    name: &'static str,
    expression: String,
}

#[derive(Debug, Clone, Serialize)]
struct Validation {
    expression: String,
    message: &'static str,
    /// What the API server answers, beside the sentence.
    reason: &'static str,
}

const ALL: [&str; 3] = ["CREATE", "UPDATE", "DELETE"];

/// All policies of an installation.
pub fn policies(installation: &Installation) -> Vec<Policy> {
    vec![
        namespaces(installation),
        parts(installation),
        scale(installation),
        services(installation),
        worker_pods(installation),
        worker_templates(installation),
        fences(installation),
        tenants(installation),
        sessions(),
        namespace_reach(installation),
        reach(installation),
    ]
}

fn namespaces(installation: &Installation) -> Policy {
    Policy::new("croft-tenant-namespaces", "A tenant's namespace is made, changed and deleted by the operator alone.")
        .on(&[""], &["namespaces"], &ALL)
        .unless("not-trusted", &installation.is_trusted())
        .demand(
            format!("!({NEW_TENANT_NAMESPACE})"),
            "namespaces called tenant-… are made by Croft's operator: make an AgentTenant",
        )
        .demand(
            format!("!({BELONGS_TO_A_TENANT})"),
            "this namespace is a tenant's, and only Croft's operator changes it: change or delete the AgentTenant",
        )
}

fn parts(installation: &Installation) -> Policy {
    Policy::new("croft-tenant-parts", "What the operator has made for a tenant is changed by the operator alone.")
        .on(&[""], &["configmaps", "limitranges", "resourcequotas", "secrets", "serviceaccounts", "services"], &ALL)
        .on(&["apps"], &["deployments"], &ALL)
        .on(&["networking.k8s.io"], &["networkpolicies"], &ALL)
        .on(&["policy"], &["poddisruptionbudgets"], &ALL)
        .on(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &ALL)
        .of_objects(LabelOperator::Exists)
        .unless("not-trusted", &installation.is_trusted())
        .demand(
            format!("!({BELONGS_TO_A_TENANT})"),
            "the label croft.dev/tenant marks what Croft's operator keeps for a tenant: change the AgentTenant instead",
        )
}

/// No controller of the cluster itself has business here but the horizontal autoscaler, which would undo what the operator does for ever.
fn scale(installation: &Installation) -> Policy {
    let keeps_workers = format!("{} || {}", installation.is_operator(), installation.is_exempt());
    Policy::new("croft-worker-scale", "How many workers there are is the tenant's spec's to say.")
        .on(&["apps"], &["deployments/scale"], &["UPDATE"])
        .unless("not-trusted", &keeps_workers)
        .demand(
            format!("!({IS_TENANT_NAMESPACE})"),
            "only Croft's operator scales a tenant's workers: set spec.workers.replicas of the AgentTenant",
        )
}

/// Whatever is sent to an external address of a Service, from anywhere in the cluster, goes to its pods, whoever's address it is
/// ([CVE-2020-8554](https://github.com/kubernetes/kubernetes/issues/97076)). No quota counts them.
fn services(installation: &Installation) -> Policy {
    Policy::new("croft-services", "No Service of a tenant takes what is sent to somebody else's address.")
        .on(&[""], &["services"], &["CREATE", "UPDATE"])
        .in_namespaces(LabelOperator::Exists)
        .unless("not-trusted", &installation.is_trusted())
        .demand(
            TAKES_NO_EXTERNAL_ADDRESS.to_owned(),
            "a Service in a tenant's namespace has no spec.externalIPs: they would take what is sent to those addresses from anywhere",
        )
}

fn worker_pods(installation: &Installation) -> Policy {
    Policy::new("croft-worker-pods", "No pod passes itself off as a tenant's worker. Deleting one is nobody's harm.")
        .on(&[""], &["pods"], &["CREATE", "UPDATE"])
        .unless("not-trusted", &installation.is_trusted())
        .demand(
            KEEPS_TENANT_LABEL.to_owned(),
            "the label croft.dev/tenant marks a tenant's workers, which only their Deployment makes",
        )
}

/// The pods themselves are made by the cluster's own controllers, who are trusted.
fn worker_templates(installation: &Installation) -> Policy {
    Policy::new(
        "croft-worker-templates",
        "Nothing but the operator's Deployment makes pods that pass for a tenant's workers.",
    )
    .on(&["apps"], &["deployments", "replicasets", "statefulsets", "daemonsets"], &["CREATE", "UPDATE"])
    .on(&["batch"], &["jobs", "cronjobs"], &["CREATE", "UPDATE"])
    .on(&[""], &["replicationcontrollers"], &["CREATE", "UPDATE"])
    .in_namespaces(LabelOperator::Exists)
    .unless("not-trusted", &installation.is_trusted())
    .demand(
        format!("!({MAKES_WORKERS})"),
        "pods with the label croft.dev/tenant are made by Croft's operator alone: give the template another label",
    )
}

/// Network policies add up: what one lets through, no other holds. Those of three widespread networks do so too, of which one has a
/// group for clients and one for itself.
fn fences(installation: &Installation) -> Policy {
    Policy::new(
        "croft-fences",
        "No second network policy opens what a tenant's fence holds. To take one away is nobody's harm.",
    )
    .on(
        &["networking.k8s.io", "projectcalico.org", "crd.projectcalico.org", "crd.antrea.io"],
        &["networkpolicies"],
        &["CREATE", "UPDATE"],
    )
    .on(&["cilium.io"], &["ciliumnetworkpolicies"], &["CREATE", "UPDATE"])
    .in_namespaces(LabelOperator::Exists)
    .unless("not-trusted", &installation.is_trusted())
    .demand(
        "false".to_owned(),
        "the fence of a tenant's namespace is Croft's: list ranges in spec.egress.allow of the AgentTenant instead",
    )
}

fn tenants(installation: &Installation) -> Policy {
    let list = &installation.worker_images;
    // An entry that ends in a slash is a place; another one is a repository, with any tag or digest, and nothing below it.
    let listed = format!(
        "{list}.exists(place, object.spec.workers.image == place || (place.endsWith('/') ? \
         object.spec.workers.image.startsWith(place) : \
         (object.spec.workers.image.startsWith(place + ':') || object.spec.workers.image.startsWith(place + '@'))))"
    );
    let another = ANOTHERS_MODEL.replace("OPERATORS_NAMESPACE", &installation.namespace);
    Policy::new(
        "croft-tenants",
        "A tenant is not deleted by mistake, nor without being taken apart in order; its own worker image and model come from \
         where the platform wants them.",
    )
    .on(&["croft.dev"], &["agenttenants"], &ALL)
    .demand(
        MAY_BE_DELETED.to_owned(),
        "spec.preventDeletion keeps this tenant from being deleted: turn it off first",
    )
    .demand(
        TAKEN_APART_IN_ORDER.to_owned(),
        "a tenant is taken apart in order, by Croft's operator: delete it with the propagation policy Background",
    )
    .demand(
        DELETION_STANDS.to_owned(),
        "this tenant is being deleted already: spec.preventDeletion comes too late to keep it",
    )
    .demand(
        format!("{KEEPS_FINALIZER} || {}", installation.is_trusted()),
        "the finalizer croft.dev/tenant is taken off by Croft's operator, once all that is the tenant's is gone",
    )
    .demand(
        format!("object == null || {list}.size() == 0 || {IMAGE_UNCHANGED} || {listed}"),
        "spec.workers.image comes from none of the places that this platform takes worker images from",
    )
    .demand(format!("object == null || ({MODELS_UNCHANGED}) || !({another})"), "a model is not served in the namespace of Croft itself")
}

fn sessions() -> Policy {
    Policy::new("croft-sessions", "A session is declared where there is a tenant to run it.")
        .on(&["croft.dev"], &["agentsessions"], &["CREATE"])
        .demand(
            IS_TENANT_NAMESPACE.to_owned(),
            "this namespace is not a tenant's: declare an AgentSession in the namespace tenant-… of an AgentTenant",
        )
        .demand(
            TENANT_IS_NOT_ENDING.to_owned(),
            "the tenant of this namespace is being deleted: it takes no new sessions",
        )
}

const OPERATOR_ONLY: &str = "Croft's operator writes in namespaces of tenants and in its own only";

fn namespace_reach(installation: &Installation) -> Policy {
    Policy::new("croft-operator-namespaces", "The operator itself makes and changes namespaces of tenants alone.")
        .on(&[""], &["namespaces"], &ALL)
        .unless("by-the-operator", &format!("!({})", installation.is_operator()))
        .demand("request.name.startsWith('tenant-')".to_owned(), OPERATOR_ONLY)
}

/// Of namespaces that bear a tenant's label nothing is looked at: nobody but the operator may put it there, and it only on those
/// called after a tenant.
fn reach(installation: &Installation) -> Policy {
    Policy::new(
        "croft-operator-reach",
        "The operator itself writes in tenants' namespaces and its own, and nowhere else.",
    )
    .on(&[""], &["configmaps", "limitranges", "resourcequotas", "secrets", "serviceaccounts"], &ALL)
    .on(&[""], &["services", "pods"], &ALL)
    .on(&["apps"], &["deployments"], &ALL)
    .on(&["networking.k8s.io"], &["networkpolicies"], &ALL)
    .on(&["policy"], &["poddisruptionbudgets"], &ALL)
    .on(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &ALL)
    .on(&["croft.dev"], &["agentsessions"], &ALL)
    .in_namespaces(LabelOperator::DoesNotExist)
    .unless("by-the-operator", &format!("!({})", installation.is_operator()))
    .demand(
        format!("request.namespace.startsWith('tenant-') || request.namespace == {}", installation.namespace),
        OPERATOR_ONLY,
    )
}

impl Selector {
    fn of_tenants(operator: LabelOperator) -> Self {
        Self { match_expressions: [LabelExpression { key: labels::TENANT, operator }] }
    }

    /// Whether an object with these labels is meant.
    fn matches(&self, object: Option<&Value>) -> bool {
        let labels = object.map_or(&Value::Null, |object| &object["metadata"]["labels"]);
        self.match_expressions
            .iter()
            .all(|LabelExpression { key, operator }| (*operator == LabelOperator::Exists) != labels[*key].is_null())
    }
}

impl Policy {
    fn new(name: &'static str, why: &'static str) -> Self {
        Self {
            name,
            why,
            // An expression that can't be reckoned refuses. It runs in the API server, so nothing can be down.
            on_failure: "Fail",
            match_constraints: MatchConstraints {
                resource_rules: Vec::new(),
                object_selector: None,
                namespace_selector: None,
            },
            match_conditions: Vec::new(),
            validations: Vec::new(),
        }
    }

    fn on(mut self, api_groups: &[&'static str], resources: &[&'static str], operations: &[&'static str]) -> Self {
        self.match_constraints.resource_rules.push(ResourceRule {
            api_groups: api_groups.to_vec(),
            api_versions: vec!["*"],
            resources: resources.to_vec(),
            operations: operations.to_vec(),
        });
        self
    }

    /// Only what is, was or shall be marked as a tenant's, or what isn't.
    fn of_objects(mut self, operator: LabelOperator) -> Self {
        self.match_constraints.object_selector = Some(Selector::of_tenants(operator));
        self
    }

    /// Only what is in a namespace that is marked as a tenant's, or in one that isn't.
    fn in_namespaces(mut self, operator: LabelOperator) -> Self {
        self.match_constraints.namespace_selector = Some(Selector::of_tenants(operator));
        self
    }

    fn unless(mut self, name: &'static str, expression: &str) -> Self {
        self.match_conditions.push(MatchCondition { name, expression: format!("!({expression})") });
        self
    }

    fn demand(mut self, expression: String, message: &'static str) -> Self {
        self.validations.push(Validation { expression, message, reason: "Forbidden" });
        self
    }
}
