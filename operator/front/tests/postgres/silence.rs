//! A way to a server on which connections fall silent: what is sent is taken, and no answer comes, as from a host that has vanished.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use croft_serve::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// See the module.
pub(crate) struct Silence {
    /// Connections of earlier than this are silent.
    since: Arc<AtomicU64>,
}

impl Silence {
    /// A way to the server of `url`, and the URL of that way.
    pub(crate) async fn before(url: &str, tasks: &Tasks) -> (Self, String) {
        let (user, rest) = url.rsplit_once('@').expect("a URL with a user");
        let (server, database) = rest.split_once('/').expect("a URL with a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = format!("{user}@{}/{database}", listener.local_addr().unwrap());
        let since = Arc::new(AtomicU64::new(0));
        let (server, falls, ways) = (server.to_owned(), Arc::clone(&since), tasks.clone());
        tasks.spawn("ways", async move {
            while let Ok((front, _)) = listener.accept().await {
                let opened = falls.load(Ordering::SeqCst);
                let Ok(behind) = TcpStream::connect(&server).await else { continue };
                let ((from_front, to_front), (from_server, to_server)) = (front.into_split(), behind.into_split());
                ways.spawn("to-server", pass(from_front, to_server, Arc::clone(&falls), opened));
                ways.spawn("to-front", pass(from_server, to_front, Arc::clone(&falls), opened));
            }
        });
        (Self { since }, way)
    }

    /// On the connections that there are. New ones are not.
    pub(crate) fn falls(&self) {
        self.since.fetch_add(1, Ordering::SeqCst);
    }
}

/// Passes on what comes, until silence falls; from then on nothing goes on, and nothing is closed.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, since: Arc<AtomicU64>, opened: u64) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut bytes).await {
        if read == 0 {
            return;
        }
        if since.load(Ordering::SeqCst) == opened && to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
