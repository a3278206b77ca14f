//! Objects seen through their types: which fields they have, which differ, how two become one.

use serde_json::{Map, Value};

use super::FieldSet;
use crate::schema::facts::Shape;
use crate::schema::{Definition, Field, Type, definition};
use crate::status::Failure;

/// How a value is put together.
enum Kind {
    /// One value.
    Whole,
    /// Fields of a definition.
    Object(&'static Definition),
    /// Keys with values of one type.
    Map(Type),
    /// Items told apart by these fields.
    Keyed(&'static [&'static str], &'static Definition),
    /// Scalars, each once.
    Set,
}

fn kind_of(ty: &Type, shape: Option<Shape>) -> Kind {
    match (ty, shape) {
        (Type::Object(name), s) if s != Some(Shape::Atomic) => match definition(name).filter(|d| !d.atomic) {
            Some(d) => Kind::Object(d),
            None => Kind::Whole,
        },
        (Type::Map(inner), s) if s != Some(Shape::Atomic) => Kind::Map((**inner).clone()),
        (Type::List(inner), Some(Shape::Keyed(keys))) => match &**inner {
            Type::Object(name) => definition(name).map_or(Kind::Whole, |d| Kind::Keyed(keys, d)),
            _ => Kind::Whole,
        },
        (Type::List(_), Some(Shape::Set)) => Kind::Set,
        _ => Kind::Whole,
    }
}

fn kind(field: &Field) -> Kind {
    kind_of(&field.ty, field.shape())
}

/// Metadata that nobody owns.
const UNOWNED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "generateName",
];

/// The fields that a writer of the object, or of one of its subresources, states.
pub(super) fn stated(def: &Definition, object: &Value, subresource: &str) -> Result<FieldSet, Failure> {
    let mut out = all(def, object)?;
    match subresource {
        "" if def.field("status").is_some() && def.field("spec").is_some() => {
            drop(out.children.remove("f:status"))
        }
        "status" => out.children.retain(|k, _| k == "f:status" || k == "f:metadata"),
        _ => {}
    }
    Ok(out)
}

/// All fields of an object.
pub(super) fn all(def: &Definition, object: &Value) -> Result<FieldSet, Failure> {
    let mut out = FieldSet::default();
    if let Some(o) = object.as_object() {
        for (name, value) in o.iter().filter(|(k, _)| !matches!(k.as_str(), "apiVersion" | "kind")) {
            if let Some(field) = def.field(name) {
                out.add(format!("f:{name}"), set(&kind(field), value)?);
            }
        }
    }
    if let Some(m) = out.children.get_mut("f:metadata") {
        m.children.retain(|k, _| !UNOWNED.iter().any(|u| k.strip_prefix("f:") == Some(u)));
        m.here = false;
        if m.children.is_empty() {
            out.children.remove("f:metadata");
        }
    }
    Ok(out)
}

fn set(kind: &Kind, value: &Value) -> Result<FieldSet, Failure> {
    let mut out = FieldSet::default();
    match (kind, value) {
        (Kind::Object(def), Value::Object(o)) => {
            for (name, v) in o {
                if let Some(field) = def.field(name) {
                    out.add(format!("f:{name}"), set(&self::kind(field), v)?);
                }
            }
        }
        (Kind::Map(inner), Value::Object(o)) => {
            for (key, v) in o {
                out.add(format!("f:{key}"), set(&kind_of(inner, None), v)?);
            }
        }
        (Kind::Keyed(keys, def), Value::Array(items)) => {
            for item in items {
                let mut fields = set(&Kind::Object(def), item)?;
                fields.here = true;
                out.add(format!("k:{}", key(keys, item)?), fields);
            }
        }
        (Kind::Set, Value::Array(items)) => {
            for item in items {
                out.add(format!("v:{item}"), FieldSet::leaf());
            }
        }
        _ => {}
    }
    // Scalars, atomic values, and what is empty.
    if out.children.is_empty() {
        out.here = true;
    }
    Ok(out)
}

/// An item's key as JSON text; a port's protocol is TCP where it is not said.
fn key(keys: &[&str], item: &Value) -> Result<String, Failure> {
    let mut out = Map::new();
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    for k in sorted {
        let v = match item.get(k) {
            Some(v) => v.clone(),
            None if k == "protocol" => Value::from("TCP"),
            None => {
                return Err(Failure::bad_request(format!(
                    "associative list with keys {keys:?} has an element that omits key field {k:?}"
                )));
            }
        };
        out.insert(k.to_owned(), v);
    }
    Ok(Value::Object(out).to_string())
}

/// The fields of `after` that are new or other than in `before`.
pub(super) fn changed(def: &'static Definition, before: &Value, after: &Value) -> FieldSet {
    differs(&Kind::Object(def), Some(before), after)
}

