//! A client's WebSocket.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Frames of JSON both ways.
pub(super) struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    pub(super) async fn connect(address: SocketAddr, api_key: &str) -> anyhow::Result<Self> {
        let mut request = format!("ws://{address}/v1/ws").into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {api_key}").parse()?);
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default().read_buffer_size(4 * 1024).write_buffer_size(0);
        Ok(Self(
            client_async_with_config(request, stream, Some(config)).await.context("the front takes no WebSocket")?.0,
        ))
    }

    pub(super) async fn say(&mut self, frame: &Value) -> anyhow::Result<()> {
        Ok(self.0.send(Message::text(frame.to_string())).await?)
    }

    /// The next frame. Pings are answered on the way.
    pub(super) async fn hear(&mut self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.hear_text().await?)?)
    }

    /// The next frame, unread.
    pub(super) async fn hear_text(&mut self) -> anyhow::Result<Utf8Bytes> {
        loop {
            match self.0.next().await.context("the WebSocket has ended")?? {
                Message::Text(text) => return Ok(text),
                Message::Ping(_) | Message::Pong(_) => {}
                other => bail!("no frame of text: {other:?}"),
            }
        }
    }

    /// The next frame of this kind; others are let pass.
    pub(super) async fn hear_of(&mut self, kind: &str) -> anyhow::Result<Value> {
        loop {
            let mut frame = self.hear().await?;
            if let Some(error) = frame.get("error") {
                bail!("the front says {error}");
            }
            if let Some(found) = frame.get_mut(kind) {
                return Ok(found.take());
            }
        }
    }
}
