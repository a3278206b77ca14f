//! OpenAPI documents: v3 per group and version with their index, and v2 in one piece.
//!
//! Guarantees: documents are made of the registry and the schemas alone, anew for each call; only their hashes are
//! kept. Definitions have the names, extensions and patch facts that kubectl looks for (explain, apply, validation).
//! Assumes: callers answer repeated requests by hash (`?hash=…`, immutable) or ETag, so that a document is seldom made.
//! Caveat: upstream also serves v2 as protobuf; here it is JSON only.

mod paths;
mod schemas;

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::registry;

/// The Kubernetes version that the documents and `/version` name.
pub const KUBERNETES_VERSION: &str = "v1.36.0";

/// Which OpenAPI a document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// Where definitions stand in the document.
    fn prefix(self) -> &'static str {
        match self {
            Dialect::V2 => "/definitions",
            Dialect::V3 => "/components/schemas",
        }
    }

    fn reference(self, definition: &str) -> Value {
        json!({"$ref": format!("#{}/{definition}", self.prefix())})
    }
}

/// The path of a group and version below `/openapi/v3/`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: the index of documents, as JSON.
pub fn index() -> Vec<u8> {
    static INDEX: OnceLock<Vec<u8>> = OnceLock::new();
    INDEX
        .get_or_init(|| {
            let mut paths = serde_json::Map::new();
            for (group, version) in registry::group_versions() {
                let path = path_of(group, version);
                let hash = hash(&v3(&path).unwrap_or_default());
                let url = format!("/openapi/v3/{path}?hash={hash:016X}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
            bytes(&json!({"paths": paths}))
        })
        .clone()
}

/// `/openapi/v3/api/v1` or `/openapi/v3/apis/{group}/{version}`: the document of one group and version, as JSON;
/// `path` is what follows `/openapi/v3/`.
pub fn v3(path: &str) -> Option<Vec<u8>> {
    let (group, version) =
        registry::group_versions().into_iter().find(|(g, v)| path_of(g, v) == path.trim_end_matches('/'))?;
    let paths = paths::of(Dialect::V3, |r| r.group == group && r.version == version);
    let schemas = schemas::of(Dialect::V3, |r| r.group == group && r.version == version);
    Some(bytes(&json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    })))
}

/// `/openapi/v2`, as JSON.
pub fn v2() -> Vec<u8> {
    bytes(&json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": paths::of(Dialect::V2, |_| true),
        "definitions": schemas::of(Dialect::V2, |_| true),
    }))
}

fn bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).expect("a document has text keys only")
}

/// FNV-1a: tells documents apart, resists nobody.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'a>(v: &'a Value, out: &mut Vec<&'a str>) {
        match v {
            Value::Object(o) => {
                out.extend(o.get("$ref").and_then(Value::as_str));
                o.values().for_each(|v| references(v, out));
            }
            Value::Array(a) => a.iter().for_each(|v| references(v, out)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_is_in_its_document() {
        let index: Value = serde_json::from_slice(&index()).expect("JSON");
        let mut documents: Vec<Vec<u8>> =
            index["paths"].as_object().expect("paths").keys().map(|p| v3(p).expect("served")).collect();
        documents.push(v2());
        for d in &documents {
            let d: Value = serde_json::from_slice(d).expect("JSON");
            let mut found = Vec::new();
            references(&d, &mut found);
            assert!(found.len() > 10);
            for r in found {
                assert!(d.pointer(r.strip_prefix('#').expect("local")).is_some(), "{r}");
            }
        }
        assert!(v3("apis/nothing/v1").is_none());
    }

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let d: Value = serde_json::from_slice(&v3("api/v1").expect("core")).expect("JSON");
        let schemas = &d["components"]["schemas"];
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "Pod", "version": "v1"}])
        );
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(
            pod["properties"]["spec"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.core.v1.PodSpec"
        );
        let patch = &d["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let names: Vec<&str> =
            patch["parameters"].as_array().expect("list").iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"), "{names:?}");
        assert!(d["paths"].get("/api/v1/pods").is_some());
        assert!(d["paths"].get("/api/v1/nodes/{name}/status").is_some());
    }
}
