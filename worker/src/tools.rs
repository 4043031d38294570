//! What an agent may call. A [`Tool`] does the work; a [`Toolbox`] is the tools of one agent, each with its permission,
//! its class of replay, its time limit, and the schema that arguments are held to.

mod calculator;
mod clock;
pub(crate) mod integers;
pub(crate) mod mcp;
mod permission;
mod sub_agent;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_llm::ToolDefinition;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, ContentBlock, Permission, ReplayClass, Text, ToolSpec};
use croft_serve::Tasks;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use crate::http_client::HttpClient;
use crate::json_schema::{JsonSchema, Unfit};
use crate::patterns::Patterns;
use crate::refusal::Refusal;
use crate::spans;
use mcp::{McpServer, Servers};
pub(crate) use permission::Decision;
use permission::Rules;
use sub_agent::SubAgent;

pub use calculator::Calculator;
pub use clock::Clock;

/// How long a call may take if its tool says nothing. At the bound the model is told so.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What asks for more has this. A sub-agent's time is the front's to keep.
const TIMEOUT_MAX: Duration = Duration::from_mins(10);
/// Bytes of one text in a result. What is beyond is cut off, and the model is told so.
const RESULT_TEXT_BYTES_MAX: usize = 256 * 1024;
/// The longest name that every model provider takes.
const NAME_CHARACTERS_MAX: usize = 64;

/// One call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// Has passed the tool's schema.
    pub arguments: Map<String, Value>,
    /// The same on every try of this call, for whoever must do it only once.
    pub idempotency_key: String,
}

/// A tool that did not do what it was asked; the model is told why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Something that an agent may call: built in, or at an MCP server.
#[async_trait]
pub trait Tool: Send + Sync {
    /// What the model is told if the agent's own spec says nothing.
    fn description(&self) -> &str;

    /// JSON Schema of the arguments, if the agent's own spec has none.
    fn input_schema(&self) -> Value;

    /// Waits until a call can be made, and makes none. Dropping the future gives up the wait; time limits are the caller's.
    async fn ready(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes one call. Dropping the future cancels it; time limits are the caller's.
    async fn call(&self, invocation: Invocation) -> Result<Vec<ContentBlock>, Error>;
}

/// The tools that are built into a worker, by name.
#[derive(Clone)]
pub struct Builtins {
    by_name: BTreeMap<String, Arc<dyn Tool>>,
}

impl Default for Builtins {
    /// `clock` and `calculator`.
    fn default() -> Self {
        Self { by_name: BTreeMap::new() }.with("clock", Clock).with("calculator", Calculator)
    }
}

impl Builtins {
    /// Adds a tool, in place of an older one of that name.
    pub fn with(mut self, name: &str, tool: impl Tool + 'static) -> Self {
        self.by_name.insert(name.to_owned(), Arc::new(tool));
        self
    }
}

/// How a call came to no result.
enum Failed {
    Tool(Error),
    /// Its time was over, with the call `was_made` or not.
    Late {
        was_made: bool,
    },
}

/// The arguments of a call, as they would reach its tool. A whole number is one however it was written.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) object: Map<String, Value>,
    /// Why no call is begun with them. One that was begun is not denied for it, and not made again by itself.
    pub(crate) doubt: Option<Doubt>,
}

/// Why nobody knows whether arguments fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// A whole number of them is larger than what is read.
    TooLarge,
    /// It took too long to hold them to the schema.
    Unheld,
}

impl Arguments {
    /// Those of a call that is not begun yet, or a sentence for the model.
    pub(crate) fn of_new_call(self) -> Result<Map<String, Value>, Error> {
        match self.doubt {
            None => Ok(self.object),
            Some(doubt) => Err(Error(doubt.to_string())),
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => formatter.write_str(
                "A whole number in the arguments is beyond 64 bits, and would not reach the tool as it is: give a smaller one, or a text.",
            ),
            Self::Unheld => {
                write!(formatter, "The arguments could not be held to the tool's schema: {}.", Unfit::Late)
            }
        }
    }
}

/// One tool of an agent.
pub(crate) struct Entry {
    pub(crate) tool: Arc<dyn Tool>,
    pub(crate) definition: ToolDefinition,
    permission: Permission,
    pub(crate) replay: ReplayClass,
    timeout: Duration,
    schema: JsonSchema,
    /// The front runs it, within its own time.
    pub(crate) is_sub_agent: bool,
}

/// The tools of one agent, by the names that the model sees.
pub(crate) struct Toolbox {
    entries: BTreeMap<String, Entry>,
    rules: Rules,
}

