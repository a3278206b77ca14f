//! One cached object: encoded once, with what selectors need beside it.
//!
//! Guarantees: `json` is the object as clients get it, `resourceVersion` included; `facts` holds
//! every field that a field selector may ask for.

use std::sync::{Arc, OnceLock};

use api::registry::Resource;
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// Fields that some kind's field selectors may name, besides metadata.
const FACTS: &[&[&str]] = &[
    &["spec", "nodeName"],
    &["spec", "restartPolicy"],
    &["spec", "schedulerName"],
    &["spec", "serviceAccountName"],
    &["spec", "hostNetwork"],
    &["spec", "unschedulable"],
    &["spec", "clusterIP"],
    &["spec", "type"],
    &["status", "phase"],
    &["status", "podIP"],
    &["status", "podIPs"],
    &["status", "nominatedNodeName"],
    &["status", "replicas"],
    &["status", "successful"],
    &["type"],
];

/// An object in the cache.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Arc<str>,
    /// The revision that last wrote it.
    pub(crate) revision: u64,
    pub(crate) json: Bytes,
    /// A small part of the object, in its shape.
    facts: Value,
}

impl Entry {
    /// Decodes a stored object. None if it is not JSON: then nobody can use it.
    pub(crate) fn decode(key: Arc<str>, revision: u64, stored: &[u8]) -> Option<Entry> {
        let mut object: Value = serde_json::from_slice(stored).ok()?;
        object.get("metadata")?;
        api::meta::set(&mut object, "resourceVersion", revision.to_string());
        Some(Entry::new(key, revision, &object))
    }

    fn new(key: Arc<str>, revision: u64, object: &Value) -> Entry {
        let json = Bytes::from(serde_json::to_vec(object).expect("a JSON tree can be written"));
        Entry { key, revision, json, facts: facts(object) }
    }

    /// The whole object.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("we wrote it")
    }

    /// The whole object as `row` shows it.
    pub(crate) fn present(&self, row: &Resource) -> Value {
        let mut object = self.value();
        if self.foreign(row) {
            api::strategy::present(row, &mut object);
        }
        object
    }

    /// The object's bytes as `row` shows it.
    pub(crate) fn bytes(&self, row: &Resource) -> Bytes {
        if !self.foreign(row) {
            return self.json.clone();
        }
        Bytes::from(serde_json::to_vec(&self.present(row)).expect("a JSON tree can be written"))
    }

    /// Whether the object is stored in another group's spelling than the row's.
    fn foreign(&self, row: &Resource) -> bool {
        let (group, version) = api_version(&self.facts);
        group != row.group || version != row.version
    }

    /// The object, or as much of it as selectors can ask for.
    pub(crate) fn for_selectors(&self, row: &Resource) -> std::borrow::Cow<'_, Value> {
        if row.storage == "events" {
            // Events may be selected by almost any field, in either spelling.
            std::borrow::Cow::Owned(self.present(row))
        } else {
            std::borrow::Cow::Borrowed(&self.facts)
        }
    }

    /// The facts: `apiVersion`, name, namespace, uid, labels and what field selectors may ask for.
    pub(crate) fn facts(&self) -> &Value {
        &self.facts
    }

    /// The same object as of a later revision: what the event of its deletion shows.
    pub(crate) fn at(&self, revision: u64) -> Entry {
        let mut object = self.value();
        api::meta::set(&mut object, "resourceVersion", revision.to_string());
        Entry::new(self.key.clone(), revision, &object)
    }
}

fn api_version(facts: &Value) -> (&str, &str) {
    let text = api::meta::str_at(facts, &["apiVersion"]);
    text.split_once('/').unwrap_or(("", text))
}

fn facts(object: &Value) -> Value {
    let mut meta = Map::new();
    for key in ["name", "namespace", "uid", "labels", "deletionTimestamp"] {
        if let Some(value) = api::meta::at(object, &["metadata", key]) {
            meta.insert(key.to_owned(), value.clone());
        }
    }
    let mut out = json!({"apiVersion": object["apiVersion"], "metadata": meta});
    for path in FACTS {
        let Some(value) = api::meta::at(object, path) else { continue };
        match path {
            [parent, child] => out[*parent][*child] = value.clone(),
            [top] => out[*top] = value.clone(),
            _ => {}
        }
    }
    out
}

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: Arc<str>,
    pub(crate) new: Option<Arc<Entry>>,
    pub(crate) old: Option<Arc<Entry>>,
    gone: OnceLock<Option<Arc<Entry>>>,
}

impl Change {
    pub(crate) fn new(
        revision: u64,
        key: Arc<str>,
        new: Option<Arc<Entry>>,
        old: Option<Arc<Entry>>,
    ) -> Change {
        Change { revision, key, new, old, gone: OnceLock::new() }
    }

    /// The last state, under the revision of its disappearance.
    pub(crate) fn gone(&self) -> Option<Arc<Entry>> {
        self.gone.get_or_init(|| self.old.as_ref().map(|old| Arc::new(old.at(self.revision)))).clone()
    }
}
