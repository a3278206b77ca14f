//! Lists: from the cache; older pages from the store's history.
//!
//! Guarantees: a list is a state that really was, at the revision it names; the pages of one list
//! are all of the same state.
//! Caveats: pages end with 410 when their revision is compacted (history is kept for minutes).

use std::sync::Arc;

use api::{
    registry::Resource,
    selector::{FieldSelector, LabelSelector},
    status::Failure,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Range;

use crate::{
    app::App,
    dispatch::Call,
    entry::Entry,
    keys,
    negotiate::{Format, Shape},
    objects::store_failure,
    read::{self, View},
    respond::{self, Answer},
};

/// What a list or watch selects.
#[derive(Clone)]
pub(crate) struct Selection {
    pub(crate) row: &'static Resource,
    pub(crate) prefix: String,
    labels: LabelSelector,
    fields: FieldSelector,
    /// The one key that can match, if the selection says so.
    pub(crate) only: Option<String>,
}

impl Selection {
    pub(crate) fn of(call: &Call) -> Result<Selection, Failure> {
        let (row, namespace) = (call.location.row, call.location.namespace.as_str());
        let labels = LabelSelector::parse(call.query.get("labelSelector"))?;
        let fields = FieldSelector::parse(row, call.query.get("fieldSelector"))?;
        let named = if call.location.name.is_empty() {
            fields.exact("metadata.name").map(str::to_owned)
        } else {
            Some(call.location.name.clone())
        };
        let namespace = if namespace.is_empty() && row.namespaced {
            fields.exact("metadata.namespace").unwrap_or("")
        } else {
            namespace
        };
        let only = named
            .filter(|n| !n.is_empty() && !n.contains('/') && (!row.namespaced || !namespace.is_empty()))
            .map(|n| keys::object(row, namespace, &n));
        let prefix = match namespace.contains('/') {
            true => keys::collection(row, ""),
            false => keys::collection(row, namespace),
        };
        Ok(Selection { row, prefix, labels, fields, only })
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        if self.only.as_deref().is_some_and(|only| *entry.key != *only) {
            return false;
        }
        if self.labels.is_empty() && self.fields.is_empty() {
            return true;
        }
        let facts = entry.for_selectors(self.row);
        self.labels.matches(api::meta::labels(&facts)) && self.fields.matches(&facts)
    }

    fn selects(&self) -> bool {
        self.only.is_some() || !self.labels.is_empty() || !self.fields.is_empty()
    }
}

/// Where a list goes on. Upstream's shape, so that tools that look inside understand it.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Continue {
    v: String,
    rv: u64,
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("a flat record can be written"))
    }

    fn decode(text: &str) -> Result<Continue, Failure> {
        let bad = |why: &str| Failure::bad_request(format!("continue key is not valid: {why}"));
        let raw = URL_SAFE_NO_PAD.decode(text).map_err(|e| bad(&e.to_string()))?;
        let token: Continue = serde_json::from_slice(&raw).map_err(|e| bad(&e.to_string()))?;
        if token.v != CONTINUE_VERSION || token.rv == 0 || token.start.contains("..") {
            return Err(bad("it was not made by this server"));
        }
        Ok(token)
    }
}

/// One page of a list.
pub(crate) struct Page {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) revision: u64,
    token: Option<String>,
    remaining: Option<usize>,
}

/// What revision a list may be of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    /// The newest there is.
    Latest,
    /// Whatever the cache has, but not older than this.
    NotOlder(u64),
    /// Exactly this.
    Exact(u64),
}

/// Decides from the query's parameters.
fn at(revision: Option<u64>, how: &str, limit: usize, goes_on: bool) -> Result<At, Failure> {
    let forbidden = |why: &str| Err(Failure::bad_request(format!("resourceVersionMatch: Forbidden: {why}")));
    if goes_on {
        return match (revision, how) {
            (None | Some(0), "") => Ok(At::Latest),
            (_, "") => {
                Err(Failure::bad_request("specifying resource version is not allowed when using continue"))
            }
            _ => forbidden("resourceVersionMatch is forbidden when continue is provided"),
        };
    }
    match (revision, how) {
        (None, "") => Ok(At::Latest),
        (None, _) => forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        (Some(0), "Exact") => {
            forbidden("resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"")
        }
        (Some(r), "Exact") => Ok(At::Exact(r)),
        (Some(r), "NotOlderThan") => Ok(At::NotOlder(r)),
        (Some(r), "") if limit > 0 && r > 0 => Ok(At::Exact(r)),
        (Some(r), "") => Ok(At::NotOlder(r)),
        (Some(_), other) => Err(Failure::bad_request(format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
        ))),
    }
}

