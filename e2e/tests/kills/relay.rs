//! Redis behind a proxy whose connections can be cut, and which can stay shut for a while.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_serve::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    shut_until: Instant,
    cut: CancellationToken,
}

impl Proxy {
    /// In front of `behind`, a `host:port`.
    pub(crate) async fn start(behind: String, tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { shut_until: Instant::now(), cut: CancellationToken::new() }));
        let (shared, links) = (Arc::clone(&state), tasks.clone());
        drop(tasks.spawn("proxy", async move {
            while let Ok((near, _)) = listener.accept().await {
                let (cut, is_shut) = {
                    let state = shared.lock().unwrap();
                    (state.cut.clone(), Instant::now() < state.shut_until)
                };
                if !is_shut {
                    let link = link(near, behind.clone());
                    drop(links.spawn("proxy-link", cut.run_until_cancelled_owned(link)));
                }
            }
        }));
        Self { address, state }
    }

    /// Cuts every connection, and takes none for so long.
    pub(crate) fn cut(&self, shut: Duration) {
        let mut state = self.state.lock().unwrap();
        state.shut_until = Instant::now() + shut;
        std::mem::take(&mut state.cut).cancel();
    }
}

async fn link(mut near: TcpStream, behind: String) {
    if let Ok(mut far) = TcpStream::connect(behind).await {
        // Either side may break off.
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }
}
