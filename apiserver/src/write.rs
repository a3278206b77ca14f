//! Creating and changing objects: the one path that all kinds take.
//!
//! Guarantees: decode and check → prepare → defaults → admission → validation → commit; a change that
//! changes nothing is not written; a stale resourceVersion is a Conflict.
//! Caveats: `managedFields` are not kept, and server-side apply is refused.

use std::sync::Arc;

use api::{
    defaults, meta, names,
    patch::{self, PatchType},
    registry::Resource,
    schema::{self, FieldValidation},
    status::Failure,
    strategy, validation,
};
use bytes::Bytes;
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};
use store::Txn;

use crate::{
    admission,
    app::App,
    body,
    dispatch::Call,
    objects::{Step, with_claims},
    read,
    respond::Answer,
};

const GENERATE_ATTEMPTS: usize = 8;

/// The time as Kubernetes writes it: whole seconds.
pub(crate) fn now() -> String {
    meta::time(Timestamp::now())
}

/// Five random characters.
pub(crate) fn suffix() -> String {
    let mut rng = rand::rng();
    let letters = names::SUFFIX_ALPHABET;
    (0..5).map(|_| char::from(letters[rng.random_range(0..letters.len())])).collect()
}

/// Checks a body's fields, and keeps the warnings for the answer.
pub(crate) fn decode(call: &Call, definition: &str, body: Bytes) -> Result<Value, Failure> {
    let mode = FieldValidation::parse(call.query.get("fieldValidation"))?;
    let json = body::to_json(&call.headers, definition, body)?;
    let checked = schema::decode(definition, &json, mode)?;
    call.warn(checked.warnings);
    if !checked.object.is_object() {
        return Err(Failure::bad_request("the body must be an object"));
    }
    Ok(checked.object)
}

/// Refuses a body that says it is something else; fills in what it does not say.
fn is_of(row: &Resource, object: &mut Value) -> Result<(), Failure> {
    let version = row.api_version();
    for (key, wanted) in [("apiVersion", version.as_str()), ("kind", row.kind)] {
        match object.get(key).and_then(Value::as_str) {
            None | Some("") => object[key] = json!(wanted),
            Some(found) if found == wanted => {}
            Some(_) => {
                let (found_version, found_kind) =
                    (meta::str_at(object, &["apiVersion"]), meta::str_at(object, &["kind"]));
                return Err(Failure::bad_request(format!(
                    "the body is a {found_kind} of {found_version}, but this path takes a {} of {version}",
                    row.kind
                )));
            }
        }
    }
    Ok(())
}

