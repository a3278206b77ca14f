//! Discovery.

use serde_json::Value;

/// `/api` as `APIVersions`; `address` is `host:port` of the server.
pub fn api_versions(_address: &str) -> Value {
    Value::Null
}

/// `/apis` as `APIGroupList`.
pub fn api_groups() -> Value {
    Value::Null
}

/// `/apis/{group}` as `APIGroup`.
pub fn api_group(_group: &str) -> Option<Value> {
    None
}

/// `/api/{version}` or `/apis/{group}/{version}` as `APIResourceList`.
pub fn api_resources(_group: &str, _version: &str) -> Option<Value> {
    None
}

/// `/api` as aggregated `APIGroupDiscoveryList` (`application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`).
pub fn aggregated_core() -> Value {
    Value::Null
}

/// `/apis` as aggregated `APIGroupDiscoveryList`.
pub fn aggregated_groups() -> Value {
    Value::Null
}
