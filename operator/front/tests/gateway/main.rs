//! The HTTP port over real sockets, on stores in memory: SSE, WebSocket, probes and refusals.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod bounds;
mod browser;
mod connections;
mod heads;
mod http;
mod http2;
mod scene;
mod sse;
mod unfinished;
mod unread;
mod websocket;
