//! One set of rules: the corpus of declared sessions, asked of the front that gets the same agents by gRPC.

#[path = "../../../crds/tests/corpus/mod.rs"]
#[expect(dead_code, reason = "tenants and requests are judged elsewhere")]
mod corpus;

use croft_crds::AgentSession;
use croft_front::session::validate;
use croft_operator::session::agent::to_proto;

use corpus::Case;

/// What the kind alone can refuse: the beginning of what it says, the end of the field's path, and why.
const EXCUSES: [(&str, &str, &str); 14] = [
    ("Required value", "", "the object can't be read, so there is no agent to send"),
    ("unknown field", "", "what the mapping doesn't know it doesn't send"),
    ("Unsupported value", "", "the object can't be read; the front refuses such numbers in its own tests"),
    ("a tool comes from exactly one place", "", "a oneof has room for one; the front refuses none in its own tests"),
    ("a guardrail is exactly one check", "", "a oneof has room for one; the front refuses none in its own tests"),
    ("should be greater than or equal to 1", "tools[0].timeoutSeconds", "0 is the default by gRPC"),
    ("should be greater than or equal to 1", "limits.maxModelCalls", "0 is the default by gRPC"),
    ("budgetUsd is nothing at all", "", "0 is no budget by gRPC"),
    ("should match", "limits.budgetUsd", "an amount is a number by gRPC"),
    ("idleTimeoutSeconds", "", "of the session, not of its agent"),
    ("lifetimeSeconds", "", "of the session, not of its agent"),
    ("should be greater than or equal to 1", "spec.lifetimeSeconds", "of the session, not of its agent"),
    ("the agent is fixed", "", "no call of gRPC changes an agent"),
    ("a terminated session can't be brought back", "", "no call of gRPC does"),
];

/// What the front says against it; `None` where it can't even be read as an object of the kind.
fn refusal(case: &Case) -> Option<String> {
    let session: AgentSession = serde_json::from_value(case.object.clone()).ok()?;
    let name = session.metadata.name.as_deref().unwrap_or_default();
    let verdict = validate::agent(Some(to_proto(&session.spec.agent, name)));
    Some(verdict.err().map(|error| error.to_string()).unwrap_or_default())
}

fn excuse(case: &Case) -> Option<usize> {
    let says = case.says.as_deref().unwrap_or_default();
    let at = case.at.as_deref().unwrap_or_default();
    EXCUSES.iter().position(|(begins, ends, _)| says.starts_with(begins) && at.ends_with(ends))
}

#[test]
fn what_the_kind_refuses_the_front_refuses_too() {
    let mut needed = [false; EXCUSES.len()];
    let cases: Vec<_> = corpus::invalid().into_iter().filter(|case| case.plural == "agentsessions").collect();
    assert!(cases.len() >= 60, "{} are too few", cases.len());
    for case in &cases {
        let refused = refusal(case).is_some_and(|said| !said.is_empty());
        match excuse(case) {
            Some(excuse) => needed[excuse] |= !refused,
            None => assert!(refused, "the front takes what the kind refuses with {:?}: {}", case.says, case.object),
        }
    }
    for ((begins, ends, reason), needed) in EXCUSES.iter().zip(needed) {
        assert!(needed, "nothing needs the excuse for {begins:?} {ends:?} any more: {reason}");
    }
}

#[test]
fn what_the_kind_takes_the_front_takes_too() {
    let cases: Vec<_> = corpus::valid().into_iter().filter(|case| case.plural == "agentsessions").collect();
    assert!(cases.len() >= 5, "{} are too few", cases.len());
    for case in &cases {
        assert_eq!(refusal(case).as_deref(), Some(""), "{}", case.object);
    }
}
