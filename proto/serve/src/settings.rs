//! Which release wrote a file of settings, and what of it is read.
//!
//! The chart exchanges such files in place, so that a program of the release before may be started anew over those of the next: in an upgrade
//! that does not come to its end, for as long as that takes.

use std::cell::RefCell;
use std::path::Path;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// What the file is called in whose folder the settings lie.
const NAME: &str = "release";

const OWN: &str = env!("CARGO_PKG_VERSION");

/// Who wrote a file of settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    /// Ours, or somebody who doesn't say.
    Own,
    /// Its version.
    Another(String),
}

impl Release {
    /// As the file `release` in the folder of `path` has it.
    pub fn beside(path: &Path) -> Self {
        let written = path.parent().and_then(|folder| std::fs::read_to_string(folder.join(NAME)).ok());
        match written.as_deref().map(str::trim) {
            None | Some("" | OWN) => Self::Own,
            Some(version) => Self::Another(version.to_owned()),
        }
    }

    /// Reads YAML. What a `T` of `deny_unknown_fields` doesn't know is refused if the release is our own, as it is more likely a typing error
    /// than meant for someone else; of another's it is left out, and the log says so. Fails with a sentence without its stop.
    pub fn read<T: DeserializeOwned>(&self, text: &str) -> Result<T, String> {
        let Self::Another(version) = self else {
            return serde_yaml::from_str(text).map_err(|error| error.to_string());
        };
        let value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        let unknown = RefCell::default();
        let read = T::deserialize(Known { value, path: String::new(), unknown: &unknown });
        let fields = unknown.into_inner();
        if !fields.is_empty() {
            tracing::warn!(
                written_by = version,
                ?fields,
                "left out of the settings what is no field that is known here"
            );
        }
        read.map_err(|error| error.to_string())
    }
}

/// A value that shows each struct no other fields than it has.
struct Known<'a> {
    value: Value,
    /// From the top of the file: `standard.quota`.
    path: String,
    /// What was left out.
    unknown: &'a RefCell<Vec<String>>,
}

impl Known<'_> {
    fn at(&self, path: String, value: Value) -> Self {
        Self { value, path, unknown: self.unknown }
    }

    fn below(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }
}

impl<'de> Deserializer<'de> for Known<'_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.value.take() {
            Value::Array(items) => {
                let items = items.into_iter().enumerate();
                let items = items.map(|(index, item)| self.at(format!("{}[{index}]", self.path), item));
                visitor.visit_seq(SeqDeserializer::new(items))
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(field, value)| {
                    let value = self.at(self.below(&field), value);
                    (field, value)
                });
                visitor.visit_map(MapDeserializer::new(fields))
            }
            single => single.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if let Some(fields) = self.value.as_object_mut() {
            let told = std::mem::take(fields).into_iter();
            let (kept, left): (Vec<_>, Vec<_>) = told.partition(|(field, _)| known.contains(&field.as_str()));
            fields.extend(kept);
            self.unknown.borrow_mut().extend(left.iter().map(|(field, _)| self.below(field)));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.value.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier ignored_any
    }
}

impl IntoDeserializer<'_, serde_json::Error> for Known<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Shelf {
        row_count: u32,
        label: Option<String>,
        #[serde(default)]
        books: Vec<Book>,
        #[serde(default)]
        by_name: BTreeMap<String, Book>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Book {
        pages: i64,
        #[serde(default)]
        bound: Bound,
    }

    #[derive(Debug, PartialEq, Default, Deserialize)]
    enum Bound {
        #[default]
        Paper,
        Cloth,
    }

    const LATER: &str = "rowCount: 3\nlabel: x\nlater: {}\nbooks: [{ pages: 7, bound: Cloth, spine: [1] }]\nbyName: { heron: { pages: 8, spine: 2 } }\n";

    #[test]
    fn of_another_release_what_is_known_is_read() {
        let another = Release::Another("7.0.0".to_owned());
        let by_name = BTreeMap::from([("heron".to_owned(), Book { pages: 8, bound: Bound::Paper })]);
        let books = vec![Book { pages: 7, bound: Bound::Cloth }];
        let shelf = Shelf { row_count: 3, label: Some("x".to_owned()), books, by_name };
        assert_eq!(another.read::<Shelf>(LATER), Ok(shelf));
        assert!(another.read::<Shelf>("rowCount: many").is_err(), "what is known must be usable");
        assert!(another.read::<Shelf>("label: y").unwrap_err().contains("rowCount"), "and there");
    }

    #[test]
    fn of_our_own_a_typing_error_is_refused() {
        assert!(Release::Own.read::<Shelf>(LATER).unwrap_err().contains("later"));
        assert!(Release::Own.read::<Shelf>("rowCount: 3").is_ok());
    }

    #[test]
    fn the_release_stands_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tiers.yaml");
        assert_eq!(Release::beside(&file), Release::Own, "nobody says");
        std::fs::write(folder.path().join("release"), concat!(env!("CARGO_PKG_VERSION"), "\n")).unwrap();
        assert_eq!(Release::beside(&file), Release::Own);
        std::fs::write(folder.path().join("release"), "7.0.0").unwrap();
        assert_eq!(Release::beside(&file), Release::Another("7.0.0".to_owned()));
    }
}
