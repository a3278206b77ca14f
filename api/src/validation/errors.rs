//! Collects refusals, and reads fields for the rules.

use serde_json::Value;

use crate::meta;
use crate::registry::Resource;
use crate::status::{ErrorKind, Failure, FieldError};

/// Refusals so far.
#[derive(Default)]
pub(super) struct Errors {
    list: Vec<FieldError>,
}

impl Errors {
    fn push(&mut self, kind: ErrorKind, field: &str, value: Option<String>, detail: &str) {
        self.list.push(FieldError { kind, field: field.to_owned(), value, detail: detail.to_owned() });
    }

    pub(super) fn required(&mut self, field: &str, detail: &str) {
        self.push(ErrorKind::Required, field, None, detail);
    }

    /// `value` is shown as JSON.
    pub(super) fn invalid(&mut self, field: &str, value: impl Into<Value>, detail: &str) {
        self.push(ErrorKind::Invalid, field, Some(value.into().to_string()), detail);
    }

    /// One refusal per complaint.
    pub(super) fn complain(&mut self, field: &str, value: &str, complaints: Vec<String>) {
        for c in complaints {
            self.invalid(field, value, &c);
        }
    }

    pub(super) fn not_supported(&mut self, field: &str, value: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = format!("supported values: {}", list.join(", "));
        self.push(ErrorKind::NotSupported, field, Some(Value::from(value).to_string()), &detail);
    }

    pub(super) fn duplicate(&mut self, field: &str, value: impl Into<Value>) {
        self.push(ErrorKind::Duplicate, field, Some(value.into().to_string()), "");
    }

    pub(super) fn forbidden(&mut self, field: &str, detail: &str) {
        self.push(ErrorKind::Forbidden, field, None, detail);
    }

    pub(super) fn too_long(&mut self, field: &str, most: usize) {
        self.push(ErrorKind::TooLong, field, None, &format!("may not be more than {most} bytes"));
    }

    pub(super) fn not_found(&mut self, field: &str, value: &str) {
        self.push(ErrorKind::NotFound, field, Some(Value::from(value).to_string()), "");
    }

    /// Refuses a text that is none of the supported ones; an absent one is left to defaults.
    pub(super) fn one_of(&mut self, object: &Value, parent: &str, key: &str, supported: &[&str]) {
        let value = text(object, key);
        if !value.is_empty() && !supported.contains(&value) {
            self.not_supported(&format!("{parent}.{key}"), value, supported);
        }
    }

    /// Refuses a number below zero.
    pub(super) fn not_negative(&mut self, object: &Value, parent: &str, key: &str) {
        if let Some(n) = number(object, key)
            && n < 0
        {
            self.invalid(&format!("{parent}.{key}"), n, NOT_NEGATIVE);
        }
    }

    pub(super) fn finish(self, row: &Resource, object: &Value) -> Result<(), Failure> {
        if self.list.is_empty() {
            return Ok(());
        }
        let name = match meta::name(object) {
            "" => meta::str_at(object, &["metadata", "generateName"]),
            n => n,
        };
        Err(Failure::invalid(row, name, &self.list))
    }
}

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(super) const IMMUTABLE: &str = "field is immutable";

/// A text field, empty when absent.
pub(super) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or("")
}

/// A whole number.
pub(super) fn number(object: &Value, key: &str) -> Option<i64> {
    object.get(key).and_then(Value::as_i64)
}

/// A flag, false when absent.
pub(super) fn flag(object: &Value, key: &str) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// The items of a list, each with its path.
pub(super) fn items<'a>(object: &'a Value, parent: &str, key: &str) -> Vec<(String, &'a Value)> {
    let path = if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") };
    object
        .get(key)
        .and_then(Value::as_array)
        .map(|list| list.iter().enumerate().map(|(i, v)| (format!("{path}[{i}]"), v)).collect())
        .unwrap_or_default()
}

/// The entries of a map.
pub(super) fn entries<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    object.get(key).and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.as_str(), v))
}
