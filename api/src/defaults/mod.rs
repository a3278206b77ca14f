//! Fills in what Kubernetes defaults, so that readers find every field they rely on.
//!
//! Guarantees: a field that is set is never changed; applying defaults twice changes nothing.
//! Assumes: the object went through [`crate::schema::check`], so that fields have their types.

mod pod;
mod service;

pub use pod::{pod_spec, template_spec};

use serde_json::{Map, Value, json};

use crate::meta::{self, child_mut};
use crate::registry::Resource;

/// Fills in what upstream defaults for the row's kind.
pub fn apply(row: &Resource, object: &mut Value) {
    match (row.group, row.kind) {
        ("", "Pod") => pod_spec(child_mut(object, "spec")),
        ("", "Service") => service::service(object),
        ("", "Secret") => secret(object),
        ("", "Namespace") => namespace(object),
        ("apps", "Deployment") => deployment(object),
        ("apps", "ReplicaSet") => replica_set(object),
        _ => {}
    }
}

/// Sets `key` unless it is there.
pub(crate) fn set(object: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let absent = object.get(key).is_none_or(Value::is_null);
    if absent {
        object.insert(key.to_owned(), value.into());
    }
}

/// The same where the empty text counts as absent, as for Go's plain strings.
pub(crate) fn set_text(object: &mut Map<String, Value>, key: &str, value: &str) {
    let absent = object.get(key).and_then(Value::as_str).is_none_or(str::is_empty);
    if absent {
        object.insert(key.to_owned(), Value::from(value));
    }
}

/// The items of a list field, as objects.
pub(crate) fn items<'a>(
    object: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// An object field, where it is there.
pub(crate) fn child<'a>(object: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    object.get_mut(key).and_then(Value::as_object_mut)
}

/// `stringData` is merged into `data` here already: it is write-only.
fn secret(object: &mut Value) {
    use base64::Engine as _;
    let fields = meta::object_mut(object);
    if let Some(Value::Object(plain)) = fields.remove("stringData") {
        let data = meta::object_mut(fields.entry("data").or_insert(Value::Null));
        for (key, text) in plain {
            let bytes = text.as_str().unwrap_or("").as_bytes().to_vec();
            data.insert(key, Value::from(base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
    }
    set_text(fields, "type", "Opaque");
}

fn namespace(object: &mut Value) {
    let name = meta::name(object).to_owned();
    if !name.is_empty() {
        let labels = meta::metadata_mut(object).entry("labels").or_insert(Value::Null);
        meta::object_mut(labels).insert("kubernetes.io/metadata.name".to_owned(), Value::from(name));
    }
}

fn deployment(object: &mut Value) {
    let spec = meta::object_mut(child_mut(object, "spec"));
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    let strategy = meta::object_mut(spec.entry("strategy").or_insert(Value::Null));
    set_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = meta::object_mut(strategy.entry("rollingUpdate").or_insert(Value::Null));
        set(rolling, "maxUnavailable", "25%");
        set(rolling, "maxSurge", "25%");
    }
    template(spec);
}

fn replica_set(object: &mut Value) {
    let spec = meta::object_mut(child_mut(object, "spec"));
    set(spec, "replicas", 1);
    template(spec);
}

fn template(spec: &mut Map<String, Value>) {
    let template = spec.entry("template").or_insert_with(|| json!({}));
    template_spec(child_mut(template, "spec"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::find_kind;
    use expect_test::{Expect, expect};

    fn check(group: &str, kind: &str, mut object: Value, expected: Expect) {
        let row = find_kind(group, "v1", kind).expect("row");
        apply(row, &mut object);
        let once = object.clone();
        apply(row, &mut object);
        assert_eq!(object, once, "idempotent");
        expected.assert_eq(&object.to_string());
        let checked = crate::schema::check(row.schema, object, crate::schema::FieldValidation::Strict)
            .expect("known fields");
        drop(checked);
    }

    #[test]
    fn pods() {
        check(
            "",
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "image": "web", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}}, "env": [{"name": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1"}}}, {"name": "b", "image": "r:5000/web:1"}, {"name": "c", "image": "a:latest@sha256:0"}],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "w"}]}}),
            expect![[
                r#"{"spec":{"containers":[{"env":[{"name":"x","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.name"}}}],"image":"web","imagePullPolicy":"Always","livenessProbe":{"failureThreshold":3,"httpGet":{"path":"/","port":80,"scheme":"HTTP"},"periodSeconds":10,"successThreshold":1,"timeoutSeconds":1},"name":"a","ports":[{"containerPort":80,"protocol":"TCP"}],"resources":{"limits":{"cpu":"1"},"requests":{"cpu":"1"}},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"},{"image":"r:5000/web:1","imagePullPolicy":"IfNotPresent","name":"b","resources":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"},{"image":"a:latest@sha256:0","imagePullPolicy":"IfNotPresent","name":"c","resources":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"dnsPolicy":"ClusterFirst","enableServiceLinks":true,"restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30,"volumes":[{"configMap":{"defaultMode":420,"name":"c"},"name":"v"},{"emptyDir":{},"name":"w"}]}}"#
            ]],
        );
    }

    #[test]
    fn others() {
        check(
            "apps",
            "Deployment",
            json!({"spec": {"template": {"spec": {"hostNetwork": true, "containers": [{"name": "a", "image": "b:1", "ports": [{"containerPort": 80}]}]}}}}),
            expect![[
                r#"{"spec":{"progressDeadlineSeconds":600,"replicas":1,"revisionHistoryLimit":10,"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":"25%"},"type":"RollingUpdate"},"template":{"spec":{"containers":[{"image":"b:1","imagePullPolicy":"IfNotPresent","name":"a","ports":[{"containerPort":80,"protocol":"TCP"}],"resources":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"dnsPolicy":"ClusterFirst","hostNetwork":true,"restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30}}}}"#
            ]],
        );
        check(
            "",
            "Secret",
            json!({"stringData": {"a": "b"}}),
            expect![[r#"{"data":{"a":"Yg=="},"type":"Opaque"}"#]],
        );
        check(
            "",
            "Service",
            json!({"spec": {"ports": [{"port": 80}]}}),
            expect![[
                r#"{"spec":{"internalTrafficPolicy":"Cluster","ports":[{"port":80,"protocol":"TCP","targetPort":80}],"sessionAffinity":"None","type":"ClusterIP"}}"#
            ]],
        );
        check(
            "",
            "Namespace",
            json!({"metadata": {"name": "a"}}),
            expect![[r#"{"metadata":{"labels":{"kubernetes.io/metadata.name":"a"},"name":"a"}}"#]],
        );
    }
}
