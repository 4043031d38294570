//! The MCP servers whose tools a tenant's agents may use, each with the credential for it.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{SecretKeyRef, SecretRef};
use crate::is_default;

/// One server. Agents name it by its address; they can't name a credential, so none goes anywhere but here.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.tokenSecretRef) || !has(self.userTokensSecretRef)")
        .message("a server is sent the tenant's token or each user's own: set tokenSecretRef or userTokensSecretRef")
)]
pub struct McpServerSpec {
    /// What people and models are told of it.
    #[schemars(length(max = 40), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Where it is, by streamable HTTP. It must be within the fence: on the public internet, unless `egress.internet` is `Deny`, or in `egress.allow`.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHost() != ''")
            .message("url must be an address such as https://tools.example.com/mcp"),
        validation = Rule::new("!self.contains('@')")
            .message("url holds a name or a password: credentials are given by tokenSecretRef alone"),
    )]
    pub url: String,
    /// Its bearer token, in a Secret of the tenant's namespace. A token that changes is taken up without a restart. While it
    /// is not there, calls fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// Each user's own bearer token, in one Secret of the tenant's namespace with a key for each user: see `docs/tools.md`. Users that
    /// are added need no restart. The calls of a user who has none fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_tokens_secret_ref: Option<SecretRef>,
    /// The tools that agents may use, by the server's names; all if there are none here.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tools: Vec<String>,
}
