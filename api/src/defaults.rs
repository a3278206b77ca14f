//! Defaults.

use serde_json::Value;

use crate::registry::Resource;

/// Fills in what upstream defaults for the row's kind. Applying it twice changes nothing.
pub fn apply(_row: &Resource, _object: &mut Value) {}
