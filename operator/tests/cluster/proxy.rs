//! Stands between an operator and the API server, and does to requests what networks and busy servers do.

use std::future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use croft_serve::Tasks;
use futures::{Stream, StreamExt as _, stream};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use kube::{Client, Config};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The API server does not hear of it; this is the answer.
    Answer(u16),
    /// The API server does not hear of it, and there is no answer at all.
    Stall,
    /// The API server hears of it when the fault is over.
    Hold,
    /// The API server does it, and the answer is lost.
    LoseAnswer,
    /// A watch that begins well and then says this.
    WatchError(u16),
    /// The API server answers by a clock that is a thousand years ahead: all that it tells of was made then.
    Ahead,
}

/// Clones share all faults.
#[derive(Clone)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    client: Client,
    faults: Arc<Mutex<Vec<Arc<Fault>>>>,
    cuts: watch::Sender<u64>,
}

/// One kind of request that goes wrong.
struct Fault {
    method: Method,
    path: String,
    what: What,
    state: Mutex<Count>,
}

#[derive(Default)]
struct Count {
    hits: u32,
    passed: u32,
    left: Option<u32>,
}

/// Goes wrong for as long as this is kept.
pub(crate) struct Injected {
    fault: Arc<Fault>,
    proxy: Proxy,
}

impl Injected {
    /// Requests that went wrong.
    pub(crate) fn hits(&self) -> u32 {
        locked(&self.fault.state).hits
    }

    /// Requests of the kind that did not, because they were enough.
    pub(crate) fn passed(&self) -> u32 {
        locked(&self.fault.state).passed
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        locked(&self.proxy.faults).retain(|fault| !Arc::ptr_eq(fault, &self.fault));
    }
}

impl Proxy {
    /// In front of the API server that `config` leads to.
    pub(crate) async fn start(mut config: Config, tasks: &Tasks) -> Self {
        config.default_retry = false;
        let client = Client::try_from(config).expect("a client can be made");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        let proxy = Self { addr, client, faults: Arc::default(), cuts: watch::Sender::new(0) };
        let app = Router::new().fallback(pass).with_state(proxy.clone());
        drop(tasks.spawn("proxy", async move { axum::serve(listener, app).await }));
        proxy
    }

    /// Leads through here.
    pub(crate) fn config(&self) -> Config {
        Config::new(format!("http://{}", self.addr).parse().expect("it is a URL"))
    }

    /// Lets requests with this method whose path (with its query) contains `path` go wrong: the first `times`, or all.
    pub(crate) fn inject(&self, method: Method, path: &str, what: What, times: Option<u32>) -> Injected {
        let state = Mutex::new(Count { left: times, ..Count::default() });
        let fault = Arc::new(Fault { method, path: path.to_owned(), what, state });
        locked(&self.faults).push(Arc::clone(&fault));
        Injected { fault, proxy: self.clone() }
    }

    /// Breaks every watch that is open.
    pub(crate) fn cut_watches(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn is_held(&self, method: &Method, target: &str) -> bool {
        let holds =
            |fault: &Arc<Fault>| fault.what == What::Hold && fault.method == method && target.contains(&fault.path);
        locked(&self.faults).iter().any(holds)
    }

    fn verdict(&self, method: &Method, target: &str) -> Option<What> {
        let faults = locked(&self.faults);
        let fault = faults.iter().find(|fault| fault.method == method && target.contains(&fault.path))?;
        let mut count = locked(&fault.state);
        if count.left == Some(0) {
            count.passed += 1;
            return None;
        }
        count.left = count.left.map(|left| left - 1);
        count.hits += 1;
        Some(fault.what)
    }
}

async fn pass(State(proxy): State<Proxy>, request: Request) -> Response {
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    match proxy.verdict(request.method(), &target) {
        Some(What::Answer(code)) => answer(code),
        Some(What::Stall) => future::pending().await,
        Some(What::Hold) => {
            while proxy.is_held(request.method(), &target) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            forward(&proxy, request, &target).await
        }
        Some(What::LoseAnswer) => {
            forward(&proxy, request, &target).await;
            broken()
        }
        Some(What::WatchError(code)) => {
            let event = json!({ "type": "ERROR", "object": status(code) });
            json_response(200, format!("{event}\n"))
        }
        Some(What::Ahead) => {
            let (head, body) = forward(&proxy, request, &target).await.into_parts();
            Response::from_parts(head, Body::from_stream(ahead(body)))
        }
        None => forward(&proxy, request, &target).await,
    }
}

/// The same with other times of creation. A line is an event of a watch, or the whole of another answer.
fn ahead(body: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    let lines = stream::unfold((body.into_data_stream(), Vec::new()), |(mut chunks, mut line)| async move {
        while line.last() != Some(&b'\n') {
            match chunks.next().await {
                Some(Ok(chunk)) => line.extend_from_slice(&chunk),
                Some(Err(error)) => return Some((Err(error), (chunks, line))),
                None if line.is_empty() => return None,
                None => break,
            }
        }
        Some((Ok(line), (chunks, Vec::new())))
    });
    lines.map(|line| {
        let told = String::from_utf8_lossy(&line?).replace(r#""creationTimestamp":"2"#, r#""creationTimestamp":"3"#);
        Ok(told.into())
    })
}

async fn forward(proxy: &Proxy, request: Request, target: &str) -> Response {
    let mut cuts = proxy.cuts.subscribe();
    let (mut head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return broken() };
    for header in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        head.headers.remove(header);
    }
    head.uri = target.parse().expect("it came as one");
    let Ok(response) = proxy.client.send(Request::from_parts(head, body.into())).await else { return broken() };
    let (mut head, body) = response.into_parts();
    for header in [CONNECTION, TRANSFER_ENCODING] {
        head.headers.remove(header);
    }
    let body = Body::new(body);
    if !target.contains("watch=true") {
        return Response::from_parts(head, body);
    }
    let cut = async move {
        // The sender is in the proxy, which outlives every request.
        let _ = cuts.changed().await;
    };
    let events = body.into_data_stream().map(|chunk| chunk.map_err(io::Error::other)).take_until(cut);
    let broken = stream::once(future::ready(Err(io::ErrorKind::ConnectionReset.into())));
    Response::from_parts(head, Body::from_stream(events.chain(broken)))
}

fn answer(code: u16) -> Response {
    let mut response = json_response(code, status(code).to_string());
    if code == 429 {
        response.headers_mut().insert(RETRY_AFTER, "1".parse().expect("it is a header"));
    }
    response
}

fn status(code: u16) -> serde_json::Value {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault of the test's", "reason": reason, "code": code,
    })
}

fn json_response(code: u16, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(code).expect("it is one");
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("it is a header"));
    response
}

/// An answer that ends before it has begun.
fn broken() -> Response {
    let broken: Result<Bytes, io::Error> = Err(io::ErrorKind::ConnectionReset.into());
    Response::new(Body::from_stream(stream::once(future::ready(broken))))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics with it")
}
