//! Manifests, indexes and configurations, parsed and checked. Pure.
//!
//! Guarantees: a `Manifest` has only layers that we can unpack, no more than the limit allows; a document
//! that could be read as two different things is refused.

mod artifact;

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::{Digest, DigestError};
use crate::limits::Limits;
use crate::platform::{self, Platform};
pub(crate) use artifact::{Artifact, Blob};

/// Media types that we ask a registry for, as the value of an `Accept` header.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Why a manifest, an index or a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON, or not of the expected shape.
    #[error("parse {what}")]
    Json {
        /// Manifest, index or configuration.
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Too large.
    #[error("{what} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// Docker's first schema.
    #[error(
        "the image has a schema 1 manifest, which is not supported; push it again with a current tool to convert it"
    )]
    Schema1,
    /// Another schema version.
    #[error("manifest has schemaVersion {0}; only 2 is supported")]
    SchemaVersion(u64),
    /// Both layers and manifests, or neither.
    #[error("manifest is ambiguous: it has {0}")]
    Ambiguous(&'static str),
    /// The registry's Content-Type contradicts the document.
    #[error("manifest is ambiguous: served as `{served}`, but says it is `{says}`")]
    MediaType {
        /// The HTTP header.
        served: String,
        /// The `mediaType` field, or what its fields make of it.
        says: String,
    },
    /// An unknown kind of document.
    #[error("media type `{0}` is not a container image")]
    NotAnImage(String),
    /// A layer in a format that we do not know.
    #[error("layer {digest} has the unsupported media type `{media_type}`")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A malformed digest.
    #[error("manifest has a bad digest")]
    Digest(#[from] DigestError),
    /// More layers than the limit.
    #[error("image has {0} layers; the limit is {1}")]
    Layers(usize, usize),
    /// The index has nothing for this machine.
    #[error("image has no variant for {wanted}; it has {}", if offered.is_empty() { "none".to_owned() } else { offered.join(", ") })]
    Platform {
        /// This machine's platform.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// Manifest and configuration disagree.
    #[error("manifest has {layers} layers, but the configuration has {diff_ids} diff ids")]
    DiffIds {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A blob of an artifact cannot have this name.
    #[error("artifact has a blob with the unusable name `{0}`")]
    BlobName(String),
    /// Indexes within indexes.
    #[error("indexes are nested too deeply")]
    Nested,
}

/// A reference by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Other places where it is to be had.
    pub(crate) urls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<IndexEntry>),
    Manifest(Manifest),
    Artifact(Artifact),
}

/// One line of an index, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IndexEntry {
    #[serde(default)]
    pub(crate) media_type: String,
    digest: String,
    size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl IndexEntry {
    pub(crate) fn descriptor(&self) -> Result<Descriptor, ManifestError> {
        let digest = self.digest.parse()?;
        Ok(Descriptor { media_type: self.media_type.clone(), digest, size: self.size, urls: Vec::new() })
    }
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
    urls: Option<Vec<String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<IndexEntry>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
}

/// What a media type says; `None` if it is generic and says nothing.
fn kind(media_type: &str) -> Result<Option<Kind>, ManifestError> {
    match media_type {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Ok(Some(Kind::Index)),
        OCI_MANIFEST | "application/vnd.docker.distribution.manifest.v2+json" => Ok(Some(Kind::Manifest)),
        "application/vnd.docker.distribution.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Err(ManifestError::Schema1),
        "" | "application/json" | "application/octet-stream" | "text/plain" => Ok(None),
        other => Err(ManifestError::NotAnImage(other.chars().take(200).collect())),
    }
}

/// Parses a manifest or an index. `served` is the media type it came with, empty if unknown.
pub(crate) fn parse(bytes: &[u8], served: &str, limits: &Limits) -> Result<Document, ManifestError> {
    check_size("manifest", bytes.len() as u64, limits.manifest_bytes)?;
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what: "manifest", source })?;
    if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
        return Err(ManifestError::Schema1);
    }
    match raw.schema_version {
        Some(2) => (),
        other => return Err(ManifestError::SchemaVersion(other.unwrap_or(0))),
    }
    let shape = match (&raw.manifests, raw.layers.is_some() || raw.config.is_some()) {
        (Some(_), true) => return Err(ManifestError::Ambiguous("both layers and manifests")),
        (None, false) => return Err(ManifestError::Ambiguous("neither layers nor manifests")),
        (Some(_), false) => Kind::Index,
        (None, true) => Kind::Manifest,
    };
    let served = served.split(';').next().unwrap_or_default().trim();
    let says = raw.media_type.unwrap_or_default();
    for media_type in [says.as_str(), served] {
        if kind(media_type)?.is_some_and(|kind| kind != shape) {
            let says = if media_type == served { format!("{shape:?}").to_lowercase() } else { says.clone() };
            return Err(ManifestError::MediaType { served: media_type.to_owned(), says });
        }
    }
    if let Some(manifests) = raw.manifests {
        return Ok(Document::Index(manifests));
    }
    let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
        return Err(ManifestError::Ambiguous("a configuration or layers, but not both"));
    };
    if layers.len() > limits.layers {
        return Err(ManifestError::Layers(layers.len(), limits.layers));
    }
    let config = config.believe()?;
    let artifact_type = raw.artifact_type.filter(|kind| !kind.is_empty());
    match (config.media_type.as_str(), artifact_type) {
        (OCI_CONFIG | "application/vnd.docker.container.image.v1+json", _) => {}
        ("" | "application/octet-stream", None) => {}
        (other, kind) => {
            let kind: String = kind.unwrap_or_else(|| other.to_owned()).chars().take(200).collect();
            let blobs = layers.into_iter().map(artifact::blob).collect::<Result<_, _>>()?;
            return Artifact::new(kind, config, blobs).map(Document::Artifact);
        }
    }
    let layers = layers.into_iter().map(RawDescriptor::believe).collect::<Result<Vec<_>, _>>()?;
    if let Some(layer) = layers.iter().find(|l| !is_layer(&l.media_type)) {
        let media_type = layer.media_type.chars().take(200).collect();
        return Err(ManifestError::LayerType { digest: layer.digest.clone(), media_type });
    }
    Ok(Document::Manifest(Manifest { config, layers }))
}

