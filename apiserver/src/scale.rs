//! The subresource `scale` of deployments and replica sets.

use std::sync::Arc;

use api::{patch, patch::PatchType, schema, status::Failure};
use bytes::Bytes;

use crate::{app::App, body, dispatch::Call, read, respond, respond::Answer, write};

/// GET.
pub(crate) async fn get(app: &Arc<App>, call: &Call) -> Result<Answer, Failure> {
    let location = &call.location;
    let object = app.load(location.row, &location.namespace, &location.name).await?;
    let scale = patch::scale_of(&object);
    Ok(respond::object(200, read::encode(&scale), call.accepted.format, call.gzip))
}

/// PUT or PATCH: changes `spec.replicas` of the object.
pub(crate) async fn write(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let location = &call.location;
    let definition = schema::definition_of(location.row, Some("scale")).ok_or_else(Failure::no_such_path)?;
    let dry_run = call.query.dry_run()?;
    let is_patch = call.method == http::Method::PATCH;
    let content_type = body::content_type(&call.headers);
    let kind = PatchType::from_content_type(&content_type).filter(|k| *k != PatchType::Apply);
    if is_patch && kind.is_none() {
        return Err(write::apply_refused(&content_type));
    }
    let whole = if is_patch { None } else { Some(write::decode(call, &definition, body.clone())?) };
    let changed = app
        .modify(location.row, &location.namespace, &location.name, dry_run, |stored| {
            let scale = match (&whole, kind) {
                (Some(scale), _) => scale.clone(),
                (None, Some(kind)) => {
                    let patched = patch::apply(&definition, kind, &patch::scale_of(stored), &body)?;
                    schema::check(&definition, patched, schema::FieldValidation::Strict)?.object
                }
                (None, None) => return Err(write::apply_refused(&content_type)),
            };
            let mut new = stored.clone();
            patch::set_scale(&mut new, &scale)?;
            write::update(app, call, None, stored, new)
        })
        .await?;
    let scale = patch::scale_of(&changed.into_value());
    Ok(respond::object(200, read::encode(&scale), call.accepted.format, call.gzip))
}