impl Toolbox {
    /// The agent's tools, called for this user, or why one of them can't run here.
    pub(crate) fn open(
        agent: &AgentSpec,
        builtins: &Builtins,
        servers: &[McpServer],
        client: &HttpClient,
        user: &str,
        tasks: &Tasks,
        patterns: &mut Patterns,
    ) -> Result<Self, Refusal> {
        let mut servers = Servers::new(servers, client, user, tasks);
        let mut entries = BTreeMap::new();
        for spec in &agent.tools {
            let entry = Entry::open(spec, builtins, &mut servers)?;
            if entries.insert(spec.name.clone(), entry).is_some() {
                let problem = "two tools have this name".to_owned();
                return Err(Refusal::ToolInvalid { tool: spec.name.clone(), problem });
            }
        }
        Ok(Self { entries, rules: Rules::open(&agent.permission_rules, patterns)? })
    }

    /// Whether a call with these arguments may be made.
    pub(crate) fn decide(&self, entry: &Entry, arguments: &Map<String, Value>) -> Decision {
        self.rules.decide(&entry.definition.name, entry.permission, arguments)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// What the model is told of them.
    pub(crate) fn definitions(&self) -> Vec<ToolDefinition> {
        self.entries.values().map(|entry| entry.definition.clone()).collect()
    }
}

impl Entry {
    fn open(spec: &ToolSpec, builtins: &Builtins, servers: &mut Servers<'_>) -> Result<Self, Refusal> {
        let unsupported = |problem: &str| Refusal::ToolUnsupported { tool: spec.name.clone(), problem: problem.into() };
        let invalid = |problem: String| Refusal::ToolInvalid { tool: spec.name.clone(), problem };
        let permission = Permission::try_from(spec.permission);
        let permission = permission.map_err(|_| unsupported("its permission is not known to this worker"))?;
        let of_alphabet = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        if spec.name.is_empty() || spec.name.len() > NAME_CHARACTERS_MAX || !spec.name.chars().all(of_alphabet) {
            return Err(invalid(format!("a name has 1 to {NAME_CHARACTERS_MAX} of a-z A-Z 0-9 _ -")));
        }
        let tool = match &spec.source {
            Some(Source::Builtin(builtin)) => builtins.by_name.get(&builtin.name).cloned(),
            Some(Source::Mcp(mcp)) => Some(servers.tool(mcp, &spec.name).map_err(|problem| unsupported(&problem))?),
            Some(Source::SubAgent(sub_agent)) => Some(Arc::new(SubAgent::new(&sub_agent.agent)) as Arc<dyn Tool>),
            // The front knows all that there are: what is not known here is of a newer release.
            None => return Err(unsupported("it has no source that this worker knows")),
        };
        let tool = tool.ok_or_else(|| unsupported("it is not built in"))?;
        let input_schema = if spec.input_schema_json.is_empty() {
            tool.input_schema()
        } else {
            let schema: Map<String, Value> = serde_json::from_str(&spec.input_schema_json)
                .map_err(|error| invalid(format!("its schema is no JSON object: {error}")))?;
            Value::Object(schema)
        };
        let schema = JsonSchema::open(&input_schema).map_err(|problem| invalid(format!("its schema {problem}")))?;
        let description =
            if spec.description.is_empty() { tool.description().to_owned() } else { spec.description.clone() };
        let timeout = match u64::try_from(spec.timeout_ms) {
            Ok(0) | Err(_) => TIMEOUT,
            Ok(milliseconds) => Duration::from_millis(milliseconds).min(TIMEOUT_MAX),
        };
        let is_sub_agent = matches!(spec.source, Some(Source::SubAgent(_)));
        let replay = match spec.replay() {
            // Asked for again, it is the same run.
            _ if is_sub_agent => ReplayClass::Idempotent,
            ReplayClass::Unspecified => ReplayClass::Unsafe,
            replay => replay,
        };
        let definition = ToolDefinition { name: spec.name.clone(), description, input_schema };
        Ok(Self { tool, definition, permission, replay, timeout, schema, is_sub_agent })
    }

    /// The arguments as an object that the schema takes, or a sentence for the model.
    pub(crate) async fn arguments(&self, json: &str) -> Result<Arguments, Error> {
        let parse =
            || serde_json::from_str(json).map_err(|error| Error(format!("The arguments are not valid JSON: {error}.")));
        let parsed: Value = parse()?;
        let (mut arguments, doubt) = if integers::are_beyond_64_bits(json) {
            (parsed, Some(Doubt::TooLarge))
        } else {
            match self.schema.hold(parsed).await {
                Ok(arguments) => (arguments, None),
                Err(Unfit::Late) => {
                    tracing::warn!(tool = self.definition.name, "arguments took too long to hold to the schema");
                    (parse()?, Some(Doubt::Unheld))
                }
                Err(Unfit::Fault(problem)) => {
                    return Err(Error(format!("The arguments do not fit the tool's schema: {problem}.")));
                }
            }
        };
        integers::settle(&mut arguments);
        match arguments {
            Value::Object(object) => Ok(Arguments { object, doubt }),
            _ => Err(Error("The arguments must be a JSON object.".into())),
        }
    }