impl RawDescriptor {
    fn believe(self) -> Result<Descriptor, ManifestError> {
        let urls = self.urls.unwrap_or_default();
        Ok(Descriptor { media_type: self.media_type, digest: self.digest.parse()?, size: self.size, urls })
    }
}

/// The compression is told by the first bytes, not by the name; but other formats are refused by name.
fn is_layer(media_type: &str) -> bool {
    let base = media_type.strip_suffix("+gzip").or_else(|| media_type.strip_suffix("+zstd"));
    matches!(
        base.unwrap_or(media_type),
        OCI_LAYER
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// Chooses the manifest of an index for a platform.
pub(crate) fn choose(entries: &[IndexEntry], wanted: &Platform) -> Result<Descriptor, ManifestError> {
    let best = entries
        .iter()
        .filter_map(|entry| Some((platform::fit(entry.platform.as_ref()?, wanted)?, entry)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry);
    let only = match entries {
        [entry] if entry.platform.is_none() => Some(entry),
        _ => None,
    };
    match best.or(only) {
        Some(entry) => entry.descriptor(),
        None => {
            let offered = entries.iter().filter_map(|e| e.platform.as_ref()).map(Platform::to_string);
            let offered = offered.filter(|p| p != "unknown/unknown").take(20).collect();
            Err(ManifestError::Platform { wanted: wanted.to_string(), offered })
        }
    }
}

/// Parses an image's configuration.
pub(crate) fn parse_config(bytes: &[u8], limits: &Limits) -> Result<ImageConfiguration, ManifestError> {
    check_size("configuration", bytes.len() as u64, limits.config_bytes)?;
    serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what: "configuration", source })
}

/// Diff ids of a configuration, one for each layer of the manifest.
pub(crate) fn diff_ids(config: &ImageConfiguration, layers: usize) -> Result<Vec<Digest>, ManifestError> {
    let ids = config.rootfs().diff_ids();
    if ids.len() != layers {
        return Err(ManifestError::DiffIds { layers, diff_ids: ids.len() });
    }
    Ok(ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?)
}

/// Refuses an image that was built for another machine.
pub(crate) fn check_platform(config: &ImageConfiguration, wanted: &Platform) -> Result<(), ManifestError> {
    let has = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone(),
    };
    // Some tools leave the fields empty: then there is nothing to compare.
    let same = |a: &str, b: &str| a.is_empty() || a == b;
    if same(&has.os, &wanted.os) && same(&has.architecture, &wanted.architecture) {
        return Ok(());
    }
    Err(ManifestError::Platform { wanted: wanted.to_string(), offered: vec![has.to_string()] })
}

