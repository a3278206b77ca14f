//! Unknown fields, wrong types, canonical forms.

use serde_json::{Map, Number, Value};

use super::{Definition, Type, definition, duplicates};
use crate::quantity::Quantity;
use crate::status::Failure;

/// What to do about unknown and duplicate fields (query parameter `fieldValidation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and warn.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl FieldValidation {
    /// Parses the query parameter; empty is the default, `Warn`.
    pub fn parse(text: &str) -> Result<FieldValidation, Failure> {
        match text {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            "Strict" => Ok(FieldValidation::Strict),
            other => Err(Failure::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// A checked object, and the warnings to send with it (each becomes a `Warning: 299 - "…"` header).
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The object: only known fields, each of its type, without nulls.
    pub object: Value,
    /// Texts for the client.
    pub warnings: Vec<String>,
}

/// Complaints beyond this many are not reported.
const MOST_COMPLAINTS: usize = 100;

/// Parses a JSON body and checks it as [`check`] does, duplicate fields included.
pub fn decode(definition: &str, body: &[u8], mode: FieldValidation) -> Result<Checked, Failure> {
    let (object, duplicates) = duplicates::parse(body).map_err(|e| {
        Failure::bad_request(format!(
            "the object provided is unrecognized: couldn't parse the body as JSON: {e}"
        ))
    })?;
    run(definition, object, mode, duplicates)
}

/// Checks field names and types against a definition (`Resource::schema`, or another one's name, like
/// `io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions`), and drops unknown fields.
pub fn check(definition: &str, object: Value, mode: FieldValidation) -> Result<Checked, Failure> {
    run(definition, object, mode, Vec::new())
}

fn run(
    name: &str,
    mut object: Value,
    mode: FieldValidation,
    duplicates: Vec<String>,
) -> Result<Checked, Failure> {
    let def = definition(name).ok_or_else(|| Failure::internal(format!("no schema for {name}")))?;
    let refuse = |why: String| {
        let kind = name.rsplit('.').next().unwrap_or(name);
        let version = object_version(name);
        Failure::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    };
    let Value::Object(fields) = &mut object else {
        return Err(refuse("json: cannot unmarshal a value that is no object".to_owned()));
    };
    let mut walk = Walk { complaints: Vec::new(), path: String::new() };
    walk.complaints.extend(duplicates.into_iter().map(|p| format!("duplicate field {p:?}")));
    walk.object(def, fields).map_err(refuse)?;
    let mut complaints = walk.complaints;
    complaints.truncate(MOST_COMPLAINTS);
    match mode {
        FieldValidation::Ignore => complaints.clear(),
        FieldValidation::Strict if !complaints.is_empty() => {
            return Err(refuse(format!("strict decoding error: {}", complaints.join(", "))));
        }
        _ => {}
    }
    Ok(Checked { object, warnings: complaints })
}

/// `v1` or `apps/v1`, from a definition's name.
fn object_version(name: &str) -> String {
    let row = crate::registry::all().iter().find(|r| r.schema == name);
    row.map_or_else(|| "v1".to_owned(), crate::registry::Resource::api_version)
}

struct Walk {
    complaints: Vec<String>,
    path: String,
}

impl Walk {
    fn within<T>(&mut self, step: &str, f: impl FnOnce(&mut Walk) -> T) -> T {
        let before = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let out = f(self);
        self.path.truncate(before);
        out
    }

    fn object(&mut self, def: &Definition, fields: &mut Map<String, Value>) -> Result<(), String> {
        let mut drop = Vec::new();
        for (name, value) in fields.iter_mut() {
            let Some(field) = def.field(name) else {
                let path = self.within(name, |w| w.path.clone());
                self.complaints.push(format!("unknown field {path:?}"));
                drop.push(name.clone());
                continue;
            };
            self.within(name, |w| w.value(&field.ty, value))?;
            if value.is_null() || is_empty(&field.ty, value) {
                drop.push(name.clone());
            }
        }
        for name in drop {
            fields.remove(&name);
        }
        Ok(())
    }

    fn value(&mut self, ty: &Type, value: &mut Value) -> Result<(), String> {
        if value.is_null() {
            return Ok(());
        }
        match (ty, &mut *value) {
            (Type::Any, _) | (Type::String, Value::String(_)) | (Type::Bool, Value::Bool(_)) => {}
            (Type::Number, Value::Number(_)) => {}
            (Type::Int32 | Type::Int64, Value::Number(n)) => match whole(n) {
                Some(i) if *ty == Type::Int64 || i32::try_from(i).is_ok() => *value = Value::from(i),
                _ => {
                    let n = n.clone();
                    return Err(self.wrong(&format!("number {n}"), go_type(ty)));
                }
            },
            (Type::IntOrString, Value::String(_)) => {}
            (Type::IntOrString, Value::Number(n)) => match whole(n).filter(|i| i32::try_from(*i).is_ok()) {
                Some(i) => *value = Value::from(i),
                None => {
                    let n = n.clone();
                    return Err(self.wrong(&format!("number {n}"), "int32"));
                }
            },
            (Type::Quantity, Value::String(_) | Value::Number(_)) => {
                let q = Quantity::from_value(value).map_err(|e| format!("{e} (field {})", self.path))?;
                *value = q.into();
            }
            (Type::Bytes, Value::String(s)) => {
                use base64::Engine as _;
                // Line breaks are allowed, as Go's decoder has it.
                let joined: String = s.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                base64::engine::general_purpose::STANDARD
                    .decode(&joined)
                    .map_err(|e| format!("illegal base64 data in field {}: {e}", self.path))?;
                *s = joined;
            }
            (Type::Time | Type::MicroTime, Value::String(s)) => {
                let t: jiff::Timestamp = s.parse().map_err(|_| {
                    format!("parsing time {s:?} in field {}: it must be in RFC 3339 form, like \"2006-01-02T15:04:05Z\"", self.path)
                })?;
                *s = if *ty == Type::Time { crate::meta::time(t) } else { crate::meta::micro_time(t) };
            }
            (Type::Map(inner), Value::Object(entries)) => {
                for (key, v) in entries.iter_mut() {
                    self.within(key, |w| w.value(inner, v))?;
                    null_to_zero(inner, v);
                }
            }
            (Type::List(inner), Value::Array(items)) => {
                for (i, v) in items.iter_mut().enumerate() {
                    self.within(&format!("[{i}]"), |w| w.value(inner, v))?;
                    null_to_zero(inner, v);
                }
            }
            (Type::Object(name), Value::Object(fields)) => {
                let def = definition(name).expect("types refer to definitions that exist");
                self.object(def, fields)?;
            }
            (ty, other) => {
                let got = json_type(other);
                return Err(self.wrong(got, go_type(ty)));
            }
        }
        Ok(())
    }

    fn wrong(&self, got: &str, want: &str) -> String {
        format!("json: cannot unmarshal {got} into field {} of type {want}", self.path)
    }
}

/// In lists and maps a null is the type's zero value, as Go decodes it.
fn null_to_zero(ty: &Type, value: &mut Value) {
    if value.is_null() {
        *value = match ty {
            Type::String | Type::Bytes => Value::from(""),
            Type::Object(_) | Type::Map(_) => Value::Object(Map::new()),
            Type::List(_) => Value::Array(Vec::new()),
            Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString => Value::from(0),
            Type::Quantity => Value::from("0"),
            Type::Bool => Value::Bool(false),
            Type::Any | Type::Time | Type::MicroTime => Value::Null,
        };
    }
}

/// Maps and lists without entries are the same as none.
fn is_empty(ty: &Type, value: &Value) -> bool {
    match (ty, value) {
        (Type::Map(_), Value::Object(m)) => m.is_empty(),
        (Type::List(_), Value::Array(a)) => a.is_empty(),
        _ => false,
    }
}

fn whole(n: &Number) -> Option<i64> {
    n.as_i64().or_else(|| {
        let f = n.as_f64()?;
        (f.fract() == 0.0 && f.abs() < 9.0e15).then_some(f as i64)
    })
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(ty: &Type) -> &'static str {
    match ty {
        Type::Any => "any",
        Type::String | Type::Time | Type::MicroTime => "string",
        Type::Bytes => "[]byte",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Number => "float64",
        Type::Bool => "bool",
        Type::IntOrString => "int or string",
        Type::Quantity => "quantity",
        Type::Map(_) => "map",
        Type::List(_) => "list",
        Type::Object(name) => name.rsplit('.').next().unwrap_or(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    const POD: &str = "io.k8s.api.core.v1.Pod";

    fn strict(body: &str, expected: Expect) {
        expected.assert_eq(&match decode(POD, body.as_bytes(), FieldValidation::Strict) {
            Ok(c) => c.object.to_string(),
            Err(e) => e.message,
        });
    }

    #[test]
    fn unknown_and_duplicate_fields_have_paths() {
        strict(
            r#"{"spec":{"foo":1,"containers":[{"name":"a","name":"b","bar":{}}]}}"#,
            expect![[
                r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: duplicate field "spec.containers[0].name", unknown field "spec.containers[0].bar", unknown field "spec.foo""#
            ]],
        );
        let c = check(POD, json!({"spec": {"foo": 1}}), FieldValidation::Warn).expect("pruned");
        assert_eq!(c.object, json!({"spec": {}}));
        assert_eq!(c.warnings, ["unknown field \"spec.foo\""]);
        assert!(check(POD, json!({"x": 1}), FieldValidation::Ignore).expect("pruned").warnings.is_empty());
    }

    #[test]
    fn wrong_types_are_named() {
        strict(
            r#"{"spec":{"containers":[{"image":5}]}}"#,
            expect![[
                r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number into field spec.containers[0].image of type string"#
            ]],
        );
        strict(
            r#"{"metadata":{"labels":{"a":true}}}"#,
            expect![[
                r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal bool into field metadata.labels.a of type string"#
            ]],
        );
        strict(
            r#"{"spec":{"containers":{}}}"#,
            expect![[
                r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal object into field spec.containers of type list"#
            ]],
        );
        strict(
            "[]",
            expect![[
                r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal a value that is no object"#
            ]],
        );
    }

    #[test]
    fn values_become_canonical() {
        strict(
            r#"{"metadata":{"creationTimestamp":null,"labels":{},"deletionTimestamp":"2024-01-02T03:04:05.678+01:00"},
                "spec":{"containers":[{"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}},"ports":[{"containerPort":80.0}]}]}}"#,
            expect![[
                r#"{"metadata":{"deletionTimestamp":"2024-01-02T02:04:05Z"},"spec":{"containers":[{"ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}]}}"#
            ]],
        );
    }
}
