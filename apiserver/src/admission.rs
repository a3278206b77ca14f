//! What the cluster adds to an object, or refuses, beyond the object's own rules.
//!
//! Guarantees: nothing is created in a namespace that is missing or ending: the transaction that
//! creates it checks the namespace once more. A namespace is born with its service account
//! `default` and the config map `kube-root-ca.crt` in one transaction, so that a pod made a
//! millisecond later finds both; controllers only have to restore them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use api::{
    meta,
    registry::{self, Resource},
    status::{Cause, Failure},
};
use serde_json::{Value, json};
use store::{Condition, Txn};

use crate::{allocate, app::App, dispatch::Call, keys, objects, runtime_class, write};

const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
const CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// How long a pod waits for a service account that was deleted and is about to be restored.
const ACCOUNT_WAIT: Duration = Duration::from_millis(500);

/// Completes a new object, or refuses it.
pub(crate) async fn create(
    app: &Arc<App>,
    call: &Call,
    row: &'static Resource,
    object: &mut Value,
) -> Result<(), Failure> {
    match (row.group, row.kind) {
        ("", "Pod") => pod(app, object).await,
        ("", "Namespace") => {
            label_namespace(object);
            Ok(())
        }
        _ => {
            tracing::trace!(user = call.user.name, kind = row.kind, "nothing to admit");
            Ok(())
        }
    }
}

/// Completes a changed object.
pub(crate) fn update(_app: &App, row: &Resource, object: &mut Value, _stored: &Value) -> Result<(), Failure> {
    if row.kind == "Namespace" {
        label_namespace(object);
    }
    Ok(())
}

fn label_namespace(object: &mut Value) {
    let name = meta::name(object).to_owned();
    let labels = meta::object_mut(meta::child_mut(meta::child_mut(object, "metadata"), "labels"));
    labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name));
}

/// Gives a Service its addresses and ports.
pub(crate) fn allocate(
    app: &App,
    row: &Resource,
    object: &mut Value,
    stored: Option<&Value>,
) -> Result<(), Failure> {
    if row.storage != "services" {
        return Ok(());
    }
    let own = stored.map(allocate::claims).unwrap_or_default();
    let services = app.cache.list("services", &keys::collection(row, ""));
    let others: HashSet<_> = services
        .entries
        .iter()
        .flat_map(|e| allocate::claims(&e.value()))
        .filter(|claim| !own.contains(claim))
        .collect();
    allocate::fill(row, object, stored, &others, &app.config.service_cidr, &mut rand::rng())
}

/// The condition that an object's namespace is there and not ending.
pub(crate) fn namespace_guard(
    app: &App,
    row: &Resource,
    namespace: &str,
    name: &str,
) -> Result<Txn, Failure> {
    if !row.namespaced {
        return Ok(Txn::default());
    }
    let namespaces = registry::find("", "v1", "namespaces").expect("every cluster has namespaces");
    let entry = app.cached(namespaces, "", namespace)?;
    if meta::is_deleting(entry.facts()) {
        let mut failure = Failure::forbidden(
            row,
            name,
            &format!("unable to create new content in namespace {namespace} because it is being terminated"),
        );
        failure.details.get_or_insert_with(Default::default).causes.push(Cause {
            reason: "NamespaceTerminating",
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
        return Err(failure);
    }
    let key = keys::object(namespaces, "", namespace);
    Ok(Txn::default().and_if(key, Condition::ModRevision(entry.revision)))
}

/// What is made together with a new object.
pub(crate) fn companions(app: &App, row: &Resource, object: &Value) -> Txn {
    if row.kind != "Namespace" {
        return Txn::default();
    }
    namespace_companions(&app.config.ca_pem, meta::name(object))
        .into_iter()
        .fold(Txn::default(), |txn, (key, value)| txn.and_create(key, objects::encode(&value)))
}

/// The objects that every namespace has, with their keys.
pub(crate) fn namespace_companions(ca_pem: &str, namespace: &str) -> Vec<(String, Value)> {
    let metadata = |name: &str| {
        json!({
            "name": name, "namespace": namespace, "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": write::now(),
        })
    };
    let row = |plural| registry::find("", "v1", plural).expect("core resources are served");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("default")});
    let mut ca = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(CA_CONFIG_MAP), "data": {"ca.crt": ca_pem},
    });
    ca["metadata"]["annotations"] = json!({
        "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using \
            internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed \
            across distributions of Kubernetes clusters.",
    });
    vec![
        (keys::object(row("serviceaccounts"), namespace, "default"), account),
        (keys::object(row("configmaps"), namespace, CA_CONFIG_MAP), ca),
    ]
}

