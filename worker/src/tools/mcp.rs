//! Tools of MCP servers, over streamable HTTP. Only servers that the tenant's admin declared are spoken to, each with the
//! credential that was declared for it and for no other. What the model is told of a tool is the agent's own spec: a
//! server can't slip it anything later.

mod connection;
mod credential;
mod result;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use croft_proto::v1::{ContentBlock, McpTool};
use croft_serve::Tasks;
use serde_json::{Value, json};

use super::{Error, Invocation, Tool};
use crate::http_client::HttpClient;
use connection::Connection;

/// A server that the tenant's agents may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpServer {
    /// For what people and models are told of it.
    pub name: String,
    /// An agent's tool names the server by this.
    pub url: String,
    /// Where its bearer token lies; it is read anew for each connection.
    pub token_file: Option<PathBuf>,
    /// Where each user's own bearer token lies, in a file that is named for them. Then theirs goes there, and no other.
    pub user_tokens_folder: Option<PathBuf>,
    /// The tools, by the server's names, that agents may use; none means all.
    pub tools: Vec<String>,
}

/// The servers of one agent's tools, while its toolbox is put together.
pub(super) struct Servers<'a> {
    declared: &'a [McpServer],
    client: &'a HttpClient,
    /// For whom they are called.
    user: &'a str,
    tasks: &'a Tasks,
    /// Tools of one server share a connection.
    connections: HashMap<&'a str, Arc<Connection>>,
}

impl<'a> Servers<'a> {
    pub(super) fn new(declared: &'a [McpServer], client: &'a HttpClient, user: &'a str, tasks: &'a Tasks) -> Self {
        Self { declared, client, user, tasks, connections: HashMap::new() }
    }

    /// The tool that `spec` means, which the model calls `name`. Nothing is connected yet.
    pub(super) fn tool(&mut self, spec: &McpTool, name: &str) -> Result<Arc<dyn Tool>, String> {
        let server = self.declared.iter().find(|server| server.url == spec.server_url);
        let server = server.ok_or("the tenant declares no MCP server at this address")?;
        let tool = if spec.tool_name.is_empty() { name } else { &spec.tool_name };
        if !server.tools.is_empty() && !server.tools.iter().any(|allowed| allowed == tool) {
            return Err(format!("{tool:?} is not among the tools of server {} that the tenant may use", server.name));
        }
        let (client, user, tasks) = (self.client, self.user, self.tasks);
        let connection = self
            .connections
            .entry(&server.name)
            .or_insert_with(|| Arc::new(Connection::new(server.clone(), client.clone(), user, tasks.clone())));
        Ok(Arc::new(Remote { connection: Arc::clone(connection), tool: tool.to_owned() }))
    }
}

/// One tool of a server.
struct Remote {
    connection: Arc<Connection>,
    /// By the server's name for it.
    tool: String,
}

#[async_trait]
impl Tool for Remote {
    fn description(&self) -> &'static str {
        ""
    }

    fn input_schema(&self) -> Value {
        json!({"type": "object"})
    }

    async fn ready(&self) -> Result<(), Error> {
        self.connection.ready().await
    }

    async fn call(&self, invocation: Invocation) -> Result<Vec<ContentBlock>, Error> {
        result::content(self.connection.call(&self.tool, invocation).await?)
    }
}