    /// Makes one call, within the tool's time limit and the bound on results.
    pub(crate) async fn call(&self, tool_call_id: &str, invocation: Invocation) -> Result<Vec<ContentBlock>, Error> {
        let span = spans::execute_tool(&self.definition.name, tool_call_id);
        let deadline = Instant::now() + self.timeout;
        let call = async {
            match timeout_at(deadline, self.tool.ready()).await {
                Ok(ready) => ready.map_err(Failed::Tool)?,
                Err(_) => return Err(Failed::Late { was_made: false }),
            }
            match timeout_at(deadline, self.tool.call(invocation)).await {
                Ok(result) => result.map_err(Failed::Tool),
                Err(_) => Err(Failed::Late { was_made: true }),
            }
        };
        let failed = match call.instrument(span.clone()).await {
            Ok(content) => return Ok(within_bounds(content)),
            Err(failed) => failed,
        };
        spans::failed(&span, if matches!(failed, Failed::Tool(_)) { "tool_error" } else { "timeout" });
        let milliseconds = self.timeout.as_millis();
        Err(match failed {
            Failed::Tool(error) => error,
            Failed::Late { was_made: false } => {
                Error(format!("The tool could not be reached within {milliseconds} ms; the call was not made."))
            }
            Failed::Late { was_made: true } => {
                Error(format!("The tool gave no result within {milliseconds} ms; the call may have taken effect."))
            }
        })
    }
}

/// A result of one text.
pub fn text(text: impl Into<String>) -> Vec<ContentBlock> {
    vec![ContentBlock { block: Some(Block::Text(Text { text: text.into() })) }]
}

/// What of a result is told: each text up to its bound.
pub(crate) fn within_bounds(content: Vec<ContentBlock>) -> Vec<ContentBlock> {
    content.into_iter().map(shortened).collect()
}

fn shortened(mut block: ContentBlock) -> ContentBlock {
    if let Some(Block::Text(text)) = &mut block.block
        && text.text.len() > RESULT_TEXT_BYTES_MAX
    {
        let whole = text.text.len();
        let end = text.text.floor_char_boundary(RESULT_TEXT_BYTES_MAX);
        text.text = format!("{}\n[cut: {whole} bytes in all]", &text.text[..end]);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_proto::v1::{BuiltinTool, McpTool};
    use serde_json::json;

    fn clock() -> ToolSpec {
        let source = Some(Source::Builtin(BuiltinTool { name: "clock".into() }));
        ToolSpec { name: "clock".into(), source, ..ToolSpec::default() }
    }

    fn open(tools: Vec<ToolSpec>) -> Result<Toolbox, Refusal> {
        let agent = AgentSpec { tools, ..AgentSpec::default() };
        Toolbox::open(
            &agent,
            &Builtins::default(),
            &[],
            &HttpClient::default(),
            "",
            &Tasks::new(),
            &mut Patterns::default(),
        )
    }

    fn reason(tools: Vec<ToolSpec>) -> &'static str {
        open(tools).err().map_or("none", |refusal| refusal.reason())
    }

    #[test]
    fn a_toolbox_opens_with_what_is_built_in_and_refuses_the_rest() {
        let mcp = Some(Source::Mcp(McpTool { server_url: "https://tools.test".into(), ..McpTool::default() }));
        let spade = Some(Source::Builtin(BuiltinTool { name: "spade".into() }));
        let cases = [
            (vec![clock()], "none"),
            (vec![clock(), clock()], "TOOL_INVALID"),
            (vec![ToolSpec { source: mcp, ..clock() }], "TOOL_UNSUPPORTED"),
            (vec![ToolSpec { source: spade, ..clock() }], "TOOL_UNSUPPORTED"),
            (vec![ToolSpec { source: None, ..clock() }], "TOOL_UNSUPPORTED"),
            (vec![ToolSpec { permission: 99, ..clock() }], "TOOL_UNSUPPORTED"),
            (vec![ToolSpec { name: "two words".into(), ..clock() }], "TOOL_INVALID"),
            (vec![ToolSpec { name: "x".repeat(65), ..clock() }], "TOOL_INVALID"),
            (vec![ToolSpec { input_schema_json: "[]".into(), ..clock() }], "TOOL_INVALID"),
            (vec![ToolSpec { input_schema_json: r#"{"type":"wall"}"#.into(), ..clock() }], "TOOL_INVALID"),
            (vec![ToolSpec { input_schema_json: r##"{"not":{"$ref":"#"}}"##.into(), ..clock() }], "TOOL_INVALID"),
        ];
        for (tools, expected) in cases {
            assert_eq!(reason(tools.clone()), expected, "{tools:?}");
        }
    }

    #[tokio::test]
    async fn the_spec_wins_over_what_the_tool_says_of_itself() {
        let spec = ToolSpec {
            description: "The village clock.".into(),
            input_schema_json: r#"{"type":"object","required":["bell"]}"#.into(),
            ..clock()
        };
        let toolbox = open(vec![spec]).unwrap();
        assert_eq!(toolbox.definitions()[0].description, "The village clock.");
        let entry = toolbox.get("clock").unwrap();
        assert!(entry.arguments(r#"{"bell":1}"#).await.unwrap().of_new_call().is_ok());
        assert!(entry.arguments("{}").await.unwrap_err().0.contains("bell"));
        assert_eq!(entry.replay, ReplayClass::Unsafe);
    }

    /// A rule over 13 did not see 13.0, which is the same to every tool.
    #[tokio::test]
    async fn a_whole_number_reaches_the_tool_as_one_however_it_was_written() {
        let schema = json!({"properties": {"bell": {"type": "integer"}, "size": {"enum": [1.0, 2.5]}}});
        let toolbox = open(vec![ToolSpec { input_schema_json: schema.to_string(), ..clock() }]).unwrap();
        let entry = toolbox.get("clock").unwrap();
        for bell in ["13", "13.0", "1.3e1"] {
            let json = format!(r#"{{"bell":{bell},"size":1.0,"tone":0.5}}"#);
            let arguments = entry.arguments(&json).await.unwrap().of_new_call().unwrap();
            assert_eq!(Value::Object(arguments), json!({"bell": 13, "size": 1, "tone": 0.5}));
        }
    }

    /// A person approved the one, and the tool got the other.
    #[tokio::test]
    async fn a_number_that_would_change_on_its_way_is_refused() {
        let toolbox = open(vec![ToolSpec { input_schema_json: "{}".into(), ..clock() }]).unwrap();
        let entry = toolbox.get("clock").unwrap();
        let large = r#"{"bell":12345678901234567890123}"#;
        let told = entry.arguments(large).await.unwrap().of_new_call().unwrap_err().0;
        assert!(told.starts_with("A whole number in the arguments is beyond 64 bits"), "{told}");
        let kept = entry.arguments(r#"{"bell":18446744073709551615}"#).await.unwrap().of_new_call().unwrap();
        assert_eq!(kept["bell"], json!(u64::MAX));
        let begun = entry.arguments(large).await.unwrap();
        assert_eq!(begun.doubt, Some(Doubt::TooLarge), "what was begun with it is not denied");
    }

    #[tokio::test]
    async fn what_was_begun_is_not_denied_for_arguments_that_take_too_long_to_look_at() {
        let many: Vec<_> = (0..2_000).map(|least| json!({"minLength": least % 3})).collect();
        let schema = json!({"properties": {"bells": {"items": {"allOf": many}}}});
        let toolbox = open(vec![ToolSpec { input_schema_json: schema.to_string(), ..clock() }]).unwrap();
        let entry = toolbox.get("clock").unwrap();
        let slow = json!({"bells": vec!["abc"; 50_000]}).to_string();
        let (fresh, begun) = tokio::join!(entry.arguments(&slow), entry.arguments(&slow));
        let told = "The arguments could not be held to the tool's schema: it took longer than 1000 ms to look at.";
        assert_eq!(fresh.unwrap().of_new_call().unwrap_err().0, told);
        let begun = begun.unwrap();
        assert_eq!(begun.object["bells"].as_array().map(Vec::len), Some(50_000));
        assert_eq!(begun.doubt, Some(Doubt::Unheld));
    }

    #[test]
    fn a_long_result_is_cut_between_characters() {
        let long = "ä".repeat(RESULT_TEXT_BYTES_MAX);
        let Some(Block::Text(cut)) = shortened(text(long).remove(0)).block else { panic!("no text") };
        assert!(cut.text.len() < RESULT_TEXT_BYTES_MAX + 64 && cut.text.ends_with("in all]"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_tool_is_cut_off_with_a_sentence() {
        let toolbox = open(vec![ToolSpec { timeout_ms: 50, ..clock() }]).unwrap();
        let entry = toolbox.get("clock").unwrap();
        let arguments = entry.arguments(r#"{"sleep_ms":5000}"#).await.unwrap().of_new_call().unwrap();
        let outcome = entry.call("call-1", Invocation { arguments, idempotency_key: String::new() }).await;
        assert_eq!(outcome, Err(Error("The tool gave no result within 50 ms; the call may have taken effect.".into())));
    }
}
