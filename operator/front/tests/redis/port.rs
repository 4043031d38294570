//! A port that is kept for who is to listen there, between its being chosen and its being used, and while nobody listens.

use tokio::net::TcpSocket;

/// Of 127.0.0.1. Its socket is bound and never listens: whoever asks the system for any port gets another, and whoever binds to this
/// one, and lets it be reused as servers do, gets it: <https://man7.org/linux/man-pages/man7/socket.7.html>.
pub(crate) struct Port(TcpSocket);

impl Port {
    pub(crate) fn free() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn number(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }
}
