//! Connections between fronts and workers, which come in small pieces and can be cut anywhere.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use croft_front::worker_client::{Dial, Wire};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::chaos::Fault;
use crate::gate::Gate;

/// One end of a connection. When its owner dies, nothing more goes in or comes out.
pub(crate) struct Pipe {
    inner: DuplexStream,
    ends: Vec<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// At the front's end.
    meter: Option<Meter>,
}

struct Meter {
    gate: Gate,
    /// Bytes that come at a time.
    piece: usize,
    /// The next piece comes when others had their turn.
    pauses: bool,
    cut: bool,
}

fn reset() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionReset)
}

impl Pipe {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let cut = self.meter.as_ref().is_some_and(|meter| meter.cut);
        let ended = self.ends.iter_mut().any(|end| end.as_mut().poll(context).is_ready());
        if cut || ended { Err(reset()) } else { Ok(()) }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        let this = &mut *self;
        let Some(meter) = &mut this.meter else { return Pin::new(&mut this.inner).poll_read(context, buf) };
        if std::mem::take(&mut meter.pauses) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut piece = vec![0; meter.piece.min(buf.remaining())];
        let mut read = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
        buf.put_slice(read.filled());
        meter.pauses = !read.filled().is_empty();
        for fault in meter.gate.chaos.bytes(read.filled().len()) {
            match fault {
                Fault::KillFront => meter.gate.dead.cancel(),
                _ => meter.cut = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.inner).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl Connected for Pipe {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Which worker listens at which address.
#[derive(Clone, Default)]
pub(crate) struct Network {
    listeners: Arc<Mutex<HashMap<String, Listener>>>,
    /// Cancelled when all connections that there are break.
    cut: Arc<Mutex<CancellationToken>>,
}

#[derive(Clone)]
struct Listener {
    accept: mpsc::UnboundedSender<Pipe>,
    dead: CancellationToken,
}

impl Network {
    /// Connections to this address from now on; none once `dead` is cancelled.
    pub(crate) fn listen(&self, address: &str, dead: CancellationToken) -> mpsc::UnboundedReceiver<Pipe> {
        let (accept, accepted) = mpsc::unbounded_channel();
        self.listeners.lock().unwrap().insert(address.to_owned(), Listener { accept, dead });
        accepted
    }

    /// Breaks all connections that there are.
    pub(crate) fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// How the front behind this gate reaches workers.
    pub(crate) fn dial(&self, gate: &Gate) -> Dial {
        let (network, gate) = (self.clone(), gate.clone());
        Arc::new(move |address| {
            let (network, gate) = (network.clone(), gate.clone());
            Box::pin(async move { network.connect(&address, &gate).map(|pipe| Box::new(pipe) as Box<dyn Wire>) })
        })
    }

    fn connect(&self, address: &str, gate: &Gate) -> io::Result<Pipe> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let listener = self.listeners.lock().unwrap().get(address).cloned().ok_or_else(refused)?;
        if listener.dead.is_cancelled() {
            return Err(refused());
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let ends = |tokens: &[&CancellationToken]| {
            tokens.iter().map(|token| Box::pin((*token).clone().cancelled_owned())).collect()
        };
        let at_worker = Pipe { inner: theirs, ends: ends(&[&listener.dead]), meter: None };
        listener.accept.send(at_worker).map_err(|_| refused())?;
        let piece = gate.chaos.dice().one_of(&[47, 190, 800, 16_384]);
        let meter = Meter { gate: gate.clone(), piece, pauses: false, cut: false };
        let cut = self.cut.lock().unwrap().clone();
        Ok(Pipe { inner: ours, ends: ends(&[&gate.dead, &cut]), meter: Some(meter) })
    }
}
