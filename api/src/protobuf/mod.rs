//! Kubernetes objects in protobuf, as typed Go clients and `kubectl create` send them, read into their JSON form.
//!
//! Guarantees: hostile bytes give an error, never a panic; what is read is no larger than a small multiple of the
//! body. Unknown field numbers are skipped, as protobuf has it.
//! Assumes: the body's size was bounded by who read it. Field numbers come from `fields.txt`, types from
//! [`crate::schema`].
//! Caveat: answers are JSON, which all clients that send protobuf accept beside it.

mod wire;

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::meta;
use crate::schema::{Definition, Type, definition, facts};
use crate::status::Failure;
use wire::{Fields, Item};

/// The media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Every body begins with these bytes.
const MAGIC: &[u8] = b"k8s\0";

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum ReadError {
    #[error("the body does not begin with the Kubernetes protobuf prefix")]
    Prefix,
    #[error("the message is cut off or malformed")]
    Malformed,
    #[error("field {0} has another wire type than expected")]
    WireType(String),
    #[error("field {0} is not valid UTF-8")]
    Text(String),
    #[error("nothing is known of kind {kind:?} in version {version:?}")]
    Kind { version: String, kind: String },
    #[error("bodies encoded as {0:?} are not supported")]
    Encoding(String),
}

/// Reads a body and writes it as JSON text, `apiVersion` and `kind` included.
pub fn to_json(body: &[u8]) -> Result<Vec<u8>, Failure> {
    let object = decode(body)?;
    serde_json::to_vec(&object).map_err(|e| Failure::internal(format!("write an object as JSON: {e}")))
}

/// Reads a body.
pub fn decode(body: &[u8]) -> Result<Value, Failure> {
    read(body)
        .map_err(|e| Failure::bad_request(format!("the object provided is unrecognized (protobuf): {e}")))
}

