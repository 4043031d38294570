//! The ids of tool calls on their way back to a model.
//!
//! Those that a worker takes in are good, but what stands in a conversation already need not be: an older release, a client or a
//! server with ways of its own may have written `functions.search:0`, nothing at all, or the same id for two calls. A provider
//! that refuses one would refuse the conversation with every request from then on.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};

use croft_proto::v1::Message;
use croft_proto::v1::content_block::Block;

/// OpenAI's Responses refuse longer ones (`string_above_max_length`).
pub const BYTES_MAX: usize = 64;
/// And Chat Completions these.
pub(crate) const CHAT_BYTES_MAX: usize = 40;
/// Stands for no id at all.
const UNKNOWN: &str = "call";

/// How many letters and digits an id at Mistral has, which takes no others: "must be a-z, A-Z, 0-9, with a length of 9".
const MISTRAL_CHARACTERS: usize = 9;

/// The ids that an interface takes.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// Up to so many bytes.
    UpTo(usize),
    Mistral,
}

impl Form {
    fn takes(self, id: &str) -> bool {
        match self {
            Self::UpTo(bytes_max) => is_portable(id, bytes_max),
            Self::Mistral => {
                id.len() == MISTRAL_CHARACTERS && id.chars().all(|character| character.is_ascii_alphanumeric())
            }
        }
    }

    /// What stands for an id that is not taken, unless it stands for another already.
    fn stand_in(self, id: &str) -> String {
        match self {
            Self::UpTo(_) if id.is_empty() => UNKNOWN.to_owned(),
            Self::UpTo(bytes_max) => {
                let safe = |character| if is_of_alphabet(character) { character } else { '_' };
                id.chars().take(bytes_max).map(safe).collect()
            }
            Self::Mistral => {
                // What tells ids apart stands at their end.
                let kept: Vec<_> = id.chars().filter(char::is_ascii_alphanumeric).collect();
                let end: String = kept[kept.len().saturating_sub(MISTRAL_CHARACTERS)..].iter().collect();
                format!("{end:0>MISTRAL_CHARACTERS$}")
            }
        }
    }

    /// The same with a number at its end.
    fn numbered(self, stand_in: &str, number: u64) -> String {
        let (characters, ending) = match self {
            Self::UpTo(bytes_max) => (bytes_max, format!("_{number}")),
            Self::Mistral => (MISTRAL_CHARACTERS, number.to_string()),
        };
        let room = characters.saturating_sub(ending.len());
        stand_in.chars().take(room).chain(ending.chars()).collect()
    }
}

/// Whether every interface whose ids have at most so many bytes takes it back: Anthropic takes `a-z A-Z 0-9 _ -` and no other.
pub fn is_portable(id: &str, bytes_max: usize) -> bool {
    !id.is_empty() && id.len() <= bytes_max && id.chars().all(is_of_alphabet)
}

fn is_of_alphabet(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-')
}

/// The conversation with ids that providers take, each for one call and its results alone. One that is good already stays, so
/// that what a provider has cached still fits. Another becomes one by what comes before it, so that a conversation which goes
/// on begins as it did, unless a model comes to give the very id that stands for another.
pub(crate) fn portable(messages: &[Message], bytes_max: usize) -> Cow<'_, [Message]> {
    in_form(messages, Form::UpTo(bytes_max))
}

/// The same with ids as Mistral takes them.
pub(crate) fn mistral(messages: &[Message]) -> Cow<'_, [Message]> {
    in_form(messages, Form::Mistral)
}

fn in_form(messages: &[Message], form: Form) -> Cow<'_, [Message]> {
    if are_good(messages, form) {
        return Cow::Borrowed(messages);
    }
    let mut ids = Ids::new(messages, form);
    let mut messages = messages.to_vec();
    for (place, message) in messages.iter_mut().enumerate() {
        for block in &mut message.content {
            match &mut block.block {
                Some(Block::ToolUse(call)) => call.tool_call_id = ids.of_call(&call.tool_call_id, place),
                Some(Block::ToolOutput(output)) => output.tool_call_id = ids.of_result(&output.tool_call_id),
                _ => {}
            }
        }
    }
    Cow::Owned(messages)
}

fn are_good(messages: &[Message], form: Form) -> bool {
    let mut called = HashSet::new();
    messages.iter().flat_map(|message| &message.content).all(|block| match &block.block {
        Some(Block::ToolUse(call)) => form.takes(&call.tool_call_id) && called.insert(call.tool_call_id.as_str()),
        Some(Block::ToolOutput(output)) => form.takes(&output.tool_call_id),
        _ => true,
    })
}

