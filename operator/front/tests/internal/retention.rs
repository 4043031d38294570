//! Sessions that are being erased while their tenant is archived.

use std::time::Duration;

use croft_front::events::log::{Append, Authority, NewEvent};
use croft_front::session::retention::store::Erased;
use croft_front::session::store::Filter;
use croft_proto::Timestamp;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteSnapshot, WatchRoutesResponse};
use tokio::time::timeout;

use crate::scene::{PATIENCE, Scene, terminated};

/// Fronts are not told of such a tenant any more, and what had begun was never ended.
#[tokio::test]
async fn what_was_half_erased_when_its_tenant_was_archived_goes_and_the_rest_stays() {
    let mut scene = Scene::new().await;
    scene.options.retention_look_every = Duration::from_millis(20);
    for seconds in [1_000, 2_000] {
        let session = scene.session(scene.heron, false).await;
        let ended = NewEvent::at(terminated(), Timestamp { seconds, nanos: 0 });
        let append = Append::of(scene.heron, session, Authority::Fence, vec![ended]);
        scene.stores.events.append(append).await.unwrap();
    }
    let before = Timestamp { seconds: 1_500, nanos: 0 };
    let begun = scene.stores.retention.erase_ended(scene.heron, before, 1, 1).await.unwrap();
    assert_eq!(begun, Erased { sessions: 0, events: 1 });
    let change = Some(Change::Snapshot(RouteSnapshot::default()));
    scene.tenants.apply(WatchRoutesResponse { version: 2, change });

    let _front = scene.front("front-0").await;
    let recorded = async {
        loop {
            let audit = scene.stores.audit.list(scene.heron, 0, 10).await.unwrap();
            if let Some(record) = audit.into_iter().next() {
                return record.action;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, recorded).await.expect("its rows stay for ever"), "session.erase");
    assert_eq!(scene.stores.across.erasing(1).await.unwrap(), []);
    let kept = scene.stores.sessions.list(scene.heron, &Filter::default(), None, 10).await.unwrap().sessions;
    assert_eq!(kept.len(), 1);
}
