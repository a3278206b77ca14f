//! Request bodies in protobuf, turned into JSON.
//!
//! kubectl's typed commands (`create namespace`, `create token`, `auth whoami`, ...) send nothing else.
//! Answers are always JSON, which every client takes.
//!
//! Guarantees: a body can become only what its JSON form could say; depth and size are bounded; a
//! message or field that is not in the table (`protobuf_fields.txt`) is skipped as protobuf
//! wants it, or refused if it is the body itself.
//! Assumes: the body has been cut to the size limit already.

use std::{collections::HashMap, sync::OnceLock};

use api::{meta, status::Failure};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Number, Value, json};

/// What a Kubernetes protobuf body begins with.
const MAGIC: &[u8] = b"k8s\0";
const DEPTH: usize = 64;

/// One field of a message.
struct Field {
    number: u64,
    /// None for a struct whose fields stand in its parent.
    name: Option<&'static str>,
    kind: Kind,
    shape: Shape,
    /// Presence counts, so even an empty value is kept.
    pointer: bool,
    /// Left out of JSON when empty.
    omit: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    String,
    Bool,
    Int,
    Float,
    Bytes,
    Quantity,
    Time,
    MicroTime,
    IntOrString,
    /// Any JSON.
    Raw,
    /// A list of strings in a message of its own.
    Items,
    Message(&'static str),
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    One,
    List,
    Map,
}

fn table() -> &'static HashMap<&'static str, Vec<Field>> {
    static TABLE: OnceLock<HashMap<&'static str, Vec<Field>>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut out: HashMap<&str, Vec<Field>> = HashMap::new();
        let mut message = "";
        for line in include_str!("protobuf_fields.txt").lines().filter(|l| !l.starts_with('#')) {
            match line.strip_prefix("= ") {
                Some(name) => {
                    message = name;
                    out.entry(message).or_default();
                }
                None => out.entry(message).or_default().extend(field(line)),
            }
        }
        out
    })
}

fn field(line: &'static str) -> Option<Field> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let name = Some(words.next()?).filter(|n| *n != "-");
    let text = words.next()?;
    let (shape, text) = match (text.strip_prefix("[]"), text.strip_prefix("{}")) {
        (Some(rest), _) => (Shape::List, rest),
        (_, Some(rest)) => (Shape::Map, rest),
        _ => (Shape::One, text),
    };
    let kind = match text {
        "string" => Kind::String,
        "bool" => Kind::Bool,
        "int" => Kind::Int,
        "float" => Kind::Float,
        "bytes" => Kind::Bytes,
        "quantity" => Kind::Quantity,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "intorstring" => Kind::IntOrString,
        "raw" => Kind::Raw,
        "items" => Kind::Items,
        other => Kind::Message(other.strip_prefix("m:")?),
    };
    let flags: Vec<&str> = words.collect();
    Some(Field { number, name, kind, shape, pointer: flags.contains(&"ptr"), omit: flags.contains(&"omit") })
}

/// Turns a body into JSON text. `definition` is the kind's OpenAPI name, like `io.k8s.api.core.v1.Pod`.
///
/// # Errors
/// `BadRequest` for a broken body, 415 for a kind whose fields are not known.
pub(crate) fn to_json(definition: &str, body: &[u8]) -> Result<Bytes, Failure> {
    let bad = |why: &str| Failure::bad_request(format!("the body is not valid protobuf: {why}"));
    let unknown = body.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin with k8s\\0"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in Parts(unknown) {
        match part.ok_or_else(|| bad("the envelope is broken"))? {
            (1, Wire::Bytes(types)) => {
                for part in Parts(types) {
                    match part.ok_or_else(|| bad("the type is broken"))? {
                        (1, Wire::Bytes(b)) => {
                            api_version = text(b).ok_or_else(|| bad("a name is not UTF-8"))?
                        }
                        (2, Wire::Bytes(b)) => kind = text(b).ok_or_else(|| bad("a name is not UTF-8"))?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            (3, Wire::Bytes(b)) if !b.is_empty() => return Err(bad("a content encoding is not supported")),
            _ => {}
        }
    }
    let name = definition
        .strip_prefix("io.k8s.api.")
        .map(str::to_owned)
        .or_else(|| {
            definition.strip_prefix("io.k8s.apimachinery.pkg.apis.meta.v1.").map(|n| format!("meta.{n}"))
        })
        .filter(|n| table().contains_key(n.as_str()))
        .ok_or_else(|| Failure::unsupported_media_type(&["application/json", "application/yaml"]))?;
    let mut object = Map::new();
    message(&name, raw, DEPTH, &mut object).ok_or_else(|| bad("a field is broken"))?;
    // Options of a deletion name the group that is asked, not their own.
    if !definition.ends_with(".DeleteOptions") {
        object.insert("apiVersion".to_owned(), json!(api_version));
        object.insert("kind".to_owned(), json!(kind));
    }
    Ok(Bytes::from(serde_json::to_vec(&object).expect("a JSON tree can be written")))
}

/// A field's value on the wire.
enum Wire<'a> {
    Number(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The fields of a message, in order; none once for what cannot be read.
struct Parts<'a>(&'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_none() {
            self.0 = &[];
        }
        Some(part)
    }
}

impl<'a> Parts<'a> {
    fn part(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.number()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.number()?),
            1 => Wire::Fixed64(self.take(8)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return None,
        };
        Some((tag >> 3, wire))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self) -> Option<u64> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(out);
            }
        }
        None
    }
}

