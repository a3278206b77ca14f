//! Tables: what `kubectl get [-o wide]` shows of each kind.
//!
//! Guarantees: every kind has a table; a kind without columns of its own gets its name and age. Rendering never fails,
//! whatever an object's shape.
//! Assumes: `now` and the objects' times come from clocks that agree; a time ahead by more than a second reads
//! `<invalid>`.

mod columns;
mod duration;
mod kinds;
mod pod;

pub use duration::{age, human};
pub use pod::PodSummary;
pub use pod::summary as pod_summary;

use jiff::Timestamp;
use serde_json::{Value, json};

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

/// The cells of one object, and what else its row says.
pub(crate) struct Row {
    cells: Vec<Value>,
    conditions: Option<Value>,
}

impl From<Vec<Value>> for Row {
    fn from(cells: Vec<Value>) -> Row {
        Row { cells, conditions: None }
    }
}

/// Renders a `meta.k8s.io/v1` Table. `list_meta` is the list's `metadata` (for one object, of a get or a watch event,
/// its resourceVersion); `with_columns` is false for the second and later events of a watch.
pub fn render<'a>(
    row: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    list_meta: Value,
    now: Timestamp,
    include: IncludeObject,
    with_columns: bool,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|o| {
            let r = kinds::cells(row, o, now);
            let mut out = json!({"cells": r.cells});
            if let Some(conditions) = r.conditions {
                out["conditions"] = conditions;
            }
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => out["object"] = partial(o),
                IncludeObject::Object => out["object"] = o.clone(),
            }
            out
        })
        .collect();
    let columns: Vec<Value> =
        if with_columns { columns::of(row).iter().map(columns::Column::to_value).collect() } else { vec![] };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
        "columnDefinitions": columns, "rows": rows,
    })
}

/// The object's `PartialObjectMetadata`.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