/// Completes a pod: priority, runtime class, tolerations, service account.
async fn pod(app: &Arc<App>, pod: &mut Value) -> Result<(), Failure> {
    let row = registry::find("", "v1", "pods").expect("core resources are served");
    let name = meta::name(pod).to_owned();
    let namespace = meta::namespace(pod).to_owned();
    let is_mirror = meta::at(pod, &["metadata", "annotations", MIRROR]).is_some();
    if pod.get("spec").and_then(Value::as_object).is_none() {
        return Ok(());
    }
    priority(pod).map_err(|why| Failure::forbidden(row, &name, &why))?;
    runtime_class::admit(app, pod).map_err(|why| Failure::forbidden(row, &name, &why))?;
    tolerate(pod);
    if is_mirror {
        return mirror(pod).map_err(|why| Failure::forbidden(row, &name, why));
    }
    let account_name = match meta::str_at(pod, &["spec", "serviceAccountName"]) {
        "" => match meta::str_at(pod, &["spec", "serviceAccount"]) {
            "" => "default".to_owned(),
            old => old.to_owned(),
        },
        given => given.to_owned(),
    };
    pod["spec"]["serviceAccountName"] = json!(account_name);
    pod["spec"]["serviceAccount"] = json!(account_name);
    let account = service_account(app, &namespace, &account_name).await.ok_or_else(|| {
        let why = format!("error looking up service account {namespace}/{account_name}: serviceaccount \"{account_name}\" not found");
        Failure::forbidden(row, &name, &why)
    })?;
    if meta::at(pod, &["spec", "imagePullSecrets"]).and_then(Value::as_array).is_none_or(Vec::is_empty)
        && let Some(secrets) = account.get("imagePullSecrets")
    {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
    let wants = |o: &Value| o.get("automountServiceAccountToken").and_then(Value::as_bool);
    if wants(&pod["spec"]).or(wants(&account)).unwrap_or(true) {
        mount_token(pod, &write::suffix());
    }
    Ok(())
}

async fn service_account(app: &Arc<App>, namespace: &str, name: &str) -> Option<Value> {
    let row = registry::find("", "v1", "serviceaccounts")?;
    let deadline = tokio::time::Instant::now() + ACCOUNT_WAIT;
    loop {
        let revision = app.cache.revision();
        if let Ok(entry) = app.cached(row, namespace, name) {
            return Some(entry.value());
        }
        let left = deadline.checked_duration_since(tokio::time::Instant::now())?;
        if !app.cache.wait(revision + 1, left).await {
            return None;
        }
    }
}

/// The built-in priority classes; others are refused, as there are none.
fn priority(pod: &mut Value) -> Result<(), String> {
    let class = meta::str_at(pod, &["spec", "priorityClassName"]);
    let priority: i64 = match class {
        "" => 0,
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        other => return Err(format!("no PriorityClass with name {other} was found")),
    };
    if let Some(given) = meta::at(pod, &["spec", "priority"]).and_then(Value::as_i64)
        && given != priority
    {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        ));
    }
    pod["spec"]["priority"] = json!(priority);
    let spec = meta::object_mut(&mut pod["spec"]);
    spec.entry("preemptionPolicy").or_insert(json!("PreemptLowerPriority"));
    Ok(())
}

/// A pod stays five minutes on a node that is not ready or cannot be reached, unless it says otherwise.
fn tolerate(pod: &mut Value) {
    let spec = meta::object_mut(&mut pod["spec"]);
    let list = spec.entry("tolerations").or_insert(json!([]));
    let Some(list) = list.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &Value| {
            let text = |k: &str| t.get(k).and_then(Value::as_str).unwrap_or("");
            (text("key") == key || text("key").is_empty() && text("operator") == "Exists")
                && matches!(text("effect"), "" | "NoExecute")
        };
        if !list.iter().any(covers) {
            list.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

/// A mirror pod only shows what a node runs by itself: it can use nothing of the cluster.
fn mirror(pod: &Value) -> Result<(), &'static str> {
    let spec = &pod["spec"];
    if !meta::str_at(spec, &["serviceAccountName"]).is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    let volumes = spec.get("volumes").and_then(Value::as_array);
    let uses_token = |v: &Value| {
        let sources = meta::at(v, &["projected", "sources"]).and_then(Value::as_array);
        sources.into_iter().flatten().any(|s| s.get("serviceAccountToken").is_some())
    };
    match volumes.into_iter().flatten().any(uses_token) {
        true => Err("a mirror pod may not use ServiceAccountToken volume projections"),
        false => Ok(()),
    }
}

/// Mounts the pod's token, the cluster's authority and the namespace in every container that has
/// nothing else there.
fn mount_token(pod: &mut Value, suffix: &str) {
    let spec = meta::object_mut(&mut pod["spec"]);
    let volumes = spec.get("volumes").and_then(Value::as_array);
    let ours = volumes.into_iter().flatten().filter_map(|v| v.get("name")?.as_str());
    let existing = ours.into_iter().find(|n| n.starts_with("kube-api-access-")).map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| format!("kube-api-access-{suffix}"));
    let mut mounted = false;
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let container = meta::object_mut(container);
            let Some(mounts) = container.entry("volumeMounts").or_insert(json!([])).as_array_mut() else {
                continue;
            };
            if !mounts.iter().any(|m| m.get("mountPath").and_then(Value::as_str) == Some(TOKEN_MOUNT)) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_MOUNT}));
                mounted = true;
            }
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    let volume = json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": CA_CONFIG_MAP, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    if let Some(volumes) = spec.entry("volumes").or_insert(json!([])).as_array_mut() {
        volumes.push(volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once_and_never_over_others() {
        let mut pod = json!({"spec": {}});
        tolerate(&mut pod);
        tolerate(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        tolerate(&mut all);
        assert_eq!(all["spec"]["tolerations"].as_array().unwrap().len(), 1);
        let mut one = json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"}]}});
        tolerate(&mut one);
        assert_eq!(one["spec"]["tolerations"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_token_is_mounted_where_nothing_else_is() {
        let mut pod = json!({"spec": {"initContainers": [{"name": "i"}], "containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": TOKEN_MOUNT}]}]}});
        mount_token(&mut pod, "abcde");
        assert_eq!(pod["spec"]["volumes"][0]["name"], "kube-api-access-abcde");
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-abcde");
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["initContainers"][0]["volumeMounts"].as_array().unwrap().len(), 1);
        mount_token(&mut pod, "fghij");
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn priorities() {
        let mut pod = json!({"spec": {"priorityClassName": "system-node-critical"}});
        priority(&mut pod).unwrap();
        assert_eq!(pod["spec"]["priority"], 2_000_001_000);
        assert!(priority(&mut json!({"spec": {"priorityClassName": "mine"}})).is_err());
        assert!(priority(&mut json!({"spec": {"priority": 7}})).is_err());
    }
}
