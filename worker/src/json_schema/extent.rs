//! How much a schema is once each reference stands for what it names. A validator does not go through a schema as it is written but
//! through that: of a few definitions, each of which is two of the one before, it would never see the end.

mod places;

use std::collections::{HashMap, HashSet};

use reqwest::Url;
use serde_json::Value;

use places::{Places, based};

/// Objects and arrays of a schema, with those of all that it refers to. At the bound the schema is refused.
const PARTS_MAX: u64 = 10_000;
/// How many of them lie in one another. At the bound the schema is refused.
const DEPTH_MAX: usize = 256;
/// What the schemas of the drafts themselves count for, which a validator has at hand.
const DRAFT: Extent = Extent { parts: 500, height: 32 };
const DRAFTS: &str = "json-schema.org";

/// Under these words stand names that the schema gives, and no words.
const NAMES: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];
/// Under these stand values, which are no schemas whatever they look like.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];
/// What stands under these is looked at only where it is referred to.
const APART: [&str; 2] = ["$defs", "definitions"];
/// What stands under these is about the same value as what stands around them.
const IN_PLACE: [&str; 9] =
    ["allOf", "anyOf", "dependencies", "dependentSchemas", "else", "if", "not", "oneOf", "then"];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// Fails with what is wrong with the schema, after "its schema". Takes time in proportion to its length.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut walk = Walk { places: Places::of(schema)?, known: HashMap::new() };
    let id_word = places::id_word(schema);
    let base = based(schema, &places::nowhere()?, id_word);
    let root = Node { value: schema, base, id_word, are_names: false };
    if walk.extent(&root, 0)?.parts > PARTS_MAX {
        return Err(format!("unfolds to more than {PARTS_MAX} parts"));
    }
    let mut done = HashSet::new();
    let targets: Vec<_> = walk.known.keys().copied().collect();
    for target in targets {
        if let Some(Known::Done { node, .. }) = walk.known.get(&target) {
            walk.comes_to_an_end(node, &mut HashSet::new(), &mut done)?;
        }
    }
    Ok(())
}

/// A part of a schema.
#[derive(Clone)]
struct Node<'a> {
    value: &'a Value,
    /// What references in it are relative to.
    base: Url,
    /// The word for the address of a schema in it.
    id_word: &'static str,
    /// Its keys are names.
    are_names: bool,
}

#[derive(Clone, Copy)]
struct Extent {
    parts: u64,
    height: usize,
}

/// What is known of something that is referred to.
enum Known<'a> {
    /// It is being looked at: whoever meets it has come around.
    Open,
    Done {
        node: Node<'a>,
        extent: Extent,
    },
}

struct Walk<'a> {
    places: Places<'a>,
    /// By where it stands.
    known: HashMap<*const Value, Known<'a>>,
}

impl<'a> Walk<'a> {
    fn extent(&mut self, node: &Node<'a>, depth: usize) -> Result<Extent, String> {
        if depth > DEPTH_MAX {
            return Err(too_deep());
        }
        let mut whole = Extent { parts: 1, height: 0 };
        let mut add = |part: Extent| {
            whole.parts = whole.parts.saturating_add(part.parts);
            whole.height = whole.height.max(part.height + 1);
        };
        for (word, part) in parts(node) {
            if !APART.contains(&word) {
                add(self.extent(&part, depth + 1)?);
            }
        }
        for reference in references(node) {
            let Some(target) = self.places.find(reference, node) else {
                if reference.to_ascii_lowercase().contains(DRAFTS) {
                    add(DRAFT);
                } else if self.places.is_sure_of(reference) {
                    // Where it matters the validator refuses it; it may be a value under a word that no draft knows.
                    add(Extent { parts: 1, height: 0 });
                } else {
                    return Err(format!("refers to {reference:?}, which is not in it"));
                }
                continue;
            };
            let extent = match self.known.get(&std::ptr::from_ref(target.value)) {
                Some(Known::Open) => Extent { parts: 1, height: 0 },
                Some(Known::Done { extent, .. }) => *extent,
                None => {
                    self.known.insert(target.value, Known::Open);
                    let extent = self.extent(&target, depth + 1)?;
                    self.known.insert(target.value, Known::Done { node: target, extent });
                    extent
                }
            };
            if depth + extent.height > DEPTH_MAX {
                return Err(too_deep());
            }
            add(extent);
        }
        Ok(whole)
    }

    /// Fails where something is held to itself, for the same value: no draft lets a schema be so, and going around there takes as
    /// many ways as there are orders of what refers to each other.
    fn comes_to_an_end(
        &self,
        node: &Node<'a>,
        open: &mut HashSet<*const Value>,
        done: &mut HashSet<*const Value>,
    ) -> Result<(), String> {
        let place = std::ptr::from_ref(node.value);
        if done.contains(&place) {
            return Ok(());
        }
        if !open.insert(place) {
            return Err("refers to itself without an end".to_owned());
        }
        if open.len() > DEPTH_MAX {
            return Err(too_deep());
        }
        // Of an array all items are what the word before it was.
        for (word, part) in parts(node) {
            if word.is_empty() || node.are_names || IN_PLACE.contains(&word) {
                self.comes_to_an_end(&part, open, done)?;
            }
        }
        for target in references(node).filter_map(|reference| self.places.find(reference, node)) {
            self.comes_to_an_end(&target, open, done)?;
        }
        open.remove(&place);
        done.insert(place);
        Ok(())
    }
}

