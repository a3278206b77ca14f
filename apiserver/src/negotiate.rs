//! What a client accepts.
//!
//! Guarantees: pure; the first range that we can make wins, as client-go lists them by preference.
//! Protobuf is passed over: clients that ask for it also take JSON.

use api::status::Failure;

/// How an object is shaped before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As it is.
    Object,
    /// As rows with columns (`as=Table`).
    Table,
    /// Only its metadata (`as=PartialObjectMetadata` or `...List`).
    Metadata,
    /// Aggregated discovery (`as=APIGroupDiscoveryList`).
    Discovery,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
}

/// What to answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) shape: Shape,
    pub(crate) format: Format,
    /// `g` and `v` of the transformation, where there is one.
    pub(crate) beta: bool,
}

impl Accepted {
    pub(crate) const JSON: Accepted = Accepted { shape: Shape::Object, format: Format::Json, beta: false };
}

/// Reads an `Accept` header.
///
/// # Errors
/// `NotAcceptable` when nothing in it can be made.
pub(crate) fn accept(header: Option<&str>) -> Result<Accepted, Failure> {
    let Some(header) = header.filter(|h| !h.trim().is_empty()) else { return Ok(Accepted::JSON) };
    header.split(',').find_map(range).ok_or_else(|| {
        Failure::not_acceptable(&["application/json", "application/yaml", "application/json;stream=watch"])
    })
}

fn range(text: &str) -> Option<Accepted> {
    let mut parts = text.split(';').map(str::trim);
    let format = match parts.next()?.to_ascii_lowercase().as_str() {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" | "application/x-yaml" | "text/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut target, mut group, mut version) = ("", "", "");
    for part in parts {
        match part.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
            Some(("as", v)) => target = v,
            Some(("g", v)) => group = v,
            Some(("v", v)) => version = v,
            _ => {}
        }
    }
    let shape = match (target, group, version) {
        ("", ..) => Shape::Object,
        ("Table", "meta.k8s.io", "v1" | "v1beta1") => Shape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1" | "v1beta1") => {
            Shape::Metadata
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2" | "v2beta1") => Shape::Discovery,
        _ => return None,
    };
    Some(Accepted { shape, format, beta: version == "v1beta1" || version == "v2beta1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str) -> Option<(Shape, Format)> {
        accept(Some(header)).ok().map(|a| (a.shape, a.format))
    }

    #[test]
    fn headers_that_clients_send() {
        let json = Format::Json;
        assert_eq!(check("*/*"), Some((Shape::Object, json)));
        assert_eq!(
            check("application/vnd.kubernetes.protobuf,application/json"),
            Some((Shape::Object, json))
        );
        assert_eq!(
            check(
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
            ),
            Some((Shape::Table, json))
        );
        assert_eq!(
            check(
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
            ),
            Some((Shape::Metadata, json))
        );
        assert_eq!(
            check("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"),
            Some((Shape::Discovery, json))
        );
        assert_eq!(
            check("application/json;as=Nothing;g=x;v=v1,application/json"),
            Some((Shape::Object, json))
        );
        assert_eq!(check("application/yaml"), Some((Shape::Object, Format::Yaml)));
        assert_eq!(check("application/json;stream=watch"), Some((Shape::Object, json)));
        assert_eq!(check("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(check("text/html"), None);
    }
}
