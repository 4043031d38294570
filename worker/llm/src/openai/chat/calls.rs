//! The tool calls of one answer, and which of them a piece is of.
//!
//! By the format a piece carries its call's index, and the first one an id. Ollama and some gateways give all calls index 0,
//! others give none, and some no ids: <https://github.com/ollama/ollama/issues/15457>.

use std::collections::BTreeMap;

/// The calls, in the order in which they began. Pieces of several interleave.
#[derive(Default)]
pub(super) struct Calls {
    all: Vec<Call>,
    /// The place of the last one that began with an index.
    newest: BTreeMap<u32, usize>,
}

pub(super) struct Call {
    /// The server's; empty where it gave none.
    id: String,
    pub(super) block: u32,
    arguments_json: String,
    nesting: Nesting,
}

impl Calls {
    /// The call that a piece with this index, id and name is of. Where it begins with the piece, `block` is asked for its block,
    /// with its place among all.
    pub(super) fn of(
        &mut self,
        index: Option<u32>,
        id: Option<&str>,
        is_named: bool,
        block: impl FnOnce(usize) -> u32,
    ) -> &mut Call {
        let (index, id) = (index.unwrap_or_default(), id.unwrap_or_default());
        let newest = self.newest.get(&index).copied();
        let place = newest.filter(|&place| !self.all[place].is_over_before(id, is_named)).unwrap_or_else(|| {
            let place = self.all.len();
            let (id, block) = (id.to_owned(), block(place));
            self.all.push(Call { id, block, arguments_json: String::new(), nesting: Nesting::default() });
            self.newest.insert(index, place);
            place
        });
        &mut self.all[place]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The block of each with all of its arguments: they are over.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (u32, String)> + use<> {
        self.newest.clear();
        std::mem::take(&mut self.all).into_iter().map(|call| (call.block, call.arguments_json))
    }
}

impl Call {
    pub(super) fn push(&mut self, partial_json: &str) {
        self.nesting.push(partial_json);
        self.arguments_json.push_str(partial_json);
    }

    /// A piece can't be of this call in spite of its index: it has a name, and another id or arguments that were whole before it. Some
    /// servers give id and name with each piece, and some (Poolside's, mlx-openai-server) each piece an id of its own.
    fn is_over_before(&self, id: &str, is_named: bool) -> bool {
        let both = !self.id.is_empty() && !id.is_empty();
        is_named && if both { self.id != id } else { self.nesting.is_closed }
    }
}

/// How far an object is, as its text comes in.
#[derive(Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    is_closed: bool,
}

impl Nesting {
    fn push(&mut self, json: &str) {
        for byte in json.bytes() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.is_closed |= self.depth == 0;
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place of the call that each piece is taken to be of.
    fn places(pieces: &[(Option<u32>, Option<&str>, &str, &str)]) -> Vec<u32> {
        let mut calls = Calls::default();
        let mut places = Vec::new();
        for &(index, id, name, arguments) in pieces {
            let call = calls.of(index, id, !name.is_empty(), |place| u32::try_from(place).unwrap());
            call.push(arguments);
            places.push(call.block);
        }
        places
    }

    #[test]
    fn pieces_find_their_call_whatever_the_server_leaves_out() {
        let zero = Some(0);
        for (case, pieces, expected) in [
            (
                "OpenAI's",
                vec![
                    (zero, Some("a"), "f", ""),
                    (Some(1), Some("b"), "g", ""),
                    (zero, None, "", "{}"),
                    (Some(1), None, "", "{}"),
                ],
                vec![0, 1, 0, 1],
            ),
            ("one index for all", vec![(zero, Some("a"), "f", "{}"), (zero, Some("b"), "f", "{}")], vec![0, 1]),
            (
                "no index",
                vec![(None, Some("a"), "f", "{}"), (None, Some("b"), "f", ""), (None, None, "", "{}")],
                vec![0, 1, 1],
            ),
            (
                "neither index nor ids",
                vec![(None, None, "f", "{\"a\":\"}\"}"), (None, Some(""), "f", "{}")],
                vec![0, 1],
            ),
            ("id and name with each piece", vec![(zero, Some("a"), "f", "{}"), (zero, Some("a"), "f", "")], vec![0, 0]),
            (
                "another id with each piece",
                vec![(zero, Some("a"), "f", "{"), (zero, Some("b"), "", "}"), (zero, Some("c"), "", "")],
                vec![0, 0, 0],
            ),
            ("a name with each piece", vec![(zero, None, "f", "{\"a\":{"), (zero, None, "f", "}}")], vec![0, 0]),
            (
                "a brace in a string",
                vec![(zero, None, "f", "{\"a\":\"\\\\\\\"}"), (zero, None, "f", "\"}"), (zero, None, "f", "{}")],
                vec![0, 0, 1],
            ),
        ] {
            assert_eq!(places(&pieces), expected, "{case}");
        }
    }
}
