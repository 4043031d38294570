use std::collections::HashSet;

use croft_proto::v1::{Thinking, ToolOutput, ToolUse};
use proptest::prelude::*;

use super::*;

fn message(role: Role, blocks: impl IntoIterator<Item = Block>) -> Message {
    let content = blocks.into_iter().map(|block| ContentBlock { block: Some(block) }).collect();
    Message { role: role.into(), content, ..Message::default() }
}

fn text(characters: usize) -> Block {
    Block::Text(Text { text: "x".repeat(characters.max(1)) })
}

/// One exchange: the user's words, answers with so many calls each and their results, and a last answer.
fn exchange(number: usize, rounds: &[(usize, usize)], ends: bool) -> Vec<Message> {
    let mut messages = vec![message(Role::User, [text(40)])];
    for (round, &(calls, characters)) in rounds.iter().enumerate() {
        let ids: Vec<_> = (0..=calls).map(|call| format!("{number}-{round}-{call}")).collect();
        let call = |id: &String| {
            Block::ToolUse(ToolUse { tool_call_id: id.clone(), name: "spade".into(), arguments_json: "{}".into() })
        };
        messages.push(message(Role::Assistant, ids.iter().map(call)));
        let result = |id: &String| {
            let content = vec![ContentBlock { block: Some(text(characters)) }];
            Block::ToolOutput(ToolOutput { tool_call_id: id.clone(), content, is_error: false })
        };
        // Results may come in several messages, after an approval.
        for id in &ids {
            messages.push(message(Role::Tool, [result(id)]));
        }
    }
    if ends {
        messages.push(message(Role::Assistant, [text(80)]));
    }
    messages
}

fn ids(messages: &[Message]) -> (Vec<String>, Vec<String>) {
    let (mut calls, mut results) = (Vec::new(), Vec::new());
    for block in messages.iter().flat_map(|message| &message.content) {
        match &block.block {
            Some(Block::ToolUse(call)) => calls.push(call.tool_call_id.clone()),
            Some(Block::ToolOutput(output)) => results.push(output.tool_call_id.clone()),
            _ => {}
        }
    }
    (calls, results)
}

#[test]
fn what_fits_is_left_as_it_is() {
    let messages = exchange(0, &[(1, 100)], true);
    assert_eq!(compacted(messages.clone(), 10_000), messages);
}

/// It was told that parts were left out, and what it had thought was gone.
#[test]
fn what_nothing_can_be_left_out_of_is_left_as_it_is() {
    let mut messages = exchange(0, &[(0, 40_000)], false);
    let thinking = Thinking { text: "hm".into(), signature: "of-this-model".into(), ..Thinking::default() };
    messages[1].content.insert(0, ContentBlock { block: Some(Block::Thinking(thinking)) });
    assert_eq!(compacted(messages.clone(), 1_000), messages);
}

#[test]
fn the_oldest_exchanges_go_first_and_the_model_is_told() {
    let messages: Vec<_> = (0..5).flat_map(|number| exchange(number, &[(0, 400)], number < 4)).collect();
    let short = compacted(messages.clone(), estimate::conversation_tokens(&messages) / 2);
    let (calls, _) = ids(&short);
    assert_eq!(calls, ["3-0-0", "4-0-0"]);
    assert!(matches!(&short[0].content[0].block, Some(Block::Text(text)) if text.text == LEFT_OUT));
}

#[test]
fn a_conversation_that_grows_begins_the_same_for_many_calls() {
    let tokens_max = 2_000;
    let all: Vec<_> = (0..60).flat_map(|number| exchange(number, &[(0, 400)], true)).collect();
    let questions = (0..all.len()).filter(|&place| all[place].role() == Role::User);
    let sent: Vec<_> = questions.map(|place| compacted(all[..=place].to_vec(), tokens_max)).collect();
    assert!(sent.iter().all(|sent| estimate::conversation_tokens(sent) <= tokens_max + 20), "the note is beyond it");
    let begins_anew = sent.windows(2).filter(|pair| !pair[1].starts_with(&pair[0])).count();
    // What comes after the bound comes to so many of its quarters.
    let quarters = (estimate::conversation_tokens(&all) - tokens_max).div_ceil(tokens_max / 4);
    assert!(begins_anew > 0 && begins_anew <= usize::try_from(quarters).unwrap(), "{begins_anew} of {quarters}");
}

#[test]
fn within_the_newest_exchange_the_oldest_answers_go_with_their_results() {
    let messages = exchange(0, &[(0, 4_000), (1, 4_000), (0, 400)], false);
    let short = compacted(messages, 400);
    assert_eq!(ids(&short).0, ["0-2-0"]);
    assert_eq!(short[0].role(), Role::User);
}

proptest! {
    /// However long a conversation is and however little of it fits.
    #[test]
    fn a_call_is_never_parted_from_its_result(
        exchanges in prop::collection::vec(prop::collection::vec((0_usize..3, 0_usize..2_000), 0..4), 1..6),
        open in any::<bool>(),
        tokens_max in 0_u32..4_000,
    ) {
        let last = exchanges.len() - 1;
        let messages: Vec<_> = exchanges
            .iter()
            .enumerate()
            .flat_map(|(number, rounds)| exchange(number, rounds, number < last || !open))
            .collect();
        let short = compacted(messages.clone(), tokens_max);
        let (calls, results) = ids(&short);
        prop_assert_eq!(&calls, &results, "each call stands before its result, in order");
        prop_assert_eq!(short[0].role(), Role::User);
        let newest = |messages: &[Message]| messages.iter().rfind(|message| message.role() == Role::User).map(
            |message| message.content.last().cloned(),
        );
        prop_assert_eq!(newest(&short), newest(&messages), "the user's newest words stay");
        prop_assert_eq!(short.last().map(Message::role), messages.last().map(Message::role));
        // What stays is a part of what was, in its order.
        let all: HashSet<_> = ids(&messages).0.into_iter().collect();
        prop_assert!(calls.iter().all(|call| all.contains(call)));
        let again = compacted(short.clone(), u32::MAX);
        prop_assert_eq!(again, short);
    }
}