/// Finds the page that a request asks for.
pub(crate) async fn page(app: &App, call: &Call, selection: &Selection) -> Result<Page, Failure> {
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX);
    let token = match call.query.get("continue") {
        "" => None,
        text => Some(Continue::decode(text)?),
    };
    let asked = read::revision(call.query.get("resourceVersion"))?;
    let how = call.query.get("resourceVersionMatch");
    let mut wanted = at(asked, how, limit, token.is_some())?;
    if let Some(token) = &token {
        wanted = At::Exact(token.rv);
    }
    match wanted {
        At::Latest => app.fresh().await?,
        At::NotOlder(r) | At::Exact(r) => app.at_least(r).await?,
    }
    let snapshot = app.cache.list(selection.row.storage, &selection.prefix);
    let start = token.as_ref().map(|t| format!("{}{}", selection.prefix, t.start));
    let (entries, revision) = match wanted {
        At::Exact(exact)
            if snapshot.entries.iter().any(|e| e.revision > exact) || exact < snapshot.revision =>
        {
            (from_history(app, selection, exact, start.as_deref(), token.is_some()).await?, exact)
        }
        At::Exact(exact) => (snapshot.entries, exact),
        _ => (snapshot.entries, snapshot.revision),
    };
    let mut found: Vec<Arc<Entry>> = entries
        .into_iter()
        .filter(|e| start.as_deref().is_none_or(|s| *e.key >= *s) && selection.matches(e))
        .collect();
    let mut page = Page { entries: Vec::new(), revision, token: None, remaining: None };
    if limit > 0 && found.len() > limit {
        page.remaining = (!selection.selects()).then_some(found.len() - limit);
        found.truncate(limit);
        if let Some(last) = found.last() {
            // The least key that is greater than the last one sent.
            let start = format!("{}\u{1}", &last.key[selection.prefix.len()..]);
            page.token = Some(Continue { v: CONTINUE_VERSION.to_owned(), rv: revision, start }.encode());
        }
    }
    page.entries = found;
    Ok(page)
}

async fn from_history(
    app: &App,
    selection: &Selection,
    revision: u64,
    start: Option<&str>,
    goes_on: bool,
) -> Result<Vec<Arc<Entry>>, Failure> {
    let range = Range {
        prefix: Bytes::from(selection.prefix.clone()),
        start: start.map(|s| Bytes::from(s.to_owned())),
        limit: None,
        revision: Some(revision),
    };
    let ranged = app.store.range(range).await.map_err(|err| match err {
        store::StoreError::Compacted { .. } if goes_on => Failure::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new \
             list without the continue parameter.",
        ),
        other => store_failure(other),
    })?;
    let decode = |kv: &store::KeyValue| {
        let key = std::str::from_utf8(&kv.key).ok()?.into();
        Entry::decode(key, kv.mod_revision, &kv.value).map(Arc::new)
    };
    Ok(ranged.kvs.iter().filter_map(decode).collect())
}

/// GET of a collection.
pub(crate) async fn list(app: &App, call: &Call) -> Result<Answer, Failure> {
    let selection = Selection::of(call)?;
    let view = View::of(call)?;
    let page = page(app, call, &selection).await?;
    let mut meta = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = page.token {
        meta["continue"] = json!(token);
    }
    if let Some(remaining) = page.remaining {
        meta["remainingItemCount"] = json!(remaining);
    }
    let row = selection.row;
    if view.accepted.shape == Shape::Table {
        let objects: Vec<Value> = page.entries.iter().map(|e| e.present(row)).collect();
        let table = view.table(&objects, meta, true);
        return Ok(respond::object(200, read::encode(&table), call.accepted.format, call.gzip));
    }
    let (kind, api_version) = match view.accepted.shape {
        Shape::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
        _ => (row.list_kind, row.api_version()),
    };
    let head = json!({"kind": kind, "apiVersion": api_version, "metadata": meta});
    let items: Vec<Bytes> = page.entries.iter().map(|e| view.entry(e, false)).collect();
    let (total, parts) = respond::list_parts(head, items);
    if call.accepted.format == Format::Yaml {
        let mut all = Vec::with_capacity(total);
        parts.for_each(|p| all.extend_from_slice(&p));
        return Ok(respond::object(200, Bytes::from(all), Format::Yaml, call.gzip));
    }
    Ok(respond::pieces("application/json", total, call.gzip, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_revision_is_meant() {
        assert_eq!(at(None, "", 0, false), Ok(At::Latest));
        assert_eq!(at(Some(0), "", 0, false), Ok(At::NotOlder(0)));
        assert_eq!(at(Some(7), "", 0, false), Ok(At::NotOlder(7)));
        assert_eq!(at(Some(7), "", 10, false), Ok(At::Exact(7)));
        assert_eq!(at(Some(7), "NotOlderThan", 10, false), Ok(At::NotOlder(7)));
        assert_eq!(at(Some(7), "Exact", 0, false), Ok(At::Exact(7)));
        for (revision, how, goes_on) in [
            (None, "Exact", false),
            (Some(0), "Exact", false),
            (Some(7), "Sometime", false),
            (Some(7), "", true),
            (None, "Exact", true),
        ] {
            assert!(at(revision, how, 0, goes_on).is_err(), "{revision:?} {how} {goes_on}");
        }
    }

    #[test]
    fn tokens_round_trip_and_forgeries_fail() {
        let token = Continue { v: CONTINUE_VERSION.into(), rv: 9, start: "default/a\u{1}".into() };
        assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        for bad in ["", "x", &URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#)] {
            assert!(Continue::decode(bad).is_err(), "{bad}");
        }
    }
}
