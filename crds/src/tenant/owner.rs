//! Who may manage a tenant's sessions through the cluster's API.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A person, a group or a program that may manage the AgentSessions of its tenant, and nothing else.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.kind == 'ServiceAccount') == has(self.__namespace__)")
        .message("a ServiceAccount has a namespace; a User or a Group has none"),
    validation = Rule::new("self.kind == 'ServiceAccount' || !self.name.startsWith('system:') || (self.kind == 'Group' && self.name.startsWith('system:serviceaccounts:'))")
        .message("names that begin with system: are the cluster's own and own no tenant; only groups such as system:serviceaccounts:ci may"),
    validation = Rule::new("self.kind != 'ServiceAccount' || self.name.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("a ServiceAccount's name has lower case letters, digits, dots and hyphens only"),
)]
pub struct OwnerSpec {
    pub kind: OwnerKind,
    /// As the cluster's authentication gives it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Where the ServiceAccount is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

/// What an owner is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnerKind {
    User,
    Group,
    ServiceAccount,
}

impl OwnerKind {
    /// As the subject of a RoleBinding has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Group => "Group",
            Self::ServiceAccount => "ServiceAccount",
        }
    }
}
