//! Validation.

use serde_json::Value;

use crate::registry::Resource;
use crate::status::Failure;

/// Checks a new object, after defaults and strategy.
pub fn create(_row: &Resource, _object: &Value) -> Result<(), Failure> {
    Ok(())
}

/// Checks an update: the new object by itself, and what may not change.
pub fn update(_row: &Resource, _object: &Value, _stored: &Value) -> Result<(), Failure> {
    Ok(())
}

/// Checks an update through a subresource.
pub fn update_subresource(_row: &Resource, _subresource: &str, _object: &Value, _stored: &Value) -> Result<(), Failure> {
    Ok(())
}
