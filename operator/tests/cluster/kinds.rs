//! The two kinds at an API server, for every program that tests there.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};

/// Nothing here takes that long unless it is broken.
const LONG: Duration = Duration::from_mins(2);

/// Applies both, and waits until they are served.
pub(crate) async fn install(client: &Client) {
    let kinds = Api::all(client.clone());
    for kind in croft_crds::generate::definitions() {
        let name = kind.name_any();
        let parameters = PatchParams::apply("croft-test").force();
        kinds.patch(&name, &parameters, &Patch::Apply(&kind)).await.expect("the kind is taken");
        let established = kube::runtime::conditions::is_crd_established();
        let wait = kube::runtime::wait::await_condition(kinds.clone(), &name, established);
        tokio::time::timeout(LONG, wait).await.expect("the kind is served in time").expect("the kind is served");
    }
}
