//! Strategic merge patch: a merge patch that knows which lists are merged item by item, and by which key.
//!
//! Guarantees: directives (`$patch`, `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) never reach the
//! result; items a patch does not name keep their place relative to each other.
//! Assumes: JSON parsing bounded the depth of both sides.
//! Caveat: as upstream, a list is merged by one key even where server-side apply knows more (container ports).

use serde_json::{Map, Value};

use crate::schema::facts::Merge;
use crate::schema::{Definition, Type, definition};
use crate::status::Failure;

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of a definition.
pub fn merge(def: &Definition, original: &Value, patch: Value) -> Result<Value, Failure> {
    let Value::Object(patch) = patch else {
        return Err(bad("a strategic merge patch must be a JSON object"));
    };
    let original = original.as_object().cloned().unwrap_or_default();
    Ok(Value::Object(object(Some(def), original, patch)?))
}

fn bad(why: impl Into<String>) -> Failure {
    Failure::bad_request(format!("invalid strategic merge patch: {}", why.into()))
}

/// What is known of a field: the definition of its object or items, and how it merges.
fn lookup(def: Option<&Definition>, key: &str) -> (Option<&'static Definition>, Merge) {
    let Some(field) = def.and_then(|d| d.field(key)) else { return (None, Merge::Default) };
    (inner(&field.ty), field.merge())
}

fn inner(ty: &Type) -> Option<&'static Definition> {
    match ty {
        Type::Object(name) => definition(name),
        Type::List(items) => inner(items),
        _ => None,
    }
}

type Object = Map<String, Value>;

fn object(def: Option<&Definition>, mut original: Object, mut patch: Object) -> Result<Object, Failure> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(clean_object(patch)),
            Some("delete") => Ok(Object::new()),
            Some("merge") => object(def, original, patch),
            _ => Err(bad(format!("unknown $patch directive {directive}"))),
        };
    }
    retain(&mut original, &mut patch)?;
    ordered_lists(def, &mut original, &mut patch)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE) {
            let Value::Array(gone) = value else { return Err(bad(format!("{key} must be a list"))) };
            if let Some(Value::Array(items)) = original.get_mut(list) {
                items.retain(|i| !gone.contains(i));
            }
            continue;
        }
        let (sub, how) = lookup(def, &key);
        match (original.remove(&key), value) {
            (_, Value::Null) => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                let merged = object(sub, old, new)?;
                original.insert(key, Value::Object(merged));
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                let merged = list(&key, sub, how, old, new)?;
                original.insert(key, Value::Array(merged));
            }
            (_, new) => {
                if let Some(v) = clean(new) {
                    original.insert(key, v);
                }
            }
        }
    }
    Ok(original)
}

/// `$retainKeys`: fields it does not name go.
fn retain(original: &mut Object, patch: &mut Object) -> Result<(), Failure> {
    let Some(names) = patch.remove(RETAIN) else { return Ok(()) };
    let Value::Array(names) = names else { return Err(bad("$retainKeys must be a list")) };
    let named = |key: &str| names.iter().any(|n| n == key);
    if let Some((stray, _)) = patch.iter().find(|(k, v)| !v.is_null() && !k.starts_with('$') && !named(k)) {
        return Err(bad(format!("field {stray:?} is in the patch but not in its $retainKeys")));
    }
    original.retain(|k, _| named(k));
    Ok(())
}

/// `$setElementOrder/x`: merges list `x`, then orders it as the directive says.
fn ordered_lists(def: Option<&Definition>, original: &mut Object, patch: &mut Object) -> Result<(), Failure> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER)).cloned().collect();
    for directive in directives {
        let key = directive[ORDER.len()..].to_owned();
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(bad(format!("{directive} must be a list")));
        };
        let as_list = |v: Option<Value>| match v {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(_) => Err(bad(format!("{key} must be a list"))),
        };
        let removes = patch.get(&key).is_some_and(Value::is_null);
        let old = as_list(original.remove(&key))?;
        let new = as_list(patch.remove(&key))?;
        if removes {
            continue;
        }
        let (sub, how) = lookup(def, &key);
        let before = old.clone().unwrap_or_default();
        let mut merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => clean_items(new),
            (Some(old), Some(new)) => list(&key, sub, how, old, new)?,
        };
        let deleting = format!("{DELETE}{key}");
        if let Some(Value::Array(gone)) = patch.remove(&deleting) {
            merged.retain(|i| !gone.contains(i));
        }
        merged = arrange(merged, &order, &before, merge_key(how));
        original.insert(key, Value::Array(merged));
    }
    Ok(())
}