/// Reads a message's fields into `out`.
fn message(name: &str, raw: &[u8], depth: usize, out: &mut Map<String, Value>) -> Option<()> {
    let fields = table().get(name)?;
    let depth = depth.checked_sub(1)?;
    for part in Parts(raw) {
        let (number, wire) = part?;
        let Some(field) = fields.iter().find(|f| f.number == number) else { continue };
        let Some(key) = field.name else {
            if let (Kind::Message(inner), Wire::Bytes(raw)) = (field.kind, wire) {
                message(inner, raw, depth, out)?;
            }
            continue;
        };
        match field.shape {
            Shape::One => {
                let value = value(field.kind, &wire, depth)?;
                if value.is_null() || field.omit && !field.pointer && is_empty(&value) {
                    out.remove(key);
                } else {
                    out.insert(key.to_owned(), value);
                }
            }
            Shape::List => {
                let list = out.entry(key).or_insert_with(|| json!([])).as_array_mut()?;
                match (field.kind, wire) {
                    // Numbers may be packed.
                    (Kind::Int | Kind::Bool, Wire::Bytes(raw)) => {
                        let mut packed = Parts(raw);
                        while !packed.0.is_empty() {
                            list.push(value(field.kind, &Wire::Number(packed.number()?), depth)?);
                        }
                    }
                    (kind, wire) => list.push(value(kind, &wire, depth)?),
                }
            }
            Shape::Map => {
                let Wire::Bytes(raw) = wire else { return None };
                let (mut name, mut item) = (String::new(), Value::Null);
                for part in Parts(raw) {
                    match part? {
                        (1, Wire::Bytes(b)) => name = text(b)?,
                        (2, wire) => item = value(field.kind, &wire, depth)?,
                        _ => {}
                    }
                }
                if item.is_null() {
                    item = match field.kind {
                        Kind::Quantity => json!("0"),
                        Kind::Items => json!([]),
                        _ => json!(""),
                    };
                }
                out.entry(key).or_insert_with(|| json!({})).as_object_mut()?.insert(name, item);
            }
        }
    }
    Some(())
}

fn value(kind: Kind, wire: &Wire<'_>, depth: usize) -> Option<Value> {
    Some(match (kind, wire) {
        (Kind::String, Wire::Bytes(b)) => json!(text(b)?),
        (Kind::Bytes, Wire::Bytes(b)) => json!(STANDARD.encode(b)),
        (Kind::Bool, Wire::Number(n)) => json!(*n != 0),
        (Kind::Int, Wire::Number(n)) => json!(n.cast_signed()),
        (Kind::Float, Wire::Fixed64(b)) => {
            Number::from_f64(f64::from_le_bytes(*b)).map_or(Value::Null, Value::Number)
        }
        (Kind::Message(name), Wire::Bytes(b)) => {
            let mut object = Map::new();
            message(name, b, depth, &mut object)?;
            Value::Object(object)
        }
        (Kind::Quantity, Wire::Bytes(b)) => strings(b, 1)?.pop().map_or(json!("0"), Value::String),
        (Kind::Items, Wire::Bytes(b)) => json!(strings(b, 1)?),
        (Kind::Raw, Wire::Bytes(b)) => {
            let raw = Parts(b).find_map(|p| match p {
                Some((1, Wire::Bytes(raw))) => Some(raw),
                _ => None,
            });
            raw.map_or(Some(Value::Null), |r| serde_json::from_slice(r).ok())?
        }
        (Kind::Time | Kind::MicroTime, Wire::Bytes(b)) => time(kind, b)?,
        (Kind::IntOrString, Wire::Bytes(b)) => {
            let (mut is_text, mut number, mut string) = (false, 0, String::new());
            for part in Parts(b) {
                match part? {
                    (1, Wire::Number(n)) => is_text = n == 1,
                    (2, Wire::Number(n)) => number = n.cast_signed(),
                    (3, Wire::Bytes(b)) => string = text(b)?,
                    _ => {}
                }
            }
            if is_text { json!(string) } else { json!(number) }
        }
        _ => return None,
    })
}

