//! Server-side apply: each manager states the fields it cares for; the server keeps who owns what in
//! `metadata.managedFields`.
//!
//! Guarantees: a field that another manager owns is changed only by force; what a manager stops stating goes, unless
//! another one owns it; applying the same twice changes nothing, not even times.
//! Assumes: the applied object and the live one went through [`crate::schema::check`]; the result goes through
//! defaults, strategy and validation like any update.
//! Caveat: an item that is new to a keyed list goes to its end.

mod fields;
mod merge;

pub use fields::FieldSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::meta;
use crate::registry::Resource;
use crate::schema::{Definition, definition};
use crate::status::{Cause, Details, Failure};

/// Who writes, how and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Query parameter `fieldManager`; for plain writes without one, the start of the user agent.
    pub manager: &'a str,
    /// Subresource written to, or empty.
    pub subresource: &'a str,
    /// Take fields over from their other managers.
    pub force: bool,
    /// The time of the request.
    pub now: Timestamp,
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Manager {
    name: String,
    applies: bool,
    subresource: String,
    version: String,
    time: String,
    fields: FieldSet,
}

impl Manager {
    fn read(v: &Value) -> Manager {
        Manager {
            name: meta::str_at(v, &["manager"]).to_owned(),
            applies: meta::str_at(v, &["operation"]) == "Apply",
            subresource: meta::str_at(v, &["subresource"]).to_owned(),
            version: meta::str_at(v, &["apiVersion"]).to_owned(),
            time: meta::str_at(v, &["time"]).to_owned(),
            fields: FieldSet::from_value(v.get("fieldsV1").unwrap_or(&Value::Null)),
        }
    }

    fn write(&self) -> Value {
        let mut out = json!({
            "manager": self.name, "operation": if self.applies { "Apply" } else { "Update" },
            "apiVersion": self.version, "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value(),
        });
        if !self.subresource.is_empty() {
            out["subresource"] = Value::from(self.subresource.as_str());
        }
        out
    }

    fn is(&self, w: &Writer<'_>, applies: bool) -> bool {
        self.name == w.manager && self.applies == applies && self.subresource == w.subresource
    }
}

fn managers(object: &Value) -> Vec<Manager> {
    let list = meta::at(object, &["metadata", "managedFields"]).and_then(Value::as_array);
    list.into_iter().flatten().map(Manager::read).collect()
}

fn set_managers(object: &mut Value, mut list: Vec<Manager>) {
    list.retain(|m| !m.fields.is_empty());
    let list: Vec<Value> = list.iter().map(Manager::write).collect();
    meta::set(object, "managedFields", if list.is_empty() { Value::Null } else { Value::from(list) });
}

fn schema_of(row: &Resource) -> Result<&'static Definition, Failure> {
    definition(row.schema).ok_or_else(|| Failure::internal(format!("no schema for {}", row.schema)))
}

