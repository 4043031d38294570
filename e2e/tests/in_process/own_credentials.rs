//! Tools of servers that take each user's own credential: who speaks decides which one is sent.

use std::sync::{Arc, Mutex};

use croft_e2e::client::{Client, message, scripted_agent};
use croft_front::identity::api_key;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, McpTool, SubAgentTool, ToolSpec};
use croft_serve::Tasks;
use croft_worker::McpServer;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::world::{Ground, World, read_all};

/// Takes note of credentials, and answers nothing that is of use.
async fn door(tokens: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let answering = async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 16 * 1024];
            let length = connection.read(&mut request).await.unwrap();
            let head = String::from_utf8_lossy(&request[..length]).to_string();
            let is_token = |line: &&str| line.to_ascii_lowercase().starts_with("authorization:");
            let token = head.lines().find(is_token).and_then(|line| line.rsplit(' ').next());
            tokens.lock().unwrap().extend(token.map(str::to_owned));
            let answer = "HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = connection.write_all(answer.as_bytes()).await;
        }
    };
    drop(Tasks::new().spawn("door", answering));
    url
}

#[tokio::test]
async fn whoever_speaks_decides_whose_credential_is_sent_also_by_a_sub_agent() {
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let url = door(Arc::clone(&tokens)).await;
    let folder = tempfile::tempdir().unwrap();
    let mail = McpServer {
        name: "mail".into(),
        url: url.clone(),
        token_file: None,
        user_tokens_folder: Some(folder.path().to_owned()),
        tools: Vec::new(),
    };
    let world = World::on(Ground { mcp_servers: vec![mail], ..Ground::default() }).await;
    let tool = |name: &str, source: Source| ToolSpec { name: name.into(), source: Some(source), ..ToolSpec::default() };
    let read = || tool("read", Source::Mcp(McpTool { server_url: url.clone(), tool_name: String::new() }));
    let clerk = AgentSpec { tools: vec![read()], ..scripted_agent("clerk") };
    let ask = tool("ask", Source::SubAgent(SubAgentTool { agent: "clerk".into() }));
    let agent = AgentSpec { tools: vec![read(), ask], sub_agents: vec![clerk], ..scripted_agent("writer") };
    let session_id = world.client().create(agent).await.unwrap().session_id;
    let read = json!({"tool_call": {"name": "read", "arguments": {}}});
    let below = json!({"script": [read, {"text": "read"}]}).to_string();
    let ask = json!({"tool_call": {"name": "ask", "arguments": {"message": below}}});
    let script = json!({"script": [read, {"text": "and"}, ask, {"text": "done"}]}).to_string();

    // Two people of one tenant, in one session.
    for person in ["ann", "bob"] {
        let (record, key) = api_key::generate(world.tenant(), person).unwrap();
        world.core.stores.keys.insert(&record, None).await.unwrap();
        let actor = format!("api-key/ck_{}", record.prefix);
        let file = format!("api-key.ck_5f{}", record.prefix);
        std::fs::write(folder.path().join(file), format!("{person}s-token")).unwrap();
        let mut client = Client::new(&world.grpc.to_string(), key.expose_secret()).unwrap();
        let events = read_all(client.lifecycle.send_message(message(&session_id, &script)).await.unwrap().into_inner());
        let events = events.await;
        let Some(Kind::UserMessage(said)) = &events[0].kind else { panic!("{events:?}") };
        assert_eq!(said.sender, actor);
        let sent = std::mem::take(&mut *tokens.lock().unwrap());
        assert!(sent.len() >= 2 && sent.iter().all(|token| *token == format!("{person}s-token")), "{sent:?}");
        assert!(!format!("{events:?}").contains("-token"), "{events:?}");
    }

    // Somebody who has none: nothing is sent in another's name.
    let mut client = world.client();
    let events =
        read_all(client.lifecycle.send_message(message(&session_id, &script)).await.unwrap().into_inner()).await;
    let told = "The user has no credential of their own for the tool's server mail; the call was not made.";
    assert!(format!("{events:?}").contains(told), "{events:?}");
    assert_eq!(*tokens.lock().unwrap(), Vec::<String>::new());
}
