//! Reads manifests: pods, and in standalone mode ConfigMaps and Secrets.
//!
//! Guarantees: pure; the same file on the same node always gives the same uid. Unknown fields are errors
//! with their path, so a typing error is not a silent default.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Toleration};
use serde::Deserialize;
use serde_json::Value;

use crate::labels;
use crate::pod::hash::hex;

/// What one file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// Static pods.
    pub pods: Vec<Arc<Pod>>,
    /// ConfigMaps.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// Secrets.
    pub secrets: Vec<Arc<Secret>>,
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML or JSON.
    #[error("document {document} is not valid YAML")]
    Yaml {
        /// Which document of the file, from 1.
        document: usize,
        /// Where it went wrong.
        source: serde_yaml_ng::Error,
    },
    /// Not what its kind should look like.
    #[error("document {document} is not a valid {kind}")]
    Shape {
        /// Which document of the file, from 1.
        document: usize,
        /// The kind it says it is.
        kind: String,
        /// Which field.
        source: serde_json::Error,
    },
    /// A kind that has no place here.
    #[error(
        "document {document} is of kind {kind:?}: only Pod, PodList, ConfigMap and Secret (v1) can be given as files"
    )]
    Kind {
        /// Which document of the file, from 1.
        document: usize,
        /// The kind.
        kind: String,
    },
    /// Something every pod must have is missing.
    #[error("document {document}: {what}")]
    Missing {
        /// Which document of the file, from 1.
        document: usize,
        /// What to add.
        what: &'static str,
    },
}

/// Reads the text of a file. `strict` names the fields that a typed reading would drop.
pub fn parse(text: &str, path: &Path, node: &str, now: Timestamp) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
    for (n, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let document_no = n + 1;
        let value = Value::deserialize(document)
            .map_err(|source| ManifestError::Yaml { document: document_no, source })?;
        if !value.is_null() {
            one(value, document_no, path, node, now, &mut manifest)?;
        }
    }
    Ok(manifest)
}

fn one(
    value: Value,
    document: usize,
    path: &Path,
    node: &str,
    now: Timestamp,
    manifest: &mut Manifest,
) -> Result<(), ManifestError> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or("").to_owned();
    let version = value.get("apiVersion").and_then(Value::as_str).unwrap_or("");
    if version != "v1" {
        return Err(ManifestError::Kind { document, kind: format!("{kind} of {version:?}") });
    }
    match kind.as_str() {
        "Pod" => {
            let pod: Pod = typed(&value, document, &kind)?;
            manifest.pods.push(Arc::new(prepare(pod, &value, document, path, node, now)?));
        }
        "PodList" | "List" => {
            for item in value.get("items").and_then(Value::as_array).cloned().unwrap_or_default() {
                let mut item = item;
                if let Some(fields) = item.as_object_mut() {
                    fields.entry("apiVersion").or_insert("v1".into());
                    fields.entry("kind").or_insert("Pod".into());
                }
                one(item, document, path, node, now, manifest)?;
            }
        }
        "ConfigMap" => {
            let mut map: ConfigMap = typed(&value, document, &kind)?;
            map.metadata.namespace.get_or_insert_with(|| "default".into());
            manifest.config_maps.push(Arc::new(map));
        }
        "Secret" => {
            let mut secret: Secret = typed(&value, document, &kind)?;
            secret.metadata.namespace.get_or_insert_with(|| "default".into());
            manifest.secrets.push(Arc::new(secret));
        }
        _ => return Err(ManifestError::Kind { document, kind }),
    }
    Ok(())
}

fn typed<T: serde::de::DeserializeOwned + serde::Serialize>(
    value: &Value,
    document: usize,
    kind: &str,
) -> Result<T, ManifestError> {
    let shape = |source| ManifestError::Shape { document, kind: kind.to_owned(), source };
    let object: T = serde_json::from_value(value.clone()).map_err(shape)?;
    let back = serde_json::to_value(&object).map_err(shape)?;
    if let Some(field) = dropped(value, &back, "") {
        let text = format!("unknown field {field:?}");
        return Err(shape(serde::de::Error::custom(text)));
    }
    Ok(object)
}

/// The first field of `given` that did not survive the typed reading.
fn dropped(given: &Value, kept: &Value, path: &str) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match kept.get(key) {
                Some(kept) => dropped(value, kept, &path),
                // Null and empty lists mean "not set", and are not written back.
                None if value.is_null() || value == &Value::Array(Vec::new()) => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(n, (given, kept))| dropped(given, kept, &format!("{path}[{n}]"))),
        _ => None,
    }
}

/// Makes a static pod of a manifest: name, namespace, uid, annotations, the fields an apiserver would default.
fn prepare(
    mut pod: Pod,
    value: &Value,
    document: usize,
    path: &Path,
    node: &str,
    now: Timestamp,
) -> Result<Pod, ManifestError> {
    let missing = |what| ManifestError::Missing { document, what };
    let name = pod
        .metadata
        .name
        .clone()
        .filter(|n| !n.is_empty())
        .ok_or(missing("metadata.name is missing: every static pod needs a name"))?;
    let Some(spec) = pod.spec.as_mut().filter(|s| !s.containers.is_empty()) else {
        return Err(missing("spec.containers is empty: a pod needs at least one container"));
    };
    if spec.containers.iter().any(|c| c.name.is_empty() || c.image.as_deref().unwrap_or("").is_empty()) {
        return Err(missing("every container needs a name and an image"));
    }
    spec.node_name = Some(node.into());
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    defaults(spec);
    let text = value.to_string();
    let hash = hex(&[node.as_bytes(), b"\0", path.to_string_lossy().as_bytes(), b"\0", text.as_bytes()], 16);
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid = Some(hash.clone());
    let notes = meta.annotations.get_or_insert_default();
    notes.insert(labels::CONFIG_HASH.into(), hash);
    notes.insert(labels::CONFIG_SOURCE.into(), "file".into());
    notes.insert(labels::CONFIG_SEEN.into(), now.to_string());
    Ok(pod)
}

/// What an apiserver would have filled in.
fn defaults(spec: &mut k8s_openapi::api::core::v1::PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    let host_network = spec.host_network == Some(true);
    for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        c.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
        c.termination_message_policy.get_or_insert_with(|| "File".into());
        for port in c.ports.iter_mut().flatten() {
            port.protocol.get_or_insert_with(|| "TCP".into());
            if host_network {
                port.host_port.get_or_insert(port.container_port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Manifest, String> {
        let at = Timestamp::UNIX_EPOCH;
        parse(text, Path::new("/m/a.yaml"), "Node1", at).map_err(|err| client::describe(&err))
    }

    #[test]
    fn a_static_pod_has_a_name_of_its_node_and_a_lasting_uid() {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n";
        let one = read(text).expect("good");
        assert_eq!(one, read(text).expect("good"));
        assert_eq!(one.pods[0].metadata.name.as_deref(), Some("a-node1"));
        assert_ne!(
            one.pods[0].metadata.uid,
            read(&text.replace("image: i", "image: j")).expect("good").pods[0].metadata.uid
        );
    }

    #[test]
    fn mistakes_are_named() {
        let field = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i, comand: [x]}]}\n";
        assert_eq!(
            read(field),
            Err("document 1 is not a valid Pod: unknown field \"spec.containers[0].comand\"".into())
        );
        assert!(read("a: [").expect_err("bad").contains("document 1 is not valid YAML"));
        assert!(read("apiVersion: apps/v1\nkind: Deployment\n").expect_err("bad").contains("only Pod"));
        assert!(
            read("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}")
                .expect_err("bad")
                .contains("at least one container")
        );
    }
}
