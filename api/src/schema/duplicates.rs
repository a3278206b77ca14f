//! JSON parsing that notices fields written twice.
//!
//! Guarantees: the last of two equal keys wins, and each such key is reported once per repetition, with its path.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses JSON; the second part holds the paths of duplicate fields, like `spec.containers[0].name`.
pub fn parse(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let found = Found::default();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Node { found: &found }.deserialize(&mut reader)?;
    reader.end()?;
    Ok((value, found.paths.into_inner()))
}

#[derive(Default)]
struct Found {
    here: RefCell<String>,
    paths: RefCell<Vec<String>>,
}

impl Found {
    /// Runs `f` with `step` appended to the path.
    fn within<T>(&self, step: &str, f: impl FnOnce() -> T) -> T {
        let before = self.here.borrow().len();
        self.here.borrow_mut().push_str(step);
        let out = f();
        self.here.borrow_mut().truncate(before);
        out
    }

    fn step(&self, key: &str) -> String {
        if self.here.borrow().is_empty() { key.to_owned() } else { format!(".{key}") }
    }
}

#[derive(Clone, Copy)]
struct Node<'a> {
    found: &'a Found,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let step = format!("[{}]", out.len());
            match self.found.within(&step, || items.next_element_seed(self))? {
                Some(v) => out.push(v),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let step = self.found.step(&key);
            if out.contains_key(&key) {
                let path = format!("{}{step}", self.found.here.borrow());
                self.found.paths.borrow_mut().push(path);
            }
            let value = self.found.within(&step, || entries.next_value_seed(self))?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_have_paths() {
        let (v, d) = parse(br#"{"a":1,"b":{"c":[{"d":1,"d":2}]},"a":3}"#).expect("JSON");
        assert_eq!(v, serde_json::json!({"a":3,"b":{"c":[{"d":2}]}}));
        assert_eq!(d, ["b.c[0].d", "a"]);
        assert!(parse(b"{} x").is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err(), "deep nesting is refused");
    }
}
