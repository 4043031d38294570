//! A way to a server that can be cut: what goes over it ends, and nothing more is let through.

use std::net::SocketAddr;

use croft_serve::Tasks;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Link {
    address: SocketAddr,
    is_cut: watch::Sender<bool>,
    _tasks: Tasks,
}

impl Link {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, is_cut, tasks) = (listener.local_addr().unwrap(), watch::Sender::new(false), Tasks::new());
        let (cuts, owner) = (is_cut.clone(), tasks.clone());
        drop(tasks.spawn("link", async move {
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let mut cut = cuts.subscribe();
                drop(owner.spawn("connection", async move {
                    if *cut.borrow() {
                        return;
                    }
                    let Ok(mut there) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut here, &mut there) => {}
                        _ = cut.wait_for(|cut| *cut) => {}
                    }
                }));
            }
        }));
        Self { address, is_cut, _tasks: tasks }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub(crate) fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}
