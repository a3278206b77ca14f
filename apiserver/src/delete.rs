//! Deleting.
//!
//! Guarantees: preconditions hold when the object goes; finalizers block; a running pod gets its grace
//! and goes when its kubelet deletes it with none; `propagationPolicy` becomes a finalizer for the
//! garbage collector.

use std::sync::Arc;

use api::{meta, registry::Resource, schema, status::Failure, strategy};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    app::App,
    dispatch::Call,
    list::{self, Selection},
    objects::{Changed, Step},
    read, respond,
    respond::Answer,
    write,
};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const PROTECTED: &[&str] = &["default", "kube-system", "kube-public"];

/// What a deletion is to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Options {
    grace: Option<i64>,
    propagation: String,
    uid: String,
    version: String,
    dry_run: bool,
}

impl Options {
    /// Reads them from the body and the query; the body wins.
    fn read(call: &Call, body: Bytes) -> Result<Options, Failure> {
        let text = |t: &str| if t.is_empty() { Value::Null } else { json!(t) };
        let body = if body.is_empty() { json!({}) } else { write::decode(call, DELETE_OPTIONS, body)? };
        Options::from_value(&body, call, text)
    }

    fn from_value(body: &Value, call: &Call, text: impl Fn(&str) -> Value) -> Result<Options, Failure> {
        let q = &call.query;
        let grace = match body.get("gracePeriodSeconds").and_then(Value::as_i64) {
            Some(grace) => Some(grace),
            None => match q.get("gracePeriodSeconds") {
                "" => None,
                t => Some(
                    t.parse()
                        .map_err(|_| Failure::bad_request("invalid gracePeriodSeconds: not a number"))?,
                ),
            },
        };
        let orphans = body.get("orphanDependents").and_then(Value::as_bool).or(q.maybe("orphanDependents"));
        let policy = body.get("propagationPolicy").cloned().unwrap_or(text(q.get("propagationPolicy")));
        let propagation = match (policy.as_str(), orphans) {
            (Some(_), Some(_)) => {
                return Err(Failure::bad_request(
                    "orphanDependents and propagationPolicy cannot be both set",
                ));
            }
            (Some(p @ ("Orphan" | "Foreground" | "Background")), None) => p.to_owned(),
            (Some(other), None) => {
                return Err(Failure::bad_request(format!(
                    "invalid propagationPolicy {other:?}: supported values are Background, Foreground, Orphan"
                )));
            }
            (None, Some(true)) => "Orphan".to_owned(),
            (None, Some(false)) => "Background".to_owned(),
            (None, None) => String::new(),
        };
        let all = json!(["All"]);
        let dry_run = match body.get("dryRun") {
            None => q.dry_run()?,
            Some(list) if *list == all => true,
            Some(list) if list.as_array().is_some_and(Vec::is_empty) => q.dry_run()?,
            Some(other) => {
                return Err(Failure::bad_request(format!("invalid dryRun {other}: supported is [\"All\"]")));
            }
        };
        Ok(Options {
            grace: grace.map(|g| g.max(0)),
            propagation,
            uid: meta::str_at(body, &["preconditions", "uid"]).to_owned(),
            version: meta::str_at(body, &["preconditions", "resourceVersion"]).to_owned(),
            dry_run,
        })
    }
}

/// Decides what deleting a stored object comes to. Pure.
fn plan(row: &Resource, stored: &Value, options: &Options, now: Timestamp) -> Result<Step, Failure> {
    let name = meta::name(stored);
    let differs = |what: &str, wanted: &str, found: &str| {
        let why =
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(Failure::conflict(row, name, &why))
    };
    if !options.uid.is_empty() && options.uid != meta::uid(stored) {
        return differs("UID", &options.uid, meta::uid(stored));
    }
    if !options.version.is_empty() && options.version != meta::resource_version(stored) {
        return differs("ResourceVersion", &options.version, meta::resource_version(stored));
    }
    let mut new = stored.clone();
    match options.propagation.as_str() {
        "Orphan" => {
            meta::remove_finalizer(&mut new, FOREGROUND);
            meta::add_finalizer(&mut new, ORPHAN);
        }
        "Foreground" => {
            meta::remove_finalizer(&mut new, ORPHAN);
            meta::add_finalizer(&mut new, FOREGROUND);
        }
        "Background" => {
            meta::remove_finalizer(&mut new, ORPHAN);
            meta::remove_finalizer(&mut new, FOREGROUND);
        }
        _ => {}
    }
    let grace = match strategy::default_grace(row, stored) {
        None | Some(0) => 0,
        Some(own) => options.grace.unwrap_or(own),
    };
    if meta::is_deleting(stored) {
        // A second deletion may only shorten the wait.
        let pending = meta::at(stored, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
        if let Some(pending) = pending
            && options.grace.is_some()
            && grace < pending
        {
            strategy::begin_deletion(row, &mut new, now, grace);
        }
    } else {
        strategy::begin_deletion(row, &mut new, now, grace);
    }
    Ok(if write::is_finished(row, &new) { Step::Remove } else { Step::Put(new) })
}

/// Deletes one object.
async fn remove(
    app: &App,
    row: &'static Resource,
    namespace: &str,
    name: &str,
    options: &Options,
) -> Result<Changed, Failure> {
    if row.kind == "Namespace" && PROTECTED.contains(&name) {
        return Err(Failure::forbidden(row, name, "this namespace may not be deleted"));
    }
    app.modify(row, namespace, name, options.dry_run, |stored| plan(row, stored, options, Timestamp::now()))
        .await
}

/// DELETE of one object.
pub(crate) async fn one(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let location = &call.location;
    let options = Options::read(call, body)?;
    let row = location.row;
    match remove(app, row, &location.namespace, &location.name, &options).await? {
        Changed::Removed(last) if !matches!(row.kind, "Pod" | "Service" | "ServiceAccount") => {
            Ok(respond::json(200, &api::status::deleted(row, meta::name(&last), meta::uid(&last))))
        }
        changed => read::written(call, 200, &changed.into_value()),
    }
}

/// DELETE of a collection.
pub(crate) async fn collection(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let options = Options::read(call, body)?;
    let selection = Selection::of(call)?;
    let row = selection.row;
    let page = list::page(app, call, &selection).await?;
    let mut items = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        let facts = entry.facts();
        match remove(app, row, meta::namespace(facts), meta::name(facts), &options).await {
            Ok(changed) => items.push(changed.into_value()),
            Err(f) if f.reason == "NotFound" => {}
            Err(f) => return Err(f),
        }
    }
    let list = json!({
        "kind": row.list_kind, "apiVersion": row.api_version(),
        "metadata": {"resourceVersion": page.revision.to_string()}, "items": items,
    });
    Ok(respond::object(200, read::encode(&list), call.accepted.format, call.gzip))
}