fn read(body: &[u8]) -> Result<Value, ReadError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ReadError::Prefix)?;
    let (mut version, mut kind, mut raw, mut content) =
        (String::new(), String::new(), &[][..], String::new());
    for field in Fields::new(envelope) {
        match field? {
            (1, Item::Bytes(b)) => {
                for field in Fields::new(b) {
                    match field? {
                        (1, Item::Bytes(b)) => version = text(b, "apiVersion")?,
                        (2, Item::Bytes(b)) => kind = text(b, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(b)) => raw = b,
            (3, Item::Bytes(b)) if !b.is_empty() => {
                return Err(ReadError::Encoding(text(b, "contentEncoding")?));
            }
            (4, Item::Bytes(b)) => content = text(b, "contentType")?,
            _ => {}
        }
    }
    let mut object = match content.as_str() {
        "application/json" => serde_json::from_slice(raw).map_err(|_| ReadError::Malformed)?,
        "" | MEDIA_TYPE => {
            let def = find(&version, &kind)
                .ok_or_else(|| ReadError::Kind { version: version.clone(), kind: kind.clone() })?;
            let mut out = Map::new();
            message(facts::short(def.name), def, raw, &mut out)?;
            Value::Object(out)
        }
        other => return Err(ReadError::Encoding(other.to_owned())),
    };
    let fields = meta::object_mut(&mut object);
    fields.insert("apiVersion".to_owned(), Value::from(version));
    fields.insert("kind".to_owned(), Value::from(kind));
    Ok(object)
}

/// The definition of a kind, or of one that every group has, like DeleteOptions.
fn find(version: &str, kind: &str) -> Option<&'static Definition> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    definition(&format!("io.k8s.api.{package}.{version}.{kind}"))
        .or_else(|| definition(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")))
        .filter(|d| table().contains_key(facts::short(d.name)))
}

/// One field of a message.
struct Field {
    number: u32,
    name: &'static str,
    /// Its fields belong to the message around it.
    inline: bool,
    /// A zero is a value and not the lack of one.
    keep_zero: bool,
}

fn table() -> &'static HashMap<&'static str, Vec<Field>> {
    static TABLE: OnceLock<HashMap<&'static str, Vec<Field>>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let lines = include_str!("fields.txt").lines().filter(|l| !l.starts_with('#'));
        lines
            .map(|line| {
                let mut words = line.split(' ');
                let name = words.next().unwrap_or("");
                (name, words.filter_map(parse_field).collect())
            })
            .collect()
    })
}

fn parse_field(word: &'static str) -> Option<Field> {
    let (name, number) = word.split_once('=')?;
    let (number, keep_zero) = match number.strip_suffix('?') {
        Some(n) => (n, true),
        None => (number, false),
    };
    let (name, inline) = match name.strip_prefix('*') {
        Some(n) => (n, true),
        None => (name, false),
    };
    Some(Field { number: number.parse().ok()?, name, inline, keep_zero })
}

/// Reads the fields of a message into the object that has the definition.
fn message(
    name: &str,
    def: &Definition,
    bytes: &[u8],
    out: &mut Map<String, Value>,
) -> Result<(), ReadError> {
    let Some(known) = table().get(name) else { return Ok(()) };
    for item in Fields::new(bytes) {
        let (number, item) = item?;
        let Some(field) = known.iter().find(|f| f.number == number) else { continue };
        if field.inline {
            message(field.name, def, item.bytes(field.name)?, out)?;
            continue;
        }
        let Some(declared) = def.field(field.name) else { continue };
        match &declared.ty {
            Type::Map(inner) => {
                let (key, value) = entry(inner, item.bytes(field.name)?, field.name)?;
                let map = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                meta::object_mut(map).insert(key, value);
            }
            Type::List(inner) => {
                let list = out.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let list = list.as_array_mut().expect("made a list by the line above");
                match item {
                    // Numbers may come packed.
                    Item::Bytes(packed) if matches!(**inner, Type::Int32 | Type::Int64 | Type::Bool) => {
                        for n in wire::packed(packed) {
                            list.push(value(inner, Item::Number(n?), field.name)?);
                        }
                    }
                    item => list.push(value(inner, item, field.name)?),
                }
            }
            ty => {
                let v = value(ty, item, field.name)?;
                let zero_number = matches!(ty, Type::Int32 | Type::Int64 | Type::Number) && v == 0;
                if field.keep_zero || !(zero_number || is_zero(&v)) {
                    out.insert(field.name.to_owned(), v);
                }
            }
        }
    }
    Ok(())
}

/// What Go's JSON leaves out of a field marked `omitempty`.
fn is_zero(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

fn entry(inner: &Type, bytes: &[u8], name: &str) -> Result<(String, Value), ReadError> {
    let (mut key, mut found) = (String::new(), None);
    for item in Fields::new(bytes) {
        match item? {
            (1, item) => key = text(item.bytes(name)?, name)?,
            (2, item) => found = Some(map_value(inner, item, name)?),
            _ => {}
        }
    }
    let value = match found {
        Some(v) => v,
        None => map_value(inner, Item::Bytes(&[]), name)?,
    };
    Ok((key, value))
}

/// A list as a map's value is a message with the items as its first field.
fn map_value(ty: &Type, item: Item<'_>, name: &str) -> Result<Value, ReadError> {
    let Type::List(inner) = ty else { return value(ty, item, name) };
    let mut list = Vec::new();
    for item in Fields::new(item.bytes(name)?) {
        if let (1, item) = item? {
            list.push(value(inner, item, name)?);
        }
    }
    Ok(Value::Array(list))
}

fn value(ty: &Type, item: Item<'_>, name: &str) -> Result<Value, ReadError> {
    Ok(match ty {
        Type::String => Value::from(text(item.bytes(name)?, name)?),
        Type::Bytes => Value::from(base64::engine::general_purpose::STANDARD.encode(item.bytes(name)?)),
        // Negative numbers are sign-extended to 64 bits.
        Type::Int32 | Type::Int64 => Value::from(item.number(name)? as i64),
        Type::Bool => Value::from(item.number(name)? != 0),
        Type::Number => serde_json::Number::from_f64(f64::from_bits(item.number(name)?))
            .map_or(Value::Null, Value::Number),
        Type::Quantity => match first_text(item.bytes(name)?, 1, name)? {
            t if t.is_empty() => Value::from("0"),
            t => Value::from(t),
        },
        Type::IntOrString => {
            let bytes = item.bytes(name)?;
            let (mut is_text, mut number) = (false, 0);
            for field in Fields::new(bytes) {
                match field? {
                    (1, Item::Number(n)) => is_text = n == 1,
                    (2, Item::Number(n)) => number = n as i64,
                    _ => {}
                }
            }
            if is_text { Value::from(first_text(bytes, 3, name)?) } else { Value::from(number) }
        }
        Type::Time | Type::MicroTime => time(item.bytes(name)?, *ty == Type::MicroTime)?,
        Type::Object(definition_name) => {
            let def = definition(definition_name).expect("types refer to definitions that exist");
            let mut out = Map::new();
            message(facts::short(def.name), def, item.bytes(name)?, &mut out)?;
            Value::Object(out)
        }
        // JSON inside of bytes inside of a message.
        Type::Any => {
            let raw = Fields::new(item.bytes(name)?).find_map(|f| match f {
                Ok((1, Item::Bytes(b))) => Some(b),
                _ => None,
            });
            raw.and_then(|b| serde_json::from_slice(b).ok()).unwrap_or(Value::Null)
        }
        Type::Map(_) | Type::List(_) => return Err(ReadError::WireType(name.to_owned())),
    })
}

fn time(bytes: &[u8], micro: bool) -> Result<Value, ReadError> {
    let (mut seconds, mut nanos, mut any) = (0, 0, false);
    for field in Fields::new(bytes) {
        match field? {
            (1, Item::Number(n)) => (seconds, any) = (n as i64, true),
            (2, Item::Number(n)) => nanos = n as i32,
            _ => {}
        }
    }
    // The zero time of Go: none.
    if !any || seconds == -62_135_596_800 {
        return Ok(Value::Null);
    }
    let t = jiff::Timestamp::new(seconds, nanos).map_err(|_| ReadError::Malformed)?;
    Ok(Value::from(if micro { meta::micro_time(t) } else { meta::time(t) }))
}

fn first_text(bytes: &[u8], number: u32, name: &str) -> Result<String, ReadError> {
    for field in Fields::new(bytes) {
        match field? {
            (n, Item::Bytes(b)) if n == number => return text(b, name),
            _ => {}
        }
    }
    Ok(String::new())
}

fn text(bytes: &[u8], name: &str) -> Result<String, ReadError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ReadError::Text(name.to_owned()))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
