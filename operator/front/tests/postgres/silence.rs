//! A way to a server on which connections fall silent: what is sent is taken, and no answer comes, as from a host that has vanished.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use croft_serve::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// See the module.
pub(crate) struct Silence {
    /// Connections of earlier than this are silent.
    since: Arc<AtomicU64>,
    /// Each falls silent with its next statement that is prepared.
    behind_begin: Arc<AtomicBool>,
}

/// The types of messages of which statements that are prepared are made. What begins a transaction is a simple query, and what looks whether
/// a server is there a sync: <https://www.postgresql.org/docs/15/protocol-message-formats.html>.
const OF_PREPARED: [u8; 4] = *b"PBDE";

impl Silence {
    /// A way to the server of `url`, and the URL of that way.
    pub(crate) async fn before(url: &str, tasks: &Tasks) -> (Self, String) {
        let (user, rest) = url.rsplit_once('@').expect("a URL with a user");
        let (server, database) = rest.split_once('/').expect("a URL with a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = format!("{user}@{}/{database}", listener.local_addr().unwrap());
        let (since, behind_begin) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (server, falls, ways) = (server.to_owned(), Arc::clone(&since), tasks.clone());
        let (next, never) = (Arc::clone(&behind_begin), Arc::new(AtomicBool::new(false)));
        tasks.spawn("ways", async move {
            while let Ok((front, _)) = listener.accept().await {
                let opened = falls.load(Ordering::SeqCst);
                let Ok(behind) = TcpStream::connect(&server).await else { continue };
                let ((from_front, to_front), (from_server, to_server)) = (front.into_split(), behind.into_split());
                ways.spawn("to-server", pass(from_front, to_server, Arc::clone(&falls), opened, Arc::clone(&next)));
                ways.spawn("to-front", pass(from_server, to_front, Arc::clone(&falls), opened, Arc::clone(&never)));
            }
        });
        (Self { since, behind_begin }, way)
    }

    /// On the connections that there are. New ones are not.
    pub(crate) fn falls(&self) {
        self.since.fetch_add(1, Ordering::SeqCst);
    }

    /// On each connection, also on new ones, behind the beginning of its next transaction, which the server answers.
    pub(crate) fn falls_behind_begin(&self) {
        self.behind_begin.store(true, Ordering::SeqCst);
    }
}

/// Passes on what comes, until silence falls; from then on nothing goes on, and nothing is closed.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    since: Arc<AtomicU64>,
    opened: u64,
    behind_begin: Arc<AtomicBool>,
) {
    let mut bytes = vec![0; 64 * 1024];
    let mut is_silent = false;
    while let Ok(read) = from.read(&mut bytes).await {
        if read == 0 {
            return;
        }
        is_silent |= since.load(Ordering::SeqCst) != opened;
        is_silent |= behind_begin.load(Ordering::SeqCst) && OF_PREPARED.contains(&bytes[0]);
        if !is_silent && to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