fn differs(kind: &Kind, before: Option<&Value>, after: &Value) -> FieldSet {
    if before == Some(after) {
        return FieldSet::default();
    }
    let Some(before) = before else { return set(kind, after).unwrap_or_default() };
    let mut out = FieldSet::default();
    match (kind, before, after) {
        (Kind::Object(def), Value::Object(a), Value::Object(b)) => {
            for (name, v) in b {
                if let Some(field) = def.field(name) {
                    out.add(format!("f:{name}"), differs(&self::kind(field), a.get(name), v));
                }
            }
        }
        (Kind::Map(inner), Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                out.add(format!("f:{k}"), differs(&kind_of(inner, None), a.get(k), v));
            }
        }
        (Kind::Keyed(keys, def), Value::Array(a), Value::Array(b)) => {
            for item in b {
                let Ok(k) = key(keys, item) else { continue };
                let old = a.iter().find(|o| key(keys, o).is_ok_and(|x| x == k));
                let mut fields = differs(&Kind::Object(def), old, item);
                fields.here = old.is_none();
                out.add(format!("k:{k}"), fields);
            }
        }
        (Kind::Set, Value::Array(a), Value::Array(b)) => {
            for item in b.iter().filter(|i| !a.contains(i)) {
                out.add(format!("v:{item}"), FieldSet::leaf());
            }
        }
        _ => out.here = true,
    }
    out
}

/// The live object with what is applied laid over it.
pub(super) fn object(def: &'static Definition, live: &Value, applied: &Value) -> Result<Value, Failure> {
    over(&Kind::Object(def), Some(live), applied)
}

fn over(kind: &Kind, live: Option<&Value>, applied: &Value) -> Result<Value, Failure> {
    Ok(match (kind, live, applied) {
        (Kind::Object(def), Some(Value::Object(a)), Value::Object(b)) => {
            let mut out = a.clone();
            for (name, v) in b {
                let kind = def.field(name).map_or(Kind::Whole, self::kind);
                let merged = over(&kind, a.get(name), v)?;
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Kind::Map(inner), Some(Value::Object(a)), Value::Object(b)) => {
            let mut out = a.clone();
            for (k, v) in b {
                let merged = over(&kind_of(inner, None), a.get(k), v)?;
                out.insert(k.clone(), merged);
            }
            Value::Object(out)
        }
        (Kind::Keyed(keys, def), Some(Value::Array(a)), Value::Array(b)) => {
            let mut out = a.clone();
            for item in b {
                let k = key(keys, item)?;
                match out.iter_mut().find(|o| key(keys, o).is_ok_and(|x| x == k)) {
                    Some(old) => *old = over(&Kind::Object(def), Some(old), item)?,
                    None => out.push(item.clone()),
                }
            }
            Value::Array(out)
        }
        (Kind::Set, Some(Value::Array(a)), Value::Array(b)) => {
            let mut out = a.clone();
            out.extend(b.iter().filter(|i| !a.contains(i)).cloned());
            Value::Array(out)
        }
        _ => applied.clone(),
    })
}

/// Takes fields out of an object; what becomes empty by that goes, too.
pub(super) fn remove(def: &'static Definition, object: &mut Value, fields: &FieldSet) {
    take(&Kind::Object(def), object, fields);
}

fn take(kind: &Kind, value: &mut Value, fields: &FieldSet) {
    match (kind, value) {
        (Kind::Object(_) | Kind::Map(_), Value::Object(o)) => {
            for (step, below) in &fields.children {
                let Some(name) = step.strip_prefix("f:") else { continue };
                let inner = match kind {
                    Kind::Object(def) => def.field(name).map_or(Kind::Whole, self::kind),
                    Kind::Map(inner) => kind_of(inner, None),
                    _ => Kind::Whole,
                };
                let Some(v) = o.get_mut(name) else { continue };
                if !below.children.is_empty() {
                    take(&inner, v, below);
                }
                let emptied = !below.children.is_empty() && is_empty(v);
                if emptied || (below.here && below.children.is_empty()) {
                    o.remove(name);
                }
            }
        }
        (Kind::Keyed(keys, def), Value::Array(items)) => {
            items.retain_mut(|item| {
                let below = key(keys, item).ok().and_then(|k| fields.children.get(&format!("k:{k}")));
                let Some(below) = below else { return true };
                if below.here {
                    return false;
                }
                take(&Kind::Object(def), item, below);
                true
            });
        }
        (Kind::Set, Value::Array(items)) => {
            items.retain(|i| !fields.children.contains_key(&format!("v:{i}")));
        }
        _ => {}
    }
}

fn is_empty(v: &Value) -> bool {
    match v {
        Value::Object(o) => o.is_empty(),
        Value::Array(a) => a.is_empty(),
        _ => false,
    }
}
