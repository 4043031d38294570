//! The workers' identity in the cluster: one that can do nothing and is handed no token.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::wanted::Wanted;

/// What the service account is called.
pub(crate) const NAME: &str = "worker";

/// See it with `kubectl -n tenant-acme get serviceaccount worker -o yaml`.
pub(crate) fn service_account(wanted: &Wanted) -> ServiceAccount {
    ServiceAccount {
        metadata: wanted.child_meta(NAME),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
