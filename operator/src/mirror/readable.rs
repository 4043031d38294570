//! Objects as the API server has them, whether this release can read them or not. One with a word that only a later release knows must not
//! stop the watch of all others, nor does it count as gone.

use std::borrow::Cow;
use std::collections::HashSet;

use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};
use prometheus::IntGauge;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A label of a copy that has not all of its object. Nobody can write it to the API server, where a label's name has no blanks.
const MARK: &str = "not all of it is readable";

/// What the API server told. kube has such a type too, which keeps nothing of the unreadable but its metadata.
#[derive(Debug, Clone)]
pub(crate) struct Readable<K>(Result<K, Box<Unreadable>>);

/// What can't be read.
#[derive(Debug, Clone)]
pub(crate) struct Unreadable {
    pub(crate) error: String,
    pub(crate) metadata: ObjectMeta,
    /// All of it.
    pub(crate) content: Value,
}

impl<'de, K: Resource + DeserializeOwned> Deserialize<'de> for Readable<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let content = Value::deserialize(deserializer)?;
        let error = match K::deserialize(&content) {
            Ok(object) => return Ok(Self(Ok(object))),
            Err(error) => error.to_string(),
        };
        let PartialObjectMeta { metadata, .. } =
            PartialObjectMeta::<K>::deserialize(&content).map_err(D::Error::custom)?;
        Ok(Self(Err(Box::new(Unreadable { error, metadata, content }))))
    }
}

impl<K: Resource> Resource for Readable<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

/// Makes of an unreadable object what can be used of it, with the help of its copy, if there is one. A copy may have been made so too.
pub(crate) type Salvage<K> = fn(&Unreadable, Option<&K>) -> Option<K>;

/// Reads what a watch tells, and counts what it can't.
pub(crate) struct Reader<K: Resource<DynamicType = ()>> {
    salvage: Salvage<K>,
    count: IntGauge,
    unreadable: HashSet<ObjectRef<K>>,
    /// Those of a list that is not at its end.
    listed: HashSet<ObjectRef<K>>,
}

impl<K: Resource<DynamicType = ()> + Clone> Reader<K> {
    /// Takes for an unreadable object what `salvage` makes of it, or else what it was when it could be read; keeps `count`.
    pub(crate) fn new(salvage: Salvage<K>, count: IntGauge) -> Self {
        Self { salvage, count, unreadable: HashSet::new(), listed: HashSet::new() }
    }

    /// `None` if there is nothing to tell of an object. `known` are the copies as they are.
    pub(super) fn read(&mut self, event: Event<Readable<K>>, known: &Store<K>) -> Option<Event<K>> {
        let read = match event {
            Event::Init => {
                self.listed.clear();
                Some(Event::Init)
            }
            Event::InitApply(Readable(Ok(object))) => Some(Event::InitApply(object)),
            Event::InitApply(Readable(Err(unreadable))) => {
                self.listed.insert(named(&unreadable));
                self.left(&unreadable, known).map(Event::InitApply)
            }
            Event::InitDone => {
                self.unreadable = std::mem::take(&mut self.listed);
                Some(Event::InitDone)
            }
            Event::Apply(Readable(Ok(object))) => {
                self.unreadable.remove(&ObjectRef::from_obj(&object));
                Some(Event::Apply(object))
            }
            Event::Apply(Readable(Err(unreadable))) => {
                self.unreadable.insert(named(&unreadable));
                // Where nothing is left of it, one of its name is another that has gone.
                let replaced = || gone(known, &unreadable, None);
                self.left(&unreadable, known).map(Event::Apply).or_else(replaced)
            }
            Event::Delete(Readable(Ok(object))) => {
                self.unreadable.remove(&ObjectRef::from_obj(&object));
                Some(Event::Delete(object))
            }
            Event::Delete(Readable(Err(unreadable))) => {
                self.unreadable.remove(&named(&unreadable));
                gone(known, &unreadable, unreadable.metadata.resource_version.clone())
            }
        };
        self.count.set(i64::try_from(self.unreadable.len()).unwrap_or(i64::MAX));
        read
    }

    fn left(&self, unreadable: &Unreadable, known: &Store<K>) -> Option<K> {
        let reference = named::<K>(unreadable);
        tracing::warn!(object = %reference, error = unreadable.error, "this release can't read an object");
        let known = known.get(&reference).filter(|known| known.uid() == unreadable.metadata.uid);
        (self.salvage)(unreadable, known.as_deref()).or_else(|| {
            let mut known = (*known?).clone();
            mark_in_part(&mut known);
            Some(known)
        })
    }
}

/// Tells of what it was that has gone, if that is known; `version` is the one that its deletion gave.
fn gone<K>(known: &Store<K>, unreadable: &Unreadable, version: Option<String>) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    let mut old = (*known.get(&named(unreadable))?).clone();
    old.meta_mut().resource_version = version;
    Some(Event::Delete(old))
}

fn named<K: Resource<DynamicType = ()>>(unreadable: &Unreadable) -> ObjectRef<K> {
    let reference = ObjectRef::new(unreadable.metadata.name.as_deref().unwrap_or_default());
    match &unreadable.metadata.namespace {
        Some(namespace) => reference.within(namespace),
        None => reference,
    }
}

/// Says of a copy that it has not all of its object.
pub(crate) fn mark_in_part(copy: &mut impl Resource) {
    copy.labels_mut().insert(MARK.to_owned(), String::new());
}

/// Whether a copy has not all of its object, so that nothing may be made by it.
pub(crate) fn is_in_part(copy: &impl Resource) -> bool {
    copy.labels().contains_key(MARK)
}