/// Refuses an object that belongs to another namespace than the path says.
fn is_in(call: &Call, object: &mut Value) -> Result<(), Failure> {
    let wanted = call.location.namespace.as_str();
    let found = meta::namespace(object);
    if !call.location.row.namespaced && !found.is_empty() {
        return Err(Failure::bad_request("namespace: Forbidden: not allowed on this type"));
    }
    if !found.is_empty() && found != wanted {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if call.location.row.namespaced {
        meta::set(object, "namespace", wanted);
    }
    Ok(())
}

/// POST of an object.
pub(crate) async fn create(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let row = call.location.row;
    if row.namespaced && call.location.namespace.is_empty() {
        return Err(Failure::bad_request("an empty namespace may not be set during creation"));
    }
    let dry_run = call.query.dry_run()?;
    let mut object = decode(call, row.schema, body)?;
    is_of(row, &mut object)?;
    is_in(call, &mut object)?;
    if !meta::resource_version(&object).is_empty() {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let base = meta::str_at(&object, &["metadata", "generateName"]).to_owned();
    let generated = meta::name(&object).is_empty() && !base.is_empty();
    app.fresh().await?;
    let mut attempt = 0;
    loop {
        let mut candidate = object.clone();
        if generated {
            meta::set(&mut candidate, "name", format!("{}{}", names::generate_name_base(&base), suffix()));
        }
        match create_named(app, call, row, candidate, dry_run).await {
            Err(f) if generated && f.reason == "AlreadyExists" && attempt < GENERATE_ATTEMPTS => attempt += 1,
            Err(f) => return Err(f),
            Ok(stored) => return read::written(call, 201, &stored),
        }
    }
}

async fn create_named(
    app: &Arc<App>,
    call: &Call,
    row: &'static Resource,
    mut object: Value,
    dry_run: bool,
) -> Result<Value, Failure> {
    let metadata = meta::metadata_mut(&mut object);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink", "generation"]
    {
        metadata.remove(key);
    }
    metadata.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(now()));
    defaults::apply(row, &mut object);
    strategy::prepare_create(row, &mut object);
    admission::create(app, call, row, &mut object).await?;
    validation::create(row, &object)?;
    let name = meta::name(&object).to_owned();
    let namespace = meta::namespace(&object).to_owned();
    for _ in 0..GENERATE_ATTEMPTS {
        let mut object = object.clone();
        admission::allocate(app, row, &mut object, None)?;
        if dry_run {
            if app.cached(row, &namespace, &name).is_ok() {
                return Err(Failure::already_exists(row, &name));
            }
            return Ok(object);
        }
        let guard = admission::namespace_guard(app, row, &namespace, &name)?;
        let also = admission::companions(app, row, &object);
        let txn =
            Txn { compares: [guard.compares, also.compares].concat(), ops: [guard.ops, also.ops].concat() };
        let txn = with_claims(txn, row, None, Some(&object));
        match app.insert(row, object, txn).await {
            // The namespace changed, or an address was taken: look again.
            Err(f) if f.reason == "Conflict" => app.fresh().await?,
            other => return other,
        }
    }
    Err(Failure::conflict(row, &name, "its namespace changes too often; please try again"))
}

/// What a client wants an object to become.
enum Wanted {
    Whole(Value),
    Patched { kind: PatchType, patch: Bytes, mode: FieldValidation },
}

/// PUT or PATCH of an object, or of its `status` or `finalize`.
pub(crate) async fn change(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let row = call.location.row;
    let subresource = Some(call.location.subresource.as_str()).filter(|s| !s.is_empty());
    let definition = schema::definition_of(row, subresource).ok_or_else(Failure::no_such_path)?;
    let dry_run = call.query.dry_run()?;
    let name = call.location.name.clone();
    let wanted = if call.method == http::Method::PATCH {
        patched(call, body)?
    } else {
        let mut object = decode(call, &definition, body)?;
        is_of(row, &mut object)?;
        is_in(call, &mut object)?;
        match meta::name(&object) {
            "" => return Err(Failure::bad_request("name must be provided in the object's metadata")),
            found if found != name => {
                return Err(Failure::bad_request(format!(
                    "the name of the object ({found}) does not match the name on the URL ({name})"
                )));
            }
            _ => Wanted::Whole(object),
        }
    };
    let changed = app
        .modify(row, &call.location.namespace, &name, dry_run, |stored| {
            let new = match &wanted {
                Wanted::Whole(object) => object.clone(),
                Wanted::Patched { kind, patch, mode } => {
                    let mut patched = patch::apply(&definition, *kind, stored, patch)?;
                    is_of(row, &mut patched)?;
                    if meta::name(&patched) != name {
                        return Err(Failure::bad_request("metadata.name: Invalid value: field is immutable"));
                    }
                    is_in(call, &mut patched)?;
                    let checked = schema::check(&definition, patched, *mode)?;
                    call.warn(checked.warnings);
                    checked.object
                }
            };
            update(app, call, subresource, stored, new)
        })
        .await?;
    read::written(call, 200, &changed.into_value())
}

fn patched(call: &Call, body: Bytes) -> Result<Wanted, Failure> {
    let content_type = body::content_type(&call.headers);
    let kind = PatchType::from_content_type(&content_type)
        .filter(|k| *k != PatchType::Apply)
        .ok_or_else(|| apply_refused(&content_type))?;
    let mode = FieldValidation::parse(call.query.get("fieldValidation"))?;
    Ok(Wanted::Patched { kind, patch: body, mode })
}

/// The refusal of a patch type that we do not have.
pub(crate) fn apply_refused(content_type: &str) -> Failure {
    let mut failure = Failure::unsupported_media_type(&patch::CONTENT_TYPES[..3]);
    if content_type.starts_with("application/apply-patch") {
        failure.message =
            "server-side apply is not supported by this server yet; use kubectl apply without --server-side"
                .to_owned();
    }
    failure
}

/// Decides what a change of a stored object comes to. Pure but for reading the cache.
pub(crate) fn update(
    app: &App,
    call: &Call,
    subresource: Option<&str>,
    stored: &Value,
    mut new: Value,
) -> Result<Step, Failure> {
    let (row, name) = (call.location.row, call.location.name.as_str());
    let version = meta::resource_version(&new);
    if !version.is_empty() && version != meta::resource_version(stored) {
        return Err(Failure::stale(row, name));
    }
    let (uid, stored_uid) = (meta::uid(&new), meta::uid(stored));
    if !uid.is_empty() && uid != stored_uid {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored_uid}");
        return Err(Failure::conflict(row, name, &why));
    }
    keep_metadata(&mut new, stored);
    defaults::apply(row, &mut new);
    match subresource {
        None => strategy::prepare_update(row, &mut new, stored),
        Some(sub) => strategy::prepare_subresource_update(row, sub, &mut new, stored),
    }
    if subresource.is_none() {
        admission::update(app, row, &mut new, stored)?;
        admission::allocate(app, row, &mut new, Some(stored))?;
        validation::update(row, &new, stored)?;
    } else if let Some(sub) = subresource {
        validation::update_subresource(row, sub, &new, stored)?;
    }
    let is_over = meta::is_deleting(stored) && is_finished(row, &new);
    Ok(if is_over { Step::Remove } else { Step::Put(new) })
}

/// Whether nothing holds a deleted object any more.
pub(crate) fn is_finished(row: &Resource, object: &Value) -> bool {
    let grace =
        meta::at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    let held = row.kind == "Namespace"
        && meta::at(object, &["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    meta::is_deleting(object) && meta::finalizers(object).is_empty() && grace == 0 && !held
}

/// What of an object's metadata only the server writes.
fn keep_metadata(new: &mut Value, stored: &Value) {
    let old = stored.get("metadata");
    let metadata = meta::metadata_mut(new);
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        match old.and_then(|m| m.get(key)) {
            Some(value) => metadata.insert(key.to_owned(), value.clone()),
            None => metadata.remove(key),
        };
    }
    for key in ["managedFields", "selfLink"] {
        metadata.remove(key);
    }
}