pub(crate) fn check_size(what: &'static str, bytes: u64, limit: u64) -> Result<(), ManifestError> {
    if bytes > limit { Err(ManifestError::TooLarge { what, bytes, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const D: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn check(json: &str, served: &str, expect: Expect) {
        let text = match parse(json.replace('D', D).as_bytes(), served, &Limits::default()) {
            Ok(Document::Index(entries)) => format!("index of {}", entries.len()),
            Ok(Document::Manifest(m)) => format!("manifest with {} layers", m.layers.len()),
            Ok(Document::Artifact(a)) => {
                let names: Vec<_> = a.blobs.iter().map(|b| b.name.as_str()).collect();
                format!("{} with {}", a.kind, names.join(" "))
            }
            Err(err) => format!("error: {err}"),
        };
        expect.assert_eq(&text);
    }

    #[test]
    fn takes_what_is_an_image() {
        check(r#"{"schemaVersion":2,"manifests":[]}"#, "", expect!["index of 0"]);
        check(
            r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"D","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","digest":"D","size":2}]}"#,
            "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
            expect!["manifest with 1 layers"],
        );
    }

    #[test]
    fn refuses_the_rest() {
        check("{", "", expect!["error: parse manifest"]);
        check(
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            "",
            expect![
                "error: the image has a schema 1 manifest, which is not supported; push it again with a current tool to convert it"
            ],
        );
        check(
            r#"{"schemaVersion":3}"#,
            "",
            expect!["error: manifest has schemaVersion 3; only 2 is supported"],
        );
        check(
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
            "",
            expect!["error: manifest is ambiguous: it has both layers and manifests"],
        );
        check(
            r#"{"schemaVersion":2,"manifests":[],"config":{"digest":"D","size":1}}"#,
            "",
            expect!["error: manifest is ambiguous: it has both layers and manifests"],
        );
        check(
            r#"{"schemaVersion":2}"#,
            "",
            expect!["error: manifest is ambiguous: it has neither layers nor manifests"],
        );
        check(
            r#"{"schemaVersion":2,"manifests":[]}"#,
            OCI_MANIFEST,
            expect![
                "error: manifest is ambiguous: served as `application/vnd.oci.image.manifest.v1+json`, but says it is `index`"
            ],
        );
        check(
            r#"{"schemaVersion":2,"config":{"digest":"../../x","size":1},"layers":[]}"#,
            "",
            expect!["error: manifest has a bad digest"],
        );
        check(
            r#"{"schemaVersion":2,"config":{"digest":"D","size":1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+encrypted","digest":"D","size":1}]}"#,
            "",
            expect![
                "error: layer sha256:0000000000000000000000000000000000000000000000000000000000000000 has the unsupported media type `application/vnd.oci.image.layer.v1.tar+encrypted`"
            ],
        );
        let layer = format!(r#"{{"mediaType":"{OCI_LAYER}","digest":"{D}","size":1}},"#).repeat(501);
        let many = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{D}","size":1}},"layers":[{}]}}"#,
            layer.trim_end_matches(',')
        );
        check(&many, "", expect!["error: image has 501 layers; the limit is 500"]);
        check(&"[".repeat(100_000), "", expect!["error: parse manifest"]);
    }

    #[test]
    fn what_is_no_image_is_an_artifact() {
        check(
            r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"D","size":1},"layers":[{"mediaType":"application/x","digest":"D","size":1}]}"#,
            "",
            expect![
                "application/vnd.cncf.helm.config.v1+json with 0000000000000000000000000000000000000000000000000000000000000000"
            ],
        );
        let titled = |title: &str| {
            format!(
                r#"{{"schemaVersion":2,"artifactType":"application/x","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"D","size":2}},"layers":[{{"mediaType":"text/plain","digest":"D","size":1,"annotations":{{"org.opencontainers.image.title":"{title}"}}}}]}}"#
            )
        };
        check(&titled("models/a.bin"), "", expect!["application/x with models/a.bin"]);
        check(&titled("../a"), "", expect!["error: artifact has a blob with the unusable name `../a`"]);
        check(&titled("/etc/a"), "", expect!["error: artifact has a blob with the unusable name `/etc/a`"]);
    }

    #[test]
    fn chooses_by_platform() {
        let entry = |arch: &str, variant: Option<&str>, n: u8| IndexEntry {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(&[n]).to_string(),
            size: 1,
            platform: Some(Platform {
                os: "linux".into(),
                architecture: arch.into(),
                variant: variant.map(Into::into),
            }),
            annotations: None,
        };
        let wanted = Platform { os: "linux".into(), architecture: "arm64".into(), variant: None };
        let entries = [entry("amd64", None, 1), entry("arm64", Some("v8"), 2)];
        assert_eq!(choose(&entries, &wanted).expect("fits").digest, Digest::of(&[2]));
        let err = choose(&entries[..1], &wanted).expect_err("nothing fits");
        expect!["image has no variant for linux/arm64; it has linux/amd64"].assert_eq(&err.to_string());
    }

    #[test]
    fn docker_nulls_are_fine() {
        let json = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],"Volumes":null,"ExposedPorts":null,"Labels":null,"OnBuild":null,"Healthcheck":{"Test":["NONE"]}},"rootfs":{"type":"layers","diff_ids":[]},"history":null}"#;
        let config = parse_config(json.as_bytes(), &Limits::default()).expect("parses");
        assert_eq!(diff_ids(&config, 0).expect("none"), []);
        assert!(diff_ids(&config, 1).is_err());
    }
}
