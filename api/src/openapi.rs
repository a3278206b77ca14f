//! OpenAPI.

/// `/openapi/v3`: the index of documents, as JSON.
pub fn index() -> Vec<u8> {
    Vec::new()
}

/// `/openapi/v3/api/v1` or `/openapi/v3/apis/{group}/{version}`: the document of one group and version, as JSON;
/// `path` is what follows `/openapi/v3/`.
pub fn v3(_path: &str) -> Option<Vec<u8>> {
    None
}

/// `/openapi/v2`, as JSON.
pub fn v2() -> Vec<u8> {
    Vec::new()
}
