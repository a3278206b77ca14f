//! Definitions as documents carry them: with references, kinds and merge facts.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Dialect;
use crate::registry::{self, Gvk, Resource};
use crate::schema::facts::{self, Merge, Shape};
use crate::schema::{name_of, source};

/// What any document may refer to besides its kinds.
const ALWAYS: &[&str] = &[
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
];

/// The definitions that the chosen rows need, sorted by name.
pub(super) fn of(dialect: Dialect, rows: impl Fn(&Resource) -> bool) -> Map<String, Value> {
    let mut all = source::definitions(dialect.prefix());
    let chosen: Vec<&Resource> = registry::all().iter().filter(|r| rows(r)).collect();
    let mut wanted: Vec<String> = ALWAYS.iter().map(|n| (*n).to_owned()).collect();
    for row in &chosen {
        wanted.push(row.schema.to_owned());
        if row.stored() {
            wanted.push(format!("{}List", row.schema));
        }
        wanted.extend(row.subresources.iter().filter_map(|s| name_of(s.speaks)));
    }
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if let Some(schema) = all.get(&name)
            && seen.insert(name)
        {
            referred(schema, &mut wanted);
        }
    }
    let mut out = Map::new();
    for name in seen {
        let mut schema = all.remove(&name).unwrap_or_default();
        finish(dialect, &name, &mut schema);
        out.insert(name, schema);
    }
    kinds(&chosen, &mut out);
    out
}

fn referred(schema: &Value, out: &mut Vec<String>) {
    match schema {
        Value::Object(o) => {
            if let Some(r) = o.get("$ref").and_then(Value::as_str) {
                out.push(r.rsplit('/').next().unwrap_or(r).to_owned());
            }
            o.values().for_each(|v| referred(v, out));
        }
        Value::Array(a) => a.iter().for_each(|v| referred(v, out)),
        _ => {}
    }
}

/// Brings a definition into the dialect and adds what the facts know.
fn finish(dialect: Dialect, name: &str, schema: &mut Value) {
    let scalar = match name {
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Some("int-or-string"),
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Some(""),
        _ => None,
    };
    if let Some(format) = scalar {
        let description = schema.get("description").cloned().unwrap_or_default();
        *schema = match dialect {
            Dialect::V2 => json!({"type": "string"}),
            Dialect::V3 if format.is_empty() => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            Dialect::V3 => json!({"oneOf": [{"type": "integer"}, {"type": "string"}]}),
        };
        schema["description"] = description;
        if !format.is_empty() {
            schema["format"] = Value::from(format);
        }
        return;
    }
    if facts::ATOMIC_OBJECTS.contains(&facts::short(name)) {
        schema["x-kubernetes-map-type"] = Value::from("atomic");
    }
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        // Upstream asks for no object's metadata.
        required.retain(|r| r != "metadata");
        if required.is_empty() {
            schema.as_object_mut().expect("it has a field").remove("required");
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for (field, property) in properties {
            extend(name, field, property);
            if dialect == Dialect::V3 {
                wrap(property);
            }
        }
    }
}

fn extend(definition: &str, field: &str, property: &mut Value) {
    let is_list = property.get("type").is_some_and(|t| t == "array");
    let fact = facts::of(definition, field);
    let shape = fact.map(|f| f.shape).or(is_list.then_some(Shape::Atomic));
    match shape {
        Some(Shape::Keyed(keys)) => {
            property["x-kubernetes-list-type"] = Value::from("map");
            property["x-kubernetes-list-map-keys"] = json!(keys);
        }
        Some(Shape::Set) => property["x-kubernetes-list-type"] = Value::from("set"),
        Some(Shape::Atomic) if is_list => property["x-kubernetes-list-type"] = Value::from("atomic"),
        Some(Shape::Atomic) if property.get("additionalProperties").is_some() => {
            property["x-kubernetes-map-type"] = Value::from("atomic");
        }
        _ => {}
    }
    match fact.map(|f| f.merge).unwrap_or_default() {
        Merge::Default => {}
        Merge::Set => property["x-kubernetes-patch-strategy"] = Value::from("merge"),
        Merge::Key(key) => {
            property["x-kubernetes-patch-strategy"] = Value::from("merge");
            property["x-kubernetes-patch-merge-key"] = Value::from(key);
        }
        Merge::KeyRetain(key) => {
            property["x-kubernetes-patch-strategy"] = Value::from("merge,retainKeys");
            property["x-kubernetes-patch-merge-key"] = Value::from(key);
        }
        Merge::Retain => property["x-kubernetes-patch-strategy"] = Value::from("retainKeys"),
    }
}

/// In v3 nothing may stand beside `$ref`, so it moves into `allOf`; also for items and values of maps.
fn wrap(property: &mut Value) {
    let Some(object) = property.as_object_mut() else { return };
    if object.len() > 1
        && let Some(target) = object.remove("$ref")
    {
        object.insert("allOf".to_owned(), json!([{"$ref": target}]));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            wrap(inner);
        }
    }
}

/// Marks which definition is which kind.
fn kinds(rows: &[&Resource], out: &mut Map<String, Value>) {
    let mut mark = |definition: &str, gvk: Gvk, kind: &str| {
        if let Some(schema) = out.get_mut(definition) {
            let entry = json!({"group": gvk.group, "kind": kind, "version": gvk.version});
            match schema.get_mut("x-kubernetes-group-version-kind") {
                Some(Value::Array(list)) if !list.contains(&entry) => list.push(entry),
                Some(_) => {}
                None => schema["x-kubernetes-group-version-kind"] = json!([entry]),
            }
        }
    };
    for row in rows {
        mark(row.schema, row.gvk(), row.kind);
        mark(&format!("{}List", row.schema), row.gvk(), row.list_kind);
        for s in row.subresources {
            if let Some(name) = name_of(s.speaks) {
                mark(&name, s.speaks, s.speaks.kind);
            }
        }
        for kind in ["DeleteOptions", "WatchEvent"] {
            mark(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"), row.gvk(), kind);
        }
    }
    for kind in ["Status", "APIResourceList"] {
        let core = Gvk { group: "", version: "v1", kind: "" };
        mark(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"), core, kind);
    }
}
