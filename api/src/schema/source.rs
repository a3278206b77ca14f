//! Where definitions come from: the JSON schemas of k8s-openapi's types, descriptions included.
//!
//! Guarantees: every definition that another one refers to is there.
//! Caveat: the documents are made anew on each call, and are megabytes; callers keep what they need of them.

use k8s_openapi::api::{
    apps, authentication, authorization, autoscaling, coordination, core, events, node, policy,
};
use k8s_openapi::apimachinery::pkg::apis::meta;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

/// Every kind that is served, its list, and what requests carry besides. A new kind needs a line here.
const ROOTS: &[fn(&mut SchemaGenerator)] = &[
    root::<core::v1::Binding>,
    root::<core::v1::ConfigMap>,
    root::<core::v1::Event>,
    root::<core::v1::Namespace>,
    root::<core::v1::Node>,
    root::<core::v1::Pod>,
    root::<core::v1::Secret>,
    root::<core::v1::Service>,
    root::<core::v1::ServiceAccount>,
    root::<apps::v1::Deployment>,
    root::<apps::v1::ReplicaSet>,
    root::<coordination::v1::Lease>,
    root::<events::v1::Event>,
    root::<node::v1::RuntimeClass>,
    root::<authentication::v1::SelfSubjectReview>,
    root::<authentication::v1::TokenRequest>,
    root::<authentication::v1::TokenReview>,
    root::<authorization::v1::LocalSubjectAccessReview>,
    root::<authorization::v1::SelfSubjectAccessReview>,
    root::<authorization::v1::SelfSubjectRulesReview>,
    root::<authorization::v1::SubjectAccessReview>,
    root::<autoscaling::v1::Scale>,
    root::<policy::v1::Eviction>,
    root::<meta::v1::ListMeta>,
    root::<meta::v1::DeleteOptions>,
    root::<meta::v1::Patch>,
    root::<meta::v1::Status>,
    root::<meta::v1::APIResourceList>,
    root::<meta::v1::APIGroup>,
    root::<meta::v1::APIGroupList>,
];

fn root<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// All definitions by name. References read `#{prefix}/{name}`.
pub fn definitions(prefix: &str) -> Map<String, Value> {
    let mut settings = SchemaSettings::draft07();
    settings.definitions_path = prefix.to_owned().into();
    settings.transforms.clear();
    let mut generator = settings.into_generator();
    for root in ROOTS {
        root(&mut generator);
    }
    let mut out = generator.take_definitions(false);
    let kind = Value::from(KIND);
    let version = Value::from(API_VERSION);
    for row in crate::registry::all().iter().filter(|r| r.stored()) {
        let list = json!({
            "description": format!("{} is a list of {} objects.", row.list_kind, row.kind),
            "type": "object",
            "properties": {
                "apiVersion": {"description": version, "type": "string"},
                "items": {
                    "description": format!("Items is the list of {} objects.", row.kind),
                    "type": "array",
                    "items": {"$ref": format!("#{prefix}/{}", row.schema)},
                },
                "kind": {"description": kind, "type": "string"},
                "metadata": {
                    "description": "Standard list metadata.",
                    "$ref": format!("#{prefix}/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"),
                },
            },
            "required": ["items"],
        });
        out.insert(format!("{}List", row.schema), list);
    }
    out.insert(
        "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent".to_owned(),
        json!({
            "description": "Event represents a single event to a watched resource.",
            "type": "object",
            "properties": {"object": {"type": "object"}, "type": {"type": "string"}},
            "required": ["type", "object"],
        }),
    );
    out
}

const KIND: &str = "Kind is a string value representing the REST resource this object represents.";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object.";
