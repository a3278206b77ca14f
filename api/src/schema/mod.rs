//! Types of fields: what may be written where, for every served kind.
//!
//! Guarantees: [`check`] and [`decode`] return an object with known fields only, each of the JSON type its schema
//! names, without nulls, empty maps and empty lists; quantities and times are in canonical form.
//! Assumes: the definition asked for is one of [`source`]'s; an unknown one is an internal error.
//! Caveat: whether a field is required is a matter of [`crate::validation`], as upstream.

mod check;
mod duplicates;
pub mod facts;
pub mod source;

pub use check::{Checked, FieldValidation, check, decode};
pub use duplicates::parse;

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

use crate::registry::{Gvk, Resource};
use facts::{Fact, Merge, Shape};

/// The type of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Any JSON value.
    Any,
    /// A text.
    String,
    /// Bytes in base64.
    Bytes,
    /// A time to the second, RFC 3339.
    Time,
    /// A time to the microsecond, RFC 3339.
    MicroTime,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number.
    Number,
    /// True or false.
    Bool,
    /// A whole number or a text.
    IntOrString,
    /// A resource quantity.
    Quantity,
    /// Texts as keys, values of one type.
    Map(Box<Type>),
    /// Items of one type.
    List(Box<Type>),
    /// An object with the fields of a definition.
    Object(&'static str),
}

/// A field of a definition.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its type.
    pub ty: Type,
    /// What else is known of it.
    pub fact: Option<&'static Fact>,
}

impl Field {
    /// How server-side apply merges it.
    pub fn shape(&self) -> Option<Shape> {
        self.fact.map(|f| f.shape).or(match self.ty {
            Type::List(_) => Some(Shape::Atomic),
            _ => None,
        })
    }

    /// How a strategic merge patch treats it.
    pub fn merge(&self) -> Merge {
        self.fact.map(|f| f.merge).unwrap_or_default()
    }
}

/// An object type.
#[derive(Debug)]
pub struct Definition {
    /// Like `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    fields: HashMap<Box<str>, Field>,
    /// Whether server-side apply takes it as one value.
    pub atomic: bool,
}

impl Definition {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    /// Names of all fields, in no order.
    pub fn field_names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(AsRef::as_ref)
    }
}

/// The definition of that name.
pub fn definition(name: &str) -> Option<&'static Definition> {
    table().get(name)
}

/// The definition name of a row or of one of its subresources.
pub fn definition_of(row: &Resource, subresource: Option<&str>) -> Option<String> {
    match subresource {
        None => Some(row.schema.to_owned()),
        Some(name) => name_of(row.subresource(name)?.speaks),
    }
}

/// The definition name of a kind.
pub fn name_of(gvk: Gvk) -> Option<String> {
    let Gvk { group, version, kind } = gvk;
    let package = match group {
        "" => "core",
        g => g.split('.').next().unwrap_or(g),
    };
    let name = format!("io.k8s.api.{package}.{version}.{kind}");
    definition(&name).map(|d| d.name.to_owned())
}

/// All definitions, built on first use; without their descriptions they are small.
fn table() -> &'static HashMap<&'static str, Definition> {
    static TABLE: OnceLock<HashMap<&'static str, Definition>> = OnceLock::new();
    TABLE.get_or_init(build)
}

fn build() -> HashMap<&'static str, Definition> {
    let source = source::definitions("/d");
    // Names live as long as the table, that is as long as the process.
    let names: HashMap<String, &'static str> =
        source.keys().map(|n| (n.clone(), &*Box::leak(n.clone().into_boxed_str()))).collect();
    let mut out = HashMap::new();
    for (name, schema) in &source {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { continue };
        let fields = properties
            .iter()
            .map(|(field, s)| {
                (
                    field.as_str().into(),
                    Field { ty: type_of(s, &source, &names), fact: facts::of(name, field) },
                )
            })
            .collect();
        let name = names[name];
        out.insert(
            name,
            Definition { name, fields, atomic: facts::ATOMIC_OBJECTS.contains(&facts::short(name)) },
        );
    }
    out
}

fn type_of(
    schema: &Value,
    source: &serde_json::Map<String, Value>,
    names: &HashMap<String, &'static str>,
) -> Type {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let name = target.rsplit('/').next().unwrap_or(target);
        match name {
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => return Type::Quantity,
            "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => return Type::Time,
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => return Type::MicroTime,
            _ => {}
        }
        let Some(inner) = source.get(name) else { return Type::Any };
        if inner.get("properties").is_some() {
            return names.get(name).map_or(Type::Any, |n| Type::Object(n));
        }
        return type_of(inner, source, names);
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        return Type::IntOrString;
    }
    let format = schema.get("format").and_then(Value::as_str).unwrap_or("");
    match schema.get("type").and_then(Value::as_str).unwrap_or("") {
        "string" if format == "byte" => Type::Bytes,
        "string" if format == "date-time" => Type::Time,
        "string" => Type::String,
        "integer" if format == "int32" => Type::Int32,
        "integer" => Type::Int64,
        "number" => Type::Number,
        "boolean" => Type::Bool,
        "array" => Type::List(Box::new(schema.get("items").map_or(Type::Any, |i| type_of(i, source, names)))),
        "object" => match schema.get("additionalProperties") {
            Some(values) => Type::Map(Box::new(type_of(values, source, names))),
            None => Type::Any,
        },
        _ => Type::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_definition() {
        for row in crate::registry::all() {
            assert!(definition(row.schema).is_some(), "{}", row.schema);
            assert_eq!(name_of(row.gvk()).as_deref(), Some(row.schema));
        }
    }

    #[test]
    fn every_fact_is_about_a_field() {
        let known: Vec<&str> = table().keys().copied().collect();
        for f in facts::FACTS {
            let d = known.iter().find(|n| facts::short(n) == f.definition).unwrap_or_else(|| panic!("{f:?}"));
            let field = definition(d).expect("known").field(f.field).unwrap_or_else(|| panic!("{f:?}"));
            assert!(field.fact.is_some());
        }
        for d in facts::ATOMIC_OBJECTS {
            assert!(known.iter().any(|n| facts::short(n) == *d), "{d}");
        }
    }

    #[test]
    fn types_are_read_from_schemas() {
        let ty = |d: &str, f: &str| definition(d).expect(d).field(f).expect(f).ty.clone();
        assert_eq!(ty("io.k8s.api.core.v1.Secret", "data"), Type::Map(Box::new(Type::Bytes)));
        assert_eq!(
            ty("io.k8s.api.core.v1.ResourceRequirements", "limits"),
            Type::Map(Box::new(Type::Quantity))
        );
        assert_eq!(ty("io.k8s.api.core.v1.ServicePort", "targetPort"), Type::IntOrString);
        assert_eq!(ty("io.k8s.api.coordination.v1.LeaseSpec", "renewTime"), Type::MicroTime);
        assert_eq!(ty("io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry", "fieldsV1"), Type::Any);
        assert_eq!(
            ty("io.k8s.api.core.v1.PodSpec", "containers"),
            Type::List(Box::new(Type::Object("io.k8s.api.core.v1.Container")))
        );
    }
}
