//! Tables.

use jiff::Timestamp;
use serde_json::Value;

use crate::registry::Resource;

/// What of each object goes into its row (query parameter `includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A PartialObjectMetadata; the default.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Parses the query parameter; empty is `Metadata`; `None` for anything unknown.
    pub fn parse(text: &str) -> Option<IncludeObject> {
        match text {
            "" | "Metadata" => Some(IncludeObject::Metadata),
            "None" => Some(IncludeObject::None),
            "Object" => Some(IncludeObject::Object),
            _ => None,
        }
    }
}

/// Renders a `meta.k8s.io/v1` Table. `list_meta` is the list's `metadata` (for one object, of a get or a watch event, its
/// resourceVersion); `with_columns` is false for the second and later events of a watch.
pub fn render<'a>(
    _row: &Resource,
    _objects: impl IntoIterator<Item = &'a Value>,
    _list_meta: Value,
    _now: Timestamp,
    _include: IncludeObject,
    _with_columns: bool,
) -> Value {
    Value::Null
}
