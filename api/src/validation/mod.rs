//! What may be stored: rules for every kind, in Kubernetes' words, with the path of each refused field.
//!
//! Guarantees: all refusals of an object are reported at once, in the order of its fields.
//! Assumes: the object went through [`crate::schema`], [`crate::defaults`] and [`crate::strategy`].
//! Caveat: what needs other objects (quotas, whether a service account exists) is admission, and not here.

mod config;
mod container;
mod errors;
mod metadata;
mod pod;
mod runtime_class;
mod scheduling;
mod service;
mod volumes;
mod workloads;

pub use metadata::{name_complaints, valid_name};
pub use pod::spec as pod_spec;

use serde_json::Value;

use crate::meta;
use crate::registry::Resource;
use crate::status::Failure;
use errors::Errors;

/// Checks a new object.
pub fn create(row: &Resource, object: &Value) -> Result<(), Failure> {
    let mut e = Errors::default();
    if row.stored() {
        metadata::create(row, object, &mut e);
    }
    kind(row, object, &mut e);
    e.finish(row, object)
}

/// Checks an update: the new object by itself, and what may not change.
pub fn update(row: &Resource, object: &Value, stored: &Value) -> Result<(), Failure> {
    let mut e = Errors::default();
    metadata::update(row, object, stored, &mut e);
    match (row.group, row.kind) {
        // A pod that was let in once may be refused by newer rules: only what an update may change is checked.
        ("", "Pod") => pod::update(object, stored, &mut e),
        ("", "Service") => {
            service::service(object, &mut e);
            service::update(object, stored, &mut e);
        }
        ("", "ConfigMap") => {
            config::config_map(object, &mut e);
            config::immutable(object, stored, &["data", "binaryData"], &mut e);
        }
        ("", "Secret") => {
            config::secret(object, &mut e);
            config::secret_update(object, stored, &mut e);
        }
        ("apps", "Deployment" | "ReplicaSet") => {
            kind(row, object, &mut e);
            workloads::immutable_selector(object, stored, &mut e);
        }
        ("", "Node") => {
            kind(row, object, &mut e);
            workloads::node_update(object, stored, &mut e);
        }
        ("node.k8s.io", "RuntimeClass") => {
            kind(row, object, &mut e);
            runtime_class::update(object, stored, &mut e);
        }
        _ => kind(row, object, &mut e),
    }
    e.finish(row, object)
}

/// Checks an update through a subresource.
pub fn update_subresource(
    row: &Resource,
    subresource: &str,
    object: &Value,
    stored: &Value,
) -> Result<(), Failure> {
    let mut e = Errors::default();
    metadata::update(row, object, stored, &mut e);
    match (row.kind, subresource) {
        ("Pod", "ephemeralcontainers") => pod::ephemeral_update(object, stored, &mut e),
        ("Pod", "resize") => pod::resize_update(object, stored, &mut e),
        ("Pod", "status") => pod::status_update(object, stored, &mut e),
        ("Deployment" | "ReplicaSet", "status") => workloads::status(object, &mut e),
        _ => {}
    }
    e.finish(row, object)
}

/// The rules of a kind beyond its metadata.
fn kind(row: &Resource, object: &Value, e: &mut Errors) {
    match (row.group, row.kind) {
        ("", "Pod") => pod::create(object, e),
        ("", "Service") => service::service(object, e),
        ("", "ConfigMap") => config::config_map(object, e),
        ("", "Secret") => config::secret(object, e),
        ("", "Node") => workloads::node(object, e),
        ("", "Event") => workloads::event(object, e),
        ("coordination.k8s.io", "Lease") => workloads::lease(object, e),
        ("node.k8s.io", "RuntimeClass") => runtime_class::runtime_class(object, e),
        ("apps", "Deployment") => workloads::deployment(object, e),
        ("apps", "ReplicaSet") => workloads::replica_set(object, e),
        ("", "Binding") => {
            if meta::str_at(object, &["target", "name"]).is_empty() {
                e.required("target.name", "");
            }
            let target = meta::str_at(object, &["target", "kind"]);
            if !target.is_empty() && target != "Node" {
                e.not_supported("target.kind", target, &["Node", "<empty>"]);
            }
        }
        _ => {}
    }
}

/// Checks a binding's target, as `pods/{name}/binding` and `bindings` need it.
pub fn binding(row: &Resource, object: &Value) -> Result<(), Failure> {
    let mut e = Errors::default();
    let bindings = crate::registry::find("", "v1", "bindings").unwrap_or(row);
    kind(bindings, object, &mut e);
    e.finish(bindings, object)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
