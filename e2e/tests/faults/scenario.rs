//! What is said in a history: decided by the seed, the same with and without faults.

use croft_e2e::client::scripted_agent;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, BuiltinTool, BusyPolicy, Permission, ReplayClass, SubAgentTool, ToolSpec};
use serde_json::{Value, json};

use crate::dice::Dice;

/// The conversations of a history, one a tenant, at the same time.
pub(crate) struct Scenario {
    pub(crate) talks: Vec<Vec<Said>>,
}

/// A user's message.
pub(crate) struct Said {
    pub(crate) text: String,
    /// Anything but `Reject` is said while the turn before it may still be running.
    pub(crate) policy: BusyPolicy,
}

impl Scenario {
    pub(crate) fn of(dice: &mut Dice) -> Self {
        let talks = (0..2).map(|tenant| talk(tenant, dice)).collect();
        Self { talks }
    }
}

/// The turns that a later message may interrupt: one that is said while they may still be running, or waiting to run.
pub(crate) fn interrupted(talk: &[Said]) -> Vec<usize> {
    let may_be = |turn: &usize| {
        let beside = talk.iter().skip(turn + 1).take_while(|said| said.policy != BusyPolicy::Reject);
        beside.into_iter().any(|said| said.policy == BusyPolicy::Interrupt)
    };
    (0..talk.len()).filter(may_be).collect()
}

fn talk(tenant: usize, dice: &mut Dice) -> Vec<Said> {
    let count = 1 + dice.below(3);
    let said = |message| {
        let policy = match dice.below(10) {
            0..=1 => BusyPolicy::Enqueue,
            2 => BusyPolicy::Interrupt,
            _ => BusyPolicy::Reject,
        };
        let mark = format!("t{tenant}m{message}");
        Said { text: json!({ "script": script(&mark, dice) }).to_string(), policy }
    };
    (0..count).map(said).collect()
}

fn script(mark: &str, dice: &mut Dice) -> Vec<Value> {
    let mut steps = Vec::new();
    for part in 0..dice.below(3) {
        if dice.chance(60) {
            steps.push(words(&format!("{mark}p{part}"), dice));
        }
        for call in 0..=dice.below(2) {
            let name = dice.one_of(&["look", "look", "pay", "launch", "ask", "fire", "delegate"]);
            let mark = format!("{mark}p{part}c{call}");
            let arguments = match name {
                "delegate" => json!({ "message": json!({ "script": helped(&mark, dice) }).to_string() }),
                _ => json!({ "of": mark, "takes_ms": dice.one_of(&[0, 0, 20, 1_500]) }),
            };
            steps.push(json!({ "tool_call": { "name": name, "arguments": arguments } }));
        }
    }
    match dice.below(12) {
        0 => steps.push(json!({ "error": { "class": "invalid", "message": "as the script says" } })),
        1 => {
            steps.push(words(&format!("{mark}cut"), dice));
            steps.push(json!({ "stop": "max_tokens" }));
        }
        _ => steps.push(words(&format!("{mark}end"), dice)),
    }
    steps
}

/// What a sub-agent does. Nothing that may not be repeated: then its caller's story would be another.
fn helped(mark: &str, dice: &mut Dice) -> Vec<Value> {
    let mut steps = Vec::new();
    for call in 0..dice.below(3) {
        let name = dice.one_of(&["look", "pay"]);
        let arguments = json!({ "of": format!("{mark}h{call}"), "takes_ms": dice.one_of(&[0, 20, 1_500]) });
        steps.push(json!({ "tool_call": { "name": name, "arguments": arguments } }));
    }
    steps.push(words(&format!("{mark}help"), dice));
    steps
}

fn words(mark: &str, dice: &mut Dice) -> Value {
    let words: Vec<_> = (0..=dice.below(5)).map(|word| format!("{mark}w{word}")).collect();
    json!({ "text": words.join(" "), "token_delay_ms": dice.one_of(&[0, 0, 7, 400]) })
}

/// An agent with a tool of each kind, of which one is another agent.
pub(crate) fn agent() -> AgentSpec {
    let tool = |name: &str, replay: ReplayClass, permission: Permission| ToolSpec {
        name: name.into(),
        source: Some(Source::Builtin(BuiltinTool { name: name.into() })),
        replay: replay.into(),
        permission: permission.into(),
        ..ToolSpec::default()
    };
    let tools = vec![
        tool("look", ReplayClass::Safe, Permission::Allow),
        tool("pay", ReplayClass::Idempotent, Permission::Allow),
        tool("launch", ReplayClass::Unsafe, Permission::Allow),
        tool("ask", ReplayClass::Idempotent, Permission::Ask),
        tool("fire", ReplayClass::Unsafe, Permission::Ask),
    ];
    let helper = AgentSpec { tools: tools[..2].to_vec(), ..scripted_agent("helper") };
    let delegate = ToolSpec {
        name: "delegate".into(),
        source: Some(Source::SubAgent(SubAgentTool { agent: "helper".into() })),
        ..ToolSpec::default()
    };
    let tools = [tools, vec![delegate]].concat();
    AgentSpec { tools, sub_agents: vec![helper], ..scripted_agent("sturdy") }
}
