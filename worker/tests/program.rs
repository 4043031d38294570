//! The worker program: its port, its certificates, its config, its end.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod mcp_server;
mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use croft_proto::v1::runtime_service_client::RuntimeServiceClient;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentLimits, AgentSpec, CheckpointRequest, McpTool, RuntimeServiceTerminateSessionRequest, StopReason, ToolSpec,
};
use croft_serve::tls::{PeerRole, install_provider};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use support::{Client, Front, agent, init, script, session, start, text};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use wiremock::matchers::{header, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const SERVER_NAME: &str = "workers.tenant-meadow.svc";

/// An authority, and what it signs.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "croft-ca of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, role: &PeerRole, uses: &[ExtendedKeyUsagePurpose]) -> Signed {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = uses.to_vec();
        params.subject_alt_names.push(SanType::URI(role.uri().try_into().unwrap()));
        if let PeerRole::Worker { tenant } = role {
            params.subject_alt_names.push(SanType::DnsName(format!("workers.tenant-{tenant}.svc").try_into().unwrap()));
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Signed { certificate, key: key.serialize_pem() }
    }

    fn worker(&self, tenant: &str) -> Signed {
        self.sign(&PeerRole::Worker { tenant: tenant.into() }, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    fn client(&self, role: &PeerRole) -> Signed {
        self.sign(role, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
    }
}

/// A worker program that runs, with its certificate of tenant `meadow`.
struct Program {
    child: Child,
    /// Its log goes on being read, so that it never waits for us.
    log: Lines<BufReader<ChildStdout>>,
    authority: Authority,
    grpc: SocketAddr,
    ops: SocketAddr,
    _folder: TempDir,
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_croft-worker"));
    command.env_clear().stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

impl Program {
    async fn start(providers: Option<Value>) -> Self {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let authority = Authority::new();
        let own = authority.worker("meadow");
        let mut command = command();
        command
            .env("CROFT_TLS_CERT", write("tls.crt", &own.certificate))
            .env("CROFT_TLS_KEY", write("tls.key", &own.key))
            .env("CROFT_TLS_CA", write("ca.crt", &authority.certificate))
            .env("CROFT_TENANT", "meadow")
            .env("CROFT_WORKER_NAME", "worker-7")
            .env("CROFT_WORKER_NAMESPACE", "tenant-meadow")
            .env("CROFT_SESSIONS_MAX", "3")
            .args(["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"]);
        if let Some(providers) = providers {
            let key = write("anthropic-key", "sk-ant-of-a-test\n");
            let providers = providers.to_string().replace("KEY_FILE", key.to_str().unwrap());
            command.env("CROFT_PROVIDERS", write("providers.json", &providers));
        }
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap()).lines();
        let ops = logged(&mut log, "ops_addr").await;
        let grpc = logged(&mut log, "grpc_addr").await;
        Self { child, log, authority, grpc, ops, _folder: folder }
    }

    /// Dials the program with this certificate.
    async fn dial(&self, own: Option<&Signed>) -> Result<Channel, tonic::transport::Error> {
        install_provider();
        let ca = Certificate::from_pem(&self.authority.certificate);
        let mut tls = ClientTlsConfig::new().ca_certificate(ca).domain_name(SERVER_NAME);
        if let Some(own) = own {
            tls = tls.identity(Identity::from_pem(&own.certificate, &own.key));
        }
        Endpoint::from_shared(format!("https://{}", self.grpc)).unwrap().tls_config(tls)?.connect().await
    }

    async fn front(&self) -> Client {
        let own = self.authority.client(&PeerRole::Front);
        RuntimeServiceClient::new(self.dial(Some(&own)).await.unwrap())
    }

    /// What a caller with this certificate is told, if it gets so far.
    async fn outcome(&self, own: Option<&Signed>) -> Result<(), Code> {
        let channel = self.dial(own).await.map_err(|_| Code::Unavailable)?;
        init(&RuntimeServiceClient::new(channel), &session(), &agent()).await.map_err(|status: Status| status.code())
    }

    async fn page(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("http://{}{path}", self.ops)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }
}

/// The value of that field in the first log line that has it.
async fn logged(log: &mut Lines<BufReader<ChildStdout>>, field: &str) -> SocketAddr {
    let find = async {
        loop {
            let line = log.next_line().await.unwrap().expect("the program ended early");
            let line: Value = serde_json::from_str(&line).unwrap();
            if let Some(address) = line[field].as_str() {
                return address.parse().unwrap();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(90), find).await.expect("the program does not start")
}

#[tokio::test]
async fn the_front_runs_a_turn_at_the_programs_port() {
    let program = Program::start(None).await;
    let client = program.front().await;
    let session_id = session();
    init(&client, &session_id, &agent()).await.unwrap();
    let heard = Front::open(&client, start(&session_id, text("hello"))).await.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let Kind::StepStarted(started) = &heard.durables[0] else { panic!() };
    assert_eq!((started.worker.as_str(), started.namespace.as_str()), ("worker-7", "tenant-meadow"));

    let (status, _) = program.page("/readyz").await;
    assert_eq!(status, 200);
    let (_, metrics) = program.page("/metrics").await;
    for name in [
        "croft_worker_model_attempts_total",
        r#"croft_worker_model_breaker_open{provider="scripted"} 0"#,
        "croft_worker_sessions 1",
        "croft_grpc_requests_total",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
}

#[tokio::test]
async fn the_front_reads_a_sessions_state_at_the_programs_port_and_ends_it() {
    let program = Program::start(None).await;
    let mut client = program.front().await;
    let session_id = session();
    init(&client, &session_id, &agent()).await.unwrap();
    let asked = CheckpointRequest { session_id: session_id.clone() };
    let state = client.checkpoint(asked.clone()).await.unwrap().into_inner();
    assert_eq!(state.checkpoint, None, "nothing was said yet");
    let heard = Front::open(&client, start(&session_id, text("hello"))).await.finish().await;
    let state = client.checkpoint(asked.clone()).await.unwrap().into_inner();
    assert_eq!(state.checkpoint, Some(heard.checkpoint()));

    let ended = RuntimeServiceTerminateSessionRequest { session_id, reason: "a test is over".into(), epoch: 0 };
    assert!(client.terminate_session(ended.clone()).await.unwrap().into_inner().found);
    let (_, metrics) = program.page("/metrics").await;
    assert!(metrics.contains("croft_worker_sessions 0"), "{metrics}");
    assert_eq!(client.checkpoint(asked).await.unwrap_err().code(), Code::NotFound);
    assert!(!client.terminate_session(ended).await.unwrap().into_inner().found, "and once more is no error");
}

#[tokio::test]
async fn only_the_fronts_certificate_opens_the_port() {
    let program = Program::start(None).await;
    let authority = &program.authority;
    let other = PeerRole::Worker { tenant: "hill".into() };
    assert_eq!(program.outcome(Some(&authority.client(&PeerRole::Front))).await, Ok(()));
    assert_eq!(program.outcome(Some(&authority.client(&PeerRole::Operator))).await, Err(Code::PermissionDenied));
    assert_eq!(program.outcome(Some(&authority.client(&other))).await, Err(Code::PermissionDenied));
    // As they are issued, workers' certificates are no clients' at all, and end at the handshake.
    assert!(program.outcome(Some(&authority.worker("hill"))).await.is_err());
    assert!(program.outcome(Some(&authority.worker("meadow"))).await.is_err());
    assert!(program.outcome(None).await.is_err());
    let foreign = Authority::new().client(&PeerRole::Front);
    assert!(program.outcome(Some(&foreign)).await.is_err());
}

#[tokio::test]
async fn the_health_service_answers_the_front() {
    let program = Program::start(None).await;
    let own = program.authority.client(&PeerRole::Front);
    let channel = program.dial(Some(&own)).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: "croft.v1.RuntimeService".into() };
    // It may be asked before it has heard that the port is served.
    let serves = async {
        loop {
            let answer = health.check(request.clone()).await.unwrap().into_inner();
            match answer.status() {
                ServingStatus::Serving => return,
                status => assert_eq!(status, ServingStatus::NotServing),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), serves).await.expect("it is healthy");
}

#[tokio::test]
async fn sigterm_hands_the_turn_back_and_ends_the_program() {
    const NAPS: usize = 50;
    const MODEL_CALLS_MAX: u32 = 100;
    let mut program = Program::start(None).await;
    let client = program.front().await;
    let session_id = session();
    let limits = Some(AgentLimits { model_calls_max: MODEL_CALLS_MAX, ..AgentLimits::default() });
    init(&client, &session_id, &AgentSpec { limits, ..agent() }).await.unwrap();
    // More than are over before the program is told to end, however long that takes.
    let nap = json!({"tool_call": {"name": "clock", "arguments": {"sleep_ms": 400}}});
    // Each behind a word: calls that follow each other are of one answer, and run side by side.
    let mut steps: Vec<_> = (0..NAPS).flat_map(|_| [json!({"text": "again"}), nap.clone()]).collect();
    steps.push(json!({"text": "done"}));
    let steps = script(&json!(steps));
    let mut front = Front::open(&client, start(&session_id, steps)).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    program.terminate();
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    let naps = heard.durables.iter().filter(|kind| matches!(kind, Kind::ToolResult(_))).count();
    assert_eq!(usize::try_from(heard.checkpoint().tool_calls), Ok(naps), "the superstep at hand was ended");
    assert!((1..NAPS).contains(&naps), "and no other begun: {naps}");
    drop(client);
    while program.log.next_line().await.unwrap().is_some() {}
    let status = tokio::time::timeout(Duration::from_secs(90), program.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_configured_provider_is_called_with_its_key() {
    let server = MockServer::start().await;
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/llm/tests/golden/anthropic/text.sse");
    let answer = ResponseTemplate::new(200).set_body_raw(std::fs::read(golden).unwrap(), "text/event-stream");
    Mock::given(path("/v1/messages"))
        .and(header("x-api-key", "sk-ant-of-a-test"))
        .respond_with(answer)
        .expect(1)
        .mount(&server)
        .await;
    let providers = json!({"providers": {"anthropic": {"base_url": server.uri(), "api_key_file": "KEY_FILE"}}});
    let program = Program::start(Some(providers)).await;
    let client = program.front().await;
    let session_id = session();
    let agent = AgentSpec { model: "claude-haiku-4-5".into(), ..agent() };
    init(&client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&client, start(&session_id, text("hello"))).await;
    (front.provider, front.model) = ("anthropic".into(), "claude-haiku-4-5".into());
    let heard = front.finish().await;
    let Kind::ModelAttempt(attempt) = &heard.durables[1] else { panic!() };
    assert_eq!((attempt.provider.as_str(), attempt.response_id.as_str()), ("anthropic", "msg_01"));
    assert_eq!(attempt.usage.unwrap().output_tokens, 17);
}

/// Each interface, as the file of providers names it: an agent on a model of it really runs.
#[tokio::test]
async fn every_provider_answers_through_the_program() {
    let cases = [
        ("openai", json!({}), "openai-responses", "gpt-6-luna", "/v1/responses", "authorization", "Bearer "),
        (
            "openai",
            json!({"api": "chat"}),
            "openai-chat",
            "gpt-6-sol",
            "/v1/chat/completions",
            "authorization",
            "Bearer ",
        ),
        (
            "gemini",
            json!({}),
            "gemini",
            "gemini-3.8-flash",
            "/v1beta/models/gemini-3.8-flash:streamGenerateContent",
            "x-goog-api-key",
            "",
        ),
    ];
    for (provider, mut entry, golden, model, to, name, before) in cases {
        let server = MockServer::start().await;
        let golden = format!("{}/llm/tests/golden/{golden}/text.sse", env!("CARGO_MANIFEST_DIR"));
        let answer = ResponseTemplate::new(200).set_body_raw(std::fs::read(golden).unwrap(), "text/event-stream");
        Mock::given(path(to))
            .and(header(name, format!("{before}sk-ant-of-a-test").as_str()))
            .respond_with(answer)
            .expect(1)
            .mount(&server)
            .await;
        entry["base_url"] = server.uri().into();
        entry["api_key_file"] = "KEY_FILE".into();
        let program = Program::start(Some(json!({"providers": {provider: entry}}))).await;
        let client = program.front().await;
        let session_id = session();
        let agent = AgentSpec { model: model.into(), ..agent() };
        init(&client, &session_id, &agent).await.unwrap();
        let mut front = Front::open(&client, start(&session_id, text("hello"))).await;
        (front.provider, front.model) = (provider.into(), model.into());
        let heard = front.finish().await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn, "{model}");
        let Kind::ModelAttempt(attempt) = &heard.durables[1] else { panic!("{model}") };
        assert_eq!((attempt.provider.as_str(), attempt.model.as_str()), (provider, model));
        assert_eq!(attempt.usage.unwrap().output_tokens, 17, "{model}");
        let Kind::AgentMessage(message) = &heard.durables[2] else { panic!("{model}") };
        assert_eq!(support::texts(&message.content), "Grüße aus dem 🌻-Beet,\n\"heute\" \\ morgen.", "{model}");
    }
}

#[tokio::test]
async fn a_model_in_the_cluster_is_there_without_a_key() {
    let providers = json!({"providers": {"anthropic": {"base_url": "http://llama.models.svc:80"}}});
    let program = Program::start(Some(providers)).await;
    let claude = AgentSpec { model: "claude-haiku-4-5".into(), ..agent() };
    init(&program.front().await, &session(), &claude).await.unwrap();
}

#[tokio::test]
async fn a_provider_whose_key_is_not_there_is_left_out() {
    let providers = json!({"providers": {"anthropic": {"api_key_file": "/nowhere/anthropic"}}});
    let program = Program::start(Some(providers)).await;
    let client = program.front().await;
    init(&client, &session(), &agent()).await.unwrap();
    let claude = AgentSpec { model: "claude-haiku-4-5".into(), ..agent() };
    let refused = init(&client, &session(), &claude).await.unwrap_err();
    assert_eq!((refused.code(), support::reason(&refused).as_str()), (Code::FailedPrecondition, "PROVIDER_MISSING"));
}

#[tokio::test]
async fn a_declared_mcp_server_is_called_with_its_token() {
    let server = mcp_server::Server::start(mcp_server::Era::Stateless).await;
    let declared = json!({"name": "village", "url": server.url, "token_file": "KEY_FILE", "tools": ["add"]});
    let program = Program::start(Some(json!({"providers": {}, "mcp_servers": [declared]}))).await;
    let client = program.front().await;
    let source = Some(Source::Mcp(McpTool { server_url: server.url.clone(), ..McpTool::default() }));
    let add = ToolSpec { name: "add".into(), source, ..ToolSpec::default() };
    let agent = AgentSpec { tools: vec![add], ..agent() };
    let session_id = session();
    init(&client, &session_id, &agent).await.unwrap();
    let steps = json!([{"tool_call": {"name": "add", "arguments": {"a": 2, "b": 2}}}, {"text": "Four."}]);
    let heard = Front::open(&client, start(&session_id, script(&steps))).await.finish().await;
    let result = heard.durables.iter().find_map(|kind| match kind {
        Kind::ToolResult(result) => Some((support::texts(&result.content), result.is_error)),
        _ => None,
    });
    assert_eq!((result, heard.stop_reason()), (Some(("4".to_owned(), false)), StopReason::EndTurn));
    assert_eq!(server.last_authorization().as_deref(), Some("Bearer sk-ant-of-a-test"));
}

/// A folder as Kubernetes mounts a Secret: its entries are links through one link, which is exchanged as a whole.
struct Mounted {
    folder: TempDir,
    version: u32,
}

impl Mounted {
    fn new(key: &str) -> Self {
        let mut mounted = Self { folder: TempDir::new().unwrap(), version: 0 };
        mounted.exchange(key);
        std::os::unix::fs::symlink("..data/anthropic", mounted.key()).unwrap();
        mounted
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("anthropic")
    }

    fn exchange(&mut self, key: &str) {
        let (old, folder) = (self.version, self.folder.path().to_owned());
        self.version += 1;
        let name = |version: u32| format!("..2026_11_25.{version}");
        std::fs::create_dir(folder.join(name(self.version))).unwrap();
        file(&folder.join(name(self.version)), "anthropic", key);
        std::os::unix::fs::symlink(name(self.version), folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        if old > 0 {
            std::fs::remove_dir_all(folder.join(name(old))).unwrap();
        }
    }
}

#[tokio::test]
async fn a_key_that_changes_is_used_by_the_running_worker_and_one_that_is_none_is_not() {
    let server = MockServer::start().await;
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/llm/tests/golden/anthropic/text.sse");
    let answer = ResponseTemplate::new(200).set_body_raw(std::fs::read(golden).unwrap(), "text/event-stream");
    Mock::given(path("/v1/messages")).respond_with(answer).mount(&server).await;
    let mut mounted = Mounted::new("sk-ant-the-first");
    let entry = json!({"base_url": server.uri(), "api_key_file": mounted.key()});
    let mut program = Program::start(Some(json!({"providers": {"anthropic": entry}}))).await;
    let client = program.front().await;
    let session_id = session();
    let agent = AgentSpec { model: "claude-haiku-4-5".into(), ..agent() };
    init(&client, &session_id, &agent).await.unwrap();
    // One turn of the session; the key that it was made with.
    let turn = async || {
        let mut front = Front::open(&client, start(&session_id, text("hello"))).await;
        (front.provider, front.model) = ("anthropic".into(), "claude-haiku-4-5".into());
        assert_eq!(front.finish().await.stop_reason(), StopReason::EndTurn);
        let requests = server.received_requests().await.unwrap();
        requests.last().unwrap().headers["x-api-key"].to_str().unwrap().to_owned()
    };
    assert_eq!(turn().await, "sk-ant-the-first");

    mounted.exchange("sk-ant-the-second\n");
    let exchanged = async {
        while turn().await == "sk-ant-the-first" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), exchanged).await.expect("the new key is not used");
    assert_eq!(turn().await, "sk-ant-the-second");

    mounted.exchange("");
    let mut log = String::new();
    let told = async {
        while !log.contains("the old one stays in use") {
            log += &program.log.next_line().await.unwrap().expect("the program ended early");
        }
    };
    tokio::time::timeout(Duration::from_secs(90), told).await.expect("nothing is said of the empty key");
    assert_eq!(turn().await, "sk-ant-the-second");
    assert!(log.contains("the provider's key has changed") && !log.contains("sk-ant"), "{log}");

    mounted.exchange("sk-ant-the-third");
    let exchanged = async {
        while turn().await == "sk-ant-the-second" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), exchanged).await.expect("a good key is not used after a bad one");
    assert_eq!(turn().await, "sk-ant-the-third");
    let (_, metrics) = program.page("/metrics").await;
    assert!(metrics.contains("croft_worker_sessions 1"), "the session was there all along");
}

async fn refused(arguments: &[&str]) -> Output {
    let run = command().args(arguments).output();
    tokio::time::timeout(Duration::from_secs(90), run).await.expect("the program goes on").unwrap()
}

fn file(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn a_mistake_in_the_config_is_told_in_a_sentence_and_ends_with_2() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, content: &str| file(folder.path(), name, content).to_str().unwrap().to_owned();
    let empty_key = file("empty-key", "\n");
    let unknown = file("unknown.json", r#"{"providers":{"oracle":{}}}"#);
    let keyless = file("keyless.json", r#"{"providers":{"anthropic":{}}}"#);
    let chatty = file("chatty.json", r#"{"providers":{"gemini":{"api":"chat","base_url":"http://x.test"}}}"#);
    let blank = file("blank.json", &json!({"providers": {"anthropic": {"api_key_file": empty_key}}}).to_string());
    let garbled = file("garbled.json", "{");
    let nowhere = file("nowhere.json", r#"{"providers":{},"mcp_servers":[{"name":"village","url":"tools.test"}]}"#);
    let good = ["--tenant", "meadow", "--worker-name", "worker-7", "--metrics-addr", "127.0.0.1:0"];
    let insecure = ["--insecure", "--grpc-addr", "127.0.0.1:0"];
    let with = |more: &[&str]| [&good[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let insecure_with = |more: &[&str]| with(&[&insecure[..], more].concat());
    let cases = [
        (vec!["--worker-name".to_owned(), "w".to_owned()], "--tenant (CROFT_TENANT) is required."),
        (insecure_with(&["--sessions-max", "0"]), "--sessions-max (CROFT_SESSIONS_MAX) must be at least 1."),
        (with(&["--insecure"]), "--insecure (CROFT_INSECURE) is for tests on a loopback address"),
        (with(&["--tls-cert", "/nowhere/tls.crt"]), "/nowhere/tls.crt of --tls-cert (CROFT_TLS_CERT) is not usable"),
        (insecure_with(&["--providers", "/nowhere/p.json"]), "/nowhere/p.json of --providers (CROFT_PROVIDERS)"),
        (insecure_with(&["--providers", &garbled]), "is not usable"),
        (insecure_with(&["--providers", &unknown]), "provider oracle: there is no such provider"),
        (insecure_with(&["--providers", &keyless]), "provider anthropic: api_key_file is missing"),
        (insecure_with(&["--providers", &chatty]), "provider gemini: api is for openai alone"),
        (insecure_with(&["--providers", &nowhere]), "MCP server village: url \"tools.test\""),
        (insecure_with(&["--providers", &blank]), "must hold one line of printable ASCII"),
    ];
    for (arguments, sentence) in cases {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = refused(&arguments).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(sentence), "{arguments:?}: {told}");
        assert!(told.trim_end().ends_with('.'), "{told}");
    }
}
