//! What references in a schema may name: schemas with an address of their own, and places in them, by their path or by a name.

use std::collections::HashMap;

use reqwest::Url;
use serde_json::Value;

use super::{DATA, NAMES, Node};

const DRAFT_4: &str = "://json-schema.org/draft-04/schema";

/// See the module.
pub(super) struct Places<'a> {
    /// By address, which has no fragment.
    schemas: HashMap<Url, &'a Value>,
    /// By the address of the schema, with the name as its fragment.
    names: HashMap<String, Node<'a>>,
    /// The root has an address.
    has_address: bool,
    /// What is in it has an address or a draft of its own.
    has_others: bool,
}

/// What addresses are relative to where nothing else is said.
pub(super) fn nowhere() -> Result<Url, String> {
    Url::parse("json-schema:///").map_err(|error| format!("has no address: {error}"))
}

/// The word for the address of a schema.
pub(super) fn id_word(schema: &Value) -> &'static str {
    let draft = schema.get("$schema").and_then(Value::as_str).unwrap_or_default().trim_end_matches('#');
    let is_4 = ["http", "https"].iter().any(|scheme| draft.strip_prefix(scheme) == Some(DRAFT_4));
    if is_4 { "id" } else { "$id" }
}

/// What references in `value` are relative to, which stands in a schema of that address, with that word for its own.
pub(super) fn based(value: &Value, base: &Url, id_word: &str) -> Url {
    let id = value.get(id_word).and_then(Value::as_str).filter(|id| !id.starts_with('#'));
    id.and_then(|id| address(id, base)).map_or_else(|| base.clone(), |(address, _)| address)
}

/// The address without its fragment, and that.
fn address<'r>(reference: &'r str, base: &Url) -> Option<(Url, &'r str)> {
    let (before, fragment) = reference.split_once('#').unwrap_or((reference, ""));
    let mut address = if before.is_empty() { base.clone() } else { base.join(before).ok()? };
    address.set_fragment(None);
    Some((address, fragment))
}

impl<'a> Places<'a> {
    pub(super) fn of(schema: &'a Value) -> Result<Self, String> {
        let (nowhere, id_word) = (nowhere()?, id_word(schema));
        let mut places = Self {
            schemas: HashMap::from([(nowhere.clone(), schema)]),
            names: HashMap::new(),
            has_address: schema.get(id_word).is_some(),
            has_others: false,
        };
        let base = based(schema, &nowhere, id_word);
        places.collect(Node { value: schema, base, id_word, are_names: false }, true);
        Ok(places)
    }

    /// Whether a reference that names nothing here names nothing to a validator either, which reads addresses by rules of its own.
    pub(super) fn is_sure_of(&self, reference: &str) -> bool {
        !self.has_others && (reference.starts_with('#') || !self.has_address)
    }

    fn collect(&mut self, node: Node<'a>, is_root: bool) {
        let Node { value, base, id_word, are_names } = node;
        let word = |key: &str| value.get(key).and_then(Value::as_str).filter(|_| !are_names);
        self.has_others |= !is_root && (word(id_word).is_some() || word("$schema").is_some());
        if let Some(id) = word(id_word) {
            match id.strip_prefix('#') {
                None => drop(self.schemas.entry(base.clone()).or_insert(value)),
                // Older drafts give names so.
                Some(name) => self.name(name, value, &base, id_word),
            }
        }
        for name in ["$anchor", "$dynamicAnchor"].into_iter().filter_map(word) {
            self.name(name, value, &base, id_word);
        }
        let part = |value, are_names| Node { value, base: based(value, &base, id_word), id_word, are_names };
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.collect(part(item, false), false)),
            Value::Object(object) => {
                let parts = object.iter().filter(|(key, _)| are_names || !DATA.contains(&key.as_str()));
                for (key, value) in parts {
                    self.collect(part(value, !are_names && NAMES.contains(&key.as_str())), false);
                }
            }
            _ => {}
        }
    }

    fn name(&mut self, name: &str, value: &'a Value, base: &Url, id_word: &'static str) {
        let node = || Node { value, base: base.clone(), id_word, are_names: false };
        self.names.entry(format!("{base}#{name}")).or_insert_with(node);
    }

    /// What a reference names that stands in that part of the schema.
    pub(super) fn find(&self, reference: &str, from: &Node<'a>) -> Option<Node<'a>> {
        let id_word = from.id_word;
        let (address, fragment) = address(reference, &from.base)?;
        let schema = self.schemas.get(&address).copied();
        if !fragment.is_empty() && !fragment.starts_with('/') {
            return self.names.get(&format!("{address}#{fragment}")).cloned();
        }
        let mut place = Node { value: schema?, base: address, id_word, are_names: false };
        for step in fragment.split('/').skip(1) {
            let step = unescaped(step)?;
            place.value = match place.value {
                Value::Object(object) => object.get(&step)?,
                Value::Array(items) => items.get(step.parse::<usize>().ok()?)?,
                _ => return None,
            };
            place.base = based(place.value, &place.base, id_word);
        }
        Some(place)
    }
}

/// A step of a JSON Pointer in an address.
fn unescaped(step: &str) -> Option<String> {
    if !step.contains(['%', '~']) {
        return Some(step.to_owned());
    }
    let mut bytes = Vec::with_capacity(step.len());
    let mut rest = step.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    Some(String::from_utf8(bytes).ok()?.replace("~1", "/").replace("~0", "~"))
}
