//! Paths and their operations.

use serde_json::{Map, Value, json};

use super::Dialect;
use crate::registry::{self, Gvk, Resource, Subresource};
use crate::schema::name_of;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Query parameters: name, JSON type, description.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', then the output is pretty printed.");
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. 'All' is the only valid value.",
);
const MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name of the actor or entity that is making these changes, at most 128 printable characters.",
);
const VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What the server does about unknown or duplicate fields: Ignore, Warn or Strict.",
);
const FORCE: Parameter =
    ("force", "boolean", "Take fields over from their other managers. Only for apply patches.");
const WRITE: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION, FORCE];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds before the object is deleted; 0 deletes at once."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "How dependents are deleted: Orphan, Background or Foreground."),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", "Delete an object that cannot be read."),
];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Ask for watch events of type BOOKMARK."),
    ("continue", "string", "Where to go on with a list that came in parts."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("limit", "integer", "Most objects to answer with at once."),
    ("resourceVersion", "string", "Which state of the objects is asked for."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: NotOlderThan or Exact."),
    ("sendInitialEvents", "boolean", "Begin a watch with events for all objects there are."),
    ("timeoutSeconds", "integer", "Most seconds the call may take."),
    ("watch", "boolean", "Watch for changes and answer with a stream of events."),
];

pub(super) fn of(dialect: Dialect, rows: impl Fn(&Resource) -> bool) -> Map<String, Value> {
    let mut out = Map::new();
    for (group, version) in registry::group_versions() {
        if !registry::all().iter().any(|r| r.group == group && r.version == version && rows(r)) {
            continue;
        }
        let root = root(group, version);
        let op = Op { dialect, gvk: None, tag: tag(group, version) };
        let get = op.make(
            &format!("get{}APIResources", camel_group(group, version)),
            None,
            "get available resources",
            &[],
            None,
            &format!("{META}.APIResourceList"),
        );
        out.insert(format!("{root}/"), json!({"get": get}));
    }
    for row in registry::all().iter().filter(|r| rows(r)) {
        resource(dialect, row, &mut out);
    }
    out
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// `CoreV1`, `AppsV1`, `CoordinationV1`.
fn camel_group(group: &str, version: &str) -> String {
    let first = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("{}{}", capital(first), capital(version))
}

fn tag(group: &str, version: &str) -> String {
    let first = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("{first}_{version}")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

struct Op {
    dialect: Dialect,
    gvk: Option<Gvk>,
    tag: String,
}

impl Op {
    fn parameter(&self, place: &str, (name, ty, description): Parameter) -> Value {
        let mut p = json!({"name": name, "in": place, "description": description});
        match self.dialect {
            Dialect::V2 => p["type"] = Value::from(ty),
            Dialect::V3 => p["schema"] = json!({"type": ty}),
        }
        if self.dialect == Dialect::V2 || place == "path" {
            p["uniqueItems"] = Value::from(true);
        }
        if place == "path" {
            p["required"] = Value::from(true);
        }
        p
    }

    /// One operation; `body` and `answer` are definitions' names.
    fn make(
        &self,
        id: &str,
        action: Option<&str>,
        description: &str,
        query: &[Parameter],
        body: Option<&str>,
        answer: &str,
    ) -> Value {
        let mut parameters: Vec<Value> = query.iter().map(|p| self.parameter("query", *p)).collect();
        let mut out = json!({"description": description, "operationId": id, "tags": [self.tag]});
        let schema =
            if answer.is_empty() { json!({"type": "string"}) } else { self.dialect.reference(answer) };
        let answer = match self.dialect {
            Dialect::V2 => {
                out["consumes"] = match action {
                    Some("patch") => json!(crate::patch::CONTENT_TYPES),
                    _ => json!(["*/*"]),
                };
                out["produces"] = json!(["application/json"]);
                out["schemes"] = json!(["https"]);
                json!({"description": "OK", "schema": schema})
            }
            Dialect::V3 => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
        };
        let mut responses = json!({"200": answer, "401": {"description": "Unauthorized"}});
        if matches!(action, Some("post" | "put" | "patch")) {
            responses["201"] = json!({"description": "Created"});
        }
        out["responses"] = responses;
        if let Some(body) = body {
            let schema = self.dialect.reference(body);
            match self.dialect {
                Dialect::V2 => {
                    parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}))
                }
                Dialect::V3 => {
                    let mut content = Map::new();
                    let types: &[&str] =
                        if action == Some("patch") { crate::patch::CONTENT_TYPES } else { &["*/*"] };
                    for t in types {
                        content.insert((*t).to_owned(), json!({"schema": schema}));
                    }
                    out["requestBody"] = json!({"content": content, "required": true});
                }
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = Value::from(parameters);
        }
        if let Some(action) = action {
            out["x-kubernetes-action"] = Value::from(action);
        }
        if let Some(Gvk { group, version, kind }) = self.gvk {
            out["x-kubernetes-group-version-kind"] =
                json!({"group": group, "kind": kind, "version": version});
        }
        out
    }

    fn place(&self, named: bool, namespaced: bool) -> Value {
        let mut list = Vec::new();
        if named {
            list.push(self.parameter("path", ("name", "string", "name of the object")));
        }
        if namespaced {
            list.push(self.parameter("path", ("namespace", "string", "namespace of the object")));
        }
        list.push(self.parameter("query", PRETTY));
        Value::from(list)
    }
}

fn resource(dialect: Dialect, row: &Resource, out: &mut Map<String, Value>) {
    let Resource { group, version, kind, plural, schema, .. } = *row;
    let op = Op { dialect, gvk: Some(row.gvk()), tag: tag(group, version) };
    let scope = format!("{}{}", camel_group(group, version), if row.namespaced { "Namespaced" } else { "" });
    let root = root(group, version);
    let base = if row.namespaced {
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };
    let list = format!("{schema}List");
    let status = format!("{META}.Status");
    let (options, patch) = (format!("{META}.DeleteOptions"), format!("{META}.Patch"));

    let mut collection = json!({"parameters": op.place(false, row.namespaced)});
    let mut item = json!({"parameters": op.place(true, row.namespaced)});
    for verb in row.verbs {
        match *verb {
            "list" => {
                let text = format!("list or watch objects of kind {kind}");
                collection["get"] =
                    op.make(&format!("list{scope}{kind}"), Some("list"), &text, LIST, None, &list);
                if row.namespaced {
                    let id = format!("list{}{kind}ForAllNamespaces", camel_group(group, version));
                    let get = op.make(&id, Some("list"), &text, LIST, None, &list);
                    out.insert(
                        format!("{root}/{plural}"),
                        json!({"get": get, "parameters": op.place(false, false)}),
                    );
                }
            }
            "create" => {
                let id = format!("create{scope}{kind}");
                collection["post"] =
                    op.make(&id, Some("post"), &format!("create a {kind}"), WRITE, Some(schema), schema);
            }
            "deletecollection" => {
                let id = format!(
                    "delete{}Collection{}{kind}",
                    camel_group(group, version),
                    if row.namespaced { "Namespaced" } else { "" }
                );
                let query: Vec<Parameter> = LIST.iter().chain(DELETE).copied().collect();
                let text = format!("delete collection of {kind}");
                collection["delete"] =
                    op.make(&id, Some("deletecollection"), &text, &query, Some(&options), &status);
            }
            "get" => {
                let id = format!("read{scope}{kind}");
                item["get"] =
                    op.make(&id, Some("get"), &format!("read the specified {kind}"), &[], None, schema);
            }
            "update" => {
                let id = format!("replace{scope}{kind}");
                item["put"] = op.make(
                    &id,
                    Some("put"),
                    &format!("replace the specified {kind}"),
                    WRITE,
                    Some(schema),
                    schema,
                );
            }
            "patch" => {
                let id = format!("patch{scope}{kind}");
                let text = format!("partially update the specified {kind}");
                item["patch"] = op.make(&id, Some("patch"), &text, PATCH, Some(&patch), schema);
            }
            "delete" => {
                let id = format!("delete{scope}{kind}");
                item["delete"] = op.make(
                    &id,
                    Some("delete"),
                    &format!("delete a {kind}"),
                    DELETE,
                    Some(&options),
                    &status,
                );
            }
            _ => {}
        }
    }
    out.insert(base.clone(), collection);
    if row.stored() {
        out.insert(format!("{base}/{{name}}"), item);
    }
    for s in row.subresources {
        out.insert(format!("{base}/{{name}}/{}", s.name), subresource(dialect, row, s, &scope));
    }
}

fn subresource(dialect: Dialect, row: &Resource, s: &Subresource, scope: &str) -> Value {
    let op = Op { dialect, gvk: Some(s.speaks), tag: tag(row.group, row.version) };
    let name = format!("{scope}{}{}", row.kind, capital(s.name));
    let about = format!("{} of the specified {}", s.name, row.kind);
    let patch = format!("{META}.Patch");
    let mut out = json!({"parameters": op.place(true, row.namespaced)});
    let definition = name_of(s.speaks).filter(|_| s.name != "log");
    let Some(schema) = definition else {
        // Streams and texts.
        for verb in s.verbs {
            let method = match *verb {
                "get" => "get",
                "create" => "post",
                "update" => "put",
                "patch" => "patch",
                "delete" => "delete",
                _ => continue,
            };
            let (id, action) = match s.name {
                "log" => (format!("read{name}"), "get"),
                _ => (format!("connect{}{name}", capital(method)), "connect"),
            };
            out[method] = op.make(&id, Some(action), &format!("connect to {about}"), &[], None, "");
        }
        return out;
    };
    for verb in s.verbs {
        match *verb {
            "get" => {
                out["get"] =
                    op.make(&format!("read{name}"), Some("get"), &format!("read {about}"), &[], None, &schema)
            }
            "create" => {
                let text = format!("create {about}");
                out["post"] =
                    op.make(&format!("create{name}"), Some("post"), &text, WRITE, Some(&schema), &schema);
            }
            "update" => {
                let text = format!("replace {about}");
                out["put"] =
                    op.make(&format!("replace{name}"), Some("put"), &text, WRITE, Some(&schema), &schema);
            }
            "patch" => {
                let text = format!("partially update {about}");
                out["patch"] =
                    op.make(&format!("patch{name}"), Some("patch"), &text, PATCH, Some(&patch), &schema);
            }
            _ => {}
        }
    }
    out
}
