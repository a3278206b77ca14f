//! Sets of fields, and how `fieldsV1` writes them.
//!
//! Guarantees: what is written reads back to an equal set; operations keep no empty branches.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths, as a tree. Steps are written as in `fieldsV1`: `f:name`, `k:{"name":"a"}`, `v:"x"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the path to here is in the set.
    pub(super) here: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub(super) fn leaf() -> FieldSet {
        FieldSet { here: true, children: BTreeMap::new() }
    }

    /// Whether there is no path in it.
    pub fn is_empty(&self) -> bool {
        !self.here && self.children.is_empty()
    }

    pub(super) fn add(&mut self, step: String, child: FieldSet) {
        if !child.is_empty() {
            self.children.insert(step, child);
        }
    }

    /// Reads `fieldsV1`; anything odd reads as empty.
    pub fn from_value(v: &Value) -> FieldSet {
        let mut out = FieldSet::default();
        for (step, child) in v.as_object().into_iter().flatten() {
            if step == "." {
                out.here = true;
            } else {
                let mut child = FieldSet::from_value(child);
                child.here |= child.children.is_empty();
                out.children.insert(step.clone(), child);
            }
        }
        out
    }

    /// Writes `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        if self.here && !self.children.is_empty() {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (step, child) in &self.children {
            out.insert(step.clone(), child.to_value());
        }
        Value::Object(out)
    }

    /// Paths in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && b, false, false)
    }

    /// Paths in this one and not in the other.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && !b, true, false)
    }

    /// Paths in either.
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a || b, true, true)
    }

    fn combine(&self, other: &FieldSet, f: fn(bool, bool) -> bool, mine: bool, theirs: bool) -> FieldSet {
        let mut out = FieldSet { here: f(self.here, other.here), children: BTreeMap::new() };
        for (step, child) in &self.children {
            match other.children.get(step) {
                Some(o) => out.add(step.clone(), child.combine(o, f, mine, theirs)),
                None if mine => out.add(step.clone(), child.clone()),
                None => {}
            }
        }
        if theirs {
            for (step, child) in other.children.iter().filter(|(s, _)| !self.children.contains_key(*s)) {
                out.add(step.clone(), child.clone());
            }
        }
        out
    }

    /// As [`FieldSet::difference`], and a path also stays out if the other set has anything below it.
    pub(super) fn without_touched(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet { here: self.here && other.is_empty(), children: BTreeMap::new() };
        for (step, child) in &self.children {
            match other.children.get(step) {
                Some(o) => out.add(step.clone(), child.without_touched(o)),
                None => out.add(step.clone(), child.clone()),
            }
        }
        out
    }

    /// Every path as messages write it: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(String::new(), &mut out);
        out
    }

    fn collect(&self, path: String, out: &mut Vec<String>) {
        // An item's own path says nothing beside those of its fields.
        if self.here && self.children.is_empty() {
            out.push(path.clone());
        }
        for (step, child) in &self.children {
            let next = match step.split_once(':') {
                Some(("k", key)) => match serde_json::from_str::<Map<String, Value>>(key) {
                    Ok(m) => {
                        let parts: Vec<String> = m.iter().map(|(k, v)| format!("{k}={v}")).collect();
                        format!("{path}[{}]", parts.join(","))
                    }
                    Err(_) => format!("{path}[{key}]"),
                },
                Some(("v", value)) => format!("{path}[={value}]"),
                Some((_, name)) => format!("{path}.{name}"),
                None => format!("{path}.{step}"),
            };
            child.collect(next, out);
        }
    }
}