fn time(kind: Kind, raw: &[u8]) -> Option<Value> {
    let (mut seconds, mut nanos) = (None, 0);
    for part in Parts(raw) {
        match part? {
            (1, Wire::Number(n)) => seconds = Some(n.cast_signed()),
            (2, Wire::Number(n)) => nanos = i32::try_from(n.cast_signed()).ok()?,
            _ => {}
        }
    }
    let Some(seconds) = seconds else { return Some(Value::Null) };
    let at = Timestamp::new(seconds, nanos).ok()?;
    Some(json!(if matches!(kind, Kind::MicroTime) { meta::micro_time(at) } else { meta::time(at) }))
}

fn strings(raw: &[u8], wanted: u64) -> Option<Vec<String>> {
    let mut out = Vec::new();
    for part in Parts(raw) {
        if let (number, Wire::Bytes(b)) = part?
            && number == wanted
        {
            out.push(text(b)?);
        }
    }
    Some(out)
}

fn text(raw: &[u8]) -> Option<String> {
    String::from_utf8(raw.to_vec()).ok()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u8, raw: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(raw.len()).unwrap()];
        out.extend_from_slice(raw);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [part(1, api_version.as_bytes()), part(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), part(1, &types), part(2, raw)].concat()
    }

    fn check(definition: &str, body: &[u8]) -> Result<Value, u16> {
        to_json(definition, body).map(|b| serde_json::from_slice(&b).unwrap()).map_err(|f| f.code)
    }

    #[test]
    fn a_namespace_as_kubectl_sends_it() {
        // Go writes every field that is not a pointer, even empty ones; the creation time is an empty message.
        let metadata = [part(1, b"foo"), part(2, b""), part(3, b""), vec![7 << 3, 0], part(8, b"")].concat();
        let raw = [part(1, &metadata), part(2, b""), part(3, &part(1, b""))].concat();
        assert_eq!(
            check("io.k8s.api.core.v1.Namespace", &body("v1", "Namespace", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foo"}})
        );
    }

    #[test]
    fn inline_structs_maps_and_special_types() {
        let volume = [part(1, b"v"), part(2, &part(2, b""))].concat();
        let limits = part(1, &[part(1, b"cpu"), part(2, &part(1, b"100m"))].concat());
        let port = [vec![1 << 3, 1], part(3, b"http")].concat();
        let probe = [part(1, &part(2, &part(2, &port))), vec![2 << 3, 5]].concat();
        let container = [part(1, b"c"), part(8, &limits), part(10, &probe)].concat();
        let raw = part(2, &[part(1, &volume), part(2, &container), vec![4 << 3, 0]].concat());
        let pod = check("io.k8s.api.core.v1.Pod", &body("v1", "Pod", &raw)).unwrap();
        assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 0);
        let c = &pod["spec"]["containers"][0];
        assert_eq!(c["resources"], json!({"limits": {"cpu": "100m"}}));
        assert_eq!(c["livenessProbe"], json!({"httpGet": {"port": "http"}, "initialDelaySeconds": 5}));
    }

    #[test]
    fn broken_and_hostile_bodies() {
        let namespace = "io.k8s.api.core.v1.Namespace";
        assert_eq!(check(namespace, b"{}"), Err(400));
        assert_eq!(check(namespace, b"k8s\0\x0a\xff"), Err(400));
        assert_eq!(check(namespace, &body("v1", "Namespace", &[0x0a, 0x7f])), Err(400));
        assert_eq!(check("io.k8s.api.core.v1.Nothing", &body("v1", "Nothing", &[])), Err(415));
        assert!(
            check(namespace, &body("v1", "Namespace", &[0xf8, 0x7f, 1])).is_ok(),
            "unknown fields are skipped"
        );
    }

    #[test]
    fn the_table_knows_every_message_it_names_and_every_kind_that_is_served() {
        for fields in table().values() {
            for field in fields {
                if let Kind::Message(name) = field.kind {
                    assert!(table().contains_key(name), "{name}");
                }
            }
        }
        for row in api::registry::all() {
            let name = row.schema.strip_prefix("io.k8s.api.").unwrap();
            assert!(table().contains_key(name), "{name}");
        }
    }
}