/// POST of an eviction: a deletion that would ask disruption budgets, of which there are none yet.
pub(crate) async fn evict(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let definition =
        schema::definition_of(call.location.row, Some("eviction")).ok_or_else(Failure::no_such_path)?;
    let eviction = write::decode(call, &definition, body)?;
    let name = meta::name(&eviction);
    if !name.is_empty() && name != call.location.name {
        return Err(Failure::bad_request("name in URL does not match name in Eviction object"));
    }
    let text = |t: &str| if t.is_empty() { Value::Null } else { json!(t) };
    let empty = json!({});
    let options = Options::from_value(eviction.get("deleteOptions").unwrap_or(&empty), call, text)?;
    remove(app, call.location.row, &call.location.namespace, &call.location.name, &options).await?;
    Ok(respond::json(201, &api::status::created()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, object: Value, options: Options) -> String {
        let row = api::registry::all().iter().find(|r| r.kind == kind && r.stored()).unwrap();
        match plan(row, &object, &options, "2026-01-01T00:00:00Z".parse().unwrap()) {
            Ok(Step::Remove) => "remove".into(),
            Ok(Step::Put(new)) => format!(
                "at {} grace {} finalizers {:?}",
                meta::str_at(&new, &["metadata", "deletionTimestamp"]),
                new["metadata"]["deletionGracePeriodSeconds"],
                meta::finalizers(&new),
            ),
            Err(f) => f.reason.into(),
        }
    }

    fn pod(spec: Value, phase: &str) -> Value {
        json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "5"}, "spec": spec, "status": {"phase": phase}})
    }

    #[test]
    fn pods_get_their_grace_only_where_something_runs() {
        let placed = json!({"nodeName": "n", "terminationGracePeriodSeconds": 7});
        assert_eq!(check("Pod", pod(json!({}), "Pending"), Options::default()), "remove");
        assert_eq!(check("Pod", pod(placed.clone(), "Succeeded"), Options::default()), "remove");
        assert_eq!(
            check("Pod", pod(placed.clone(), "Running"), Options::default()),
            "at 2026-01-01T00:00:07Z grace 7 finalizers []"
        );
        let now = Options { grace: Some(0), ..Options::default() };
        assert_eq!(check("Pod", pod(placed.clone(), "Running"), now.clone()), "remove");
        let mut going = pod(placed, "Running");
        going["metadata"]["deletionTimestamp"] = json!("2025-12-31T23:59:59Z");
        going["metadata"]["deletionGracePeriodSeconds"] = json!(7);
        assert_eq!(
            check("Pod", going.clone(), Options::default()),
            "at 2025-12-31T23:59:59Z grace 7 finalizers []"
        );
        let longer = Options { grace: Some(60), ..Options::default() };
        assert_eq!(check("Pod", going.clone(), longer), "at 2025-12-31T23:59:59Z grace 7 finalizers []");
        assert_eq!(check("Pod", going, now), "remove");
    }

    #[test]
    fn finalizers_block_and_propagation_becomes_one() {
        let plain = json!({"metadata": {"name": "a", "uid": "u"}});
        let held = json!({"metadata": {"name": "a", "uid": "u", "finalizers": ["x/y"]}});
        let how = |p: &str| Options { propagation: p.into(), ..Options::default() };
        assert_eq!(check("ReplicaSet", plain.clone(), Options::default()), "remove");
        assert_eq!(check("ReplicaSet", plain.clone(), how("Background")), "remove");
        assert_eq!(
            check("ReplicaSet", plain.clone(), how("Foreground")),
            "at 2026-01-01T00:00:00Z grace 0 finalizers [\"foregroundDeletion\"]"
        );
        assert_eq!(
            check("ReplicaSet", plain, how("Orphan")),
            "at 2026-01-01T00:00:00Z grace 0 finalizers [\"orphan\"]"
        );
        assert_eq!(
            check("ReplicaSet", held, Options::default()),
            "at 2026-01-01T00:00:00Z grace 0 finalizers [\"x/y\"]"
        );
    }

    #[test]
    fn preconditions() {
        let object = json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "5"}});
        let uid = |uid: &str| Options { uid: uid.into(), ..Options::default() };
        assert_eq!(check("ConfigMap", object.clone(), uid("u")), "remove");
        assert_eq!(check("ConfigMap", object.clone(), uid("v")), "Conflict");
        let version = Options { version: "4".into(), ..Options::default() };
        assert_eq!(check("ConfigMap", object, version), "Conflict");
    }

    #[test]
    fn namespaces_wait_for_their_content() {
        let ns = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        assert_eq!(
            check("Namespace", ns, Options::default()),
            "at 2026-01-01T00:00:00Z grace 0 finalizers []"
        );
    }
}
