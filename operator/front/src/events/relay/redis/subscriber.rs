//! The one connection that listens, and who it listens for.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, Msg, RedisResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{ANSWER_TIMEOUT, down};
use crate::error::Error;
use crate::events::relay::{Envelope, FRAMES_MAX, wire};

/// A connection that says nothing is asked whether it is alive: a peer that vanished never says so.
const PING_EVERY: Duration = Duration::from_secs(5);
/// After a failure the next requests fail at once for this long: they need not all wait for their own.
const PAUSE: Duration = Duration::from_millis(100);

/// Somebody wants to listen.
pub(super) struct Request {
    pub channel: String,
    pub reply: oneshot::Sender<Result<mpsc::Receiver<Envelope>, Error>>,
}

/// Runs as a task of its own, and owns the connection.
pub(super) struct Subscriber {
    client: Client,
    requests: mpsc::Receiver<Request>,
    link: Option<Link>,
    channels: HashMap<String, Channel>,
    /// Receivers that their owners have dropped, as they do so.
    gone: FuturesUnordered<BoxFuture<'static, String>>,
    failed_at: Option<Instant>,
}

struct Link {
    sink: PubSubSink,
    stream: PubSubStream,
    /// Commands that Redis has not answered yet: at most one for each channel, and a ping.
    asked: FuturesUnordered<BoxFuture<'static, (Option<String>, RedisResult<()>)>>,
}

#[derive(Default)]
struct Channel {
    receivers: Vec<Receiver>,
    waiting: Vec<Request>,
    state: State,
}

struct Receiver {
    frames: mpsc::Sender<Envelope>,
    /// Dropped with the receiver; so ends the watch over it, which holds a sender too.
    _watch: oneshot::Sender<()>,
}

/// One command at a time, so that Redis can't see them in another order than we meant.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Off,
    Joining,
    On,
    Leaving,
}

enum Happened {
    Requested(Request),
    Heard(Msg),
    Answered(Option<String>, RedisResult<()>),
    Left(String),
    PingIsDue,
    LinkLost,
    Over,
}

