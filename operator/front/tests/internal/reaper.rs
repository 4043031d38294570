//! Sessions whose time is up end in time, whatever else is to be ended.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::session::across::{AcrossTenants, Changed, Horizon};
use croft_front::session::store::NewSession;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use tokio::time::timeout;

use crate::scene::{PATIENCE, Scene, new_session};

/// A store that takes for ever to look for sub-agents that have outlived their call.
struct Stuck(Arc<dyn AcrossTenants>);

#[async_trait]
impl AcrossTenants for Stuck {
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        self.0.due(now, limit).await
    }

    async fn orphaned(&self, _: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        std::future::pending().await
    }

    async fn erasing(&self, limit: u32) -> Result<Vec<TenantId>, Error> {
        self.0.erasing(limit).await
    }

    async fn horizon(&self) -> Result<Horizon, Error> {
        self.0.horizon().await
    }

    async fn changed(&self, since: &Horizon, after: (u64, SessionId), limit: u32) -> Result<Vec<Changed>, Error> {
        self.0.changed(since, after, limit).await
    }
}

/// Once, none ended before all of those had.
#[tokio::test]
async fn a_session_that_is_due_does_not_wait_for_sub_agents_that_outlive_their_call() {
    let mut scene = Scene::new().await;
    scene.stores.across = Arc::new(Stuck(Arc::clone(&scene.stores.across)));
    let _front = scene.front("front-0").await;
    scene.insert(NewSession { idle_timeout_ms: 1, ..new_session(scene.heron) }).await;
    let ended = async {
        while scene.stores.sessions.count_open(scene.heron).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("it never ends");
}
