//! Where objects are in the store.
//!
//! Guarantees: `/registry/{storage}/{namespace}/{name}` for namespaced objects, without the
//! namespace for others; no two objects share a key.

use api::registry::Resource;
use bytes::Bytes;

/// All of ours.
pub(crate) const ROOT: &str = "/registry/";

/// The key of one object.
pub(crate) fn object(row: &Resource, namespace: &str, name: &str) -> String {
    if row.namespaced {
        format!("{ROOT}{}/{namespace}/{name}", row.storage)
    } else {
        format!("{ROOT}{}/{name}", row.storage)
    }
}

/// What the keys of a collection start with; all namespaces if it is empty.
pub(crate) fn collection(row: &Resource, namespace: &str) -> String {
    if row.namespaced && !namespace.is_empty() {
        format!("{ROOT}{}/{namespace}/", row.storage)
    } else {
        format!("{ROOT}{}/", row.storage)
    }
}

/// The storage that a key belongs to.
pub(crate) fn storage_of(key: &str) -> Option<&str> {
    key.strip_prefix(ROOT)?.split_once('/').map(|(storage, _)| storage)
}

/// The key that holds a claimed cluster address, so that no two Services can have it.
pub(crate) fn cluster_ip(address: &str) -> Bytes {
    Bytes::from(format!("{ROOT}-clusterips/{address}"))
}

/// The key that holds a claimed node port.
pub(crate) fn node_port(protocol: &str, port: u64) -> Bytes {
    Bytes::from(format!("{ROOT}-nodeports/{protocol}-{port}"))
}
