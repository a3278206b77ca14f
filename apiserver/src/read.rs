//! Reading one object; and giving any object the shape that a client accepts.

use std::sync::Arc;

use api::{registry::Resource, status::Failure, table};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    app::App,
    dispatch::Call,
    entry::Entry,
    negotiate::{Accepted, Shape},
    respond::{self, Answer},
};

/// How to show objects to one client.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) row: &'static Resource,
    pub(crate) accepted: Accepted,
    pub(crate) include: table::IncludeObject,
}

impl View {
    pub(crate) fn of(call: &Call) -> Result<View, Failure> {
        let text = call.query.get("includeObject");
        let include = table::IncludeObject::parse(text)
            .ok_or_else(|| Failure::bad_request(format!("invalid includeObject {text:?}")))?;
        Ok(View { row: call.location.row, accepted: call.accepted, include })
    }

    /// One object's bytes in the accepted shape. `columns` says whether a table names them.
    pub(crate) fn entry(&self, entry: &Entry, columns: bool) -> Bytes {
        match self.accepted.shape {
            Shape::Object | Shape::Discovery => entry.bytes(self.row),
            _ => encode(&self.value(&entry.present(self.row), columns)),
        }
    }

    /// One object in the accepted shape.
    pub(crate) fn value(&self, object: &Value, columns: bool) -> Value {
        match self.accepted.shape {
            Shape::Object | Shape::Discovery => object.clone(),
            Shape::Metadata => partial(object),
            Shape::Table => {
                let meta = json!({"resourceVersion": api::meta::resource_version(object)});
                self.table(std::iter::once(object), meta, columns)
            }
        }
    }

    /// Many objects as a table.
    pub(crate) fn table<'a>(
        &self,
        objects: impl IntoIterator<Item = &'a Value>,
        meta: Value,
        columns: bool,
    ) -> Value {
        table::render(self.row, objects, meta, Timestamp::now(), self.include, columns)
    }
}

/// Only an object's metadata.
pub(crate) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

pub(crate) fn encode(value: &Value) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("a JSON tree can be written"))
}

/// Parses a resourceVersion; empty is none.
pub(crate) fn revision(text: &str) -> Result<Option<u64>, Failure> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Failure::bad_request(format!("invalid resourceVersion {text:?}: it must be a number"))
        }),
    }
}

/// GET of one object.
pub(crate) async fn get(app: &App, call: &Call) -> Result<Answer, Failure> {
    let view = View::of(call)?;
    match revision(call.query.get("resourceVersion"))? {
        None => app.fresh().await?,
        Some(at_least) => app.at_least(at_least).await?,
    }
    let location = &call.location;
    let entry: Arc<Entry> = app.cached(location.row, &location.namespace, &location.name)?;
    Ok(respond::object(200, view.entry(&entry, true), call.accepted.format, call.gzip))
}

/// The answer of a write: an object that was just stored.
pub(crate) fn written(call: &Call, code: u16, object: &Value) -> Result<Answer, Failure> {
    let view = View::of(call)?;
    Ok(respond::object(code, encode(&view.value(object, true)), call.accepted.format, call.gzip))
}
