//! Tests against bodies that upstream's own serializer wrote: `golden.txt` has pairs of lines, protobuf in hexadecimal
//! and the same object as JSON.

use super::*;
use crate::schema::{FieldValidation, check};
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
}

fn pairs() -> Vec<(Vec<u8>, Value)> {
    let lines: Vec<&str> = include_str!("golden.txt").lines().collect();
    lines.chunks(2).map(|p| (hex(p[0]), serde_json::from_str(p[1]).expect("JSON"))).collect()
}

#[test]
fn upstream_objects_are_read() {
    for (body, expected) in pairs() {
        let found = decode(&body).unwrap_or_else(|f| panic!("{f}: {expected}"));
        let def =
            find(meta::str_at(&found, &["apiVersion"]), meta::str_at(&found, &["kind"])).expect("known").name;
        let clean =
            |v| without_empty(check(def, v, FieldValidation::Strict).expect("fits its schema").object);
        assert_eq!(clean(found), clean(expected));
    }
}

/// Objects without fields come from Go's structs that are no pointers, and say nothing.
fn without_empty(v: Value) -> Value {
    match v {
        Value::Object(o) => o
            .into_iter()
            .map(|(k, v)| (k, without_empty(v)))
            .filter(|(_, v)| v.as_object().is_none_or(|o| !o.is_empty()))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(a) => a.into_iter().map(without_empty).collect(),
        v => v,
    }
}

#[test]
fn every_field_of_the_table_is_in_a_schema() {
    let mut inlined = std::collections::HashSet::new();
    for fields in table().values() {
        inlined.extend(fields.iter().filter(|f| f.inline).map(|f| f.name));
    }
    for row in crate::registry::all() {
        assert!(table().contains_key(facts::short(row.schema)), "{}", row.schema);
    }
    let mut odd = Vec::new();
    for (name, fields) in table() {
        let names = ["io.k8s.api.", "io.k8s.apimachinery.pkg.apis."].map(|p| format!("{p}{name}"));
        let Some(def) = names.iter().find_map(|n| definition(n)) else {
            assert!(inlined.contains(name) || !name.contains("Spec"), "{name}");
            continue;
        };
        let missing = fields.iter().filter(|f| !f.inline && def.field(f.name).is_none());
        odd.extend(missing.map(|f| format!("{name}.{}", f.name)));
    }
    odd.sort_unstable();
    assert_eq!(odd, Vec::<String>::new());
}

#[test]
fn what_is_no_object_is_refused() {
    for bad in [&b""[..], b"{}", b"k8s\0\xff", b"k8s\0\x0a\x06\x0a\x01x\x12\x01y", b"k8s\0\x12\x05ab"] {
        assert_eq!(decode(bad).expect_err("refused").code, 400, "{bad:?}");
    }
}

proptest! {
    #[test]
    fn broken_bodies_never_panic(which in 0usize..5, at in 0usize..2000, byte in any::<u8>()) {
        let (mut body, _) = pairs().swap_remove(which);
        let at = at % body.len();
        body[at] = byte;
        let _ = decode(&body);
        body.truncate(at);
        let _ = decode(&body);
    }
}