fn merge_key(how: Merge) -> Option<&'static str> {
    match how {
        Merge::Key(k) | Merge::KeyRetain(k) => Some(k),
        _ => None,
    }
}

fn list(
    name: &str,
    sub: Option<&'static Definition>,
    how: Merge,
    original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, Failure> {
    match how {
        Merge::Default | Merge::Retain => {
            // Replaced as a whole; the directive that says so is no item.
            Ok(clean_items(patch))
        }
        Merge::Set => {
            let mut out = original.clone();
            for item in &patch {
                if !out.contains(item) {
                    out.push(item.clone());
                }
            }
            Ok(arrange(out, &patch, &original, None))
        }
        Merge::Key(key) | Merge::KeyRetain(key) => keyed(name, sub, key, original, patch),
    }
}

fn keyed(
    name: &str,
    sub: Option<&'static Definition>,
    key: &'static str,
    mut original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, Failure> {
    let no_key = || bad(format!("an item of {name} does not contain its merge key {key:?}"));
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE).map(|d| d.as_str().unwrap_or("").to_owned()).as_deref() {
            None => plain.push(item),
            Some("replace") => {
                replace = true;
                // An item that carries the directive and more is an item, too.
                if let Some(v @ Value::Object(_)) = clean(item)
                    && v.get(key).is_some()
                {
                    plain.push(v);
                }
            }
            Some("delete") => {
                let value = item.get(key).ok_or_else(no_key)?;
                original.retain(|o| o.get(key) != Some(value));
            }
            Some("merge") => plain.push({
                let mut item = item;
                item.as_object_mut().expect("it has a field").remove(DIRECTIVE);
                item
            }),
            Some(other) => return Err(bad(format!("unknown $patch directive {other:?} in {name}"))),
        }
    }
    if replace {
        return Ok(clean_items(plain));
    }
    let before = original.clone();
    let order = plain.clone();
    for item in plain {
        let value = item.get(key).ok_or_else(no_key)?.clone();
        let Value::Object(item) = item else { return Err(no_key()) };
        match original.iter_mut().find(|o| o.get(key) == Some(&value)) {
            Some(place) => {
                let old = std::mem::take(place);
                let Value::Object(old) = old else { return Err(no_key()) };
                *place = Value::Object(object(sub, old, item)?);
            }
            None => original.extend(clean(Value::Object(item))),
        }
    }
    Ok(arrange(original, &order, &before, Some(key)))
}

/// Orders items: those in `order` as it says, the others as they stood in `before`, and both woven together by where
/// they stood before.
fn arrange(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let same = |a: &Value, b: &Value| match key {
        Some(k) => a.get(k).is_some() && a.get(k) == b.get(k),
        None => a == b,
    };
    let place = |list: &[Value], item: &Value| list.iter().position(|x| same(x, item));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|i| place(order, i).is_some());
    named.sort_by_key(|i| place(order, i));
    others.sort_by_key(|i| place(before, i).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(other), Some(name)) = (others.peek(), named.peek()) {
        let first = match (place(before, other), place(before, name)) {
            (Some(o), Some(n)) => o < n,
            _ => false,
        };
        out.extend(if first { others.next() } else { named.next() });
    }
    out.extend(named);
    out.extend(others);
    out
}

/// A new value without directives and nulls; `None` for one that only says "delete".
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(o) => {
            if o.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                return None;
            }
            Some(Value::Object(clean_object(o)))
        }
        Value::Array(a) => Some(Value::Array(clean_items(a))),
        Value::Null => None,
        other => Some(other),
    }
}

fn clean_object(object: Object) -> Object {
    object
        .into_iter()
        .filter(|(k, _)| k != DIRECTIVE && k != RETAIN && !k.starts_with(ORDER) && !k.starts_with(DELETE))
        .filter_map(|(k, v)| Some((k, clean(v)?)))
        .collect()
}

fn clean_items(items: Vec<Value>) -> Vec<Value> {
    items
        .into_iter()
        .filter(|i| !i.as_object().is_some_and(|o| o.len() == 1 && o.contains_key(DIRECTIVE)))
        .filter_map(clean)
        .collect()
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
