//! The scale subresource: how many replicas there shall be, whatever the kind.

use serde_json::{Value, json};

use crate::meta;
use crate::selector::LabelSelector;
use crate::status::Failure;

/// The `autoscaling/v1` Scale of a deployment or replicaset.
pub fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = meta::at(object, &["metadata", key]) {
            metadata[key] = v.clone();
        }
    }
    let replicas = |part: &str| meta::at(object, &[part, "replicas"]).and_then(Value::as_i64).unwrap_or(0);
    let selector = meta::at(object, &["spec", "selector"]).unwrap_or(&Value::Null);
    let selector = LabelSelector::from_object(selector).map(|s| s.to_string()).unwrap_or_default();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": replicas("spec")},
        "status": {"replicas": replicas("status"), "selector": selector},
    })
}

/// Writes a Scale's `spec.replicas` into its object; a resourceVersion in the scale is carried over for the caller's
/// check. A missing count is zero, as in Go.
pub fn set_scale(object: &mut Value, scale: &Value) -> Result<(), Failure> {
    let replicas = match meta::at(scale, &["spec", "replicas"]) {
        None | Some(Value::Null) => 0,
        Some(v) => v
            .as_i64()
            .ok_or_else(|| Failure::bad_request("spec.replicas of a Scale must be a whole number"))?,
    };
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        return Err(Failure::new(
            422,
            "Invalid",
            format!(
                "Scale.autoscaling \"{}\" is invalid: spec.replicas: Invalid value: {replicas}: must be greater than or equal to 0",
                meta::name(object)
            ),
        ));
    }
    meta::object_mut(meta::child_mut(object, "spec")).insert("replicas".to_owned(), Value::from(replicas));
    let version = meta::resource_version(scale);
    if !version.is_empty() {
        meta::set(object, "resourceVersion", version);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut d = json!({"metadata": {"name": "a", "resourceVersion": "7"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}}, "status": {"replicas": 1}});
        let mut s = scale_of(&d);
        assert_eq!((&s["status"]["selector"], &s["spec"]["replicas"]), (&json!("app=a"), &json!(2)));
        s["spec"]["replicas"] = json!(5);
        s["metadata"]["resourceVersion"] = json!("6");
        set_scale(&mut d, &s).expect("scaled");
        assert_eq!((&d["spec"]["replicas"], &d["metadata"]["resourceVersion"]), (&json!(5), &json!("6")));
        s["spec"]["replicas"] = json!(-1);
        assert!(set_scale(&mut d, &s).is_err());
    }
}
