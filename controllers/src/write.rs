//! What controllers want done, as data, and the one place that does it.

use api::k8s::core;
use jiff::Timestamp;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
};
use kube::{Client, Resource};
use serde_json::{Value, json};

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Creates an object; one that exists already is fine.
    Create { kind: ApiResource, object: Value },
    /// Changes an object by JSON merge patch, or its subresource.
    Merge {
        kind: ApiResource,
        namespace: String,
        name: String,
        patch: Value,
        subresource: Option<&'static str>,
    },
    /// Deletes the object with that uid; one that is gone is fine.
    Delete { kind: ApiResource, namespace: String, name: String, uid: String },
    /// The same at once, though nobody confirms that the object's processes ended (grace 0).
    Force { kind: ApiResource, namespace: String, name: String, uid: String },
    /// Records an event.
    Event { about: Value, component: &'static str, kind: &'static str, reason: String, message: String },
}

/// The API resource of a type.
pub fn kind<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

/// `involvedObject` of an object of type `K`.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> Value {
    let meta = object.meta();
    json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "namespace": meta.namespace, "name": meta.name,
        "uid": meta.uid, "resourceVersion": meta.resource_version,
    })
}

/// An owner reference to an object of type `K` that is its controller.
pub fn controller_ref<K: Resource<DynamicType = ()>>(object: &K) -> Value {
    json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "name": object.meta().name, "uid": object.meta().uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// An API for objects of a kind that is known only at run time.
pub fn dynamic(client: &Client, kind: &ApiResource, namespace: &str) -> Api<DynamicObject> {
    if namespace.is_empty() {
        Api::all_with(client.clone(), kind)
    } else {
        Api::namespaced_with(client.clone(), namespace, kind)
    }
}

/// Does one write; returns the object that a creation made.
///
/// # Errors
/// What the apiserver said, but for "exists already" on creation and "not found" on deletion.
pub async fn act(client: &Client, write: &Write) -> kube::Result<Option<DynamicObject>> {
    match write {
        Write::Create { kind, object } => {
            let namespace = api::meta::namespace(object);
            let object: DynamicObject =
                serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
            match dynamic(client, kind, namespace).create(&PostParams::default(), &object).await {
                Ok(made) => Ok(Some(made)),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(None),
                Err(err) => Err(err),
            }
        }
        Write::Merge { kind, namespace, name, patch, subresource } => {
            let (api, params, patch) =
                (dynamic(client, kind, namespace), PatchParams::default(), Patch::Merge(patch));
            match subresource {
                Some(subresource) => api.patch_subresource(subresource, name, &params, &patch).await?,
                None => api.patch(name, &params, &patch).await?,
            };
            Ok(None)
        }
        Write::Delete { kind, namespace, name, uid } | Write::Force { kind, namespace, name, uid } => {
            let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let mut params =
                DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
            if matches!(write, Write::Force { .. }) {
                params.grace_period_seconds = Some(0);
            }
            match dynamic(client, kind, namespace).delete(name, &params).await {
                Ok(_) => Ok(None),
                // Gone, or another object of that name by now.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
                Err(err) => Err(err),
            }
        }
        Write::Event { about, component, kind, reason, message } => {
            let event = event(about, component, kind, reason, message, Timestamp::now());
            let namespace = api::meta::namespace(&event).to_owned();
            let event: core::Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
            Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await?;
            Ok(None)
        }
    }
}

fn event(about: &Value, component: &str, kind: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let namespace = about["namespace"].as_str().unwrap_or("default");
    let name = format!("{}.{:x}", about["name"].as_str().unwrap_or_default(), now.as_nanosecond());
    let time = api::meta::time(now);
    json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "namespace": namespace, "name": name },
        "involvedObject": about, "type": kind, "reason": reason, "message": message, "count": 1,
        "source": { "component": component }, "reportingComponent": component, "reportingInstance": "",
        "firstTimestamp": time, "lastTimestamp": time,
    })
}