/// Applies what a manager states to the live object, or makes a new one. The result carries the new `managedFields`.
pub fn apply(
    row: &Resource,
    live: Option<&Value>,
    applied: &Value,
    w: &Writer<'_>,
) -> Result<Value, Failure> {
    if w.manager.is_empty() {
        return Err(Failure::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    if meta::at(applied, &["metadata", "managedFields"]).is_some() {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    let def = schema_of(row)?;
    let empty = json!({"metadata": {}});
    let before = live.unwrap_or(&empty);
    let mut list = managers(before);
    let stated = merge::stated(def, applied, w.subresource)?;
    let mut out = merge::object(def, before, applied)?;
    let changed = merge::changed(def, before, &out).intersection(&stated);

    let mut conflicts = Vec::new();
    for m in list.iter_mut().filter(|m| !m.is(w, true)) {
        let clash = m.fields.intersection(&changed);
        if clash.is_empty() {
            continue;
        }
        if w.force {
            m.fields = m.fields.difference(&clash);
        } else {
            conflicts.extend(clash.paths().into_iter().map(|p| (m.name.clone(), m.version.clone(), p)));
        }
    }
    if !conflicts.is_empty() {
        return Err(conflict(row, meta::name(applied), conflicts));
    }

    // What this manager stated before, does not state now, and nobody else owns, goes.
    let own = list.iter().position(|m| m.is(w, true));
    if let Some(i) = own {
        let gone = list
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .fold(list[i].fields.difference(&stated), |gone, (_, m)| gone.without_touched(&m.fields));
        merge::remove(def, &mut out, &gone);
    }
    let unchanged =
        own.is_some_and(|i| list[i].fields == stated) && live.is_some_and(|l| same_but_managers(l, &out));
    match own {
        Some(i) => {
            if !unchanged {
                list[i].time = meta::time(w.now);
            }
            list[i].fields = stated;
            list[i].version = row.api_version();
        }
        None => list.push(Manager {
            name: w.manager.to_owned(),
            applies: true,
            subresource: w.subresource.to_owned(),
            version: row.api_version(),
            time: meta::time(w.now),
            fields: stated,
        }),
    }
    set_managers(&mut out, list);
    Ok(out)
}

fn same_but_managers(a: &Value, b: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        meta::set(&mut v, "managedFields", Value::Null);
        v
    };
    strip(a) == strip(b)
}

fn conflict(row: &Resource, name: &str, conflicts: Vec<(String, String, String)>) -> Failure {
    let causes: Vec<Cause> = conflicts
        .iter()
        .map(|(manager, version, path)| Cause {
            reason: "FieldManagerConflict",
            message: format!("conflict with {manager:?} using {version}"),
            field: path.clone(),
        })
        .collect();
    let (noun, texts) = match causes.as_slice() {
        [one] => ("conflict", format!("{}: {}", one.message, one.field)),
        many => {
            let lines: Vec<String> = many.iter().map(|c| format!("- {}: {}", c.message, c.field)).collect();
            ("conflicts", format!("conflicts:\n{}", lines.join("\n")))
        }
    };
    let mut f = Failure::new(409, "Conflict", format!("Apply failed with {} {noun}: {texts}", causes.len()));
    f.details = Some(Box::new(Details {
        name: name.to_owned(),
        group: row.group.to_owned(),
        kind: row.plural.to_owned(),
        causes,
        ..Details::default()
    }));
    f
}

/// Notes who changed which fields in a plain write (create, update, other patches). `after` is what will be stored; its
/// own `managedFields` are replaced by the stored ones as they follow from the change, unless the client emptied them.
pub fn track(
    row: &Resource,
    before: Option<&Value>,
    after: &mut Value,
    w: &Writer<'_>,
) -> Result<(), Failure> {
    let def = schema_of(row)?;
    let empty = json!({"metadata": {}});
    let old = before.unwrap_or(&empty);
    // A client may hand ownership over by writing the list itself, as kubectl does on its way to server-side apply.
    let mut list = match meta::at(after, &["metadata", "managedFields"]) {
        Some(_) => managers(after),
        None => managers(old),
    };
    let all = merge::stated(def, after, w.subresource)?;
    let changed = merge::changed(def, old, after).intersection(&all);
    let everything = merge::all(def, after)?;
    for m in list.iter_mut().filter(|m| !m.is(w, false)) {
        m.fields = m.fields.difference(&changed).intersection(&everything);
    }
    match list.iter_mut().find(|m| m.is(w, false)) {
        Some(m) => {
            let fields = m.fields.union(&changed).intersection(&everything);
            if fields != m.fields || !changed.is_empty() {
                m.time = meta::time(w.now);
            }
            m.fields = fields;
        }
        None if !changed.is_empty() => list.push(Manager {
            name: w.manager.to_owned(),
            applies: false,
            subresource: w.subresource.to_owned(),
            version: row.api_version(),
            time: meta::time(w.now),
            fields: changed,
        }),
        None => {}
    }
    set_managers(after, list);
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
