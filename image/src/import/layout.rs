//! OCI layouts in an archive: `index.json` leads to manifests, all content is named by its digest.

use std::collections::{BTreeMap, BTreeSet};

use super::archive::{Archive, blob_name};
use super::docker;
use super::{Found, FoundLayer, ImportError};
use crate::digest::Digest;
use crate::limits::Limits;
use crate::manifest::{
    Artifact, Blob, Document, IndexEntry, Manifest, ManifestError, check_platform, choose, diff_ids, parse,
    parse_config,
};
use crate::platform::{self, Platform};
use crate::reference::Reference;

pub(super) fn find(archive: &Archive, limits: &Limits) -> Result<Vec<Found>, ImportError> {
    let name = "index.json";
    let bytes = archive.small(name, "index", limits.manifest_bytes)?;
    let refuse = |source| ImportError::Manifest { name: name.into(), source };
    let Document::Index(entries) = parse(&bytes, "", limits).map_err(refuse)? else {
        return Err(refuse(ManifestError::Ambiguous("no manifests")));
    };
    // One image may be listed under several names.
    let mut found: BTreeMap<Digest, Found> = BTreeMap::new();
    let host = Platform::host();
    let mut refused = None;
    for entry in &entries {
        if entry.platform.as_ref().is_some_and(|p| platform::fit(p, &host).is_none()) {
            continue;
        }
        let digest = entry.descriptor().map_err(refuse)?.digest;
        let tags = names(entry)?;
        match resolve(archive, limits, &host, digest, !tags.is_empty()) {
            Ok(Some(mut image)) => {
                image.tags.extend(tags);
                let id = image.id();
                match found.get_mut(&id) {
                    Some(known) => known.tags.append(&mut image.tags),
                    None => {
                        found.insert(id, image);
                    }
                }
            }
            Ok(None) => (),
            // Other images of the archive may be for this machine.
            Err(err @ ImportError::Manifest { source: ManifestError::Platform { .. }, .. }) => {
                refused = Some(err);
            }
            Err(err) => return Err(err),
        }
    }
    if archive.has("manifest.json") {
        for line in docker::lines(archive, limits)? {
            let config = archive.small(&line.config, "configuration", limits.config_bytes)?;
            if let Some(image) = found.get_mut(&Digest::of(&config)) {
                image.tags.append(&mut docker::tags(line.repo_tags.as_deref().unwrap_or_default())?);
            }
        }
    }
    match refused {
        Some(err) if found.is_empty() => Err(err),
        _ => Ok(found.into_values().collect()),
    }
}

/// Follows an entry to the manifest for this machine. `None` if it is not a container image, or its
/// content is for other machines and not there.
fn resolve(
    archive: &Archive,
    limits: &Limits,
    host: &Platform,
    mut digest: Digest,
    named: bool,
) -> Result<Option<Found>, ImportError> {
    for _ in 0..3 {
        let name = blob_name(&digest);
        let refuse = |source| ImportError::Manifest { name: name.clone(), source };
        let bytes = archive
            .blob(&digest, "manifest", limits.manifest_bytes)?
            .ok_or_else(|| ImportError::Missing(name.clone()))?;
        match parse(&bytes, "", limits) {
            Ok(Document::Index(entries)) => digest = choose(&entries, host).map_err(refuse)?.digest,
            Ok(Document::Manifest(manifest)) => {
                return image(archive, limits, host, manifest, bytes).map(Some);
            }
            // Signatures and other artifacts lie beside images; those with a name are meant.
            Ok(Document::Artifact(found)) if named => {
                return artifact(archive, limits, found, bytes).map(Some);
            }
            Ok(Document::Artifact(_)) | Err(ManifestError::NotAnImage(_)) => return Ok(None),
            Err(err) => return Err(refuse(err)),
        }
    }
    Err(ImportError::Manifest { name: blob_name(&digest), source: ManifestError::Nested })
}

fn image(
    archive: &Archive,
    limits: &Limits,
    host: &Platform,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
) -> Result<Found, ImportError> {
    let name = blob_name(&manifest.config.digest);
    let refuse = |source| ImportError::Manifest { name: name.clone(), source };
    let config_bytes = archive
        .blob(&manifest.config.digest, "configuration", limits.config_bytes)?
        .ok_or_else(|| ImportError::Missing(name.clone()))?;
    let config = parse_config(&config_bytes, limits).map_err(refuse)?;
    check_platform(&config, host).map_err(refuse)?;
    let diff_ids = diff_ids(&config, manifest.layers.len()).map_err(refuse)?;
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest.layers.into_iter().zip(diff_ids) {
        let name = blob_name(&layer.digest);
        let piece = archive.piece(&name)?;
        layers.push(FoundLayer { name, piece, digest: Some(layer.digest), diff_id });
    }
    Ok(Found { config_bytes, config, manifest_bytes, tags: BTreeSet::new(), layers, artifact: None })
}

fn artifact(
    archive: &Archive,
    limits: &Limits,
    artifact: Artifact,
    manifest_bytes: Vec<u8>,
) -> Result<Found, ImportError> {
    let config_bytes = match artifact.empty_config() {
        Some(bytes) => bytes.to_vec(),
        None => archive
            .blob(&artifact.config.digest, "configuration", limits.config_bytes)?
            .ok_or_else(|| ImportError::Missing(blob_name(&artifact.config.digest)))?,
    };
    let piece = |blob: &Blob| {
        let name = blob_name(&blob.descriptor.digest);
        let (digest, diff_id) = (Some(blob.descriptor.digest.clone()), blob.descriptor.digest.clone());
        Ok(FoundLayer { piece: archive.piece(&name)?, name, digest, diff_id })
    };
    let layers = artifact.blobs.iter().map(piece).collect::<Result<Vec<_>, ImportError>>()?;
    Ok(Found {
        config_bytes,
        config: oci_spec::image::ImageConfiguration::default(),
        manifest_bytes,
        tags: BTreeSet::new(),
        layers,
        artifact: Some(artifact),
    })
}

/// The names of an image: containerd's annotation has the whole name; the standard one may be only a tag,
/// which names nothing by itself.
fn names(entry: &IndexEntry) -> Result<BTreeSet<String>, ImportError> {
    let annotation = |key: &str| entry.annotations.as_ref().and_then(|a| a.get(key));
    let parse = |name: &str| match name.parse::<Reference>() {
        Ok(reference) if reference.digest().is_none() => Ok([reference.to_string()].into()),
        Ok(_) => Ok(BTreeSet::new()),
        Err(source) => Err(ImportError::Name { name: name.chars().take(300).collect(), source }),
    };
    if let Some(name) = annotation("io.containerd.image.name") {
        return parse(name);
    }
    match annotation("org.opencontainers.image.ref.name") {
        Some(name) if name.contains(['/', ':']) => parse(name),
        _ => Ok(BTreeSet::new()),
    }
}
