//! `RouteService`: tells every front which tenants there are, where their workers listen, and what they may do.
//!
//! Served by every replica from its own warm copies, so that fronts depend neither on the API server nor on who leads.

mod route;
mod service;
mod table;

use std::sync::Arc;

use croft_serve::Check;
use kube::ResourceExt as _;
use tokio_util::sync::CancellationToken;

pub(crate) use route::admission;
pub use service::Routes;
pub use table::RouteTable;

use crate::cluster::Cluster;
use crate::tenant::Tiers;

/// Keeps `table` in step with the copies until `stopping`. Begins with all tenants, once the copies are whole; `known` is ready from
/// then on, so that the Service leads no front to a replica that would turn it away.
pub async fn follow(
    cluster: Arc<Cluster>,
    tiers: Arc<Tiers>,
    table: Arc<RouteTable>,
    known: Check,
    stopping: CancellationToken,
) {
    let follow = async {
        cluster.synced().await;
        let names = cluster.tenants.state().into_iter().map(|tenant| tenant.name_any());
        table.begin(names.filter_map(|name| route::route(&name, &cluster, &tiers)));
        known.ready();
        loop {
            let name = cluster.changes.routes.next().await;
            table.put(&name, route::route(&name, &cluster, &tiers));
        }
    };
    stopping.run_until_cancelled(follow).await;
}
