//! Discovery: what the server serves, as clients ask for it, from the registry alone.
//!
//! Guarantees: the aggregated and the plain documents say the same.

use serde_json::{Value, json};

use crate::registry::{self, Resource, Subresource, api_version};

/// The media type of the aggregated documents; a client that accepts it gets them at `/api` and `/apis`.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/api` as `APIVersions`; `address` is `host:port` of the server.
pub fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// Named groups, each once, in registry order.
fn groups() -> Vec<&'static str> {
    let mut out = Vec::new();
    for (group, _) in registry::group_versions() {
        if !group.is_empty() && !out.contains(&group) {
            out.push(group);
        }
    }
    out
}

fn versions(group: &str) -> Vec<&'static str> {
    registry::group_versions().into_iter().filter(|(g, _)| *g == group).map(|(_, v)| v).collect()
}

fn rows(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    registry::all().iter().filter(move |r| r.group == group && r.version == version)
}

fn group_body(group: &str) -> Value {
    let list: Vec<Value> = versions(group)
        .into_iter()
        .map(|v| json!({"groupVersion": api_version(group, v), "version": v}))
        .collect();
    json!({"name": group, "versions": list, "preferredVersion": list[0]})
}

/// `/apis` as `APIGroupList`.
pub fn api_groups() -> Value {
    let list: Vec<Value> = groups().into_iter().map(group_body).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `/apis/{group}` as `APIGroup`.
pub fn api_group(group: &str) -> Option<Value> {
    if !groups().contains(&group) {
        return None;
    }
    let mut out = group_body(group);
    out["kind"] = Value::from("APIGroup");
    out["apiVersion"] = Value::from("v1");
    Some(out)
}

/// `/api/{version}` or `/apis/{group}/{version}` as `APIResourceList`.
pub fn api_resources(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for row in rows(group, version) {
        let mut r = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
            "verbs": row.verbs,
        });
        if !row.short_names.is_empty() {
            r["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            r["categories"] = json!(row.categories);
        }
        list.push(r);
        list.extend(row.subresources.iter().map(|s| subresource(row, s)));
    }
    if list.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": list,
    }))
}

fn subresource(row: &Resource, s: &Subresource) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", row.plural, s.name), "singularName": "", "namespaced": row.namespaced,
        "kind": s.speaks.kind, "verbs": s.verbs,
    });
    if (s.speaks.group, s.speaks.version) != (row.group, row.version) {
        out["group"] = Value::from(s.speaks.group);
        out["version"] = Value::from(s.speaks.version);
    }
    out
}

/// `/api` as aggregated `APIGroupDiscoveryList`.
pub fn aggregated_core() -> Value {
    aggregated(&[""])
}

/// `/apis` as aggregated `APIGroupDiscoveryList`.
pub fn aggregated_groups() -> Value {
    aggregated(&groups())
}

fn aggregated(groups: &[&str]) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            let versions: Vec<Value> = versions(group)
                .into_iter()
                .map(|v| {
                    let resources: Vec<Value> = rows(group, v).map(aggregated_row).collect();
                    json!({"version": v, "freshness": "Current", "resources": resources})
                })
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn aggregated_row(row: &'static Resource) -> Value {
    let kind = |g: registry::Gvk| json!({"group": g.group, "version": g.version, "kind": g.kind});
    let mut out = json!({
        "resource": row.plural,
        "responseKind": kind(row.gvk()),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        out["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        out["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        let list = row
            .subresources
            .iter()
            .map(|s| json!({"subresource": s.name, "responseKind": kind(s.speaks), "verbs": s.verbs}));
        out["subresources"] = list.collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_agree() {
        let core = aggregated_core();
        let plain = api_resources("", "v1").expect("core");
        let names = |v: &Value, key: &str| {
            v.as_array()
                .expect("list")
                .iter()
                .filter_map(|r| r[key].as_str().map(str::to_owned))
                .collect::<Vec<_>>()
        };
        let aggregated = names(&core["items"][0]["versions"][0]["resources"], "resource");
        let listed: Vec<String> =
            names(&plain["resources"], "name").into_iter().filter(|n| !n.contains('/')).collect();
        assert_eq!(aggregated, listed);
        assert!(core["items"][0]["metadata"].get("name").is_none());
        assert_eq!(api_groups()["groups"][0]["preferredVersion"]["groupVersion"], "apps/v1");
        let apps = api_resources("apps", "v1").expect("apps");
        let scale =
            apps["resources"].as_array().expect("list").iter().find(|r| r["name"] == "deployments/scale");
        assert_eq!(scale.expect("scale")["group"], "autoscaling");
        assert!(api_group("batch").is_none() && api_resources("batch", "v1").is_none());
        assert_eq!(aggregated_groups()["items"].as_array().expect("list").len(), groups().len());
    }
}