/// What became of the ids so far.
struct Ids {
    form: Form,
    /// Good ones of all the conversation, and what stands for others: nothing else may stand for these.
    taken: HashSet<String>,
    /// By the id as it was.
    calls: HashMap<String, Calls>,
    /// The last number behind what stands for several, by what they begin with.
    numbers: HashMap<String, u64>,
}

/// The calls that had one id, each by what stands for it now.
#[derive(Default)]
struct Calls {
    /// The place of the last answer that has any.
    answer: usize,
    /// Of that answer, without a result so far, the oldest first: results come in the order of their calls. What an answer before it left
    /// without one has none.
    open: VecDeque<String>,
    last: String,
}

impl Ids {
    fn new(messages: &[Message], form: Form) -> Self {
        let ids = messages.iter().flat_map(|message| &message.content).filter_map(|block| match &block.block {
            Some(Block::ToolUse(call)) => Some(&call.tool_call_id),
            Some(Block::ToolOutput(output)) => Some(&output.tool_call_id),
            _ => None,
        });
        let taken = ids.filter(|id| form.takes(id)).cloned().collect();
        Self { form, taken, calls: HashMap::new(), numbers: HashMap::new() }
    }

    fn of_call(&mut self, id: &str, answer: usize) -> String {
        let is_good = self.form.takes(id) && !self.calls.contains_key(id);
        let sent = if is_good { id.to_owned() } else { self.stand_in(id) };
        let calls = self.calls.entry(id.to_owned()).or_default();
        if calls.answer != answer {
            calls.answer = answer;
            calls.open.clear();
        }
        calls.open.push_back(sent.clone());
        calls.last.clone_from(&sent);
        sent
    }

    fn of_result(&mut self, id: &str) -> String {
        match self.calls.get_mut(id) {
            Some(calls) => calls.open.pop_front().unwrap_or_else(|| calls.last.clone()),
            // Its call is not there.
            None if self.form.takes(id) => id.to_owned(),
            None => self.stand_in(id),
        }
    }