fn too_deep() -> String {
    format!("has more than {DEPTH_MAX} parts in one another")
}

/// What stands in a part, with the word it stands under, which is empty in an array.
fn parts<'a>(node: &Node<'a>) -> Vec<(&'a str, Node<'a>)> {
    let part = |word: &'a str, value: &'a Value| {
        let are_names = !node.are_names && NAMES.contains(&word);
        (word, Node { value, base: based(value, &node.base, node.id_word), id_word: node.id_word, are_names })
    };
    let is_part = |value: &Value| value.is_object() || value.is_array();
    match node.value {
        Value::Array(items) => items.iter().filter(|item| is_part(item)).map(|item| part("", item)).collect(),
        Value::Object(object) => {
            let is_data = |word: &str| !node.are_names && DATA.contains(&word);
            let parts = object.iter().filter(|(word, value)| is_part(value) && !is_data(word));
            parts.map(|(word, value)| part(if node.are_names { "name" } else { word }, value)).collect()
        }
        _ => Vec::new(),
    }
}

fn references<'a>(node: &Node<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    let object = node.value.as_object().filter(|_| !node.are_names);
    object.into_iter().flat_map(|object| REFERENCES.iter().filter_map(|word| object.get(*word)?.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DRAFT_4: &str = "http://json-schema.org/draft-04/schema#";

    #[test]
    fn schemas_of_all_sorts_are_told_by_what_they_unfold_to() {
        let twice = |of: &str| json!({"allOf": [{"$ref": of}, {"$ref": of}]});
        let mut chain: Vec<_> =
            (1..=40).map(|number| (number.to_string(), twice(&format!("#/$defs/{}", number - 1)))).collect();
        chain.push(("0".to_owned(), json!({"type": "string"})));
        let defs: Value = chain.into_iter().collect::<serde_json::Map<_, _>>().into();
        let line: Value = (0..400)
            .map(|number| (number.to_string(), json!({"$ref": format!("#/$defs/{}", number + 1)})))
            .chain([("400".to_owned(), json!(true))])
            .collect::<serde_json::Map<_, _>>()
            .into();
        let deep = (0..300).fold(json!({}), |inner, _| json!({ "items": inner }));
        let cases = [
            (json!({"$defs": defs, "type": "object"}), ""),
            (json!({"$defs": defs, "$ref": "#/$defs/5"}), ""),
            (json!({"$defs": defs, "properties": {"$defs": {"$ref": "#/$defs/40"}}}), "unfolds"),
            (json!({"$defs": defs, "items": {"$ref": "#/$defs/40"}}), "unfolds"),
            (
                json!({"$id": "https://x.test/a", "$defs": {"b": {"$id": "b", "$defs": defs, "$ref": "#/$defs/40"}}, "$ref": "b"}),
                "unfolds",
            ),
            (
                json!({"$defs": {"b": {"$anchor": "b", "$ref": "#/$defs/40"}, "40": twice("#/$defs/39"), "39": {}}, "$ref": "#b"}),
                "",
            ),
            (json!({"$defs": line, "$ref": "#/$defs/0"}), "in one another"),
            (json!({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}), ""),
            (json!({"$dynamicAnchor": "node", "items": {"$dynamicRef": "#node"}}), ""),
            (json!({"allOf": [{"$ref": "#"}]}), "without an end"),
            (
                json!({"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"$ref": "#/$defs/a"}}, "items": {"$ref": "#/$defs/a"}}),
                "without an end",
            ),
            (json!({"$ref": "http://json-schema.org/draft-07/schema#"}), ""),
            (json!({"$ref": "https://elsewhere.test/schema"}), ""),
            (json!({"$id": "https://x.test/a", "$ref": "https://elsewhere.test/schema"}), "not in it"),
            (json!({"items": {"$id": "urn:a", "items": {"$ref": "#/$defs/none"}}}), "not in it"),
            (json!({"x-form": {"$ref": "#/$defs/none"}}), ""),
            (json!({"properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": {}}]}), ""),
            (
                json!({"enum": [{"$ref": "#none", "$id": "urn:a"}], "default": {"$ref": "#"}, "const": deep, "examples": [deep]}),
                "",
            ),
            (json!({"$defs": defs, "properties": {"enum": {"$ref": "#/$defs/40"}}}), "unfolds"),
            (
                json!({"$defs": {"default": {"items": {"$ref": "#/$defs/40"}}, "40": deep}, "$ref": "#/$defs/default"}),
                "in one another",
            ),
            (json!({"$defs": defs, "enum": [{"items": {"$ref": "#/$defs/40"}}], "$ref": "#/enum/0"}), "unfolds"),
            (
                json!({"$schema": DRAFT_4, "id": "https://x.test/a", "definitions": {"b": {"id": "b"}}, "items": {"$ref": "b"}}),
                "",
            ),
            (
                json!({"$schema": DRAFT_4, "definitions": {"b": {"id": "urn:b", "$defs": defs, "items": {"$ref": "#/$defs/40"}}}, "items": {"$ref": "urn:b"}}),
                "unfolds",
            ),
        ];
        for (schema, expected) in cases {
            let problem = check(&schema).err().unwrap_or_default();
            assert!(problem.contains(expected) && problem.is_empty() == expected.is_empty(), "{schema}: {problem}");
        }
    }
}