impl Subscriber {
    pub(super) fn new(client: Client, requests: mpsc::Receiver<Request>) -> Self {
        let (link, channels, gone) = (None, HashMap::new(), FuturesUnordered::new());
        Self { client, requests, link, channels, gone, failed_at: None }
    }

    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let link = self.link.as_mut();
            let connected = link.is_some();
            let happened = tokio::select! {
                request = self.requests.recv() => request.map_or(Happened::Over, Happened::Requested),
                happened = listen(link), if connected => happened,
                Some(channel) = self.gone.next() => Happened::Left(channel),
                _ = pings.tick(), if connected => Happened::PingIsDue,
                // Turns that are being drained still listen.
                () = stopping.cancelled(), if self.channels.is_empty() => Happened::Over,
            };
            match happened {
                Happened::Requested(request) => self.join(request).await,
                Happened::Heard(message) => self.hand_out(&message),
                Happened::Answered(_, Err(error)) => self.lose(&error.to_string()),
                Happened::Answered(Some(channel), Ok(())) => self.answered(&channel),
                Happened::Answered(None, Ok(())) => {}
                Happened::Left(channel) => {
                    if let Some(channel) = self.channels.get_mut(&channel) {
                        channel.receivers.retain(|receiver| !receiver.frames.is_closed());
                    }
                    self.advance(&channel);
                }
                Happened::PingIsDue => self.ping(),
                Happened::LinkLost => self.lose("the connection ended"),
                Happened::Over => return,
            }
        }
    }

    async fn join(&mut self, request: Request) {
        if let Err(error) = self.connect().await {
            // The caller may be gone, which is as well.
            let _ = request.reply.send(Err(error));
            return;
        }
        let channel = self.channels.entry(request.channel.clone()).or_default();
        if channel.state == State::On {
            channel.admit(request, &mut self.gone);
        } else {
            let name = request.channel.clone();
            channel.waiting.push(request);
            self.advance(&name);
        }
    }

    async fn connect(&mut self) -> Result<(), Error> {
        if self.link.is_some() {
            return Ok(());
        }
        if self.failed_at.is_some_and(|failed_at| failed_at.elapsed() < PAUSE) {
            return Err(down(anyhow::anyhow!("it was away a moment ago")));
        }
        match timeout(ANSWER_TIMEOUT, self.client.get_async_pubsub()).await {
            Ok(Ok(connection)) => {
                let (sink, stream) = connection.split();
                self.link = Some(Link { sink, stream, asked: FuturesUnordered::new() });
                Ok(())
            }
            Ok(Err(error)) => {
                self.failed_at = Some(Instant::now());
                Err(down(error))
            }
            Err(elapsed) => {
                self.failed_at = Some(Instant::now());
                Err(down(elapsed))
            }
        }
    }

    /// Redis has done what we asked for this channel.
    fn answered(&mut self, name: &str) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        if channel.state == State::Joining {
            channel.state = State::On;
            for request in std::mem::take(&mut channel.waiting) {
                channel.admit(request, &mut self.gone);
            }
        } else {
            channel.state = State::Off;
        }
        self.advance(name);
    }

    /// Asks Redis for what the channel needs next, if it needs anything.
    fn advance(&mut self, name: &str) {
        let (Some(channel), Some(link)) = (self.channels.get_mut(name), &mut self.link) else { return };
        let wanted = !channel.receivers.is_empty() || !channel.waiting.is_empty();
        match (channel.state, wanted) {
            (State::Off, true) => {
                channel.state = State::Joining;
                link.ask(Some(name), |mut sink, name| async move { sink.subscribe(name).await }.boxed());
            }
            (State::On, false) => {
                channel.state = State::Leaving;
                link.ask(Some(name), |mut sink, name| async move { sink.unsubscribe(name).await }.boxed());
            }
            (State::Off, false) => drop(self.channels.remove(name)),
            (State::Joining | State::Leaving, _) | (State::On, true) => {}
        }
    }

    fn hand_out(&mut self, message: &Msg) {
        let name = message.get_channel_name();
        let envelope = match wire::decode(message.get_payload_bytes()) {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(channel = name, %error, "a frame that can't be read");
                return;
            }
        };
        let Some(channel) = self.channels.get_mut(name) else { return };
        // A receiver that is full is closed: its owner reads the log.
        channel.receivers.retain(|receiver| receiver.frames.try_send(envelope.clone()).is_ok());
        let name = name.to_owned();
        self.advance(&name);
    }

    fn ping(&mut self) {
        if let Some(link) = &mut self.link {
            link.ask(None, |mut sink, _| async move { sink.ping().await }.boxed());
        }
    }

    /// The link is gone: frames may have been lost, so every receiver is closed, and every request that waits fails.
    fn lose(&mut self, why: &str) {
        tracing::debug!(why, "the connection that listens is gone");
        self.link = None;
        self.failed_at = Some(Instant::now());
        for request in self.channels.drain().flat_map(|(_, channel)| channel.waiting) {
            let _ = request.reply.send(Err(down(anyhow::anyhow!(why.to_owned()))));
        }
    }
}

impl Link {
    fn ask(
        &mut self,
        name: Option<&str>,
        command: impl FnOnce(PubSubSink, String) -> BoxFuture<'static, RedisResult<()>>,
    ) {
        let name = name.map(str::to_owned);
        let answer = command(self.sink.clone(), name.clone().unwrap_or_default());
        self.asked.push(
            async move {
                let answer = timeout(ANSWER_TIMEOUT, answer).await;
                (name, answer.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())))
            }
            .boxed(),
        );
    }
}

impl Channel {
    fn admit(&mut self, request: Request, gone: &mut FuturesUnordered<BoxFuture<'static, String>>) {
        let (frames, receiver) = mpsc::channel(FRAMES_MAX);
        let (watch, cut) = oneshot::channel();
        // A caller that gave up has dropped the receiver with the reply, which the watch then tells.
        let _ = request.reply.send(Ok(receiver));
        let watched = frames.clone();
        gone.push(
            async move {
                tokio::select! {
                    () = watched.closed() => {}
                    _ = cut => {}
                }
                request.channel
            }
            .boxed(),
        );
        self.receivers.push(Receiver { frames, _watch: watch });
    }
}

/// The next thing that the link says. Never, without a link.
async fn listen(link: Option<&mut Link>) -> Happened {
    let Some(link) = link else { return std::future::pending().await };
    tokio::select! {
        message = link.stream.next() => message.map_or(Happened::LinkLost, Happened::Heard),
        Some((channel, answer)) = link.asked.next() => Happened::Answered(channel, answer),
    }
}
