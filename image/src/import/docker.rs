//! Archives of `docker save`: `manifest.json` lists configurations, layers and tags.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::archive::Archive;
use super::{Found, FoundLayer, ImportError};
use crate::digest::Digest;
use crate::limits::Limits;
use crate::manifest::{
    ManifestError, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, check_platform, diff_ids, parse_config,
};
use crate::platform::Platform;
use crate::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Line {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Reads `manifest.json`.
pub(super) fn lines(archive: &Archive, limits: &Limits) -> Result<Vec<Line>, ImportError> {
    let name = "manifest.json";
    let bytes = archive.small(name, "manifest", limits.manifest_bytes)?;
    serde_json::from_slice(&bytes).map_err(|source| ImportError::Manifest {
        name: name.into(),
        source: ManifestError::Json { what: "manifest", source },
    })
}

/// Names as `docker save` writes them, completed.
pub(super) fn tags(names: &[String]) -> Result<BTreeSet<String>, ImportError> {
    let parse = |name: &String| match name.parse::<Reference>() {
        Ok(reference) => Ok(reference.to_string()),
        Err(source) => Err(ImportError::Name { name: name.chars().take(300).collect(), source }),
    };
    names.iter().map(parse).collect()
}

pub(super) fn find(archive: &Archive, limits: &Limits) -> Result<Vec<Found>, ImportError> {
    let mut found = Vec::new();
    for line in lines(archive, limits)? {
        let config_bytes = archive.small(&line.config, "configuration", limits.config_bytes)?;
        let refuse = |source| ImportError::Manifest { name: line.config.clone(), source };
        let config = parse_config(&config_bytes, limits).map_err(refuse)?;
        check_platform(&config, &Platform::host()).map_err(refuse)?;
        if line.layers.len() > limits.layers {
            return Err(refuse(ManifestError::Layers(line.layers.len(), limits.layers)));
        }
        let diff_ids = diff_ids(&config, line.layers.len()).map_err(refuse)?;
        let layer = |(name, diff_id): (&String, &Digest)| {
            Ok(FoundLayer {
                name: name.clone(),
                piece: archive.piece(name)?,
                digest: None,
                diff_id: diff_id.clone(),
            })
        };
        let layers = line.layers.iter().zip(&diff_ids).map(layer).collect::<Result<Vec<_>, ImportError>>()?;
        let manifest_bytes = manifest(&config_bytes, &layers);
        let tags = tags(line.repo_tags.as_deref().unwrap_or_default())?;
        found.push(Found { config_bytes, config, manifest_bytes, tags, layers, artifact: None });
    }
    Ok(found)
}

/// These archives have no manifests as registries do; an image of ours has one.
fn manifest(config: &[u8], layers: &[FoundLayer]) -> Vec<u8> {
    let descriptor = |media_type: &str, digest: &Digest, size: u64| serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size });
    let layers: Vec<_> = layers.iter().map(|l| descriptor(OCI_LAYER, &l.diff_id, l.piece.size)).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &Digest::of(config), config.len() as u64),
        "layers": layers,
    });
    serde_json::to_vec(&manifest).expect("plain data")
}