    fn stand_in(&mut self, id: &str) -> String {
        let begins = self.form.stand_in(id);
        let mut sent = begins.clone();
        let number = self.numbers.entry(begins.clone()).or_insert(1);
        // Ends, as the conversation does.
        while !self.taken.insert(sent.clone()) {
            *number += 1;
            sent = self.form.numbered(&begins, *number);
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{ContentBlock, Role, ToolOutput, ToolUse};
    use proptest::prelude::*;

    use super::*;

    fn message(role: Role, blocks: impl Iterator<Item = Block>) -> Message {
        let content = blocks.map(|block| ContentBlock { block: Some(block) }).collect();
        Message { role: role.into(), content, ..Message::default() }
    }

    /// Answers with calls of these ids, each with its results.
    fn conversation(answers: &[Vec<String>]) -> Vec<Message> {
        let call = |id: &String| Block::ToolUse(ToolUse { tool_call_id: id.clone(), ..ToolUse::default() });
        let output = |id: &String| Block::ToolOutput(ToolOutput { tool_call_id: id.clone(), ..ToolOutput::default() });
        let exchange = |ids: &Vec<String>| {
            [message(Role::Assistant, ids.iter().map(call)), message(Role::Tool, ids.iter().map(output))]
        };
        answers.iter().flat_map(exchange).collect()
    }

    /// The ids that are sent, of calls and of results.
    fn sent(answers: &[Vec<String>]) -> (Vec<String>, Vec<String>) {
        sent_of(&conversation(answers))
    }

    fn sent_of(messages: &[Message]) -> (Vec<String>, Vec<String>) {
        let (mut calls, mut results) = (Vec::new(), Vec::new());
        for block in portable(messages, BYTES_MAX).iter().flat_map(|message| &message.content) {
            match &block.block {
                Some(Block::ToolUse(call)) => calls.push(call.tool_call_id.clone()),
                Some(Block::ToolOutput(output)) => results.push(output.tool_call_id.clone()),
                _ => {}
            }
        }
        (calls, results)
    }

    fn answer(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn a_good_id_stays_and_another_becomes_one_that_no_other_call_has() {
        let (just, over) = ("x".repeat(BYTES_MAX), "x".repeat(BYTES_MAX + 1));
        let cut = format!("{}_2", "x".repeat(BYTES_MAX - 2));
        for (before, after) in [
            (vec![answer(&["toolu_1", "call-2"])], vec!["toolu_1", "call-2"]),
            (vec![answer(&["functions.search:0"])], vec!["functions_search_0"]),
            (vec![answer(&["a.b", "a:b"]), answer(&["a_b", "a b"])], vec!["a_b_2", "a_b_3", "a_b", "a_b_4"]),
            (vec![answer(&["käse"]), answer(&[""]), answer(&[""])], vec!["k_se", "call", "call_2"]),
            (vec![answer(&[&over, &just])], vec![&cut, &just]),
            // An endpoint that begins anew with each answer, and one that gives all calls the same.
            (vec![answer(&["0", "1"]), answer(&["0"])], vec!["0", "1", "0_2"]),
            (vec![answer(&["c", "c"])], vec!["c", "c_2"]),
        ] {
            let (calls, results) = sent(&before);
            assert_eq!(calls, after, "{before:?}");
            assert_eq!(results, after, "each result goes with its call: {before:?}");
        }
    }

    #[test]
    fn a_conversation_with_good_ids_is_not_even_copied() {
        let messages = conversation(&[answer(&["toolu_1", "call-2"]), answer(&["call_3"])]);
        assert!(matches!(portable(&messages, BYTES_MAX), Cow::Borrowed(_)));
    }

    #[test]
    fn a_result_without_its_call_has_a_good_id_of_its_own() {
        let messages = conversation(&[answer(&["a.b", "fine"])]);
        let outputs = portable(&messages[1..], BYTES_MAX).into_owned();
        let expected = conversation(&[answer(&["a_b", "fine"])]);
        assert_eq!(outputs, expected[1..]);
    }

    /// A call may be without a result where its worker was lost, and its id be given anew.
    #[test]
    fn a_result_goes_with_the_call_of_its_own_answer() {
        let mut messages = conversation(&[answer(&["0", "1"]), answer(&["0", "0"])]);
        messages[1].content.remove(0);
        let (calls, results) = sent_of(&messages);
        assert_eq!(calls, ["0", "1", "0_2", "0_3"]);
        assert_eq!(results, ["1", "0_2", "0_3"]);
    }

    #[test]
    fn at_mistral_each_id_has_nine_letters_and_digits_and_is_of_one_call_alone() {
        let before = [
            answer(&["abc123XYZ", "call_AbCdEfGhIjKl", "toolu_01ab-cdefghi"]),
            answer(&["x", "", "abc123XYZ", "other_CdEfGhIjKl", "x"]),
        ];
        let messages = conversation(&before);
        let sent = mistral(&messages);
        let (mut calls, mut results) = (Vec::new(), Vec::new());
        for block in sent.iter().flat_map(|message| &message.content) {
            match &block.block {
                Some(Block::ToolUse(call)) => calls.push(call.tool_call_id.as_str()),
                Some(Block::ToolOutput(output)) => results.push(output.tool_call_id.as_str()),
                _ => {}
            }
        }
        let expected =
            ["abc123XYZ", "dEfGhIjKl", "abcdefghi", "00000000x", "000000000", "abc123XY2", "dEfGhIjK2", "000000002"];
        assert_eq!((calls, results), (expected.to_vec(), expected.to_vec()));
        let good = conversation(&[answer(&["abc123XYZ", "123456789"])]);
        assert!(matches!(mistral(&good), Cow::Borrowed(_)), "those of its own go back as they are");
    }

    fn id() -> impl Strategy<Value = String> {
        prop_oneof!["[ab.:_]{0,3}", "[ab.]_[2-4]", "x{63,66}", "x{38}[.:_][x.]{23,26}", Just("call_2".to_owned())]
    }

    proptest! {
        #[test]
        fn whatever_the_ids_are_no_two_calls_share_one_and_what_went_before_stays(
            answers in prop::collection::vec(prop::collection::vec(id(), 1..4), 1..6),
        ) {
            let (calls, results) = sent(&answers);
            prop_assert_eq!(&calls, &results);
            prop_assert!(calls.iter().all(|id| is_portable(id, BYTES_MAX)), "{:?}", calls);
            let distinct: HashSet<_> = calls.iter().collect();
            prop_assert_eq!(distinct.len(), calls.len(), "{:?}", calls);
            let mut seen = HashSet::new();
            for (before, after) in answers.iter().flatten().zip(&calls) {
                let is_good = is_portable(before, BYTES_MAX) && seen.insert(before);
                prop_assert!(!is_good || before == after, "{} became {}", before, after);
            }
            prop_assert_eq!(&sent(&answers).0, &calls, "it is the same each time");
            let more = [answers, vec![answer(&["later.on", "later:on"])]].concat();
            prop_assert_eq!(&sent(&more).0[..calls.len()], &calls[..]);
        }
    }
}
