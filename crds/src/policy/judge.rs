//! Judges a request by the policies, without an API server.

use kube::core::cel::KubeCelExt as _;
use kube::core::cel::cel::{Context, Program, Value as Answer};
use serde_json::{Value, json};

use super::{Policy, Validation};

/// A write that someone asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub user: String,
    pub groups: Vec<String>,
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: String,
    /// The API group; empty for the core one.
    pub group: String,
    /// The kind's plural name, for example `namespaces`.
    pub resource: String,
    /// As it shall be; none on DELETE.
    pub object: Option<Value>,
    /// As it is; none on CREATE.
    pub old: Option<Value>,
    /// What becomes of the object's parts, as a DELETE says it: `Background`, `Foreground`, `Orphan`, or nothing.
    pub propagation: Option<String>,
    /// The namespace that it is in, if it is in one.
    pub namespace: Option<Value>,
}

/// A request that must not go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub policy: &'static str,
    /// The sentence that a person gets.
    pub says: &'static str,
}

/// Every reason why `request` is refused; none if it is taken. A rule that can't be reckoned refuses, as it does at the
/// API server.
pub fn judge(policies: &[Policy], request: &Request) -> Vec<Refusal> {
    let context = request.context();
    let holds = |expression: &str| {
        let answer = Program::compile(expression).ok().and_then(|program| program.execute(&context).ok());
        matches!(answer, Some(Answer::Bool(true)))
    };
    let looked_at = policies.iter().filter(|policy| {
        policy.matches(request) && policy.match_conditions.iter().all(|condition| holds(&condition.expression))
    });
    let refused = |policy: &Policy| {
        let name = policy.name;
        let broken = policy.validations.iter().filter(|Validation { expression, .. }| !holds(expression));
        broken.map(|validation| Refusal { policy: name, says: validation.message }).collect::<Vec<_>>()
    };
    looked_at.flat_map(refused).collect()
}

impl Policy {
    fn matches(&self, request: &Request) -> bool {
        let constraints = &self.match_constraints;
        let meant = constraints.object_selector.as_ref().is_none_or(|selector| {
            // An object that isn't there has no labels that could be missing.
            [&request.object, &request.old].into_iter().flatten().any(|object| selector.matches(Some(object)))
        });
        let within =
            constraints.namespace_selector.as_ref().is_none_or(|selector| selector.matches(request.namespace.as_ref()));
        meant
            && within
            && constraints.resource_rules.iter().any(|rule| {
                rule.api_groups.contains(&request.group.as_str())
                    && rule.resources.contains(&request.resource.as_str())
                    && rule.operations.contains(&request.operation.as_str())
            })
    }
}

impl Request {
    /// What the API server gives to an expression.
    ///
    /// kube-cel's own evaluator of policies renames keys such as `croft.dev/tenant` of every object, which is right for
    /// fields of a schema and wrong for labels.
    fn context(&self) -> Context<'static> {
        let object = self.object.as_ref().or(self.old.as_ref()).unwrap_or(&Value::Null);
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let request = json!({
            "operation": self.operation,
            "name": text("name"),
            "namespace": text("namespace"),
            "resource": { "group": self.group, "resource": self.resource },
            "userInfo": { "username": self.user, "groups": self.groups },
            "options": match &self.propagation {
                Some(propagation) => json!({ "kind": "DeleteOptions", "propagationPolicy": propagation }),
                None => json!({}),
            },
        });
        let variables = [
            ("request", Some(&request)),
            ("object", self.object.as_ref()),
            ("oldObject", self.old.as_ref()),
            ("namespaceObject", self.namespace.as_ref()),
        ];
        let mut context = Context::default().with_all();
        for (name, value) in variables {
            context.add_variable(name, value.unwrap_or(&Value::Null)).expect("plain data is a value");
        }
        context
    }
}
